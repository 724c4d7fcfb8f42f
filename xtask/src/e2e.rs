//! `cargo xtask e2e`: the end-to-end suites in one node.

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::Result;
use hull_tests::node;

use crate::arguments::Arguments;
use crate::node::with_containerd;
use crate::progress::{run as run_program, say};

/// All suites together; each test has a deadline of its own.
const DEADLINE: Duration = Duration::from_secs(30 * 60);

pub(crate) fn run(top: &Path, mut arguments: Arguments) -> Result<ExitCode> {
    let version: Option<String> = arguments.value("--containerd")?;
    let runtime: Option<String> = arguments.value("--runtime")?;
    let filters = arguments.words()?;
    let code = suites(top, version.as_deref(), runtime.as_deref(), &filters)?;
    Ok(ExitCode::from(code))
}

/// Runs the selected tests; gives the code of `hull-e2e`.
pub(crate) fn suites(
    top: &Path,
    containerd: Option<&str>,
    runtime: Option<&str>,
    filters: &[String],
) -> Result<u8> {
    run_program(Command::new("cargo").current_dir(top).args([
        "build",
        "-q",
        "-p",
        "hull-tests",
        "--bin",
        "hull-e2e",
    ]))?;
    // From the node's RAM: the program starts itself for each test, and a build in between would change it.
    let mut command =
        "cp target/debug/hull-e2e /tmp/ && /tmp/hull-e2e --results $HULL_SHARE/e2e.json".to_owned();
    if let Some(runtime) = runtime {
        command.push_str(&format!(" --runtime '{runtime}'"));
    }
    for filter in filters {
        command.push_str(&format!(" '{filter}'"));
    }
    let mut config = with_containerd(top, &command, containerd)?;
    config.deadline = DEADLINE;
    config.memory_mib = 8192;
    let version = config.containerd.as_ref().map_or("", |containerd| containerd.version.as_str());
    say(&format!("end-to-end suites in a node with containerd {version}"));
    let outcome = node::run(&config)?;
    say(&format!("the node's logs are in {}", outcome.directory.display()));
    Ok(outcome.code)
}
