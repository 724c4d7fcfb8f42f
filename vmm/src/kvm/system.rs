//! `/dev/kvm` itself: is it there, can it do what we need, and what CPU does it offer.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm};

use super::{KvmError, Vm, refused};

/// What every machine needs, with the words for the error.
const NEEDED: [(Cap, &str); 5] = [
    (Cap::UserMemory, "memory slots (KVM_CAP_USER_MEMORY)"),
    (Cap::Irqchip, "an in-kernel interrupt controller (KVM_CAP_IRQCHIP)"),
    (Cap::Irqfd, "irqfd (KVM_CAP_IRQFD)"),
    (Cap::Ioeventfd, "ioeventfd (KVM_CAP_IOEVENTFD)"),
    (Cap::ImmediateExit, "immediate exits (KVM_CAP_IMMEDIATE_EXIT)"),
];

/// The KVM version that has not changed since 2007.
const API_VERSION: i32 = 12;

/// An open `/dev/kvm` that can run our machines.
#[derive(Debug)]
pub struct System {
    kvm: Kvm,
}

impl System {
    /// Opens `/dev/kvm` and checks it.
    ///
    /// # Errors
    /// Says what is missing: the device, the permission, or a capability.
    pub fn open() -> Result<Self, KvmError> {
        let kvm = Kvm::new().map_err(|error| match error.errno() {
            libc::ENOENT | libc::ENODEV | libc::ENXIO => KvmError::Missing,
            libc::EACCES | libc::EPERM => KvmError::Denied,
            _ => KvmError::Open(error),
        })?;
        let found = kvm.get_api_version();
        if found != API_VERSION {
            return Err(KvmError::ApiVersion { found });
        }
        if let Some((_, what)) = NEEDED.into_iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
            return Err(KvmError::Capability(what));
        }
        Ok(Self { kvm })
    }

    /// Makes an empty VM with in-kernel interrupt controllers.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn create_vm(&self) -> Result<Vm, KvmError> {
        loop {
            match self.kvm.create_vm() {
                // KVM gives up on a pending signal; the next try starts afresh.
                Err(error) if error.errno() == libc::EINTR => {}
                Err(error) => return Err(refused("a new virtual machine")(error)),
                Ok(fd) => return Vm::new(fd),
            }
        }
    }

    /// The CPU that KVM can give to guests, before topology is filled in.
    ///
    /// # Errors
    /// When KVM refuses.
    pub fn supported_cpuid(&self) -> Result<CpuId, KvmError> {
        self.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(refused("its supported CPUID"))
    }

    /// Whether guests may use the TSC-deadline mode of the local APIC timer.
    #[must_use]
    pub fn has_tsc_deadline(&self) -> bool {
        self.kvm.check_extension(Cap::TscDeadlineTimer)
    }
}
