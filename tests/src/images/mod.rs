//! The container images that the suites run, made from Debian packages without a registry.
//!
//! `tests/images/*.sh` make them: deterministic tars in the docker-archive form, cached by the scripts' contents.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::cache::{self, Key};

/// An image that the suites run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Image {
    /// `hull.test/busybox:latest`: 2 MB, one layer.
    Busybox,
    /// `hull.test/debian:latest`: 100 MB, four layers, python3, redis, every kind of file.
    Debian,
}

impl Image {
    /// All images.
    pub const ALL: [Self; 2] = [Self::Busybox, Self::Debian];

    /// The script and the file in the cache that it makes.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Busybox => ("busybox.sh", "busybox.tar"),
            Self::Debian => ("debian.sh", "debian.tar"),
        }
    }

    /// The image's archive, made if it is not there.
    ///
    /// # Errors
    /// A script can't be read or failed; without root it can't make devices and owners.
    pub fn archive(self, top: &Path) -> Result<PathBuf> {
        let scripts = top.join("tests/images");
        let (script, tar) = self.names();
        let mut key = Key::new("image 1");
        for name in ["common.sh", script] {
            let path = scripts.join(name);
            key.add(name, &fs::read(&path).with_context(|| format!("Reading {}", path.display()))?);
        }
        key.add_system_file(Path::new("/bin/busybox"))?;
        let entry = cache::entry("images", &key, |work| {
            let status = Command::new("bash")
                .arg(scripts.join(script))
                .arg(work.join(tar))
                .status()
                .with_context(|| format!("Starting {script}"))?;
            if !status.success() {
                bail!("{script} failed ({status})");
            }
            Ok(())
        })?;
        Ok(entry.join(tar))
    }
}
