//! Signals from outside: to init, to one exec, to everything.

use std::time::Duration;

use anyhow::Result;

use crate::context::{BUSYBOX, Context, Test, expect, expect_part, wait_for};
use crate::ctr::{ctr, finish, spawn};
use crate::events::{Events, topics};

pub(crate) const TESTS: &[Test] = &[
    Test::new("signals::term_is_handled", term_is_handled),
    Test::new("signals::kill", kill),
    Test::new("signals::to_an_exec", to_an_exec),
    Test::new("signals::to_all", to_all),
    Test::new("signals::numbers", numbers),
];

fn term_is_handled(context: &Context) -> Result<()> {
    let script = "trap 'echo got it; exit 3' TERM; echo ready; while :; do sleep 0.2; done";
    let run = context.run(BUSYBOX, "run").sh(script);
    let child = spawn(&mut run.attached())?;
    let id = context.id("run");
    wait_for("the container to run", Duration::from_secs(20), || {
        Ok(ctr(&["task", "exec", "--exec-id", "probe", &id, "true"])?.ok().ok())
    })?;
    std::thread::sleep(Duration::from_millis(500));
    ctr(&["task", "kill", "--signal", "TERM", &id])?.ok()?;
    let output = finish(child)?.ended(3)?;
    expect("what it said", output.text().as_str(), "ready\ngot it")
}

fn kill(context: &Context) -> Result<()> {
    let events = Events::subscribe()?;
    let pod = context.run(BUSYBOX, "pod").words(&["sleep", "600"]).detach()?;
    pod.kill("KILL", &[])?.ok()?;
    let seen = events.until(&pod.id, "exit", Duration::from_secs(20))?;
    expect("events", &topics(&seen), &vec!["create", "start", "exit"])?;
    expect_part("the exit event", &seen.last().map_or_else(String::new, |event| event.body.clone()), "137")?;
    pod.wait_status("STOPPED")?;
    pod.kill("KILL", &[])?.refused("not found").or_else(|_| pod.kill("KILL", &[])?.refused("finished"))?;
    pod.remove()
}

fn to_an_exec(context: &Context) -> Result<()> {
    let pod = context.run(BUSYBOX, "pod").words(&["sleep", "600"]).detach()?;
    let words = ["task", "exec", "--exec-id", "victim", &pod.id, "sleep", "500"];
    let child = spawn(&mut crate::ctr::command(&words))?;
    wait_for("the exec to run", Duration::from_secs(20), || Ok((pod.processes()? == 2).then_some(())))?;
    ctr(&["task", "kill", "--signal", "TERM", "--exec-id", "victim", &pod.id])?.ok()?;
    finish(child)?.ended(143)?;
    expect("init goes on", pod.says("echo alive")?.as_str(), "alive")?;
    pod.remove()
}

/// With `--all` every process of the container gets it, not init alone.
fn to_all(context: &Context) -> Result<()> {
    let script = "trap : USR1; (trap 'echo child >>/tmp/got' USR1; while :; do sleep 0.1; done) & \
                  trap 'echo init >>/tmp/got' USR1; touch /tmp/ready; while :; do sleep 0.1; done";
    let pod = context.run(BUSYBOX, "pod").sh(script).detach()?;
    pod.says("while ! [ -e /tmp/ready ]; do sleep 0.1; done")?;
    pod.kill("USR1", &["--all"])?.ok()?;
    let got = wait_for("both to get it", Duration::from_secs(20), || {
        let got = pod.sh("sort /tmp/got")?.text();
        Ok(got.contains("child").then_some(got))
    })?;
    expect("who got it", got.as_str(), "child\ninit")?;
    pod.kill("KILL", &["--all"])?.ok()?;
    pod.wait_status("STOPPED")?;
    pod.remove()
}

fn numbers(context: &Context) -> Result<()> {
    let script = "for s in 1 2 3 10 12 17 34 64; do trap \"echo $s >>/tmp/got\" $s; done; touch /tmp/ready; \
                  while :; do sleep 0.1; done";
    let pod = context.run(BUSYBOX, "pod").sh(script).detach()?;
    pod.says("while ! [ -e /tmp/ready ]; do sleep 0.1; done")?;
    for number in ["1", "2", "3", "10", "12", "34", "64"] {
        pod.kill(number, &[])?.ok()?;
        let caught =
            format!("for i in $(seq 50); do grep -qx {number} /tmp/got && exit; sleep 0.1; done; exit 1");
        pod.sh(&caught)?.ok()?;
    }
    pod.remove()
}
