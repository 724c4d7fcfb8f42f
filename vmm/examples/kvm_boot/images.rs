//! Root images: this program as `/agent`, and a file that names its role.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Outcome;
use crate::guest::Role;

/// The root image for a role, made if it is not there.
pub fn root(work: &Path, role: Role) -> Outcome<PathBuf> {
    let image = work.join(format!("{}.erofs", role.name()));
    if image.exists() {
        return Ok(image);
    }
    let tree = work.join(role.name());
    for directory in ["dev", "proc", "sys"] {
        fs::create_dir_all(tree.join(directory))?;
    }
    fs::copy(std::env::current_exe()?, tree.join("agent"))?;
    fs::write(tree.join("role"), role.name())?;
    let status = Command::new("mkfs.erofs")
        .arg(&image)
        .arg(&tree)
        .stdout(Stdio::null())
        .status()
        .map_err(|error| format!("mkfs.erofs cannot be run: {error}"))?;
    fs::remove_dir_all(tree)?;
    if status.success() { Ok(image) } else { Err(format!("mkfs.erofs ended with {status}").into()) }
}

/// A layer file with bytes that depend on their position.
pub fn layer(work: &Path, name: &str, length: usize) -> Outcome<PathBuf> {
    let path = work.join(name);
    let bytes: Vec<u8> = (0..length).map(|index| (index.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    fs::write(&path, bytes)?;
    Ok(path)
}

/// FNV-1a, to compare what was read on both sides.
pub fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}
