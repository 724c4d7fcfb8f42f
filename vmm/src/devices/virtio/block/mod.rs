//! The read-only block device (virtio 1.2, section 5.2) over an address space of mapped files.
//!
//! ```text
//!   LayerDisk::map(file) --> Extents (offset -> file) <-- lookup -- hull-<slot> thread <-- queue
//! ```
//! [`Extents`] is the disk's contents, `request` reads what the guest wants, `worker` does it: file
//! to guest memory in one `preadv`, no buffer between. The root disk and the layer disk are the same
//! device over different extents.

mod extents;
mod request;
mod worker;

pub use extents::{Extent, ExtentId, Extents, LayerDisk, LayerError};

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use super::{ActivateError, Activation, Counter, VirtioDevice};
use crate::seccomp::{Allowed, allow};
use request::MAX_SEGMENTS;
use worker::Worker;

/// Bytes of a sector, the unit of addresses.
pub const SECTOR: u64 = 512;
/// Requests in flight; a request with indirect descriptors takes one entry.
const QUEUE_SIZE: u16 = 128;
/// Length of the device's id string.
const ID_LENGTH: usize = 20;

/// What a block device's thread needs besides the common calls.
pub const SYSCALLS: &[Allowed] = &[
    allow(libc::SYS_epoll_wait, "waits for requests and the stop"),
    allow(libc::SYS_preadv, "reads a mapped file into guest memory"),
];

/// What the device has done.
#[derive(Debug, Default)]
struct Counters {
    reads: AtomicU64,
    bytes_read: AtomicU64,
    failed: AtomicU64,
    malformed: AtomicU64,
}

/// A read-only disk.
#[derive(Debug)]
pub struct Block {
    name: &'static str,
    extents: Arc<Extents>,
    counters: Arc<Counters>,
    worker: Option<Worker>,
}

impl Block {
    /// A disk called `name` (which is also its id string and thread name) with these contents.
    #[must_use]
    pub fn new(name: &'static str, extents: Arc<Extents>) -> Self {
        Self { name, extents, counters: Arc::default(), worker: None }
    }

    /// `struct virtio_blk_config` up to `blk_size`.
    fn config(&self) -> [u8; 24] {
        let mut config = [0; 24];
        let sectors = self.extents.capacity_bytes() / SECTOR;
        let fields: [(usize, &[u8]); 3] = [
            (0, &sectors.to_le_bytes()),
            (12, &(MAX_SEGMENTS as u32).to_le_bytes()),
            (20, &(SECTOR as u32).to_le_bytes()),
        ];
        for (offset, bytes) in fields {
            for (to, from) in config.iter_mut().skip(offset).zip(bytes) {
                *to = *from;
            }
        }
        config
    }
}

/// The id string of a disk, padded with zeros.
fn id(name: &str) -> [u8; ID_LENGTH] {
    let mut id = [0; ID_LENGTH];
    for (to, from) in id.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    id
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_BLK_F_RO
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_FLUSH
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        for (to, from) in data.iter_mut().zip(self.config().into_iter().skip(offset)) {
            *to = from;
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let disk = worker::Disk {
            id: id(self.name),
            extents: Arc::clone(&self.extents),
            counters: Arc::clone(&self.counters),
        };
        self.worker = Some(Worker::start(self.name, disk, activation)?);
        Ok(())
    }

    fn reset(&mut self) {
        if let Some(worker) = self.worker.take() {
            worker.stop();
        }
    }

    fn counters(&self) -> Vec<Counter> {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        vec![
            Counter { name: "reads", value: value(&self.counters.reads) },
            Counter { name: "bytes_read", value: value(&self.counters.bytes_read) },
            Counter { name: "requests_failed", value: value(&self.counters.failed) },
            Counter { name: "requests_malformed", value: value(&self.counters.malformed) },
        ]
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.reset();
    }
}

#[cfg(test)]
mod tests;
