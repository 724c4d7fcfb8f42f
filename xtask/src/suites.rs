//! `cargo xtask test`: every suite, one after the other, each with its time; the last line counts.
//!
//! A suite that could not run has failed. Later suites run also when an earlier one failed, so that one run tells
//! everything; only without binaries there is nothing to run end to end.

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use hull_tests::node::{self, NodeConfig};
use serde_json::Value;

use crate::arguments::Arguments;
use crate::progress::{output, run, say};
use crate::{build, e2e, prepush};

type Suite = (&'static str, fn(&Path) -> Result<()>);

const SUITES: [Suite; 7] = [
    ("format", prepush::format),
    ("prepush checks", prepush::checks),
    ("clippy", prepush::clippy),
    ("unit tests", unit),
    ("release build and guest image", build::all),
    ("tests with KVM in a node", with_kvm),
    ("end to end in a node", end_to_end),
];

pub(crate) fn run_all(top: &Path, arguments: Arguments) -> Result<ExitCode> {
    let filters = arguments.words()?;
    let start = Instant::now();
    let mut lines = Vec::new();
    let mut failed = 0;
    for (name, suite) in SUITES {
        if !filters.is_empty() && !filters.iter().any(|part| name.contains(part.as_str())) {
            continue;
        }
        say(&format!("=== {name}"));
        let began = Instant::now();
        let result = suite(top);
        let seconds = began.elapsed().as_secs_f64();
        if let Err(error) = &result {
            failed += 1;
            say(&format!("{name} failed: {error:#}"));
        }
        lines.push(format!("{:4} {seconds:7.1} s  {name}", if result.is_ok() { "ok" } else { "FAIL" }));
    }
    println!("\n{}\n{:12.1} s  all suites", lines.join("\n"), start.elapsed().as_secs_f64());
    println!("{} passed, {failed} failed", lines.len() - failed);
    Ok(if failed == 0 && !lines.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn unit(top: &Path) -> Result<()> {
    run(Command::new("cargo").current_dir(top).args(["test", "-q", "--workspace"]))
}

fn end_to_end(top: &Path) -> Result<()> {
    match e2e::suites(top, None, None, &[])? {
        0 => Ok(()),
        code => bail!("The suites ended with {code}"),
    }
}

/// The VMM's own test program, and test targets that `cargo test` leaves out by `test = false`: both need KVM, so they
/// run in a node.
fn with_kvm(top: &Path) -> Result<()> {
    let mut command = "code=0\n".to_owned();
    for program in kvm_programs(top)? {
        command.push_str(&format!("{program} --test-threads 1 || code=1\n"));
    }
    let kvm_boot = build::kvm_boot(top)?;
    command
        .push_str(&format!("{} --kernel target/guest/vmlinux || code=1\nexit $code\n", kvm_boot.display()));
    match node::run(&NodeConfig::new(top, &command))?.code {
        0 => Ok(()),
        code => bail!("The tests ended with {code}"),
    }
}

/// Builds them and gives their paths.
fn kvm_programs(top: &Path) -> Result<Vec<String>> {
    let json = output(Command::new("cargo").current_dir(top).args([
        "metadata",
        "--format-version",
        "1",
        "--no-deps",
    ]))?;
    let metadata: Value = serde_json::from_str(&json).context("cargo metadata is not JSON")?;
    let mut programs = Vec::new();
    for package in metadata.get("packages").and_then(Value::as_array).into_iter().flatten() {
        let package_name = text(package, "name");
        for target in package.get("targets").and_then(Value::as_array).into_iter().flatten() {
            let is_test = target.pointer("/kind/0").and_then(Value::as_str) == Some("test");
            if is_test && target.get("test") == Some(&Value::Bool(false)) {
                programs.push(test_program(top, package_name, text(target, "name"))?);
            }
        }
    }
    Ok(programs)
}

fn test_program(top: &Path, package: &str, target: &str) -> Result<String> {
    let arguments = ["test", "-q", "--no-run", "--message-format", "json", "-p", package, "--test", target];
    let lines = output(Command::new("cargo").current_dir(top).args(arguments))?;
    lines
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message.pointer("/target/name").and_then(Value::as_str) == Some(target))
        .find_map(|message| Some(message.get("executable")?.as_str()?.to_owned()))
        .with_context(|| format!("cargo names no program for the test {target} of {package}"))
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}
