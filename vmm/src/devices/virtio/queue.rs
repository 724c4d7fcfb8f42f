//! A queue while the driver sets it up, and the check that turns it into one that devices use.

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;

/// The registers of one queue.
#[derive(Clone, Debug)]
pub struct QueueSetup {
    max_size: u16,
    size: u16,
    ready: bool,
    /// Where the descriptor table is.
    pub descriptors: Address,
    /// Where the available ring is.
    pub available: Address,
    /// Where the used ring is.
    pub used: Address,
}

/// A guest-physical address, written in halves.
#[derive(Clone, Copy, Debug, Default)]
pub struct Address(u64);

impl Address {
    /// Sets the lower 32 bits.
    pub fn set_low(&mut self, value: u32) {
        self.0 = self.0 & !u64::from(u32::MAX) | u64::from(value);
    }

    /// Sets the upper 32 bits.
    pub fn set_high(&mut self, value: u32) {
        self.0 = self.0 & u64::from(u32::MAX) | u64::from(value) << 32;
    }

    fn halves(self) -> (Option<u32>, Option<u32>) {
        (Some(self.0 as u32), Some((self.0 >> 32) as u32))
    }
}

impl QueueSetup {
    /// A queue of at most `max_size` that the driver has not touched.
    #[must_use]
    pub fn new(max_size: u16) -> Self {
        let none = Address::default();
        Self { max_size, size: max_size, ready: false, descriptors: none, available: none, used: none }
    }

    /// The device's limit.
    #[must_use]
    pub fn max_size(&self) -> u16 {
        self.max_size
    }

    /// Whether the driver has declared it ready.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.ready
    }

    /// The driver's choice; `build` refuses a bad one.
    pub fn set_size(&mut self, size: u32) {
        self.size = u16::try_from(size).unwrap_or(0);
    }

    /// The driver's declaration.
    pub fn set_ready(&mut self, ready: bool) {
        self.ready = ready;
    }

    /// The queue for the device, or `None` where the driver's set-up is not a valid one: not ready, a
    /// size that is no power of two or above the limit, a crooked address, a ring outside the RAM.
    #[must_use]
    pub fn build(&self, memory: &GuestMemoryMmap, event_idx: bool) -> Option<Queue> {
        let size_ok = self.size.is_power_of_two() && self.size <= self.max_size;
        let mut queue = Queue::new(self.max_size).ok().filter(|_| size_ok && self.ready)?;
        queue.set_size(self.size);
        let (low, high) = self.descriptors.halves();
        queue.set_desc_table_address(low, high);
        let (low, high) = self.available.halves();
        queue.set_avail_ring_address(low, high);
        let (low, high) = self.used.halves();
        queue.set_used_ring_address(low, high);
        // The setters ignore misaligned addresses: compare.
        let taken = queue.desc_table() == self.descriptors.0
            && queue.avail_ring() == self.available.0
            && queue.used_ring() == self.used.0;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        (taken && queue.is_valid(memory)).then_some(queue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::GuestRam;

    fn setup() -> QueueSetup {
        let mut setup = QueueSetup::new(16);
        setup.set_size(8);
        setup.descriptors.set_low(0x1000);
        setup.available.set_low(0x2000);
        setup.used.set_low(0x3000);
        setup.set_ready(true);
        setup
    }

    #[test]
    fn only_valid_setups_become_queues() {
        let ram = GuestRam::allocate(64).unwrap();
        let queue = setup().build(ram.view(), true).unwrap();
        assert_eq!((queue.size(), queue.desc_table(), queue.event_idx_enabled()), (8, 0x1000, true));
        let edits: [fn(&mut QueueSetup); 9] = [
            |setup| setup.set_ready(false),
            |setup| setup.set_size(0),
            |setup| setup.set_size(3),
            |setup| setup.set_size(32),
            |setup| setup.set_size(0x1_0008),
            |setup| setup.descriptors.set_low(0x1008),
            |setup| setup.used.set_low(0x3001),
            |setup| setup.available.set_high(1),
            |setup| setup.descriptors.set_low(64 << 20),
        ];
        for (index, edit) in edits.into_iter().enumerate() {
            let mut bad = setup();
            edit(&mut bad);
            assert!(bad.build(ram.view(), true).is_none(), "edit {index}");
        }
    }
}
