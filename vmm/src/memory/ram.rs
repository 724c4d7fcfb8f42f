//! The guest's RAM: the mappings, their owner, and the law for touching them.
//!
//! # The law of guest memory
//! The guest writes its memory at any moment, from other threads, without telling us. So there is
//! never a `&[u8]`, `&mut [u8]` or `&T` into it: such a reference promises the compiler that the
//! bytes hold still. All access goes through `vm-memory`'s volatile copies
//! ([`vm_memory::Bytes`], [`vm_memory::VolatileSlice`]); a value is copied out once, checked, and
//! the copy is used. Nothing is read twice.

use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

/// A handle to the guest's RAM. Clones are cheap and keep the mapping alive.
#[derive(Clone, Debug)]
pub struct GuestRam {
    memory: Arc<GuestMemoryMmap>,
}

impl GuestRam {
    /// The checked, volatile view of the memory that devices and queues work on.
    #[must_use]
    pub fn view(&self) -> &GuestMemoryMmap {
        &self.memory
    }
}
