//! `cargo xtask node`: one command in a fresh node. Also how the other verbs get a node.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use hull_tests::node::{self, Clock, NodeConfig, state};

use crate::arguments::Arguments;
use crate::containerd;

pub(crate) fn run(top: &Path, mut arguments: Arguments) -> Result<ExitCode> {
    let command = arguments.value("--cmd")?.unwrap_or_else(|| "ctr version; ctr image list".to_owned());
    let version: Option<String> = arguments.value("--containerd")?;
    let mut config = match version.as_deref() {
        Some("none") => NodeConfig::new(top, &command),
        other => with_containerd(top, &command, other)?,
    };
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
    Ok(ExitCode::from(node::run(&config)?.code))
}

/// A node with containerd (the newest there is, if no version is given) and the test images in its store.
pub(crate) fn with_containerd(top: &Path, command: &str, version: Option<&str>) -> Result<NodeConfig> {
    let from_env = std::env::var("CONTAINERD").ok().filter(|value| !value.is_empty());
    let containerd = containerd::get(top, version.or(from_env.as_deref()))?;
    let mut config = NodeConfig::new(top, command);
    config.state = Some(state::disk(top, &containerd)?);
    config.containerd = Some(containerd);
    Ok(config)
}
