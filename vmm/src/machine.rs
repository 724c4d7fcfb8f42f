//! The handle to a machine.
//!
//! ```text
//! start -> running --(guest ends it, failure)--> ended --stop--> gone
//!             \------------------stop--------------------------/
//! ```
//! `ended` keeps memory and devices until [`Machine::stop`] (or the drop): the owner learns of the
//! end through [`Machine::exited`] and decides when to let go.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::builder::Configured;
use crate::config::MachineConfig;
use crate::control::{Control, MachineExit};
use crate::devices::virtio::block::LayerDisk;
use crate::devices::virtio::transport::Transport;
use crate::devices::virtio::vsock::Vsock;
use crate::error::MachineError;
use crate::kvm::Stats;
use crate::metrics::{self, BootClock, BootSpan, DeviceMetrics, Exits, MachineMetrics};
use crate::thread::Spawner;

/// How long `stop` waits for vCPU threads: a vCPU leaves the guest within microseconds of a kick,
/// and no register access takes longer than a device's reset.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// A running machine. Dropping it stops it.
#[derive(Debug)]
pub struct Machine {
    control: Arc<Control>,
    layers: LayerDisk,
    vsock: Vsock,
    exits: Arc<Exits>,
    boot: Vec<BootSpan>,
    hardware: Mutex<Option<Hardware>>,
}

/// What a machine is made of, beside its vCPU threads. Dropping it stops the machine and gives
/// everything back; the guest's memory goes with the last vCPU and device that can reach it.
#[derive(Debug)]
pub(crate) struct Hardware {
    pub slots: Vec<Slot>,
    pub layers: LayerDisk,
    pub vsock: Vsock,
    pub console_dropped: Option<Arc<AtomicU64>>,
    pub control: Arc<Control>,
    pub spawner: Spawner,
    /// One for each vCPU, where the host has them. They keep the VM in existence.
    pub stats: Vec<Stats>,
}

/// A filled slot.
#[derive(Debug)]
pub(crate) struct Slot {
    pub name: &'static str,
    pub transport: Arc<Mutex<Transport>>,
}

impl Slot {
    fn transport(&self) -> MutexGuard<'_, Transport> {
        self.transport.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops the device; gives up where a vCPU thread that could not be joined holds it.
    fn shut_down(&self) {
        match self.transport.try_lock() {
            Ok(mut transport) => transport.shut_down(),
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner().shut_down(),
            Err(TryLockError::WouldBlock) => {}
        }
    }
}

impl Drop for Hardware {
    fn drop(&mut self) {
        self.control.end(MachineExit::Stopped);
        let busy = self.control.join_vcpus(Instant::now() + STOP_DEADLINE);
        if busy > 0 {
            tracing::error!(busy, "vCPU threads do not end; they keep the guest's memory");
        }
        // No device is activated again: the vCPUs are gone, and `metrics` waits for `stop`.
        self.slots.iter().for_each(Slot::shut_down);
    }
}

impl Machine {
    /// Builds the machine and starts its guest. Blocks for some milliseconds.
    ///
    /// # Errors
    /// Says which step failed and why; nothing is left of the machine then.
    pub fn start(config: MachineConfig) -> Result<Self, MachineError> {
        let mut clock = BootClock::new();
        let configured = Configured::new(config, &mut clock)?;
        let (hardware, exits) = configured.load(&mut clock)?.wire(&mut clock)?.run(&mut clock)?;
        let boot = clock.into_spans();
        for BootSpan { name, took, .. } in &boot {
            tracing::debug!(step = name, ?took, "machine start");
        }
        Ok(Self {
            control: Arc::clone(&hardware.control),
            layers: hardware.layers.clone(),
            vsock: hardware.vsock.clone(),
            exits,
            boot,
            hardware: Mutex::new(Some(hardware)),
        })
    }

    /// The layer disk, to map files into while the machine runs.
    #[must_use]
    pub fn layers(&self) -> &LayerDisk {
        &self.layers
    }

    /// The machine's end of vsock.
    #[must_use]
    pub fn vsock(&self) -> &Vsock {
        &self.vsock
    }

    /// Tells when and why the machine has ended; `None` while it runs.
    #[must_use]
    pub fn exited(&self) -> watch::Receiver<Option<MachineExit>> {
        self.control.exit()
    }

    /// Ends the machine if it still runs, joins its threads and frees its memory. Idempotent;
    /// returns within seconds, usually milliseconds.
    pub fn stop(&self) {
        // With the lock held all the while, so that a second caller returns when all is gone, too.
        let mut hardware = self.hardware();
        drop(hardware.take());
    }

    /// All counters. After `stop` those of the devices are gone.
    #[must_use]
    pub fn metrics(&self) -> MachineMetrics {
        let hardware = self.hardware();
        let (mut devices, mut kvm, mut console_bytes_dropped) = (Vec::new(), Vec::new(), 0);
        if let Some(hardware) = &*hardware {
            kvm = metrics::kvm_counters(&hardware.stats);
            devices.extend(hardware.slots.iter().map(|slot| {
                let transport = slot.transport();
                let failure = transport.failure().map(ToString::to_string);
                DeviceMetrics { name: slot.name, failure, counters: transport.counters() }
            }));
            let dropped = hardware.console_dropped.as_deref();
            console_bytes_dropped = dropped.map_or(0, |dropped| dropped.load(Ordering::Relaxed));
        }
        let boot = self.boot.clone();
        MachineMetrics { exits: self.exits.counters(), kvm, devices, boot, console_bytes_dropped }
    }

    fn hardware(&self) -> MutexGuard<'_, Option<Hardware>> {
        self.hardware.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
