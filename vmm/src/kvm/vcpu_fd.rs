//! A vCPU's file descriptor: its registers before boot, and running it.

use std::sync::Arc;

use kvm_bindings::{CpuId, Msrs, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::{KvmError, Stats, Vm, refused};

/// CR0: protection, extension type, paging.
const CR0: u64 = 0x8000_0011;
/// CR4: physical address extension.
const CR4: u64 = 0x20;
/// EFER: long mode enabled and active.
const EFER: u64 = 0x500;
/// RFLAGS: the bit that is always set; interrupts off.
const RFLAGS: u64 = 2;

/// Where a vCPU starts: 64-bit mode, interrupts off, paging on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// First instruction.
    pub rip: u64,
    /// What the boot protocol hands over in RSI (the zero page).
    pub rsi: u64,
    /// Physical address of the top page table.
    pub cr3: u64,
    /// Physical address of the GDT, and its last byte's offset.
    pub gdt: (u64, u16),
}

/// A vCPU.
#[derive(Debug)]
pub struct Vcpu {
    fd: VcpuFd,
    index: u8,
    /// The VM outlives its vCPUs, and with it the guest's memory.
    _vm: Arc<Vm>,
}

impl Vcpu {
    pub(super) fn new(fd: VcpuFd, vm: Arc<Vm>, index: u8) -> Self {
        Self { fd, index, _vm: vm }
    }

    /// The vCPU's number, which is also its APIC id.
    #[must_use]
    pub fn index(&self) -> u8 {
        self.index
    }

    /// KVM's statistics of this vCPU, where the host's kernel keeps them.
    #[must_use]
    pub fn stats(&self) -> Option<Stats> {
        Stats::open(&self.fd)
    }

    /// Sets what the guest's CPUID instruction returns.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn set_cpuid(&self, cpuid: &CpuId) -> Result<(), KvmError> {
        self.fd.set_cpuid2(cpuid).map_err(refused(format!("the CPUID of vCPU {}", self.index)))
    }

    /// Sets model-specific registers, all or an error.
    ///
    /// # Errors
    /// When KVM refuses one of them.
    pub fn set_msrs(&self, values: &[(u32, u64)]) -> Result<(), KvmError> {
        let call = || format!("the MSRs of vCPU {}", self.index);
        let entries: Vec<kvm_msr_entry> =
            values.iter().map(|&(index, data)| kvm_msr_entry { index, data, ..Default::default() }).collect();
        let msrs =
            Msrs::from_entries(&entries).map_err(|_| refused(call())(kvm_ioctls::Error::new(libc::E2BIG)))?;
        let set = self.fd.set_msrs(&msrs).map_err(refused(call()))?;
        match values.get(set) {
            None => Ok(()),
            Some((index, _)) => Err(refused(format!("MSR {index:#x} of vCPU {}", self.index))(
                kvm_ioctls::Error::new(libc::EINVAL),
            )),
        }
    }

    /// Puts the vCPU into 64-bit mode at `start`. Vector and control registers that are not named
    /// keep KVM's reset values, so that an SNP launch measures the same state.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn set_registers(&self, start: Registers) -> Result<(), KvmError> {
        let mut sregs =
            self.fd.get_sregs().map_err(refused(format!("to show the registers of vCPU {}", self.index)))?;
        sregs.cs = flat_segment(0x10, 0xb, true);
        for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
            *segment = flat_segment(0x18, 0x3, false);
        }
        (sregs.gdt.base, sregs.gdt.limit) = start.gdt;
        sregs.idt = kvm_bindings::kvm_dtable::default();
        (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (CR0, start.cr3, CR4, EFER);
        self.fd.set_sregs(&sregs).map_err(refused(format!("the segments of vCPU {}", self.index)))?;
        let regs = kvm_regs { rip: start.rip, rsi: start.rsi, rflags: RFLAGS, ..Default::default() };
        self.fd.set_regs(&regs).map_err(refused(format!("the registers of vCPU {}", self.index)))
    }

    /// Runs the guest until it needs us.
    ///
    /// # Errors
    /// KVM's errno; `EINTR` and `EAGAIN` mean "again".
    pub fn run(&mut self) -> Result<VcpuExit<'_>, kvm_ioctls::Error> {
        self.fd.run()
    }

    /// After `VcpuExit::InternalError`: KVM's reason.
    pub fn internal_error(&mut self) -> u32 {
        // SAFETY: `internal` is a view of plain integers; every bit pattern of the union is valid
        // for it, and the page is mapped as long as `fd` is open.
        unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal.suberror }
    }
}

/// A flat 4 GiB segment: 64-bit code, or data.
fn flat_segment(selector: u16, type_: u8, code: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: u8::from(!code),
        s: 1,
        l: u8::from(code),
        g: 1,
        ..Default::default()
    }
}
