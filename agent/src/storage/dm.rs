//! One stretch of the layer disk as a block device of its own (dm-linear).
//!
//! Reads beyond the stretch fail in the kernel, so a damaged image cannot reach its neighbours.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{major, minor, stat};

use crate::sys::dm::{Control, Stretch};

/// The layer disk: slot 1 of the machine.
const LAYER_DISK: &str = "/dev/vdb";

/// A live mapping. It lives until [`Mapping::remove`]; dropping it undoes nothing.
#[derive(Debug)]
pub struct Mapping {
    name: String,
    device: PathBuf,
}

impl Mapping {
    /// Maps a stretch of the layer disk; `number` must be new.
    ///
    /// # Errors
    /// The kernel's; `ENOENT` if the machine has no layer disk.
    pub fn new(number: u64, offset_bytes: u64, length_bytes: u64) -> io::Result<Self> {
        let disk = stat(LAYER_DISK)?.st_rdev;
        let stretch = Stretch { device: (major(disk), minor(disk)), offset_bytes, length_bytes };
        let name = format!("hull-{number}");
        let minor = Control::open()?.create_linear(&name, stretch)?;
        Ok(Self { name, device: PathBuf::from(format!("/dev/dm-{minor}")) })
    }

    /// Its block device.
    pub fn device(&self) -> &Path {
        &self.device
    }

    /// Removes the mapping.
    ///
    /// # Errors
    /// The kernel's. A mapping that is gone already is no error.
    pub fn remove(&self) -> io::Result<()> {
        match Control::open()?.remove(&self.name) {
            Err(error) if fs::exists(&self.device).unwrap_or(true) => Err(error),
            _ => Ok(()),
        }
    }
}
