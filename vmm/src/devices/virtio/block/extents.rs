//! A disk's contents: a sparse, read-only address space into which files are mapped.
//!
//! ```text
//! 0        1 MiB                                                              16 TiB (layer disk)
//! | zeros  | layer A | gap | layer B | gap |          ...never mapped...           |
//! ```
//! - The first MiB of a layer disk reads as zeros: the guest looks for a partition table there.
//! - An extent starts and ends on 4 KiB; behind the file's last byte the rest of its page is zeros.
//! - A gap of one page keeps extents apart, so that the guest's block layer never merges reads of
//!   two layers into one request, and a read that runs over the end of a layer fails.
//! - Addresses are given out upwards and used again only when the end is reached, so that a late
//!   read of an unmapped layer fails instead of meeting another one.
//!
//! Written by the owner of the machine, read by the device's thread; neither waits for I/O of the
//! other: the lock covers the look-up, not the read.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::VolatileSlice;

use crate::sys::pread;

/// Alignment of extents: the page size, EROFS's block size and dm-verity's.
pub const ALIGNMENT: u64 = 4096;
/// The layer disk's size. Fixed, because the guest reads it once; far above what the images of one
/// pod can hold, yet low enough for 32-bit page numbers.
pub const LAYER_DISK_BYTES: u64 = 1 << 44;
/// The part of the layer disk that reads as zeros.
const LABEL_BYTES: u64 = 1 << 20;
/// Most extents of one disk. Each holds a descriptor of the process, whose usual limit is higher.
pub const MAX_EXTENTS: usize = 512;

/// A mapped file, by number; never used twice in one machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ExtentId(u64);

/// Where a file is on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte on the disk, a multiple of 4096.
    pub offset_bytes: u64,
    /// Length on the disk, a multiple of 4096.
    pub length_bytes: u64,
    /// For `unmap`.
    pub id: ExtentId,
}

/// A file cannot be mapped or unmapped.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// No address is free.
    #[error("The layer disk has no room for {0} bytes")]
    Full(u64),
    /// The file ends before the wanted length.
    #[error("The layer file has {found} bytes, {wanted} were to be mapped")]
    FileLength {
        /// By the caller.
        wanted: u64,
        /// By the file system.
        found: u64,
    },
    /// A length of zero or beyond the disk.
    #[error("A layer has 1 to {LAYER_DISK_BYTES} bytes, not {0}")]
    Length(u64),
    /// The extent is not there.
    #[error("No layer with the number {0} is mapped")]
    NotMapped(u64),
    /// The file's length is unknown.
    #[error("Cannot ask for the size of a layer file")]
    Stat(#[source] io::Error),
    /// More extents than the disk holds.
    #[error("The layer disk holds at most {MAX_EXTENTS} layers")]
    TooMany,
}

/// Why a read cannot be served.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error("The file behind the extent cannot be read")]
    File(#[source] io::Error),
    #[error("Nothing, or not one thing, is mapped at {offset:#x} with {length} bytes")]
    Unmapped { offset: u64, length: u64 },
}

/// The address space.
#[derive(Debug)]
pub struct Extents {
    capacity_bytes: u64,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    by_offset: BTreeMap<u64, Mapped>,
    /// Where the search for room starts.
    next_offset: u64,
    next_id: u64,
}

#[derive(Clone, Debug)]
struct Mapped {
    id: ExtentId,
    length: u64,
    /// `None`: zeros.
    source: Option<Source>,
}

#[derive(Clone, Debug)]
struct Source {
    file: Arc<File>,
    length: u64,
}

impl Extents {
    /// An empty disk for layers.
    #[must_use]
    pub fn for_layers() -> Self {
        let extents = Self::empty(LAYER_DISK_BYTES);
        extents.lock().insert(0, LABEL_BYTES, None);
        extents
    }

    /// A disk that is exactly one file.
    ///
    /// # Errors
    /// When the file's length is unknown or zero.
    pub fn of_file(file: File) -> Result<Self, LayerError> {
        let length = file.metadata().map_err(LayerError::Stat)?.len();
        let capacity = length.checked_next_multiple_of(ALIGNMENT).filter(|_| length > 0);
        let capacity = capacity.ok_or(LayerError::Length(length))?;
        let extents = Self::empty(capacity);
        extents.lock().insert(0, capacity, Some(Source { file: Arc::new(file), length }));
        Ok(extents)
    }

    fn empty(capacity_bytes: u64) -> Self {
        let inner = Inner { by_offset: BTreeMap::new(), next_offset: 0, next_id: 0 };
        Self { capacity_bytes, inner: Mutex::new(inner) }
    }

    /// The disk's size.
    #[must_use]
    pub fn capacity_bytes(&self) -> u64 {
        self.capacity_bytes
    }

    fn map(&self, file: File, length_bytes: u64) -> Result<Extent, LayerError> {
        let found = file.metadata().map_err(LayerError::Stat)?.len();
        if length_bytes == 0 || length_bytes > self.capacity_bytes {
            return Err(LayerError::Length(length_bytes));
        }
        if found < length_bytes {
            return Err(LayerError::FileLength { wanted: length_bytes, found });
        }
        let mut inner = self.lock();
        if inner.by_offset.len() >= MAX_EXTENTS {
            return Err(LayerError::TooMany);
        }
        let length = length_bytes.next_multiple_of(ALIGNMENT);
        let offset_bytes =
            inner.find_room(length, self.capacity_bytes).ok_or(LayerError::Full(length_bytes))?;
        let id =
            inner.insert(offset_bytes, length, Some(Source { file: Arc::new(file), length: length_bytes }));
        Ok(Extent { offset_bytes, length_bytes: length, id })
    }

    fn unmap(&self, id: ExtentId) -> Result<(), LayerError> {
        let mut inner = self.lock();
        let found = inner.by_offset.iter().find(|(_, mapped)| mapped.id == id && mapped.source.is_some());
        let offset = *found.ok_or(LayerError::NotMapped(id.0))?.0;
        inner.by_offset.remove(&offset);
        Ok(())
    }

    /// Fills the buffers, in order, with the disk's bytes from `offset` on. All in one extent.
    pub(super) fn read(&self, offset: u64, buffers: Vec<VolatileSlice<'_>>) -> Result<u64, ReadError> {
        let length = buffers.iter().map(|buffer| buffer.len() as u64).sum();
        let (start, mapped) = self.find(offset, length).ok_or(ReadError::Unmapped { offset, length })?;
        match mapped.source {
            Some(source) => source.read(offset - start, buffers).map_err(ReadError::File)?,
            None => buffers.iter().for_each(fill_with_zeros),
        }
        Ok(length)
    }

    fn find(&self, offset: u64, length: u64) -> Option<(u64, Mapped)> {
        let end = offset.checked_add(length)?;
        let inner = self.lock();
        let (start, mapped) = inner.by_offset.range(..=offset).next_back()?;
        (end <= start + mapped.length).then(|| (*start, mapped.clone()))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn insert(&mut self, offset: u64, length: u64, source: Option<Source>) -> ExtentId {
        let id = ExtentId(self.next_id);
        self.next_id += 1;
        self.by_offset.insert(offset, Mapped { id, length, source });
        self.next_offset = offset + length + ALIGNMENT;
        id
    }

    /// The first free address from `next_offset` on; from the start again if the end is reached.
    fn find_room(&self, length: u64, capacity: u64) -> Option<u64> {
        self.room_from(self.next_offset, length, capacity).or_else(|| self.room_from(0, length, capacity))
    }

    fn room_from(&self, from: u64, length: u64, capacity: u64) -> Option<u64> {
        let before = self.by_offset.range(..from).next_back();
        let mut candidate =
            before.map_or(from, |(start, mapped)| from.max(start + mapped.length + ALIGNMENT));
        for (start, mapped) in self.by_offset.range(from..) {
            if candidate.checked_add(length + ALIGNMENT)? <= *start {
                break;
            }
            candidate = start + mapped.length + ALIGNMENT;
        }
        (candidate.checked_add(length)? <= capacity).then_some(candidate)
    }
}

impl Source {
    /// Reads until the buffers are full; behind the mapped length is zeros, and a file that has
    /// become shorter is an error.
    fn read(&self, mut offset: u64, mut buffers: Vec<VolatileSlice<'_>>) -> io::Result<()> {
        while !buffers.is_empty() {
            if offset >= self.length {
                buffers.iter().for_each(fill_with_zeros);
                return Ok(());
            }
            let in_file = usize::try_from(self.length - offset).unwrap_or(usize::MAX);
            let read = match head(&buffers, in_file) {
                Some(shorter) => pread::read_at(&self.file, offset, &shorter)?,
                None => pread::read_at(&self.file, offset, &buffers)?,
            };
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            offset += read as u64;
            buffers = behind(buffers, read)?;
        }
        Ok(())
    }
}

/// The first `length` bytes of the buffers, where they hold more.
fn head<'a>(buffers: &[VolatileSlice<'a>], length: usize) -> Option<Vec<VolatileSlice<'a>>> {
    let total: usize = buffers.iter().map(VolatileSlice::len).sum();
    if total <= length {
        return None;
    }
    let mut left = length;
    let mut shorter = Vec::with_capacity(buffers.len());
    for buffer in buffers {
        let take = left.min(buffer.len());
        if take == 0 {
            break;
        }
        shorter.push(buffer.subslice(0, take).ok()?);
        left -= take;
    }
    Some(shorter)
}

/// What is left of the buffers behind their first `done` bytes.
fn behind(buffers: Vec<VolatileSlice<'_>>, mut done: usize) -> io::Result<Vec<VolatileSlice<'_>>> {
    let mut rest = Vec::new();
    for buffer in buffers {
        let skip = done.min(buffer.len());
        done -= skip;
        if skip < buffer.len() {
            rest.push(buffer.offset(skip).map_err(io::Error::other)?);
        }
    }
    Ok(rest)
}

fn fill_with_zeros(buffer: &VolatileSlice<'_>) {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut done = 0;
    while done < buffer.len() {
        let Ok(rest) = buffer.offset(done) else { return };
        let length = rest.len().min(ZEROS.len());
        rest.copy_from(ZEROS.get(..length).unwrap_or_default());
        done += length;
    }
}

/// The machine's layer disk, for mapping files at run time. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LayerDisk {
    extents: Arc<Extents>,
}

impl LayerDisk {
    pub(crate) fn new(extents: Arc<Extents>) -> Self {
        Self { extents }
    }

    /// Maps the first `length_bytes` of `file`. Reads by the guest see it from now on.
    ///
    /// # Errors
    /// When the file is shorter, or the disk is full.
    pub fn map(&self, file: File, length_bytes: u64) -> Result<Extent, LayerError> {
        self.extents.map(file, length_bytes)
    }

    /// Takes an extent away. Reads under way finish; later ones fail.
    ///
    /// # Errors
    /// When it is not mapped.
    pub fn unmap(&self, id: ExtentId) -> Result<(), LayerError> {
        self.extents.unmap(id)
    }
}
