//! The machine's devices.
//!
//! [`TABLE`] is the registry of virtio slots. The slots and their order are the machine's shape: the
//! same for every pod, described to the guest by the static DSDT. What differs is which are filled.
//! A new device is a folder under [`virtio`] and a row here.

pub mod power;
pub mod pvpanic;
pub mod serial;
pub mod virtio;

use std::sync::Arc;

use virtio::VirtioDevice;
use virtio::block::{Block, Extents};
use virtio::vsock::VsockDevice;

/// What the rows build devices from.
#[derive(Debug)]
pub struct Parts {
    /// The root image.
    pub root: Arc<Extents>,
    /// The layer disk.
    pub layers: Arc<Extents>,
    /// The vsock device, until its row takes it.
    pub vsock: Option<VsockDevice>,
}

/// One slot.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Its name in metrics, at most 10 bytes: also the worker thread's.
    pub name: &'static str,
    /// Makes its device; `None` leaves the slot empty.
    pub build: fn(&mut Parts, &'static str) -> Option<Box<dyn VirtioDevice>>,
}

/// The slots in the order of their addresses, interrupt lines and device names in the guest.
pub const TABLE: [Row; 10] = [
    Row { name: "root", build: |parts, name| Some(Box::new(Block::new(name, Arc::clone(&parts.root)))) },
    Row { name: "layers", build: |parts, name| Some(Box::new(Block::new(name, Arc::clone(&parts.layers)))) },
    Row { name: "scratch", build: empty },
    Row { name: "volume", build: empty },
    Row { name: "vsock", build: |parts, _| Some(Box::new(parts.vsock.take()?)) },
    Row { name: "net0", build: empty },
    Row { name: "net1", build: empty },
    Row { name: "net2", build: empty },
    Row { name: "net3", build: empty },
    Row { name: "console", build: empty },
];

/// The slot's device comes with a later feature; its address is already part of the shape.
fn empty(_: &mut Parts, _: &'static str) -> Option<Box<dyn VirtioDevice>> {
    None
}
