//! A VM's file descriptor: memory slots, interrupt lines, notifications, vCPUs.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{IoEventAddress, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::{KvmError, Vcpu, refused};

/// Where KVM may put the three pages of its real-mode emulation on Intel hosts: below the BIOS
/// window, where no RAM and no device is (`memory::layout` keeps 3-4 GiB free).
const TSS_ADDRESS: usize = 0xfffb_d000;
/// The page table of the same emulation: the page before.
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

/// A stretch of host memory to become guest RAM.
#[derive(Clone, Copy, Debug)]
pub struct HostRegion {
    /// KVM's slot number, unique in the VM.
    pub slot: u32,
    /// Guest-physical start, page aligned.
    pub guest_address: u64,
    /// Host-virtual start, page aligned.
    pub host_address: u64,
    /// Bytes, a multiple of the page size.
    pub length: u64,
}

/// A VM. It keeps the memory alive that KVM may access through it.
pub struct Vm {
    fd: VmFd,
    /// Dropped after `fd` (fields drop in order), so the mappings outlive KVM's use of them.
    owners: Mutex<Vec<Arc<dyn Any + Send + Sync>>>,
}

impl fmt::Debug for Vm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vm").field("fd", &self.fd).finish_non_exhaustive()
    }
}

impl Vm {
    pub(super) fn new(fd: VmFd) -> Result<Self, KvmError> {
        fd.set_identity_map_address(IDENTITY_MAP_ADDRESS).map_err(refused("an identity map address"))?;
        fd.set_tss_address(TSS_ADDRESS).map_err(refused("a TSS address"))?;
        fd.create_irq_chip().map_err(refused("an interrupt controller"))?;
        Ok(Self { fd, owners: Mutex::new(Vec::new()) })
    }

    /// Gives a stretch of host memory to the guest as RAM.
    ///
    /// # Errors
    /// When KVM refuses (overlap, alignment, no slots left).
    ///
    /// # Safety
    /// `region.host_address .. + region.length` must be one mapping that belongs to `owner`, stays
    /// mapped until `owner` is dropped, and is accessed by this process only in ways that allow
    /// concurrent writes by someone else (the law in `memory::ram`).
    pub unsafe fn add_memory(
        &self,
        region: HostRegion,
        owner: Arc<dyn Any + Send + Sync>,
    ) -> Result<(), KvmError> {
        let slot = kvm_userspace_memory_region {
            slot: region.slot,
            flags: 0,
            guest_phys_addr: region.guest_address,
            memory_size: region.length,
            userspace_addr: region.host_address,
        };
        // SAFETY: by this function's contract the range is a live mapping of `owner`, which is kept
        // in `self.owners` until after `self.fd` and, through `Arc<Vm>` in each `Vcpu`, every vCPU
        // is closed.
        unsafe { self.fd.set_user_memory_region(slot) }
            .map_err(refused(format!("{} bytes of RAM at {:#x}", region.length, region.guest_address)))?;
        self.owners.lock().unwrap_or_else(PoisonError::into_inner).push(owner);
        Ok(())
    }

    /// Lets a write to `event` raise the line `gsi` (edge).
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn connect_interrupt(&self, event: &EventFd, gsi: u32) -> Result<(), KvmError> {
        self.fd.register_irqfd(event, gsi).map_err(refused(format!("an irqfd for line {gsi}")))
    }

    /// Lets a guest write of the 32-bit `value` to `address` signal `event`, without an exit to us.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn connect_notification(&self, event: &EventFd, address: u64, value: u32) -> Result<(), KvmError> {
        self.fd
            .register_ioevent(event, &IoEventAddress::Mmio(address), value)
            .map_err(refused(format!("an ioeventfd at {address:#x}")))
    }

    /// Makes vCPU number `index`.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn create_vcpu(self: &Arc<Self>, index: u8) -> Result<Vcpu, KvmError> {
        let fd = self.fd.create_vcpu(u64::from(index)).map_err(refused(format!("vCPU {index}")))?;
        Ok(Vcpu::new(fd, Arc::clone(self), index))
    }
}
