//! Scratch directories for this crate's tests.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A directory that goes away with its owner.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

/// A file in a scratch directory that it keeps alive.
#[derive(Debug)]
pub(crate) struct ScratchFile {
    _room: Scratch,
    path: PathBuf,
}

impl Scratch {
    pub(crate) fn new(topic: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("hull-guest-image-{topic}-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn file(self, name: &str, contents: &[u8]) -> ScratchFile {
        let path = self.0.join(name);
        std::fs::write(&path, contents).unwrap();
        ScratchFile { _room: self, path }
    }
}

impl ScratchFile {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
