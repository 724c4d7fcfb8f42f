//! Limits of memory, processor time and processes, and what is measured of them.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::context::{BUSYBOX, Context, Test, expect};
use crate::ctr::ctr;
use crate::events::{Events, topics};

pub(crate) const TESTS: &[Test] = &[
    Test::new("limits::memory", memory),
    Test::new("limits::memory_of_an_exec", memory_of_an_exec),
    Test::new("limits::cpu", cpu),
    Test::new("limits::metrics", metrics),
];

/// The kernel kills what exceeds the limit: code 137 and an event that says why.
fn memory(context: &Context) -> Result<()> {
    let events = Events::subscribe()?;
    let run = context.run(BUSYBOX, "run").flags(&["--memory-limit", "33554432"]);
    // tail keeps what it reads until a newline, which zeros don't contain
    run.words(&["tail", "/dev/zero"]).output()?.ended(137)?;
    let seen = events.until(&context.id("run"), "delete", Duration::from_secs(20))?;
    let mut names = topics(&seen);
    names.dedup();
    expect("events", &names, &vec!["create", "start", "oom", "exit", "delete"])
}

/// The container outlives an exec that took too much.
fn memory_of_an_exec(context: &Context) -> Result<()> {
    let run = context.run(BUSYBOX, "pod").flags(&["--memory-limit", "33554432"]);
    let pod = run.words(&["sleep", "600"]).detach()?;
    pod.exec(&["tail", "/dev/zero"])?.ended(137)?;
    expect("init goes on", pod.says("echo alive")?.as_str(), "alive")?;
    pod.remove()
}

/// A fifth of a processor: a busy loop is stopped in most periods.
fn cpu(context: &Context) -> Result<()> {
    let run = context.run(BUSYBOX, "pod").flags(&["--cpu-quota", "20000", "--cpu-period", "100000"]);
    let pod = run.sh("while :; do :; done").detach()?;
    std::thread::sleep(Duration::from_secs(4));
    let before = usage_us(&pod.id)?;
    std::thread::sleep(Duration::from_secs(5));
    let used = usage_us(&pod.id)?.saturating_sub(before);
    // A fifth of five seconds, the time of the two questions on top.
    if !(100_000..=2_000_000).contains(&used) {
        bail!("It used {used} µs of processor time in a little more than 5 s with a fifth of a processor");
    }
    if metric(&pod.id, "nr_throttled")? == 0 {
        bail!("It was never throttled");
    }
    pod.remove()
}

fn metrics(context: &Context) -> Result<()> {
    let run = context.run(BUSYBOX, "pod").flags(&["--memory-limit", "67108864"]);
    let pod = run.sh("head -c 20000000 /dev/zero >/dev/shm/x; sleep 600").detach()?;
    pod.says("while [ $(stat -c %s /dev/shm/x) != 20000000 ]; do sleep 0.2; done")?;
    let usage = metric(&pod.id, "usage")?;
    if !(20_000_000..67_108_864).contains(&usage) {
        bail!("20 MB in /dev/shm under a limit of 64 MiB count as {usage} bytes");
    }
    expect("the limit", &metric(&pod.id, "usage_limit")?, &67_108_864)?;
    if usage_us(&pod.id)? == 0 {
        bail!("It used no processor time");
    }
    pod.remove()
}

fn usage_us(id: &str) -> Result<u64> {
    metric(id, "usage_usec")
}

/// The first field of this name in the task's metrics: cgroup v2's, as JSON with numbers.
fn metric(id: &str, name: &str) -> Result<u64> {
    let json = ctr(&["task", "metrics", "--format", "json", id])?.ok()?.text();
    let value: serde_json::Value =
        serde_json::from_str(&json).with_context(|| format!("Metrics: {json:?}"))?;
    find(&value, name).with_context(|| format!("No {name} in the metrics {json}"))
}

fn find(value: &serde_json::Value, name: &str) -> Option<u64> {
    match value {
        serde_json::Value::Object(fields) => fields
            .get(name)
            .and_then(serde_json::Value::as_u64)
            .or_else(|| fields.values().find_map(|inner| find(inner, name))),
        _ => None,
    }
}
