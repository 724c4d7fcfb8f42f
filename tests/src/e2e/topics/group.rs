//! Two containers in one machine: network and IPC shared, files and processes not.

use anyhow::{Result, bail};

use crate::context::{BUSYBOX, Context, Needs, Test, expect};
use crate::ctr::ctr;
use crate::pod::Pod;
use crate::topics::lifecycle::expect_killed;

pub(crate) const TESTS: &[Test] = &[
    Test::new("group::shared_and_not_shared", shared_and_not_shared).needs(Needs::Hull),
    Test::new("group::members_come_and_go", members_come_and_go).needs(Needs::Hull),
    Test::new("group::kubernetes_annotation", kubernetes_annotation).needs(Needs::Hull),
];

fn member(context: &Context, leader: &str, suffix: &str) -> Result<Pod> {
    let annotation = format!("io.containerd.runc.v2.group={leader}");
    context.run(BUSYBOX, suffix).flags(&["--annotation", &annotation]).words(&["sleep", "600"]).detach()
}

/// Shim processes of the tested runtime in the node.
fn shims() -> Result<usize> {
    let shims = std::fs::read_dir("/proc")?
        .filter_map(|entry| std::fs::read(entry.ok()?.path().join("cmdline")).ok())
        .filter(|line| String::from_utf8_lossy(line).contains("containerd-shim-hull"))
        .count();
    Ok(shims)
}

fn shared_and_not_shared(context: &Context) -> Result<()> {
    let leader = context.id("one");
    let one = member(context, &leader, "one")?;
    let two = member(context, &leader, "two")?;
    expect("shims", &shims()?, &1)?;
    expect(
        "one machine",
        &one.says("cat /proc/sys/kernel/random/boot_id")?,
        &two.says("cat /proc/sys/kernel/random/boot_id")?,
    )?;
    for namespace in ["net", "ipc"] {
        let link = format!("readlink /proc/self/ns/{namespace}");
        expect(namespace, &one.says(&link)?, &two.says(&link)?)?;
    }
    for namespace in ["mnt", "pid"] {
        let link = format!("readlink /proc/self/ns/{namespace}");
        if one.says(&link)? == two.says(&link)? {
            bail!("The containers share their {namespace} namespace");
        }
    }
    one.says("echo through memory >/dev/shm/x")?;
    expect("/dev/shm is the pod's", two.says("cat /dev/shm/x")?.as_str(), "through memory")?;
    one.says("echo private >/tmp/x")?;
    two.sh("cat /tmp/x")?.refused("No such file")?;
    one.says("(echo over the network | nc -l -p 4321 >/dev/null 2>&1 &)")?;
    let heard =
        two.says("for i in $(seq 50); do nc 127.0.0.1 4321 </dev/null && exit; sleep 0.1; done; exit 1")?;
    expect("loopback is the pod's", heard.as_str(), "over the network")?;
    two.remove()?;
    expect("the first goes on", one.says("echo alive")?.as_str(), "alive")?;
    one.remove()
}

fn members_come_and_go(context: &Context) -> Result<()> {
    let leader = context.id("one");
    let one = member(context, &leader, "one")?;
    for number in 0..3 {
        let suffix = format!("member{number}");
        let annotation = format!("io.containerd.runc.v2.group={leader}");
        let run =
            context.run(BUSYBOX, &suffix).flags(&["--annotation", &annotation]).sh("echo member; exit 6");
        expect("output", run.output()?.ended(6)?.text().as_str(), "member")?;
    }
    expect("shims", &shims()?, &1)?;
    one.remove()
}

fn kubernetes_annotation(context: &Context) -> Result<()> {
    let leader = context.id("one");
    let flags = |kind: &str| {
        [format!("io.kubernetes.cri.sandbox-id={leader}"), format!("io.kubernetes.cri.container-type={kind}")]
    };
    let sandbox = flags("sandbox");
    let one = context.run(BUSYBOX, "one").flags(&["--annotation", &sandbox[0], "--annotation", &sandbox[1]]);
    let one = one.words(&["sleep", "600"]).detach()?;
    let container = flags("container");
    let two =
        context.run(BUSYBOX, "two").flags(&["--annotation", &container[0], "--annotation", &container[1]]);
    let two = two.words(&["sleep", "600"]).detach()?;
    expect("shims", &shims()?, &1)?;
    two.kill("KILL", &[])?.ok()?;
    two.wait_status("STOPPED")?;
    expect("the sandbox goes on", &one.status()?.map(|(_, state)| state), &Some("RUNNING".to_owned()))?;
    expect_killed(&ctr(&["task", "delete", &two.id])?)?;
    two.remove()?;
    one.remove()
}
