//! The vCPU threads.
//!
//! ```text
//! wait for all to be ready -> in the guest --exit--> device on a bus --> in the guest ...
//!                                  \--machine ended (kick, or own doing)--> gone
//! ```
//! A thread leaves only when the machine has ended; it ends the machine itself on a reset, a KVM
//! error or an exit that no guest of ours causes.

use std::sync::Arc;

use kvm_ioctls::VcpuExit;

use crate::bus::Bus;
use crate::control::{Control, MachineExit};
use crate::kvm::Vcpu;
use crate::metrics::Exits;

/// `KVM_SYSTEM_EVENT_*` of linux/kvm.h.
const SYSTEM_EVENT_SHUTDOWN: u32 = 1;
const SYSTEM_EVENT_RESET: u32 = 2;
const SYSTEM_EVENT_CRASH: u32 = 3;

/// What all vCPUs of a machine share.
#[derive(Debug)]
pub struct Shared {
    /// The machine's end.
    pub control: Arc<Control>,
    /// I/O ports.
    pub ports: Bus,
    /// Device registers.
    pub registers: Bus,
    /// Counters; they outlive the machine's hardware.
    pub exits: Arc<Exits>,
}

/// Runs the guest until the machine ends.
pub fn run(mut vcpu: Vcpu, shared: &Shared) {
    while !shared.control.ended() {
        if let Some(end) = step(&mut vcpu, shared) {
            return shared.control.end(end);
        }
    }
}

/// One stay in the guest and what it came back for. The reason to end the machine, if it is one.
fn step(vcpu: &mut Vcpu, shared: &Shared) -> Option<MachineExit> {
    let index = vcpu.index();
    let exits = &*shared.exits;
    let exit = match vcpu.run() {
        Ok(exit) => exit,
        Err(error) => match error.errno() {
            libc::EINTR | libc::EAGAIN => {
                Exits::count(&exits.interrupted);
                return None;
            }
            _ => return Some(MachineExit::Failed(format!("KVM cannot run vCPU {index}: {error}"))),
        },
    };
    let (kind, claimed) = match exit {
        VcpuExit::IoIn(port, data) => (&exits.io, shared.ports.read(port.into(), data)),
        VcpuExit::IoOut(port, data) => (&exits.io, shared.ports.write(port.into(), data)),
        VcpuExit::MmioRead(address, data) => (&exits.mmio, shared.registers.read(address, data)),
        VcpuExit::MmioWrite(address, data) => (&exits.mmio, shared.registers.write(address, data)),
        other => {
            Exits::count(&exits.other);
            let end = ending(&other, index);
            return if matches!(other, VcpuExit::InternalError) { Some(internal_error(vcpu)) } else { end };
        }
    };
    Exits::count(kind);
    if !claimed {
        Exits::count(&exits.unclaimed);
    }
    None
}

/// What an exit that is no device access means for the machine.
fn ending(exit: &VcpuExit<'_>, index: u8) -> Option<MachineExit> {
    match exit {
        VcpuExit::Intr | VcpuExit::IrqWindowOpen => None,
        // A triple fault, which is how `reboot=t` resets.
        VcpuExit::Shutdown | VcpuExit::SystemEvent(SYSTEM_EVENT_RESET, _) => Some(MachineExit::Reset),
        VcpuExit::SystemEvent(SYSTEM_EVENT_SHUTDOWN, _) => Some(MachineExit::PoweredOff),
        VcpuExit::SystemEvent(SYSTEM_EVENT_CRASH, _) => Some(MachineExit::Panicked),
        VcpuExit::FailEntry(reason, _) => Some(MachineExit::Failed(format!(
            "The CPU refuses to enter the guest on vCPU {index}, reason {reason:#x}"
        ))),
        other => Some(MachineExit::Failed(format!("vCPU {index} came back with {other:?}"))),
    }
}

fn internal_error(vcpu: &mut Vcpu) -> MachineExit {
    let reason = vcpu.internal_error();
    MachineExit::Failed(format!("KVM failed on vCPU {}, internal error {reason}", vcpu.index()))
}
