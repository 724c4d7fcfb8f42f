//! The guest's RAM: the mappings, their owner, and the law for touching them.
//!
//! # The law of guest memory
//! The guest writes its memory at any moment, from other threads, without telling us. So there is
//! never a `&[u8]`, `&mut [u8]` or `&T` into it: such a reference promises the compiler that the
//! bytes hold still. All access goes through `vm-memory`'s volatile copies
//! ([`vm_memory::Bytes`], [`vm_memory::VolatileSlice`]); a value is copied out once, checked, and
//! the copy is used. Nothing is read twice.

use std::fs;
use std::io;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use vm_memory::mmap::{MmapRegion, MmapRegionBuilder};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

use super::layout::{HUGE_PAGE, MIB, RamRange, ram_ranges};
use crate::kvm::{HostRegion, KvmError, Vm};

/// A handle to the guest's RAM. Clones are cheap and keep the mapping alive.
#[derive(Clone, Debug)]
pub struct GuestRam {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Views into `_mappings`; dropped first.
    memory: GuestMemoryMmap,
    _mappings: Vec<Mapping>,
}

/// RAM for the guest cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host is too full to start the machine.
    #[error("The machine needs {needed_mib} MiB of memory and this host has {available_mib} MiB available")]
    Available {
        /// Asked for.
        needed_mib: u32,
        /// MemAvailable of /proc/meminfo.
        available_mib: u64,
    },
    /// The address space or a limit is exhausted.
    #[error("Cannot map {length_mib} MiB of memory for the guest")]
    Map {
        /// Size of the mapping.
        length_mib: u64,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// KVM does not take the memory.
    #[error("Cannot give the guest its memory")]
    Register(#[from] KvmError),
    /// The pieces do not make a memory (never with [`super::layout`]).
    #[error("The guest's memory regions do not fit together: {0}")]
    Regions(String),
}

impl GuestRam {
    /// Maps `memory_mib` of zeroed memory, laid out as [`super::layout`] says.
    ///
    /// # Errors
    /// When the host has too little memory available or refuses the mapping.
    pub fn allocate(memory_mib: u32) -> Result<Self, MemoryError> {
        check_available(memory_mib, &fs::read_to_string("/proc/meminfo").unwrap_or_default())?;
        let mut mappings = Vec::new();
        let mut regions = Vec::new();
        for range in ram_ranges(memory_mib) {
            let mapping = Mapping::new(range.length)?;
            regions.push(region(&mapping, range)?);
            mappings.push(mapping);
        }
        let memory = GuestMemoryMmap::from_regions(regions)
            .map_err(|error| MemoryError::Regions(error.to_string()))?;
        Ok(Self { inner: Arc::new(Inner { memory, _mappings: mappings }) })
    }

    /// The checked, volatile view of the memory that devices and queues work on.
    #[must_use]
    pub fn view(&self) -> &GuestMemoryMmap {
        &self.inner.memory
    }

    /// Makes the memory the RAM of `vm`, which keeps it alive.
    ///
    /// # Errors
    /// When KVM refuses a slot.
    pub fn register(&self, vm: &Vm) -> Result<(), MemoryError> {
        for (slot, region) in (0..).zip(self.view().iter()) {
            let region = HostRegion {
                slot,
                guest_address: region.start_addr().0,
                host_address: region.as_ptr() as u64,
                length: region.len(),
            };
            // SAFETY: the region is a view of a `Mapping` in `self.inner`, unmapped only when the
            // last clone of it goes; KVM's clone is the owner argument. The law above holds here.
            unsafe { vm.add_memory(region, Arc::clone(&self.inner) as _)? };
        }
        Ok(())
    }
}

/// Refuses a machine that would push the host into reclaim or the OOM killer at once.
fn check_available(needed_mib: u32, meminfo: &str) -> Result<(), MemoryError> {
    let available_mib = meminfo
        .lines()
        .find_map(|line| {
            line.strip_prefix("MemAvailable:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
        })
        .map(|kib| kib / 1024);
    match available_mib {
        Some(available_mib) if available_mib < u64::from(needed_mib) => {
            Err(MemoryError::Available { needed_mib, available_mib })
        }
        // Without the line (never on Linux since 3.14) the mapping itself is the check.
        _ => Ok(()),
    }
}

fn region(mapping: &Mapping, range: RamRange) -> Result<GuestRegionMmap, MemoryError> {
    let length = mapping.usable_length;
    // SAFETY: the pointer and length are those of the live mapping, which `Inner` drops after the
    // region.
    let region: MmapRegion = unsafe {
        MmapRegionBuilder::new(length)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)
            .with_raw_mmap_pointer(mapping.usable.as_ptr())
            .build()
    }
    .map_err(|error| MemoryError::Regions(error.to_string()))?;
    GuestRegionMmap::new(region, GuestAddress(range.start))
        .ok_or_else(|| MemoryError::Regions("a region wraps around".into()))
}

/// An anonymous mapping with a part that is aligned to huge pages.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    length: usize,
    usable: NonNull<u8>,
    usable_length: usize,
}

// SAFETY: the mapping is plain memory that belongs to no thread; the pointers are only handed on.
unsafe impl Send for Mapping {}
// SAFETY: as above; a shared `Mapping` gives no access by itself.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(length: u64) -> Result<Self, MemoryError> {
        let failed = |source: io::Error| MemoryError::Map { length_mib: length / MIB, source };
        let too_large = || failed(io::Error::from_raw_os_error(libc::EOVERFLOW));
        let usable_length = usize::try_from(length).map_err(|_| too_large())?;
        let whole = usable_length.checked_add(HUGE_PAGE as usize).ok_or_else(too_large)?;
        // SAFETY: an anonymous private mapping at an address of the kernel's choice touches nothing
        // that exists.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                whole,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        let start = match NonNull::new(start.cast::<u8>()) {
            Some(start) if start.as_ptr().cast() != libc::MAP_FAILED => start,
            _ => return Err(failed(io::Error::last_os_error())),
        };
        let padding = start.as_ptr().align_offset(HUGE_PAGE as usize);
        // SAFETY: `padding` < 2 MiB, which is what `whole` has beyond `usable_length`.
        let usable = unsafe { start.add(padding) };
        let mapping = Self { start, length: whole, usable, usable_length };
        mapping.advise();
        Ok(mapping)
    }

    /// Hints; the machine runs without them too, so their results do not matter.
    fn advise(&self) {
        // Huge pages: fewer nested page faults. No dump: guest memory is not ours to write to disk.
        // No fork: children of the process must not hold the guest's memory.
        for advice in [libc::MADV_HUGEPAGE, libc::MADV_DONTDUMP, libc::MADV_DONTFORK] {
            // SAFETY: the range is ours and the three hints do not change its contents.
            unsafe { libc::madvise(self.usable.as_ptr().cast(), self.usable_length, advice) };
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new`; `Inner` has dropped all views of it, and KVM holds
        // a clone of `Inner` as long as it can reach the memory.
        let result = unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
        debug_assert_eq!(result, 0, "guest memory must not outlive its owner");
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn memory_is_aligned_zeroed_and_reaches_across_the_hole() {
        let ram = GuestRam::allocate(64).unwrap();
        for region in ram.view().iter() {
            assert_eq!((region.as_ptr() as u64 ^ region.start_addr().0) % HUGE_PAGE, 0);
        }
        assert_eq!(ram.view().read_obj::<u64>(GuestAddress(64 * MIB - 8)).unwrap(), 0);
        assert!(ram.view().read_obj::<u64>(GuestAddress(64 * MIB - 7)).is_err());
        let clone = ram.clone();
        drop(ram);
        clone.view().write_obj(7_u64, GuestAddress(0x1000)).unwrap();
        assert_eq!(clone.view().read_obj::<u64>(GuestAddress(0x1000)).unwrap(), 7);
    }

    #[test]
    fn a_host_without_memory_is_told_apart() {
        let meminfo = "MemTotal:  2048000 kB\nMemAvailable:     262143 kB\n";
        assert!(check_available(255, meminfo).is_ok());
        let error = check_available(256, meminfo).unwrap_err();
        assert_eq!(
            error.to_string(),
            "The machine needs 256 MiB of memory and this host has 255 MiB available"
        );
        assert!(check_available(256, "").is_ok());
    }
}
