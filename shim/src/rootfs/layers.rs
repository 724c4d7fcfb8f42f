//! The layers of a root file system, out of the mounts that containerd names.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use containerd_shim_protos::api::Mount;
use sha2::{Digest, Sha256};

use super::{Result, RootfsError};

/// Part of every key: raise it when the same layers would give another image.
const FORMAT_VERSION: &str = "hull-image-1";
/// The directories that make up a root file system.
#[derive(Debug, PartialEq, Eq)]
pub struct Layers {
    /// Top first, as overlay has them.
    pub dirs: Vec<PathBuf>,
    /// Whether their contents can change.
    pub mutable: bool,
    /// Overlay metadata is in user.* attributes.
    pub userxattr: bool,
}

impl Layers {
    /// Takes containerd's mounts apart; without any, `root_path` must be absolute.
    ///
    /// # Errors
    /// Mounts that are not understood, or an upper directory that cannot be read.
    pub fn of(mounts: &[Mount], root_path: &Path) -> Result<Self> {
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

    /// Names the contents: containerd never changes a committed snapshot, and a directory that is removed
    /// and made again has another inode or another change time.
    ///
    /// # Errors
    /// A layer that cannot be read.
    pub fn key(&self) -> Result<String> {
        let mut hash = Sha256::new();
        let mut add = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        add(FORMAT_VERSION.as_bytes());
        for dir in &self.dirs {
            let failed = |source| RootfsError::Layer { path: dir.display().to_string(), source };
            let stat = std::fs::metadata(dir).map_err(failed)?;
            if !stat.is_dir() {
                return Err(failed(io::ErrorKind::NotADirectory.into()));
            }
            add(dir.as_os_str().as_bytes());
            for number in
                [stat.dev(), stat.ino(), stat.ctime().unsigned_abs(), stat.ctime_nsec().unsigned_abs()]
            {
                add(&number.to_le_bytes());
            }
        }
        Ok(crate::address::hex(&hash.finalize()))
    }
}

/// Splits at colons that no backslash escapes.
pub fn split_lowerdir(text: &str) -> Vec<PathBuf> {
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
