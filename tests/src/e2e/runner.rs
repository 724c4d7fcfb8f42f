//! Runs the tests one after the other, each in its own process, and reports.

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::context::{HULL, Needs, Test};
use crate::ctr::ctr;
use crate::leaks::{self, Snapshot};

/// Bytes of containerd's log that a failure shows at most.
const LOG_SHOWN: usize = 6000;

#[derive(Debug, Serialize)]
struct Report {
    name: &'static str,
    passed: bool,
    seconds: f64,
    trouble: String,
}

/// Runs what the filters and the runtime select; gives whether all of it passed.
pub(crate) fn run(tests: &[Test], runtime: &str, filters: &[String], results: Option<&str>) -> Result<bool> {
    let ctr_2 = ctr(&["version"])?.ok().context("containerd is not there")?.text().contains("v2.");
    let wanted =
        |test: &&Test| filters.is_empty() || filters.iter().any(|part| test.name.contains(part.as_str()));
    let possible = |test: &&Test| match test.needs {
        Needs::Nothing => true,
        Needs::Hull => runtime == HULL,
        Needs::Ctr2 => ctr_2,
    };
    let selected: Vec<&Test> = tests.iter().filter(wanted).collect();
    let left_out: Vec<&str> = selected.iter().filter(|test| !possible(test)).map(|test| test.name).collect();
    // containerd's cgroup for its default namespace stays once it is there, under every runtime.
    let _ = fs::create_dir("/sys/fs/cgroup/default");
    let mut reports = Vec::new();
    for test in selected.iter().filter(|test| possible(test)) {
        let report = one(test, runtime)?;
        println!("{:4} {:7.1} s  {}", if report.passed { "ok" } else { "FAIL" }, report.seconds, report.name);
        for line in report.trouble.lines() {
            println!("       {line}");
        }
        std::io::stdout().flush().context("Writing the report")?;
        reports.push(report);
    }
    if let Some(path) = results {
        let text = serde_json::to_string_pretty(&reports).context("Writing the results as JSON")?;
        fs::write(path, text).with_context(|| format!("Writing {path}"))?;
    }
    if !left_out.is_empty() {
        println!("left out, not possible with {runtime} on this containerd: {}", left_out.join(", "));
    }
    let failed = reports.iter().filter(|report| !report.passed).count();
    println!("end to end: {} passed, {failed} failed", reports.len() - failed);
    Ok(failed == 0 && !reports.is_empty())
}

fn one(test: &Test, runtime: &str) -> Result<Report> {
    let before = Snapshot::take();
    let log_start = log_length();
    let start = Instant::now();
    let mut trouble = in_process(test, runtime)?;
    let seconds = start.elapsed().as_secs_f64();
    for left in before.added_since() {
        trouble.push_str(&format!("left behind: {left}\n"));
    }
    for id in leaks::containers()? {
        trouble.push_str(&format!("left behind: container {id}\n"));
    }
    if !trouble.is_empty() {
        trouble.push_str(&log_since(log_start));
        leaks::sweep();
    }
    Ok(Report { name: test.name, passed: trouble.is_empty(), seconds, trouble })
}

/// Runs the test as `hull-e2e --one`; gives what went wrong, nothing if it passed.
fn in_process(test: &Test, runtime: &str) -> Result<String> {
    let program = std::env::current_exe().context("Finding this program")?;
    let mut child = Command::new(program)
        .args(["--runtime", runtime, "--one", test.name])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .context("Starting the test's process")?;
    let ended = wait(&mut child, test.deadline)?;
    if !ended {
        // The whole group: `ctr` processes of the test would otherwise keep its pipes open.
        if let Some(group) = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap_or(0)) {
            rustix::process::kill_process_group(group, rustix::process::Signal::KILL)
                .context("Killing the test's processes")?;
        }
    }
    let output = child.wait_with_output().context("Waiting for the test's process")?;
    let mut text = String::new();
    if !ended {
        text.push_str(&format!("did not end within {} s and was killed\n", test.deadline.as_secs()));
    }
    if !output.status.success() {
        text.push_str(&String::from_utf8_lossy(&output.stdout));
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        if text.is_empty() {
            text.push_str(&format!("ended with {}\n", output.status));
        }
    }
    Ok(text)
}

/// Waits for the process; false if the deadline came first. Its output is small enough for the pipes.
fn wait(child: &mut Child, deadline: Duration) -> Result<bool> {
    let start = Instant::now();
    loop {
        if child.try_wait().context("Waiting for the test")?.is_some() {
            return Ok(true);
        }
        if start.elapsed() > deadline {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(30));
    }
}

fn log_path() -> Option<std::path::PathBuf> {
    std::env::var_os("HULL_SHARE").map(|share| std::path::Path::new(&share).join("containerd.log"))
}

fn log_length() -> u64 {
    log_path().and_then(|path| fs::metadata(path).ok()).map_or(0, |meta| meta.len())
}

/// The end of what containerd and the shims logged since then.
fn log_since(start: u64) -> String {
    let read = || -> Option<String> {
        let mut file = fs::File::open(log_path()?).ok()?;
        file.seek(SeekFrom::Start(start)).ok()?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).ok()?;
        let shown = bytes.get(bytes.len().saturating_sub(LOG_SHOWN)..)?;
        Some(String::from_utf8_lossy(shown).into_owned())
    };
    let log = read().unwrap_or_default();
    if log.is_empty() { String::new() } else { format!("--- containerd's log:\n{log}") }
}
