//! Commands, timed.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

pub(crate) const HULL: &str = "io.containerd.hull.v2";
pub(crate) const RUNC: &str = "io.containerd.runc.v2";
pub(crate) const IMAGE: &str = "hull.test/busybox:latest";

/// Runs a program to its end; gives the seconds that it took. It has to succeed.
pub(crate) fn seconds(words: &[&str]) -> Result<f64> {
    let (program, arguments) = words.split_first().context("No program")?;
    let start = Instant::now();
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output()
        .with_context(|| format!("Starting {program}"))?;
    let seconds = start.elapsed().as_secs_f64();
    if !output.status.success() {
        bail!("{words:?} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(seconds)
}

/// A container that runs until it is dropped.
#[derive(Debug)]
pub(crate) struct Running(pub(crate) String);

impl Running {
    pub(crate) fn start(runtime: &str, id: &str) -> Result<Self> {
        seconds(&["ctr", "run", "-d", "--runtime", runtime, IMAGE, id, "sleep", "100000"])?;
        Ok(Self(id.to_owned()))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A failed removal shows when the next container of that name is made.
        let _ = seconds(&["ctr", "task", "delete", "--force", &self.0]);
        let _ = seconds(&["ctr", "container", "delete", &self.0]);
    }
}
