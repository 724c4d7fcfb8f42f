//! `cargo xtask demo`: what a newcomer wants to see of Hull, in a node.
//!
//! What is shown is in `tests/node/demo.sh`; this only makes sure that there is something to show.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hull_tests::node;

use crate::build;
use crate::node::with_containerd;
use crate::progress::say;

/// Boot, three containers, a few questions.
const DEADLINE: Duration = Duration::from_secs(180);

pub(crate) fn run(top: &Path) -> Result<ExitCode> {
    build::all(top)?;
    let script = top.join("tests/node/demo.sh");
    let script = fs::read_to_string(&script).with_context(|| format!("Reading {}", script.display()))?;
    let mut config = with_containerd(top, &script, None)?;
    config.deadline = DEADLINE;
    say("starting a test node: a machine with KVM in which containerd runs");
    let outcome = node::run(&config)?;
    say(&format!("done; the node's logs are in {}", outcome.directory.display()));
    Ok(ExitCode::from(outcome.code))
}
