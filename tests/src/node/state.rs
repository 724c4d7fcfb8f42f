//! A disk with containerd's state: its programs and, in its store, the test images unpacked.
//!
//! Importing images costs a node more time than booting. So one node imports them once, onto an ext4 image in the
//! cache, and every later node gets that disk with its own writes thrown away. ext4 rather than RAM also because
//! a tmpfs of the node's kernel can't hold `user.*` attributes. No journal: a disk is either whole or thrown away.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::{Containerd, Disk, NodeConfig};
use crate::cache::{self, Key};
use crate::images::Image;

/// The disk's size; the image file is sparse.
const DISK_BYTES: u64 = 6 << 30;

/// Programs that a node takes from the disk.
const PROGRAMS: [&str; 4] = ["containerd", "ctr", "containerd-shim-runc-v2", "runc"];

/// Gives the state disk for this containerd, made if it is not there.
///
/// # Errors
/// An image can't be made, or the node that imports them failed.
pub fn disk(top: &Path, containerd: &Containerd) -> Result<Disk> {
    let prime = top.join("tests/node/prime.sh");
    let prime = fs::read_to_string(&prime).with_context(|| format!("Reading {}", prime.display()))?;
    let mut archives = Vec::new();
    let mut key = Key::new("containerd state 1");
    key.add("prime", prime.as_bytes()).add("containerd", containerd.version.as_bytes());
    for image in Image::ALL {
        let archive = image.archive(top)?;
        key.add_system_file(&archive)?;
        archives.push(archive);
    }
    for program in PROGRAMS {
        key.add_system_file(&containerd.bin.join(program))?;
    }
    let entry = cache::entry("state", &key, |work| make(top, containerd, &archives, &prime, work))?;
    Ok(Disk { image: entry.join("containerd.ext4"), keep_writes: false })
}

fn make(top: &Path, containerd: &Containerd, archives: &[PathBuf], prime: &str, work: &Path) -> Result<()> {
    let tree = work.join("tree");
    fs::create_dir_all(tree.join("bin")).context("Making the state disk's tree")?;
    for program in PROGRAMS {
        let from = containerd.bin.join(program);
        fs::copy(&from, tree.join("bin").join(program))
            .with_context(|| format!("Copying {}", from.display()))?;
    }
    let image = work.join("containerd.ext4");
    fs::File::create(&image)
        .and_then(|file| file.set_len(DISK_BYTES))
        .with_context(|| format!("Making {}", image.display()))?;
    let made = Command::new("mkfs.ext4")
        .args(["-q", "-F", "-O", "^has_journal", "-E", "lazy_itable_init=1", "-d"])
        .arg(&tree)
        .arg(&image)
        .status()
        .context("Starting mkfs.ext4 (is e2fsprogs installed?)")?;
    if !made.success() {
        bail!("mkfs.ext4 failed ({made})");
    }
    fs::remove_dir_all(&tree).context("Removing the state disk's tree")?;

    let mut config = NodeConfig::new(top, prime);
    config.containerd = Some(containerd.clone());
    config.state = Some(Disk { image, keep_writes: true });
    config.deadline = Duration::from_secs(900);
    let paths: Vec<String> = archives.iter().map(|path| path.display().to_string()).collect();
    config.env.push(("HULL_ARCHIVES".to_owned(), paths.join(" ")));
    let outcome = super::run(&config)?;
    if outcome.code != 0 {
        bail!("Importing the test images failed with {}: see {}", outcome.code, outcome.directory.display());
    }
    Ok(())
}
