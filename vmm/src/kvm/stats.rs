//! KVM's own statistics of a vCPU (`KVM_GET_STATS_FD`, Linux 5.14): also the exits that KVM handles
//! without us. Where the host's kernel has none, there are none.
//!
//! The descriptor is a file: header, descriptors of fixed size with a name each, then the values.

use std::fs::File;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl;
use vmm_sys_util::ioctl_io_nr;

ioctl_io_nr!(KVM_GET_STATS_FD, kvm_bindings::KVMIO, 0xce);

/// Bytes of `struct kvm_stats_header`.
const HEADER: usize = 24;
/// Bytes of `struct kvm_stats_desc` before the name.
const DESCRIPTOR: usize = 16;
/// Most values, and longest name, that we believe in: KVM has some 40 of 48 bytes.
const MAX_VALUES: u32 = 1024;
const MAX_NAME: u32 = 256;

/// One vCPU's statistics. Keeps the VM in existence.
#[derive(Debug)]
pub struct Stats {
    file: File,
}

impl Stats {
    pub(super) fn open(vcpu: &VcpuFd) -> Option<Self> {
        // SAFETY: the request takes no argument and returns a new descriptor or -1.
        let fd = unsafe { ioctl(vcpu, KVM_GET_STATS_FD()) };
        if fd < 0 {
            return None;
        }
        // SAFETY: the descriptor is new and nobody else's.
        let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        Some(Self { file })
    }

    /// The current values of the statistics with these names; those that KVM lacks are left out.
    #[must_use]
    pub fn read(&self, names: &[&'static str]) -> Vec<(&'static str, u64)> {
        self.try_read(names).unwrap_or_default()
    }

    fn try_read(&self, names: &[&'static str]) -> Option<Vec<(&'static str, u64)>> {
        let mut header = [0; HEADER];
        self.file.read_exact_at(&mut header, 0).ok()?;
        let (name_size, count) = (u32_at(&header, 4)?, u32_at(&header, 8)?);
        let (descriptors, data) = (u32_at(&header, 16)?, u32_at(&header, 20)?);
        if name_size > MAX_NAME || count > MAX_VALUES {
            return None;
        }
        let size = DESCRIPTOR + name_size as usize;
        let mut table = vec![0; size * count as usize];
        self.file.read_exact_at(&mut table, descriptors.into()).ok()?;
        let mut found = Vec::new();
        for descriptor in table.chunks_exact(size) {
            let name = descriptor.get(DESCRIPTOR..)?.split(|byte| *byte == 0).next()?;
            let Some(name) = names.iter().find(|wanted| wanted.as_bytes() == name) else { continue };
            let mut value = [0; 8];
            let offset = u64::from(data) + u64::from(u32_at(descriptor, 8)?);
            self.file.read_exact_at(&mut value, offset).ok()?;
            found.push((*name, u64::from_le_bytes(value)));
        }
        Some(found)
    }
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let bytes = bytes.get(offset..offset.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}
