//! What a machine is to be: the caller's wishes, and the same parsed into types that cannot be wrong.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// Most vCPUs of one machine: what the MADT's one-byte APIC ids and a pod's size make sensible.
pub const MAX_VCPUS: u8 = 64;
/// Least RAM: kernel, agent and the smallest container fit, with nothing to spare.
pub const MIN_MEMORY_MIB: u32 = 64;
/// Most RAM: 512 GiB stays below 2^40, the narrowest guest-physical width of any host we run on.
pub const MAX_MEMORY_MIB: u32 = 512 * 1024;

/// Which machine to build. A value, never a cargo feature: both kinds share all code but the launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineKind {
    /// A plain KVM guest; its memory is the host's to read.
    Kvm,
}

/// The caller's description of a machine.
#[derive(Debug)]
pub struct MachineConfig {
    /// Number of vCPUs, 1 to [`MAX_VCPUS`].
    pub vcpus: u8,
    /// RAM in MiB, [`MIN_MEMORY_MIB`] to [`MAX_MEMORY_MIB`].
    pub memory_mib: u32,
    /// The guest kernel, an uncompressed ELF `vmlinux`.
    pub kernel: PathBuf,
    /// Expected SHA-256 of the kernel. Checking costs a pass over the file at each start, and guards
    /// against mix-ups, not against a host that changes the file a moment later.
    pub kernel_sha256: Option<[u8; 32]>,
    /// The guest's root image, an EROFS file system.
    pub root_image: PathBuf,
    /// Expected SHA-256 of the root image; see `kernel_sha256`.
    pub root_image_sha256: Option<[u8; 32]>,
    /// Where the output of a debug console goes. With it the machine has a 16550 UART and the
    /// kernel is told to use it; output is dropped, never waited for, when the sink is full.
    pub console: Option<OwnedFd>,
    /// Kind of machine.
    pub kind: MachineKind,
}

/// The sizes of a machine, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub vcpus: u8,
    pub memory_mib: u32,
}

/// A configuration that no machine can have.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// Memory out of range.
    #[error("A machine has {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB} MiB of memory, {0} were asked for")]
    Memory(u32),
    /// vCPU count out of range.
    #[error("A machine has 1 to {MAX_VCPUS} vCPUs, {0} were asked for")]
    Vcpus(u8),
}

impl MachineConfig {
    /// Checks the sizes.
    pub(crate) fn sizes(&self) -> Result<Sizes, ConfigError> {
        if !(1..=MAX_VCPUS).contains(&self.vcpus) {
            return Err(ConfigError::Vcpus(self.vcpus));
        }
        if !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&self.memory_mib) {
            return Err(ConfigError::Memory(self.memory_mib));
        }
        Ok(Sizes { vcpus: self.vcpus, memory_mib: self.memory_mib })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(vcpus: u8, memory_mib: u32) -> MachineConfig {
        MachineConfig {
            vcpus,
            memory_mib,
            kernel: PathBuf::new(),
            kernel_sha256: None,
            root_image: PathBuf::new(),
            root_image_sha256: None,
            console: None,
            kind: MachineKind::Kvm,
        }
    }

    #[test]
    fn sizes_at_their_bounds_pass_and_beyond_are_named() {
        assert!(config(1, MIN_MEMORY_MIB).sizes().is_ok());
        assert!(config(MAX_VCPUS, MAX_MEMORY_MIB).sizes().is_ok());
        assert_eq!(config(0, 256).sizes(), Err(ConfigError::Vcpus(0)));
        assert_eq!(config(MAX_VCPUS + 1, 256).sizes(), Err(ConfigError::Vcpus(65)));
        assert_eq!(config(1, 63).sizes(), Err(ConfigError::Memory(63)));
        assert_eq!(config(1, MAX_MEMORY_MIB + 1).sizes(), Err(ConfigError::Memory(MAX_MEMORY_MIB + 1)));
    }
}
