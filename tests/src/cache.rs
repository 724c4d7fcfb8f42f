//! Artefacts that are slow to make, kept outside the checkout and keyed by the hash of their inputs.
//!
//! An entry is a directory `<root>/<kind>/<key>/`. It is made under a temporary name and renamed, so an entry
//! that exists is complete; two makers at once do the work twice and one of them wins.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

/// The cache's root: `$HULL_CACHE`, or `/var/cache/hull`.
#[must_use]
pub fn root() -> PathBuf {
    std::env::var_os("HULL_CACHE").map_or_else(|| PathBuf::from("/var/cache/hull"), PathBuf::from)
}

/// The inputs of an artefact, hashed with their names so that two inputs can't stand in for one another.
#[derive(Debug, Clone, Default)]
pub struct Key(Sha256);

impl Key {
    /// A key without inputs. `recipe` names the maker and its version.
    #[must_use]
    pub fn new(recipe: &str) -> Self {
        let mut key = Self::default();
        key.add("recipe", recipe.as_bytes());
        key
    }

    /// Adds one input's bytes.
    pub fn add(&mut self, name: &str, bytes: &[u8]) -> &mut Self {
        for part in [name.as_bytes(), bytes] {
            self.0.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
            self.0.update(part);
        }
        self
    }

    /// Adds a file of this machine's packages by name, size and time of change: hashing the contents of big
    /// system files would cost more than it tells.
    ///
    /// # Errors
    /// The file can't be looked at.
    pub fn add_system_file(&mut self, path: &Path) -> Result<&mut Self> {
        use std::os::unix::fs::MetadataExt as _;
        let meta = fs::metadata(path).with_context(|| format!("Looking at {}", path.display()))?;
        Ok(self.add(&path.to_string_lossy(), format!("{} {}", meta.size(), meta.mtime()).as_bytes()))
    }

    /// The first 16 hex digits of the hash: enough to tell entries apart, short enough for a socket path below it.
    #[must_use]
    pub fn hex(&self) -> String {
        self.0.clone().finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The directory where the entry is or would be.
#[must_use]
pub fn path(kind: &str, key: &Key) -> PathBuf {
    root().join(kind).join(key.hex())
}

/// Gives the entry's directory, made by `make` if there is none yet.
///
/// # Errors
/// `make` failed, or the cache can't be written.
pub fn entry(kind: &str, key: &Key, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let done = path(kind, key);
    if done.exists() {
        return Ok(done);
    }
    let work = done.with_extension(format!("making-{}", std::process::id()));
    remove(&work)?;
    fs::create_dir_all(&work).with_context(|| format!("Making {}", work.display()))?;
    if let Err(error) = make(&work) {
        remove(&work)?;
        return Err(error);
    }
    match fs::rename(&work, &done) {
        Ok(()) => Ok(done),
        Err(_) if done.exists() => remove(&work).map(|()| done),
        Err(error) => Err(error).with_context(|| format!("Renaming {}", work.display())),
    }
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("Removing {}", dir.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_part_of_the_key() {
        let mut one = Key::new("r");
        one.add("a", b"bc");
        let mut other = Key::new("r");
        other.add("ab", b"c");
        assert_ne!(one.hex(), other.hex());
        assert_eq!(one.hex(), one.clone().hex());
        assert_eq!(one.hex().len(), 16);
    }
}
