//! How large a pod's machine is: the sum of its limits, or the configured defaults. Fixed at boot.

use crate::config::{Config, MAX_VCPUS};
use crate::spec::Limits;

/// What the guest's kernel and agent need beside the containers. Published: RuntimeClass overhead
/// must be no less.
pub const OVERHEAD_MIB: u64 = 96;

/// Virtual hardware of one pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Virtual CPUs.
    pub vcpus: u8,
    /// RAM.
    pub memory_mib: u32,
}

/// vCPUs = the CPU limit, rounded up; memory = the memory limit + [`OVERHEAD_MIB`].
pub fn machine_size(limits: Limits, config: &Config) -> Size {
    let vcpus = match limits.cpu_milli {
        Some(milli) => u8::try_from(milli.div_ceil(1000)).unwrap_or(MAX_VCPUS).clamp(1, MAX_VCPUS),
        None => config.vcpus,
    };
    let memory_mib = match limits.memory_bytes {
        Some(bytes) => {
            u32::try_from(bytes.div_ceil(1 << 20).saturating_add(OVERHEAD_MIB)).unwrap_or(u32::MAX)
        }
        None => config.memory_mib,
    };
    Size { vcpus, memory_mib }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_follow_limits_and_defaults() {
        let config = Config::default();
        let size = |cpu_milli, memory_bytes| machine_size(Limits { cpu_milli, memory_bytes }, &config);
        assert_eq!(size(None, None), Size { vcpus: 1, memory_mib: 256 });
        assert_eq!(size(Some(500), Some(128 << 20)), Size { vcpus: 1, memory_mib: 224 });
        assert_eq!(size(Some(1001), Some(1)), Size { vcpus: 2, memory_mib: 97 });
        assert_eq!(size(Some(1_000_000), None).vcpus, 64);
        assert_eq!(size(None, Some(u64::MAX)).memory_mib, u32::MAX);
    }
}
