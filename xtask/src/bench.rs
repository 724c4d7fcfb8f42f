//! `cargo xtask bench`: Hull against its peers, in one node whose clock counts instructions.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hull_tests::node::{self, Clock};

use crate::arguments::Arguments;
use crate::build;
use crate::node::with_containerd;
use crate::progress::{run, say};

/// Counting makes a node ten times slower than emulation alone.
const DEADLINE: Duration = Duration::from_secs(3 * 3600);

/// Runs the sections named on the command line, or all; the figures go to `target/bench/results.json`.
pub(crate) fn run_all(top: &Path, arguments: Arguments) -> Result<ExitCode> {
    let sections = arguments.words()?.join(" ");
    build::all(top)?;
    run(build::cargo_static(top).args([
        "-q",
        "-p",
        "hull-tests",
        "--bin",
        "hull-bench",
        "--bin",
        "hull-bench-init",
    ]))?;
    run(build::cargo_static(top).args(["-q", "-p", "hull-vmm", "--example", "boot"]))?;
    let results = top.join("target/bench");
    fs::create_dir_all(&results).with_context(|| format!("Making {}", results.display()))?;
    let release = build::release_dir(top);
    let release = release.display();
    let command = format!(
        "{release}/hull-bench --boot {release}/examples/boot --init {release}/hull-bench-init \
         --kernel target/guest/vmlinux --results $HULL_SHARE/results.json {sections}"
    );
    let mut config = with_containerd(top, &command, None)?;
    config.clock = Clock::Counted;
    config.deadline = DEADLINE;
    say("a node that counts instructions: everything in it takes its time");
    let outcome = node::run(&config)?;
    if outcome.code == 0 {
        let to = results.join("results.json");
        fs::copy(outcome.directory.join("results.json"), &to)
            .with_context(|| format!("Keeping the figures as {}", to.display()))?;
        say(&format!("figures: {}", to.display()));
    }
    Ok(ExitCode::from(outcome.code))
}
