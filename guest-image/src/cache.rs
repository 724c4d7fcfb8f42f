//! Built artefacts outside the checkout, each under the hash of the inputs that it was built from.
//!
//! `${HULL_CACHE:-/var/cache/hull}/<kind>/<hash>/` appears by rename once it is complete, and is never changed after
//! that. A lock per hash keeps two builders of the same thing from doing the work twice.
//!
//! ```text
//! absent ──lock──> building in <kind>/.<hash>.<pid>/ ──rename──> present
//!                      └── failure: still absent; what was built may stay until the next attempt
//! ```

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::progress::say;

/// Where the cache is unless `HULL_CACHE` says otherwise.
const DEFAULT_ROOT: &str = "/var/cache/hull";

/// The cache's root directory.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

/// One entry while its builder holds the lock.
#[derive(Debug)]
pub struct Entry {
    /// Where the finished artefacts are, or will be.
    pub path: PathBuf,
    room: PathBuf,
    name: String,
    // Held for as long as the entry: closing the file releases the lock.
    _lock: File,
}

/// A directory to build in; it is removed with everything in it unless it is kept or left.
#[derive(Debug)]
pub struct WorkDir {
    path: PathBuf,
    stays: bool,
}

/// The cache's directories cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("Cannot {action} {}", path.display())]
pub struct CacheError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl Cache {
    /// The cache that the environment names.
    #[must_use]
    pub fn from_environment() -> Self {
        let root = std::env::var_os("HULL_CACHE").filter(|root| !root.is_empty());
        Cache { root: root.map_or_else(|| PathBuf::from(DEFAULT_ROOT), PathBuf::from) }
    }

    /// A cache at a given place.
    #[must_use]
    pub fn at(root: &Path) -> Self {
        Cache { root: root.to_path_buf() }
    }

    /// Waits for the entry's lock. The wait is bounded by the other builder, which has deadlines of its own.
    ///
    /// # Errors
    /// When the cache's directories cannot be made.
    pub fn entry(&self, kind: &str, hash: &str) -> Result<Entry, CacheError> {
        let room = self.root.join(kind);
        fs::create_dir_all(&room).map_err(failed("create", &room))?;
        let lock_path = room.join(format!(".{hash}.lock"));
        let lock = File::create(&lock_path).map_err(failed("create", &lock_path))?;
        if lock.try_lock().is_err() {
            say(&format!("{kind}: waiting for another builder of the same inputs"));
            lock.lock().map_err(failed("lock", &lock_path))?;
        }
        Ok(Entry { path: room.join(hash), room, name: hash.to_owned(), _lock: lock })
    }
}

impl Entry {
    /// Whether the artefacts are there.
    #[must_use]
    pub fn is_present(&self) -> bool {
        self.path.is_dir()
    }

    /// A fresh directory beside the entry.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn work_dir(&self, purpose: &str) -> Result<WorkDir, CacheError> {
        // One builder at a time (the lock), so what lies there was left by one that was killed.
        WorkDir::new(&self.room.join(format!(".{}.{purpose}", self.name)))
    }

    /// Makes a finished directory the entry.
    ///
    /// # Errors
    /// When it cannot be renamed.
    pub fn keep(&self, work: WorkDir) -> Result<(), CacheError> {
        fs::rename(&work.path, &self.path).map_err(failed("rename a finished build to", &self.path))
    }
}

impl WorkDir {
    /// An empty directory at `path`; whatever was there goes.
    ///
    /// # Errors
    /// When it cannot be emptied or made.
    pub fn new(path: &Path) -> Result<Self, CacheError> {
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("clear", path)(error));
            }
            _ => {}
        }
        fs::create_dir_all(path).map_err(failed("create", path))?;
        Ok(WorkDir { path: path.to_path_buf(), stays: false })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves it where it is, for somebody to look at, until the next builder clears it.
    pub fn leave(mut self) {
        self.stays = true;
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        // After `keep` there is nothing left to remove; otherwise the next builder clears what remains.
        if !self.stays {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Copies `from` to `to` so that `to` is either the old file or the whole new one.
///
/// # Errors
/// When the directory cannot be written.
pub fn install(from: &Path, to: &Path) -> Result<(), CacheError> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).map_err(failed("create", parent))?;
    }
    let temporary = to.with_extension(format!("new-{}", std::process::id()));
    let copied = fs::copy(from, &temporary).map_err(failed("write", &temporary));
    let placed = copied.and_then(|_| fs::rename(&temporary, to).map_err(failed("write", to)));
    if placed.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    placed
}

fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> CacheError + 'a {
    move |source| CacheError { action, path: path.to_path_buf(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scratch;

    #[test]
    fn an_entry_appears_whole_or_not_at_all() {
        let scratch = Scratch::new("cache");
        let cache = Cache::at(scratch.path());
        let entry = cache.entry("kernel", "0123").unwrap();
        let work = entry.work_dir("build").unwrap();
        fs::write(work.path().join("vmlinux"), b"x").unwrap();
        assert!(!entry.is_present());
        drop(work);
        assert!(!entry.is_present());

        let work = entry.work_dir("build").unwrap();
        assert_eq!(fs::read_dir(work.path()).unwrap().count(), 0);
        fs::write(work.path().join("vmlinux"), b"x").unwrap();
        entry.keep(work).unwrap();
        assert!(entry.is_present());
        assert_eq!(fs::read(scratch.path().join("kernel/0123/vmlinux")).unwrap(), b"x");
    }

    #[test]
    fn one_builder_at_a_time() {
        let scratch = Scratch::new("cache");
        let cache = Cache::at(scratch.path());
        let entry = cache.entry("kernel", "0123").unwrap();
        let lock = File::open(scratch.path().join("kernel/.0123.lock")).unwrap();
        assert!(lock.try_lock().is_err());
        drop(entry);
        lock.try_lock().unwrap();
    }

    #[test]
    fn install_replaces() {
        let scratch = Scratch::new("install");
        let (from, to) = (scratch.path().join("a"), scratch.path().join("deep/er/b"));
        for contents in [b"1", b"2"] {
            fs::write(&from, contents).unwrap();
            install(&from, &to).unwrap();
            assert_eq!(fs::read(&to).unwrap(), contents);
        }
        assert_eq!(fs::read_dir(to.parent().unwrap()).unwrap().count(), 1);
    }
}
