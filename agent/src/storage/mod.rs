//! Root file systems: layers of the layer disk, shared, under one overlay per container.
//!
//! The pod owns one [`Storage`]. A layer that several containers use is mapped and mounted once.
//! Everything is undone in reverse when its last user lets go; a second undo finds nothing to do.

pub mod dm;
pub mod erofs;
pub mod overlay;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use hull_protocol::limits::MAX_LAYERS;

use self::dm::Mapping;

/// Alignment of a layer on the layer disk.
const LAYER_ALIGNMENT_BYTES: u64 = 4096;

/// What can go wrong in this room.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// A file system type other than EROFS.
    #[error("Layer at byte {offset_bytes} has file system type {fs_type:?}: only \"erofs\" is known")]
    UnknownType {
        /// Where it is.
        offset_bytes: u64,
        /// As it came.
        fs_type: String,
    },
    /// Offset or length are no positions on the layer disk.
    #[error("Layer at byte {offset_bytes} of {length_bytes} bytes is not made of whole 4096-byte blocks")]
    Misaligned {
        /// Where it is.
        offset_bytes: u64,
        /// How long it is.
        length_bytes: u64,
    },
    /// None, or more than overlayfs takes.
    #[error("Root file system has {count} layers: it must have 1 to {MAX_LAYERS}")]
    LayerCount {
        /// How many came.
        count: usize,
    },
    /// Device-mapper refused.
    #[error("Layer at byte {offset_bytes} of {length_bytes} bytes cannot be mapped from the layer disk")]
    Map {
        /// Where it is.
        offset_bytes: u64,
        /// How long it is.
        length_bytes: u64,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The bytes are no file system, or a damaged one.
    #[error("Layer at byte {offset_bytes} is no readable erofs image")]
    Image {
        /// Where it is.
        offset_bytes: u64,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A step of the overlay's set-up or removal.
    #[error("Cannot {step} at {path}", path = .path.display())]
    Overlay {
        /// What was tried.
        step: &'static str,
        /// Where.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// A read-only image on the layer disk, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Layer {
    offset_bytes: u64,
    length_bytes: u64,
}

impl Layer {
    /// Checks what the host says of a layer.
    ///
    /// # Errors
    /// [`StorageError::UnknownType`] or [`StorageError::Misaligned`].
    pub fn new(offset_bytes: u64, length_bytes: u64, fs_type: &str) -> Result<Self, StorageError> {
        if fs_type != "erofs" {
            return Err(StorageError::UnknownType { offset_bytes, fs_type: fs_type.into() });
        }
        let aligned =
            [offset_bytes, length_bytes].iter().all(|bytes| bytes.is_multiple_of(LAYER_ALIGNMENT_BYTES));
        if !aligned || length_bytes == 0 || offset_bytes.checked_add(length_bytes).is_none() {
            return Err(StorageError::Misaligned { offset_bytes, length_bytes });
        }
        Ok(Self { offset_bytes, length_bytes })
    }
}

/// All layers in use.
#[derive(Debug)]
pub struct Storage {
    dir: PathBuf,
    layers: HashMap<Layer, Mounted>,
    next_number: u64,
}

#[derive(Debug)]
struct Mounted {
    mapping: Mapping,
    path: PathBuf,
    users: usize,
}

/// A container's root file system. It lives until [`Storage::unmount`]; dropping it undoes nothing.
#[derive(Debug)]
pub struct Rootfs {
    dir: PathBuf,
    layers: Vec<Layer>,
}

impl Storage {
    /// No layers yet; they will be mounted below `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), layers: HashMap::new(), next_number: 0 }
    }

    /// Mounts `layers` (bottom first) and a writable tmpfs as `dir/rootfs`.
    ///
    /// # Errors
    /// The first step that failed; what came before it is undone.
    pub fn mount(&mut self, dir: &Path, layers: &[Layer]) -> Result<Rootfs, StorageError> {
        if layers.is_empty() || layers.len() > MAX_LAYERS {
            return Err(StorageError::LayerCount { count: layers.len() });
        }
        let mut rootfs = Rootfs { dir: dir.into(), layers: Vec::with_capacity(layers.len()) };
        match self.mount_into(&mut rootfs, layers) {
            Ok(()) => Ok(rootfs),
            Err(error) => {
                // The first error is the one worth telling.
                let _ = self.unmount(&rootfs);
                Err(error)
            }
        }
    }

    /// Undoes [`Storage::mount`]. Calling it again is harmless.
    ///
    /// # Errors
    /// The first step that failed; the others are still tried.
    pub fn unmount(&mut self, rootfs: &Rootfs) -> Result<(), StorageError> {
        let mut result = overlay::unmount(&rootfs.dir);
        if result.is_ok() {
            for layer in &rootfs.layers {
                let released = self.release(*layer);
                result = result.and(released);
            }
        }
        result
    }

    fn mount_into(&mut self, rootfs: &mut Rootfs, layers: &[Layer]) -> Result<(), StorageError> {
        for layer in layers {
            self.acquire(*layer)?;
            rootfs.layers.push(*layer);
        }
        // overlayfs wants the uppermost first.
        let lower: Vec<&Path> = layers
            .iter()
            .rev()
            .filter_map(|layer| self.layers.get(layer))
            .map(|m| m.path.as_path())
            .collect();
        overlay::mount(&rootfs.dir, &lower)
    }

    fn acquire(&mut self, layer: Layer) -> Result<(), StorageError> {
        if let Some(mounted) = self.layers.get_mut(&layer) {
            mounted.users += 1;
            return Ok(());
        }
        let number = self.next_number;
        self.next_number += 1;
        let Layer { offset_bytes, length_bytes } = layer;
        let mapping = Mapping::new(number, offset_bytes, length_bytes)
            .map_err(|source| StorageError::Map { offset_bytes, length_bytes, source })?;
        let path = self.dir.join(number.to_string());
        if let Err(source) = erofs::mount(mapping.device(), &path) {
            // The mount's error is the one worth telling.
            let _ = mapping.remove();
            return Err(StorageError::Image { offset_bytes, source });
        }
        self.layers.insert(layer, Mounted { mapping, path, users: 1 });
        Ok(())
    }

    fn release(&mut self, layer: Layer) -> Result<(), StorageError> {
        let Layer { offset_bytes, length_bytes } = layer;
        let Some(mounted) = self.layers.get_mut(&layer) else { return Ok(()) };
        mounted.users = mounted.users.saturating_sub(1);
        if mounted.users > 0 {
            return Ok(());
        }
        let Some(mounted) = self.layers.remove(&layer) else { return Ok(()) };
        erofs::unmount(&mounted.path).map_err(|source| StorageError::Image { offset_bytes, source })?;
        mounted.mapping.remove().map_err(|source| StorageError::Map { offset_bytes, length_bytes, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_checked() {
        assert!(Layer::new(0, 4096, "erofs").is_ok());
        assert!(matches!(Layer::new(0, 4096, "ext4"), Err(StorageError::UnknownType { .. })));
        for (offset, length) in [(1, 4096), (0, 4095), (0, 0), (u64::MAX - 4095, 8192)] {
            let result = Layer::new(offset, length, "erofs");
            assert!(matches!(result, Err(StorageError::Misaligned { .. })), "{offset} {length}");
        }
    }

    #[test]
    fn layer_count_is_capped() {
        let layer = Layer::new(0, 4096, "erofs").unwrap();
        let mut storage = Storage::new("/nonexistent");
        for count in [0, MAX_LAYERS + 1] {
            let result = storage.mount(Path::new("/nonexistent"), &vec![layer; count]);
            assert!(matches!(result, Err(StorageError::LayerCount { count: c }) if c == count));
        }
    }
}
