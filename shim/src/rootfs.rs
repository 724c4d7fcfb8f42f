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

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use containerd_shim_protos::api::Mount;
use rustix::fs::{AtFlags, CWD, FlockOperation, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::process::Signal;
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;
use ttrpc::Code;

use crate::sandbox::guest::ImageSource;

/// Where images are kept.
pub const CACHE_DIR: &str = "/var/lib/hull/images";
/// Verb by which this binary runs itself to make an image.
pub const BUILD_VERB: &str = "build-image";
/// Part of every key: raise it when the same layers would give another image.
const FORMAT_VERSION: &str = "hull-image-1";
/// Bytes at offset 1024 of every EROFS image.
const EROFS_MAGIC: [u8; 4] = [0xe2, 0xe1, 0xf5, 0xe0];
/// The layer disk maps whole pages.
const BLOCK_BYTES: u64 = 4096;
/// mount(2) takes one page of options.
const MAX_MOUNT_OPTIONS: usize = 4095;
/// What of mkfs.erofs's complaints is kept.
const MAX_COMPLAINT_BYTES: u64 = 2048;
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

/// The directories that make up a root file system.
#[derive(Debug, PartialEq, Eq)]
struct Layers {
    /// Top first, as overlay has them.
    dirs: Vec<PathBuf>,
    /// Whether their contents can change.
    mutable: bool,
    /// Overlay metadata is in user.* attributes.
    userxattr: bool,
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
        let layers = layers(mounts, root_path)?;
        // Images hold what only root may read in the layers.
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(cache).map_err(cache_error("make", cache))?;
        if layers.mutable {
            let file = build(&layers, mount_point, cache, limit).await?;
            return reopen(&file, cache);
        }
        let path = cache.join(format!("{}.erofs", key(&layers)?));
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

fn layers(mounts: &[Mount], root_path: &Path) -> Result<Layers> {
    let mount = match mounts {
        [] if root_path.is_absolute() => {
            return Ok(Layers { dirs: vec![root_path.to_owned()], mutable: true, userxattr: false });
        }
        [] => return Err(RootfsError::NoRoot),
        [mount] => mount,
        several => return Err(RootfsError::SeveralMounts(several.len())),
    };
    let option =
        |name: &str| mount.options.iter().find_map(|option| option.strip_prefix(name)?.strip_prefix('='));
    match mount.type_.as_str() {
        "bind" => {
            // A writable bind is an active snapshot: its directory is still being changed.
            let mutable = !mount.options.iter().any(|option| option == "ro");
            Ok(Layers { dirs: vec![PathBuf::from(&mount.source)], mutable, userxattr: false })
        }
        "overlay" => {
            let lower = option("lowerdir").unwrap_or_default();
            let mut dirs: Vec<PathBuf> = split_lowerdir(lower);
            if dirs.is_empty() {
                return Err(RootfsError::NoLayers);
            }
            let upper = option("upperdir").map(PathBuf::from);
            let used = match &upper {
                Some(upper) => is_used(upper)?,
                None => false,
            };
            if used {
                dirs.splice(0..0, upper);
            }
            let userxattr = mount.options.iter().any(|option| option == "userxattr");
            Ok(Layers { dirs, mutable: used, userxattr })
        }
        kind => Err(RootfsError::MountType { kind: kind.to_owned() }),
    }
}

/// Splits at colons that no backslash escapes.
fn split_lowerdir(text: &str) -> Vec<PathBuf> {
    let mut dirs = Vec::new();
    let mut current = String::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => current.extend(characters.next()),
            ':' => dirs.push(PathBuf::from(std::mem::take(&mut current))),
            other => current.push(other),
        }
    }
    dirs.push(PathBuf::from(current));
    dirs.retain(|dir| !dir.as_os_str().is_empty());
    dirs
}

fn is_used(upper: &Path) -> Result<bool> {
    let failed = |source| RootfsError::Layer { path: upper.display().to_string(), source };
    Ok(std::fs::read_dir(upper).map_err(failed)?.next().is_some())
}

/// Names the contents: containerd never changes a committed snapshot, and a directory that is removed
/// and made again has another inode or another change time.
fn key(layers: &Layers) -> Result<String> {
    let mut hash = Sha256::new();
    let mut add = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    add(FORMAT_VERSION.as_bytes());
    for dir in &layers.dirs {
        let failed = |source| RootfsError::Layer { path: dir.display().to_string(), source };
        let stat = std::fs::metadata(dir).map_err(failed)?;
        if !stat.is_dir() {
            return Err(failed(io::ErrorKind::NotADirectory.into()));
        }
        add(dir.as_os_str().as_bytes());
        for number in [stat.dev(), stat.ino(), stat.ctime().unsigned_abs(), stat.ctime_nsec().unsigned_abs()]
        {
            add(&number.to_le_bytes());
        }
    }
    Ok(crate::address::hex(&hash.finalize()))
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

/// Runs mkfs.erofs in a child of its own, into a file without a name.
async fn build(layers: &Layers, mount_point: &Path, cache: &Path, limit: Duration) -> Result<File> {
    let flags = i32::try_from(OFlags::TMPFILE.bits()).unwrap_or_default();
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(flags);
    let file = options.open(cache).map_err(cache_error("make an unnamed file in", cache))?;
    let exe = std::env::current_exe().map_err(cache_error("find the shim for", cache))?;
    let stdin = file.try_clone().map_err(cache_error("make an unnamed file in", cache))?;
    let mut child = tokio::process::Command::new(exe)
        .arg(BUILD_VERB)
        .args(build_arguments(layers, mount_point)?)
        .env_remove(crate::daemon::Handoff::VARIABLE)
        .stdin(Stdio::from(stdin))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(cache_error("start the builder for", cache))?;
    let mut complaint = Vec::new();
    let finished = async {
        if let Some(stderr) = child.stderr.take() {
            let mut stderr = stderr.take(MAX_COMPLAINT_BYTES);
            let _ = stderr.read_to_end(&mut complaint).await;
            // The rest is read away, or the child would block on it.
            let _ = tokio::io::copy(&mut stderr.into_inner(), &mut tokio::io::sink()).await;
        }
        child.wait().await
    };
    let status = tokio::time::timeout(limit, finished).await.map_err(|_| RootfsError::Late(limit))?;
    let status = status.map_err(cache_error("wait for the builder of", cache))?;
    if !status.success() {
        let text = String::from_utf8_lossy(&complaint);
        let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        return Err(RootfsError::Build { complaint: format!("{} ({status})", lines.join("; ")) });
    }
    Ok(file)
}

/// Words of the builder's command line: directory to go to, mount point, overlay options; without
/// options the directory itself is the source.
fn build_arguments(layers: &Layers, mount_point: &Path) -> Result<Vec<std::ffi::OsString>> {
    if let [dir] = layers.dirs.as_slice() {
        return Ok(vec![dir.into()]);
    }
    // Relative names, so that a page of options holds many layers.
    let base = common_parent(&layers.dirs);
    let mut options = String::from("lowerdir=");
    for (index, dir) in layers.dirs.iter().enumerate() {
        let relative = dir.strip_prefix(&base).unwrap_or(dir).to_string_lossy();
        let separator = if index == 0 { "" } else { ":" };
        let escaped = relative.replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,");
        options.push_str(separator);
        options.push_str(&escaped);
    }
    if layers.userxattr {
        options.push_str(",userxattr");
    }
    if options.len() > MAX_MOUNT_OPTIONS {
        return Err(RootfsError::TooManyLayers { length: options.len() });
    }
    Ok(vec![base.into(), mount_point.into(), options.into()])
}

fn common_parent(dirs: &[PathBuf]) -> PathBuf {
    let mut base = dirs.first().and_then(|dir| dir.parent()).unwrap_or(Path::new("/")).to_owned();
    while !dirs.iter().all(|dir| dir.starts_with(&base) && *dir != base) {
        if !base.pop() {
            break;
        }
    }
    base
}

/// The builder: becomes mkfs.erofs, writing into stdin, reading the directory or the overlay that the
/// words name. Runs in a process of its own because of the mount namespace.
///
/// # Errors
/// Returns only if it fails.
#[must_use]
pub fn build_in_namespace(words: &[String]) -> io::Error {
    match become_mkfs(words) {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

fn become_mkfs(words: &[String]) -> io::Result<std::convert::Infallible> {
    // If the shim is killed, so is the builder: its file has no name and goes with it.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let source = match words {
        [dir] => OsStr::new(dir),
        [base, mount_point, options] => {
            std::env::set_current_dir(base)?;
            crate::sys::unshare_mounts()?;
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            rustix::mount::mount_change("/", private)?;
            let options = std::ffi::CString::new(options.as_str())?;
            rustix::mount::mount("overlay", mount_point, "overlay", MountFlags::RDONLY, options.as_c_str())?;
            OsStr::new(mount_point)
        }
        _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "the builder wants 1 or 3 words")),
    };
    Err(Command::new("mkfs.erofs")
        // Same layers, same bytes: no random UUID, no time of day; files keep their own times.
        .env("SOURCE_DATE_EPOCH", SUPERBLOCK_TIME)
        .args(["--quiet", "-U", "00000000-0000-0000-0000-000000000000", "/proc/self/fd/0"])
        .arg(source)
        .exec())
}

/// Build time in the superblock, and the latest time that a file keeps: the end of the 32-bit age.
const SUPERBLOCK_TIME: &str = "4294967295";

#[cfg(test)]
mod tests;
