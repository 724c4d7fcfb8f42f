//! A split ring, driver's side.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering;

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::devices::virtio::ActiveQueue;
use crate::memory::GuestRam;

const NEXT: u16 = 1;
const RINGS: u64 = 0x1_0000;

/// One split ring, driver's side.
#[derive(Debug)]
pub struct Ring {
    ram: GuestRam,
    base: u64,
    pub size: u16,
    event_idx: bool,
    free: VecDeque<u16>,
    chains: HashMap<u16, Vec<u16>>,
    available: u16,
    used: u16,
    pub kick: EventFd,
    pub kicks: usize,
}

impl Ring {
    pub fn new(ram: &GuestRam, index: u64, size: u16, event_idx: bool) -> Self {
        let ring = Self {
            ram: ram.clone(),
            base: RINGS * (index + 1),
            size,
            event_idx,
            free: (0..size).collect(),
            chains: HashMap::new(),
            available: 0,
            used: 0,
            kick: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap(),
            kicks: 0,
        };
        ring.ram.view().write_slice(&[0; 0x4000], GuestAddress(ring.base)).unwrap();
        ring
    }

    fn available_at(&self) -> u64 {
        self.base + 0x2000
    }

    fn used_at(&self) -> u64 {
        self.base + 0x3000
    }

    pub fn queue(&self) -> ActiveQueue {
        let mut queue = Queue::new(self.size).unwrap();
        queue.set_desc_table_address(Some(self.base as u32), Some(0));
        queue.set_avail_ring_address(Some(self.available_at() as u32), Some(0));
        queue.set_used_ring_address(Some(self.used_at() as u32), Some(0));
        queue.set_event_idx(self.event_idx);
        queue.set_ready(true);
        assert!(queue.is_valid(self.ram.view()));
        ActiveQueue { queue, kick: self.kick.try_clone().unwrap() }
    }

    fn load(&self, address: u64) -> u16 {
        self.ram.view().load(GuestAddress(address), Ordering::SeqCst).unwrap()
    }

    fn store(&self, address: u64, value: u16) {
        self.ram.view().store(value, GuestAddress(address), Ordering::SeqCst).unwrap();
    }

    /// Whether a chain of `count` descriptors fits.
    pub fn has_room(&self, count: usize) -> bool {
        self.free.len() >= count
    }

    /// Makes a chain of (address, length, flags) available and kicks if the device wants it.
    pub fn add(&mut self, pieces: &[(u64, u32, u16)]) -> u16 {
        let descriptors: Vec<u16> = self.free.drain(..pieces.len()).collect();
        for (index, &(address, length, flags)) in pieces.iter().enumerate() {
            let next = descriptors.get(index + 1).copied();
            let flags = flags | if next.is_some() { NEXT } else { 0 };
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&address.to_le_bytes());
            bytes[8..12].copy_from_slice(&length.to_le_bytes());
            bytes[12..14].copy_from_slice(&flags.to_le_bytes());
            bytes[14..].copy_from_slice(&next.unwrap_or(0).to_le_bytes());
            let at = self.base + 16 * u64::from(descriptors[index]);
            self.ram.view().write_slice(&bytes, GuestAddress(at)).unwrap();
        }
        let head = descriptors[0];
        self.chains.insert(head, descriptors);
        self.publish(head, 1);
        head
    }

    /// Writes `head` into the available ring and moves its index by `step` (1 is right).
    pub fn publish(&mut self, head: u16, step: u16) {
        self.store(self.available_at() + 4 + 2 * u64::from(self.available % self.size), head);
        let old = self.available;
        self.available = old.wrapping_add(step);
        self.store(self.available_at() + 2, self.available);
        std::sync::atomic::fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let event = self.load(self.used_at() + 4 + 8 * u64::from(self.size));
            self.available.wrapping_sub(event).wrapping_sub(1) < self.available.wrapping_sub(old)
        } else {
            self.load(self.used_at()) & 1 == 0
        };
        if wanted {
            self.kicks += 1;
            self.kick.write(1).unwrap();
        }
    }

    /// Takes a used chain: its head and how much was written.
    pub fn take(&mut self) -> Option<(u16, u32)> {
        if self.load(self.used_at() + 2) == self.used {
            // Ask for an interrupt with the next one, then look again.
            self.want_interrupt_after(0);
            if self.load(self.used_at() + 2) == self.used {
                return None;
            }
        }
        let at = self.used_at() + 4 + 8 * u64::from(self.used % self.size);
        let head = self.ram.view().read_obj::<u32>(GuestAddress(at)).unwrap() as u16;
        let length = self.ram.view().read_obj::<u32>(GuestAddress(at + 4)).unwrap();
        self.used = self.used.wrapping_add(1);
        self.free.extend(self.chains.remove(&head).expect("the device used a chain that it was not given"));
        Some((head, length))
    }

    /// No interrupt before `more` further chains are used.
    pub fn want_interrupt_after(&self, more: u16) {
        self.store(self.available_at() + 4 + 2 * u64::from(self.size), self.used.wrapping_add(more));
        std::sync::atomic::fence(Ordering::SeqCst);
    }

    /// Entries in the used ring that [`Self::take`] has not returned.
    pub fn used_waiting(&self) -> u16 {
        self.load(self.used_at() + 2).wrapping_sub(self.used)
    }
}
