//! Containers through containerd: whole runs, commands in a running pod, output. Hull and runc in turn.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::report::Report;
use crate::shell::{HULL, IMAGE, RUNC, Running, seconds};

/// Counted repeats of each.
const REPEATS: usize = 6;
/// Bytes for the throughput: enough that the process around them is a small part.
const OUTPUT_BYTES: u64 = 32 << 20;

pub(crate) fn measure(report: &mut Report) -> Result<()> {
    let mut number = 0;
    let mut run = |runtime: &str| {
        number += 1;
        let id = format!("bench-run-{number}");
        seconds(&["ctr", "run", "--rm", "--runtime", runtime, IMAGE, &id, "/bin/true"])
    };
    let (hull, runc) = in_turn(&mut |runtime| run(runtime))?;
    report.compare("ctr run --rm of /bin/true", "s", &hull, "runc", &runc, Some(1.0))?;
    report.value("machine start to the agent's hello", "s", &hellos()?, None)?;

    let pods = [Running::start(HULL, "bench-hull")?, Running::start(RUNC, "bench-runc")?];
    let mut number = 0;
    let mut exec = |runtime: &str, words: &[&str]| {
        number += 1;
        let pod = if runtime == HULL { &pods[0].0 } else { &pods[1].0 };
        let exec_id = format!("x{number}");
        let mut all = vec!["ctr", "task", "exec", "--exec-id", &exec_id, pod];
        all.extend(words);
        let start = Instant::now();
        seconds(&all)?;
        Ok(start.elapsed().as_secs_f64())
    };
    let (hull, runc) = in_turn(&mut |runtime| exec(runtime, &["/bin/true"]))?;
    report.compare("ctr task exec of /bin/true", "s", &hull, "runc", &runc, Some(0.6))?;

    let bytes = OUTPUT_BYTES.to_string();
    let (hull, runc) = in_turn(&mut |runtime| exec(runtime, &["head", "-c", &bytes, "/dev/zero"]))?;
    let rate = |values: &[f64]| -> Vec<f64> {
        values.iter().map(|seconds| OUTPUT_BYTES as f64 / f64::from(1 << 20) / seconds).collect()
    };
    report.compare("stdout, exec of head -c 32M", "MiB/s", &rate(&hull), "runc", &rate(&runc), None)
}

/// Seconds from the machine's start to the agent's hello, as the shims of all pods but the first logged them.
fn hellos() -> Result<Vec<f64>> {
    let share = std::env::var("HULL_SHARE").context("HULL_SHARE is not set: this is no test node")?;
    let path = format!("{share}/containerd.log");
    let log = std::fs::read_to_string(&path).with_context(|| format!("Reading {path}"))?;
    let millis = |line: &str| line.split_once(" hello_ms=")?.1.split(' ').next()?.parse::<f64>().ok();
    Ok(log.lines().filter_map(millis).skip(1).map(|millis| millis / 1000.0).collect())
}

/// A pause before each measurement. A runtime may answer before its clean-up is over, and the node has one CPU: without
/// the pause the next measurement, the other runtime's, would pay for it.
const SETTLE: Duration = Duration::from_secs(1);

/// Measures Hull and runc in turn after a warm-up of each; gives both series.
fn in_turn(measure: &mut dyn FnMut(&str) -> Result<f64>) -> Result<(Vec<f64>, Vec<f64>)> {
    let mut measure = |runtime: &str| {
        std::thread::sleep(SETTLE);
        measure(runtime)
    };
    measure(HULL)?;
    measure(RUNC)?;
    let (mut hull, mut runc) = (Vec::new(), Vec::new());
    for _ in 0..REPEATS {
        hull.push(measure(HULL)?);
        runc.push(measure(RUNC)?);
    }
    Ok((hull, runc))
}
