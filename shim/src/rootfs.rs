//! From the mounts that containerd names to one read-only EROFS image, cached by what it is made of.
//!
//! ```text
//! mounts -> layers -> key -> cached? ---- yes --------------------------> open
//!                             no: lock, mkfs.erofs into an unnamed file, link it, open
//! ```
//! The layers of a snapshot never change once committed, so their paths, inodes and change times name
//! their contents. What may change (a writable directory, a used upper directory) is made into an image
//! for this container only, whose file never gets a name. Unnamed files vanish with the process, and
//! the overlay is mounted in a mount namespace of a child: a killed shim leaves nothing behind.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use containerd_shim_protos::api::Mount;
use rustix::fs::{AtFlags, CWD, FlockOperation};
use ttrpc::Code;

use crate::sandbox::guest::ImageSource;

mod build;
mod layers;

pub use build::{BUILD_VERB, build_in_namespace};
use build::{MAX_MOUNT_OPTIONS, build};
use layers::Layers;

/// Where images are kept.
pub const CACHE_DIR: &str = "/var/lib/hull/images";
/// Bytes at offset 1024 of every EROFS image.
const EROFS_MAGIC: [u8; 4] = [0xe2, 0xe1, 0xf5, 0xe0];
/// The layer disk maps whole pages.
const BLOCK_BYTES: u64 = 4096;
/// Between two looks at a cache in which another shim is building.
const LOCK_POLL: Duration = Duration::from_millis(20);

/// Why there is no root file system.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// Neither mounts nor an absolute path.
    #[error("There is no root file system: no snapshot, and root.path is not absolute")]
    NoRoot,
    /// A snapshotter whose mounts are not understood.
    #[error("The root file system is of type {kind:?}, which is not supported: overlay and bind are")]
    MountType {
        /// Its type.
        kind: String,
    },
    /// A snapshotter that hands out several mounts.
    #[error("The root file system consists of {0} mounts: one is supported")]
    SeveralMounts(usize),
    /// An overlay without lower directories.
    #[error("The root file system's overlay has no lowerdir")]
    NoLayers,
    /// More layers than one mount can name.
    #[error(
        "The root file system's layers have names of {length} bytes in all; one mount takes {MAX_MOUNT_OPTIONS}"
    )]
    TooManyLayers {
        /// Bytes needed.
        length: usize,
    },
    /// A layer that is not there.
    #[error("The layer {path} cannot be read")]
    Layer {
        /// Its directory.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A step in the cache.
    #[error("The image cache cannot {step} {path}")]
    Cache {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// mkfs.erofs failed.
    #[error("The image of the root file system cannot be made: {complaint}")]
    Build {
        /// Its last words.
        complaint: String,
    },
    /// mkfs.erofs, or another shim that builds the same image, took too long.
    #[error("The image of the root file system was not made within {} s", .0.as_secs())]
    Late(Duration),
    /// A file in the cache that is no image.
    #[error("The file {path} in the image cache is no EROFS file system; it is removed")]
    NoImage {
        /// Its path.
        path: String,
    },
}

impl RootfsError {
    /// The gRPC code that this error travels as.
    pub fn code(&self) -> Code {
        match self {
            RootfsError::NoRoot
            | RootfsError::MountType { .. }
            | RootfsError::SeveralMounts(_)
            | RootfsError::NoLayers
            | RootfsError::TooManyLayers { .. } => Code::INVALID_ARGUMENT,
            RootfsError::Layer { .. } => Code::FAILED_PRECONDITION,
            RootfsError::Cache { .. } | RootfsError::Build { .. } | RootfsError::NoImage { .. } => {
                Code::INTERNAL
            }
            RootfsError::Late(_) => Code::DEADLINE_EXCEEDED,
        }
    }
}

/// Result with [`RootfsError`].
pub type Result<T> = std::result::Result<T, RootfsError>;

/// An image, ready to be mapped.
#[derive(Debug)]
pub struct Image {
    /// Open for reading.
    pub file: File,
    /// A multiple of 4096.
    pub length_bytes: u64,
    /// Whether it was in the cache.
    pub cached: bool,
}

/// The images of this node.
#[derive(Debug)]
pub struct ImageCache {
    dir: PathBuf,
    limit: Duration,
}

impl ImageCache {
    /// The cache in `dir`; making an image may take as long as `limit`.
    pub fn new(dir: PathBuf, limit: Duration) -> Self {
        ImageCache { dir, limit }
    }
}

#[async_trait]
impl ImageSource for ImageCache {
    async fn image(&self, mounts: &[Mount], root_path: &Path, mount_point: &Path) -> Result<Image> {
        let (cache, limit) = (self.dir.as_path(), self.limit);
        let layers = Layers::of(mounts, root_path)?;
        // Images hold what only root may read in the layers.
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(cache).map_err(cache_error("make", cache))?;
        if layers.mutable {
            let file = build(&layers, mount_point, cache, limit).await?;
            return reopen(&file, cache);
        }
        let path = cache.join(format!("{}.erofs", layers.key()?));
        if let Some(image) = open_cached(&path)? {
            return Ok(image);
        }
        let begun = Instant::now();
        let lock = lock(cache, limit).await?;
        // Another shim may have made it while we waited for the lock.
        if let Some(image) = open_cached(&path)? {
            return Ok(image);
        }
        let left = limit.saturating_sub(begun.elapsed());
        let image = publish(build(&layers, mount_point, cache, left).await, &path).await;
        drop(lock);
        image
    }
}

fn cache_error(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RootfsError {
    let path = path.display().to_string();
    move |source| RootfsError::Cache { step, path, source }
}

fn open_cached(path: &Path) -> Result<Option<Image>> {
    match File::open(path) {
        Ok(file) => check(file, path, true).map(Some).inspect_err(|error| {
            if matches!(error, RootfsError::NoImage { .. }) {
                let _ = std::fs::remove_file(path);
            }
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(cache_error("open", path)(error)),
    }
}

/// A file that a crash or a full disk has cut short must not reach a guest.
fn check(mut file: File, path: &Path, cached: bool) -> Result<Image> {
    let length_bytes = file.metadata().map_err(cache_error("stat", path))?.len();
    let mut magic = [0; 4];
    let read = file.seek(SeekFrom::Start(1024)).and_then(|_| file.read_exact(&mut magic));
    if read.is_err() || magic != EROFS_MAGIC || length_bytes % BLOCK_BYTES != 0 {
        return Err(RootfsError::NoImage { path: path.display().to_string() });
    }
    Ok(Image { file, length_bytes, cached })
}

fn reopen(file: &File, cache: &Path) -> Result<Image> {
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    check(File::open(&path).map_err(cache_error("open an image in", cache))?, cache, false)
}

/// Two shims need not build the same image at the same time. The directory itself is the lock: a killed
/// shim leaves no lock file behind, and images that are made one after the other are no later than
/// images made at the same time by the same disk and processors.
async fn lock(cache: &Path, limit: Duration) -> Result<File> {
    let begun = Instant::now();
    let dir = File::open(cache).map_err(cache_error("open", cache))?;
    while let Err(error) = rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive) {
        if error != rustix::io::Errno::WOULDBLOCK {
            return Err(cache_error("lock", cache)(error.into()));
        }
        if begun.elapsed() > limit {
            return Err(RootfsError::Late(limit));
        }
        tokio::time::sleep(LOCK_POLL).await;
    }
    Ok(dir)
}

/// Gives a finished image its name: readers see all of it or nothing.
async fn publish(built: Result<File>, path: &Path) -> Result<Image> {
    let file = built?;
    let source = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let syncing = file.try_clone().map_err(cache_error("sync", path))?;
    // A power cut must not leave a name for bytes that never reached the disk.
    let synced = tokio::task::spawn_blocking(move || syncing.sync_data()).await;
    synced.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(cache_error("sync", path))?;
    match rustix::fs::linkat(CWD, &source, CWD, path, AtFlags::SYMLINK_FOLLOW) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(cache_error("name", path)(error.into())),
    }
    let image = open_cached(path)?;
    image
        .map(|image| Image { cached: false, ..image })
        .ok_or_else(|| cache_error("open", path)(io::ErrorKind::NotFound.into()))
}

#[cfg(test)]
mod tests;
