//! KVM's own counters of the machines that run at this moment.

use std::fs;

use anyhow::{Context as _, Result};

/// VM exits so far, of all running machines together. The sum of a machine goes with it.
pub(crate) fn exits() -> Result<u64> {
    let path = "/sys/kernel/debug/kvm/exits";
    let text = fs::read_to_string(path).with_context(|| format!("Reading {path} (is debugfs mounted?)"))?;
    text.trim().parse().with_context(|| format!("{path} says {text:?}"))
}
