//! From creation to removal: attached and detached, orders that are right and orders that are not.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::context::{BUSYBOX, Context, Test, expect, expect_part};
use crate::ctr::{Output, ctr};
use crate::events::{Events, topics};

pub(crate) const TESTS: &[Test] = &[
    Test::new("lifecycle::hello", hello),
    Test::new("lifecycle::attached", attached),
    Test::new("lifecycle::detached", detached),
    Test::new("lifecycle::restarted", restarted),
    Test::new("lifecycle::wrong_order", wrong_order),
    Test::new("lifecycle::long_id", long_id),
    Test::new("lifecycle::short_lived", short_lived),
];

fn hello(context: &Context) -> Result<()> {
    let output = context.run(BUSYBOX, "run").words(&["echo", "hello"]).output()?.ok()?;
    expect("output", output.text().as_str(), "hello")?;
    expect("stderr", output.stderr.as_str(), "")
}

fn attached(context: &Context) -> Result<()> {
    let events = Events::subscribe()?;
    context.run(BUSYBOX, "run").sh("exit 4").output()?.ended(4)?;
    let seen = events.until(&context.id("run"), "delete", Duration::from_secs(20))?;
    expect("events", &topics(&seen), &vec!["create", "start", "exit", "delete"])?;
    for event in seen.iter().filter(|event| event.topic == "exit" || event.topic == "delete") {
        expect_part("the event", &event.body, "\"exit_status\":4")?;
        expect_part("the event", &event.body, "\"exited_at\"")?;
    }
    Ok(())
}

fn detached(context: &Context) -> Result<()> {
    let pod = context.run(BUSYBOX, "pod").words(&["sleep", "600"]).detach()?;
    let Some((pid, state)) = pod.status()? else { bail!("containerd lists no task") };
    expect("state", state.as_str(), "RUNNING")?;
    if !std::path::Path::new(&format!("/proc/{pid}")).exists() {
        bail!("The task's process {pid} does not exist on the node");
    }
    expect_part("its processes", &ctr(&["task", "ps", &pod.id])?.ok()?.text(), &pid.to_string())?;
    ctr(&["task", "delete", &pod.id])?
        .refused("must be stopped")
        .or_else(|_| ctr(&["task", "delete", &pod.id])?.refused("precondition"))?;
    pod.kill("KILL", &[])?.ok()?;
    pod.wait_status("STOPPED")?;
    expect_killed(&ctr(&["task", "delete", &pod.id])?)?;
    expect("tasks left", &pod.status()?, &None)?;
    pod.remove()
}

/// `ctr task delete` gives the task's exit code: as its own (1.6), or in a warning (2.3).
pub(crate) fn expect_killed(deleted: &Output) -> Result<()> {
    if deleted.code == 137 { Ok(()) } else { expect_part("what ctr says", &deleted.stderr, "exit code 137") }
}

/// The same container can be started again after its task is gone.
fn restarted(context: &Context) -> Result<()> {
    let pod = context.run(BUSYBOX, "pod").sh("echo run >>/runs; exit $(wc -l </runs)").detach()?;
    pod.wait_status("STOPPED")?;
    ctr(&["task", "delete", &pod.id])?;
    for _ in 0..2 {
        // Each task gets a fresh writable layer or the container's own; both are right, but its end is told.
        let code = ctr(&["task", "start", &pod.id])?.code;
        if !(1..=3).contains(&code) {
            bail!("The task ended with {code}");
        }
    }
    pod.remove()
}

fn wrong_order(context: &Context) -> Result<()> {
    let pod = context.run(BUSYBOX, "pod").words(&["sleep", "600"]).detach()?;
    let again = context.run(BUSYBOX, "pod").words(&["true"]).output()?;
    again.refused("already exists")?;
    ctr(&["task", "start", "--detach", &pod.id])?.refused("exist")?;
    ctr(&["container", "delete", &pod.id])?.refused("")?;
    ctr(&["task", "exec", "--exec-id", "x", "nobody-knows-it", "true"])?.refused("not found")?;
    expect("it still runs", pod.says("echo alive")?.as_str(), "alive")?;
    pod.remove()
}

/// 76 characters are the longest that containerd allows; sockets and cgroups carry names made of it.
fn long_id(context: &Context) -> Result<()> {
    let id = format!("{:a<76}", "long_id.with-all.kinds_of-characters.");
    let output = context.run(BUSYBOX, "").id(&id).words(&["echo", "fits"]).output()?.ok()?;
    expect("output", output.text().as_str(), "fits")
}

/// A container that ends at once is not lost between start and wait.
fn short_lived(context: &Context) -> Result<()> {
    for number in 0..5 {
        context.run(BUSYBOX, &format!("run{number}")).words(&["true"]).output()?.ok()?;
    }
    Ok(())
}
