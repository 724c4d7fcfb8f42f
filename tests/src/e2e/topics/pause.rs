//! Pausing: everything in the container stands still, and goes on afterwards.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::context::{BUSYBOX, Context, Test, expect};
use crate::ctr::ctr;
use crate::events::{Events, topics};

pub(crate) const TESTS: &[Test] = &[
    Test::new("pause::stands_still", stands_still),
    Test::new("pause::killed_while_paused", killed_while_paused),
];

const COUNT: &str =
    "i=0; while :; do i=$((i+1)); echo $i >/tmp/count.new; mv /tmp/count.new /tmp/count; sleep 0.1; done";

fn stands_still(context: &Context) -> Result<()> {
    let events = Events::subscribe()?;
    let pod = context.run(BUSYBOX, "pod").sh(COUNT).detach()?;
    let count = || -> Result<u32> { Ok(pod.says("cat /tmp/count")?.parse()?) };
    pod.says("while ! [ -e /tmp/count ]; do sleep 0.1; done")?;
    ctr(&["task", "resume", &pod.id])?.refused("")?;
    let before = count()?;
    ctr(&["task", "pause", &pod.id])?.ok()?;
    expect("state", &pod.status()?.map(|(_, state)| state), &Some("PAUSED".to_owned()))?;
    if pod.exec(&["true"])?.code == 0 {
        bail!("An exec ran in a paused container");
    }
    std::thread::sleep(Duration::from_secs(4));
    ctr(&["task", "resume", &pod.id])?.ok()?;
    let after = count()?;
    // It counted at most ten a second for the second or two around the pause, not through the four of it.
    if after.saturating_sub(before) > 30 {
        bail!("It counted from {before} to {after} while it was paused for 4 s");
    }
    std::thread::sleep(Duration::from_secs(1));
    if count()? <= after {
        bail!("It does not count any more after {after}");
    }
    let seen = events.until(&pod.id, "resumed", Duration::from_secs(10))?;
    let pauses: Vec<&str> = topics(&seen).into_iter().filter(|topic| !topic.starts_with("ex")).collect();
    let pauses: Vec<&str> = pauses.into_iter().filter(|topic| *topic != "delete").collect();
    expect("events", &pauses, &vec!["create", "start", "paused", "resumed"])?;
    pod.remove()
}

fn killed_while_paused(context: &Context) -> Result<()> {
    let pod = context.run(BUSYBOX, "pod").words(&["sleep", "600"]).detach()?;
    ctr(&["task", "pause", &pod.id])?.ok()?;
    pod.kill("KILL", &[])?.ok()?;
    // runc leaves the process frozen until it is resumed; a resume of one that has died already is refused.
    let _ = ctr(&["task", "resume", &pod.id])?;
    pod.wait_status("STOPPED")?;
    pod.remove()
}
