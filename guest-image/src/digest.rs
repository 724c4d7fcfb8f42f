//! SHA-256 of files and of sets of inputs.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// A file's hash could not be taken.
#[derive(Debug, thiserror::Error)]
#[error("Cannot read {} to hash it", path.display())]
pub struct DigestError {
    path: PathBuf,
    source: io::Error,
}

/// Size and hash of a file.
///
/// # Errors
/// When the file cannot be read.
pub fn of_file(path: &Path) -> Result<(u64, String), DigestError> {
    let failed = |source| DigestError { path: path.to_path_buf(), source };
    let mut file = File::open(path).map_err(failed)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        let length = file.read(&mut buffer).map_err(failed)?;
        let Some(part) = buffer.get(..length).filter(|part| !part.is_empty()) else { break };
        hasher.update(part);
        bytes += part.len() as u64;
    }
    Ok((bytes, hex(&hasher.finalize())))
}

/// Hash over named inputs: the key of a cache entry. Lengths are part of it, so that no two different sets of inputs
/// run together into the same bytes.
#[must_use]
pub fn of_inputs(inputs: &[(&str, &str)]) -> String {
    let mut hasher = Sha256::new();
    for (name, value) in inputs {
        for text in [name, value] {
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
    }
    hex(&hasher.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_hash() {
        let path = crate::testing::Scratch::new("digest").file("abc", b"abc");
        let (bytes, sha256) = of_file(path.path()).unwrap();
        assert_eq!(bytes, 3);
        assert_eq!(sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn inputs_do_not_run_together() {
        assert_ne!(of_inputs(&[("a", "bc")]), of_inputs(&[("ab", "c")]));
        assert_ne!(of_inputs(&[("a", "b"), ("c", "d")]), of_inputs(&[("a", "bcd")]));
    }

    #[test]
    fn missing_file_is_named() {
        let error = of_file(Path::new("/nowhere/at all")).unwrap_err();
        assert_eq!(error.to_string(), "Cannot read /nowhere/at all to hash it");
    }
}
