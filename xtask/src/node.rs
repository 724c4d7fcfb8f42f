//! `cargo xtask node`: one command in a fresh node.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use hull_tests::node::{self, Clock, Containerd, NodeConfig};

use crate::arguments::Arguments;

pub(crate) fn run(top: &Path, mut arguments: Arguments) -> Result<ExitCode> {
    let command = arguments.value("--cmd")?.unwrap_or_else(|| "ctr version".to_owned());
    let mut config = NodeConfig::new(top, &command);
    config.containerd = Some(Containerd { version: "1.6".to_owned(), bin: PathBuf::from("/usr/bin") });
    if let Some(memory) = arguments.value("--memory")? {
        config.memory_mib = memory;
    }
    if let Some(seconds) = arguments.value("--deadline")? {
        config.deadline = Duration::from_secs(seconds);
    }
    if arguments.switch("--icount") {
        config.clock = Clock::Counted;
    }
    arguments.none_left()?;
    let outcome = node::run(&config)?;
    if outcome.code == 125 { bail!("?") }
    Ok(ExitCode::from(outcome.code))
}
