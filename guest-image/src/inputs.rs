//! `inputs.lock`: what comes from outside the repository, pinned by hash.
//!
//! Read once by the `kernel` step. A file that is not the pinned one is refused before anything is unpacked; it is not
//! read at all as long as the cache holds what was built from the pinned one.

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::digest::{self, DigestError};

/// The parsed lock file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inputs {
    /// The guest kernel's source.
    pub kernel: KernelSource,
}

/// One kernel version and the archives that hold it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelSource {
    /// As `make kernelversion` prints it.
    pub version: String,
    archive: Vec<Archive>,
}

/// A source archive that is accepted.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Archive {
    /// Who made it and how to get it, for people.
    pub origin: String,
    /// Where it lies once it is installed.
    pub path: PathBuf,
    /// The hash that it must have, in lower-case hexadecimal digits.
    pub sha256: String,
}

/// The lock file or an input that it pins is not usable.
#[derive(Debug, thiserror::Error)]
pub enum InputsError {
    /// The lock file is not there or not readable.
    #[error("Cannot read {}", path.display())]
    Read {
        /// The lock file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The lock file does not have the expected form.
    #[error("{} is not a lock file", path.display())]
    Parse {
        /// The lock file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A pinned hash cannot be a SHA-256.
    #[error("The hash of {origin:?} is not 64 lower-case hexadecimal digits: {sha256:?}")]
    BadHash {
        /// The archive's origin.
        origin: String,
        /// What stands there.
        sha256: String,
    },
    /// No archive of the pinned version is installed.
    #[error("No source archive of Linux {version} is here; install one of: {wanted}")]
    NoArchive {
        /// The pinned version.
        version: String,
        /// Origins and paths that would do.
        wanted: String,
    },
    /// An archive has the wrong bytes.
    #[error("{} has SHA-256 {found}, which inputs.lock does not list for Linux {version}; it lists {wanted}", path.display())]
    WrongHash {
        /// The archive.
        path: PathBuf,
        /// Its hash.
        found: String,
        /// The pinned version.
        version: String,
        /// Origins and hashes that would do.
        wanted: String,
    },
    /// An archive could not be hashed.
    #[error(transparent)]
    Digest(#[from] DigestError),
}

impl Inputs {
    /// Reads the lock file.
    ///
    /// # Errors
    /// When it is missing, malformed, or pins something that cannot be a SHA-256.
    pub fn read(path: &Path) -> Result<Self, InputsError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| InputsError::Read { path: path.to_path_buf(), source })?;
        let inputs: Inputs = toml::from_str(&text)
            .map_err(|source| InputsError::Parse { path: path.to_path_buf(), source: Box::new(source) })?;
        for archive in &inputs.kernel.archive {
            let digits = archive.sha256.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
            if !digits || archive.sha256.len() != 64 {
                let Archive { origin, sha256, .. } = archive.clone();
                return Err(InputsError::BadHash { origin, sha256 });
            }
        }
        Ok(inputs)
    }
}

impl KernelSource {
    /// The archive to build from: `given` if the caller names one, else the first listed one that is installed. If
    /// none is, the first listed one: what was built from it may be cached.
    ///
    /// # Errors
    /// When `given` is not a pinned archive.
    pub fn candidate(&self, given: Option<&Path>) -> Result<Archive, InputsError> {
        let Some(path) = given else {
            let installed = self.archive.iter().find(|archive| archive.path.exists());
            let listed = installed.or(self.archive.first());
            return listed.cloned().ok_or_else(|| self.nothing_installed());
        };
        let (_, found) = digest::of_file(path)?;
        let listed = self.archive.iter().find(|archive| archive.sha256 == found);
        let listed = listed.ok_or_else(|| self.wrong(path, found))?;
        Ok(Archive { path: path.to_path_buf(), ..listed.clone() })
    }

    /// Checks that an archive is there and has the pinned bytes. Whoever unpacks it calls this first.
    ///
    /// # Errors
    /// When it is missing or has other bytes.
    pub fn verify(&self, archive: &Archive) -> Result<(), InputsError> {
        if !archive.path.exists() {
            return Err(self.nothing_installed());
        }
        let (_, found) = digest::of_file(&archive.path)?;
        if found == archive.sha256 { Ok(()) } else { Err(self.wrong(&archive.path, found)) }
    }

    /// A lock file's content, for tests.
    #[cfg(test)]
    pub(crate) fn pinning(version: &str, archive: Archive) -> Self {
        KernelSource { version: version.to_owned(), archive: vec![archive] }
    }

    fn nothing_installed(&self) -> InputsError {
        InputsError::NoArchive { version: self.version.clone(), wanted: self.wanted() }
    }

    fn wrong(&self, path: &Path, found: String) -> InputsError {
        let path = path.to_path_buf();
        InputsError::WrongHash { path, found, version: self.version.clone(), wanted: self.wanted() }
    }

    fn wanted(&self) -> String {
        let lines =
            self.archive.iter().map(|a| format!("{} at {} ({})", a.origin, a.path.display(), a.sha256));
        lines.collect::<Vec<_>>().join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scratch;

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn lock(path: &Path, sha256: &str) -> Result<Inputs, InputsError> {
        let text = format!(
            "[kernel]\nversion = '6.12.1'\n[[kernel.archive]]\norigin = 'test'\npath = '{}'\nsha256 = '{sha256}'\n",
            path.display()
        );
        Inputs::read(Scratch::new("lock").file("inputs.lock", text.as_bytes()).path())
    }

    #[test]
    fn pinned_archive_is_accepted_wherever_it_lies() {
        let archive = Scratch::new("archive").file("a.tar.xz", b"abc");
        let kernel = lock(Path::new("/nowhere/a.tar.xz"), ABC).unwrap().kernel;
        let found = kernel.candidate(Some(archive.path())).unwrap();
        assert_eq!((found.path.as_path(), found.sha256.as_str()), (archive.path(), ABC));
        kernel.verify(&found).unwrap();
    }

    #[test]
    fn wrong_archive_is_refused_with_both_hashes() {
        let archive = Scratch::new("archive").file("a.tar.xz", b"abd");
        let kernel = lock(archive.path(), ABC).unwrap().kernel;
        let installed = kernel.candidate(None).unwrap();
        for error in [kernel.verify(&installed), kernel.candidate(Some(archive.path())).map(drop)] {
            let error = error.unwrap_err();
            assert!(matches!(error, InputsError::WrongHash { .. }));
            let text = error.to_string();
            let found = "a52d159f262b2c6ddb724a61840befc36eb30c88877a4030b65cbe86298449c9";
            assert!(text.contains(found) && text.contains(ABC), "{text}");
        }
    }

    #[test]
    fn missing_archive_says_what_to_install() {
        let kernel = lock(Path::new("/nowhere/a.tar.xz"), ABC).unwrap().kernel;
        let listed = kernel.candidate(None).unwrap();
        let text = kernel.verify(&listed).unwrap_err().to_string();
        assert!(
            text.starts_with("No source archive of Linux 6.12.1 is here; install one of: test at"),
            "{text}"
        );
    }

    #[test]
    fn hash_of_the_wrong_form_is_refused() {
        for bad in ["", "abc", &ABC.to_uppercase(), &format!("{ABC}0")] {
            let error = lock(Path::new("/a"), bad).unwrap_err();
            assert!(matches!(error, InputsError::BadHash { .. }), "{bad}: {error}");
        }
    }

    #[test]
    fn the_repository_s_own_lock_file_is_well_formed() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("inputs.lock");
        let inputs = Inputs::read(&path).unwrap();
        assert!(inputs.kernel.version.starts_with("6.12."));
    }
}
