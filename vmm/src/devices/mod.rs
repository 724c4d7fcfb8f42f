//! The machine's devices.

pub mod virtio;
