//! A real server in the Debian image, asked by its own benchmark from inside the pod.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::context::{Context, DEBIAN, Test, expect, expect_part, wait_for};

pub(crate) const TESTS: &[Test] = &[Test::new("redis::benchmark", benchmark).seconds(180)];

fn benchmark(context: &Context) -> Result<()> {
    let server = ["redis-server", "--save", "", "--appendonly", "no", "--daemonize", "no"];
    let pod = context.run(DEBIAN, "pod").words(&server).detach()?;
    wait_for("redis to answer", Duration::from_secs(30), || {
        Ok(pod.exec(&["redis-cli", "ping"])?.text().contains("PONG").then_some(()))
    })?;
    let text = pod.exec(&["redis-benchmark", "-t", "set,get", "-n", "2000", "-c", "10", "-q"])?.ok()?.text();
    for command in ["SET", "GET"] {
        let line =
            text.split(['\n', '\r']).rfind(|line| line.starts_with(command) && line.contains("per second"));
        let line = line.with_context(|| format!("No result for {command} in {text:?}"))?;
        let rate: f64 = line.split_whitespace().nth(1).context("No rate")?.parse()?;
        if rate < 1.0 {
            bail!("{line}");
        }
    }
    expect(
        "a key of the benchmark's",
        pod.exec(&["redis-cli", "exists", "key:__rand_int__"])?.text().as_str(),
        "1",
    )?;
    expect_part("its version", &pod.exec(&["redis-cli", "info", "server"])?.ok()?.text(), "redis_version:7")?;
    pod.kill("TERM", &[])?.ok()?;
    pod.wait_status("STOPPED")?;
    pod.remove()
}
