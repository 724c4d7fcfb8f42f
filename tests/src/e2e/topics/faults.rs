//! Things that die at bad moments. After each, containerd has to be consistent and nothing may be left behind.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::context::{BUSYBOX, Context, Needs, Test, expect, wait_for};
use crate::ctr::{ctr, finish, spawn};
use crate::events::{Events, topics};
use crate::pod::Pod;

pub(crate) const TESTS: &[Test] = &[
    Test::new("faults::shim_killed", shim_killed),
    Test::new("faults::shim_killed_with_exec", shim_killed_with_exec).needs(Needs::Hull),
    Test::new("faults::guest_panic", guest_panic).needs(Needs::Hull),
    Test::new("faults::agent_killed", agent_killed).needs(Needs::Hull),
    Test::new("faults::containerd_restarted", containerd_restarted).seconds(120),
    Test::new("faults::containerd_killed_while_creating", containerd_killed_while_creating)
        .seconds(150)
        .needs(Needs::Hull),
    Test::new("faults::create_cancelled", create_cancelled).seconds(150),
    Test::new("faults::ten_pods_at_once", ten_pods_at_once).seconds(200),
    Test::new("faults::hundred_cycles", hundred_cycles).seconds(900),
];

/// Processes whose command line contains all parts.
fn processes(parts: &[&str]) -> Vec<Pid> {
    let matches = |process: &str| -> Option<Pid> {
        let line = fs::read(format!("/proc/{process}/cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        parts.iter().all(|part| line.contains(part)).then(|| Pid::from_raw(process.parse().ok()?))?
    };
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.filter_map(|entry| matches(entry.ok()?.file_name().to_str()?)).collect()
}

/// The shim that serves this pod.
fn shim_of(pod: &Pod) -> Result<Pid> {
    processes(&["containerd-shim-", &format!("-id {} ", pod.id)])
        .first()
        .copied()
        .with_context(|| format!("No shim for {}", pod.id))
}

fn kill(process: Pid) -> Result<()> {
    kill_process(process, Signal::KILL).context("Killing a process")
}

/// After a pod's sudden end: containerd tells the exit and lets everything be removed.
fn ends_consistently(pod: Pod, events: &Events) -> Result<()> {
    let seen = events.until(&pod.id, "exit", Duration::from_secs(30))?;
    if topics(&seen).iter().filter(|topic| **topic == "exit").count() != 1 {
        bail!("The exit was told more than once: {seen:?}");
    }
    wait_for("the task to be over", Duration::from_secs(20), || {
        Ok(pod.status()?.is_none_or(|(_, state)| state == "STOPPED" || state == "UNKNOWN").then_some(()))
    })?;
    pod.remove()?;
    remove_fifos()
}

fn shim_killed(context: &Context) -> Result<()> {
    let events = Events::subscribe()?;
    let pod = context.run(BUSYBOX, "pod").words(&["sleep", "600"]).detach()?;
    kill(shim_of(&pod)?)?;
    ends_consistently(pod, &events)?;
    // runc's container outlives its shim only until the clean-up; the name is free again in any case
    let output = context.run(BUSYBOX, "pod").words(&["echo", "again"]).output()?.ok()?;
    expect("the same id again", output.text().as_str(), "again")
}

/// Clients that wait for an exec are told, too.
fn shim_killed_with_exec(context: &Context) -> Result<()> {
    let events = Events::subscribe()?;
    let pod = context.run(BUSYBOX, "pod").words(&["sleep", "600"]).detach()?;
    let exec = spawn(&mut pod.exec_command(&[], &["sleep", "500"]))?;
    wait_for("the exec to run", Duration::from_secs(20), || Ok((pod.processes()? == 2).then_some(())))?;
    kill(shim_of(&pod)?)?;
    if finish(exec)?.code == 0 {
        bail!("An exec ended with 0 when its shim was killed");
    }
    ends_consistently(pod, &events)
}

/// Told at once, and a dead machine has no output to wait for.
fn guest_panic(context: &Context) -> Result<()> {
    let events = Events::subscribe()?;
    let pod = context.run(BUSYBOX, "pod").flags(&["--privileged"]).words(&["sleep", "600"]).detach()?;
    pod.says("echo 1 >/proc/sys/kernel/sysrq")?;
    let start = Instant::now();
    if pod.sh("echo c >/proc/sysrq-trigger; sleep 60")?.code == 0 {
        bail!("The guest did not panic");
    }
    ends_consistently(pod, &events)?;
    if start.elapsed() > Duration::from_secs(10) {
        bail!("It took {:.1} s from a panic to the end of the clean-up", start.elapsed().as_secs_f64());
    }
    Ok(())
}

/// The agent's end is the machine's end. Nothing in a container can reach the agent, so this one's root image has
/// a first program that overwrites the agent's code when it is asked to, and then becomes the agent.
fn agent_killed(context: &Context) -> Result<()> {
    let image = context.scratch().join("rootfs.erofs");
    let tree = context.scratch().join("tree");
    let script = r#"
        set -e
        fsck.erofs --extract="$1" /usr/share/hull/rootfs.erofs >/dev/null
        mv "$1/agent" "$1/agent-itself"
        mkdir -p "$1/bin"
        cp /bin/busybox "$1/bin/busybox"
        cat >"$1/agent" <<'EOF'
#!/bin/busybox sh
b=/bin/busybox
(
    # The only way in: a container's process with this name.
    until $b grep -qs agent-killer /proc/[0-9]*/cmdline; do $b sleep 0.2; done
    at=$($b grep -m 1 'r-xp.*/agent-itself' /proc/1/maps | $b cut -d- -f1)
    $b yes | $b dd of=/proc/1/mem bs=4096 count=400 seek=$((0x$at / 4096)) conv=notrunc
) >/dev/null 2>&1 &
exec /agent-itself "$@"
EOF
        chmod 755 "$1/agent"
        mkfs.erofs --quiet "$2" "$1" >/dev/null
    "#;
    let made = Command::new("sh")
        .args(["-c", script, "sh"])
        .args([&tree, &image])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("Starting a shell")
        .and_then(finish)?;
    made.ok().context("Making a root image")?;
    let good = fs::read_to_string("/etc/hull/config.toml").context("Reading the node's configuration")?;
    let file = context.scratch().join("config.toml");
    let ours = good.replace("/usr/share/hull/rootfs.erofs", &image.to_string_lossy());
    fs::write(&file, ours).context("Writing a configuration")?;

    let events = Events::subscribe()?;
    let flags = ["--runtime-config-path", &file.to_string_lossy()];
    let pod = context.run(BUSYBOX, "pod").flags(&flags).words(&["sleep", "600"]).detach()?;
    expect("it runs", pod.says("echo alive")?.as_str(), "alive")?;
    if pod.sh("exec sh -c 'sleep 60; : agent-killer'")?.code == 0 {
        bail!("The agent's code was overwritten and an exec ended well");
    }
    ends_consistently(pod, &events)
}

fn containerd_pid() -> Result<Pid> {
    let text = fs::read_to_string("/run/containerd.pid").context("Reading /run/containerd.pid")?;
    Pid::from_raw(text.trim().parse()?).context("/run/containerd.pid is not a process")
}

/// Kills containerd and starts it again, as the node's own script does.
fn restart_containerd() -> Result<()> {
    let old = containerd_pid()?;
    kill(old)?;
    wait_for("containerd to be gone", Duration::from_secs(10), || {
        let state = fs::read_to_string(format!("/proc/{}/stat", old.as_raw_nonzero())).unwrap_or_default();
        Ok((state.is_empty() || state.contains(") Z ")).then_some(()))
    })?;
    let script = "setsid containerd >>\"$HULL_SHARE/containerd.log\" 2>&1 & echo $! >/run/containerd.pid";
    let status = Command::new("bash").args(["-c", script]).stdin(Stdio::null()).status();
    expect("starting containerd", &status.context("Starting containerd")?.success(), &true)?;
    wait_for("containerd to answer", Duration::from_secs(60), || Ok(ctr(&["version"])?.ok().ok()))?;
    Ok(())
}

/// The pod doesn't notice: it runs on, can be asked, and its end is told to the new containerd.
fn containerd_restarted(context: &Context) -> Result<()> {
    let script = "trap 'exit 9' TERM; i=0; while :; do i=$((i+1)); echo $i >/tmp/count; sleep 0.1; done";
    let pod = context.run(BUSYBOX, "pod").sh(script).detach()?;
    let ended = context.run(BUSYBOX, "ended").sh("sleep 3; exit 5").detach()?;
    let before = pod.says("cat /proc/sys/kernel/random/boot_id; readlink /proc/self/ns/mnt")?;
    let status = pod.status()?;
    restart_containerd()?;
    expect("process and state", &pod.status()?, &status)?;
    expect(
        "machine and container",
        &pod.says("cat /proc/sys/kernel/random/boot_id; readlink /proc/self/ns/mnt")?,
        &before,
    )?;
    // what ended while nobody listened
    ended.wait_status("STOPPED")?;
    let deleted = ctr(&["task", "delete", &ended.id])?;
    if deleted.code != 5 && !deleted.stderr.contains("exit code 5") {
        bail!("The exit code of a container that ended meanwhile is lost: {deleted:?}");
    }
    ended.remove()?;
    let events = Events::subscribe()?;
    pod.kill("TERM", &[])?.ok()?;
    let seen = events.until(&pod.id, "exit", Duration::from_secs(20))?;
    let body = seen.last().map_or("", |event| event.body.as_str());
    crate::context::expect_part("the exit event", body, "\"exit_status\":9")?;
    pod.wait_status("STOPPED")?;
    pod.remove()
}

/// At several moments of a creation. What containerd still knows afterwards can be removed; the rest is gone.
fn containerd_killed_while_creating(context: &Context) -> Result<()> {
    for (number, delay_ms) in [200, 600, 1000, 1600].into_iter().enumerate() {
        let suffix = format!("pod{number}");
        let run = context.run(BUSYBOX, &suffix).words(&["sleep", "600"]);
        let mut client = spawn(&mut run.attached())?;
        std::thread::sleep(Duration::from_millis(delay_ms));
        restart_containerd()?;
        // The client may be waiting for an exit that nobody will tell it any more.
        client.kill().context("Killing ctr")?;
        client.wait().context("Waiting for ctr")?;
        forget(&context.id(&suffix))?;
    }
    works(context)
}

/// The client goes away in the middle; containerd cancels the call to the shim.
fn create_cancelled(context: &Context) -> Result<()> {
    for (number, delay_ms) in [100, 300, 500, 700, 900, 1200, 1600].into_iter().enumerate() {
        let suffix = format!("pod{number}");
        let mut client = spawn(&mut context.run(BUSYBOX, &suffix).words(&["sleep", "600"]).attached())?;
        std::thread::sleep(Duration::from_millis(delay_ms));
        client.kill().context("Killing ctr")?;
        client.wait().context("Waiting for ctr")?;
        forget(&context.id(&suffix))?;
    }
    works(context)
}

/// Removes a task and a container that may or may not have come to be.
fn forget(id: &str) -> Result<()> {
    wait_for(&format!("{id} to be removable"), Duration::from_secs(30), || {
        ctr(&["task", "delete", "--force", id])?;
        let deleted = ctr(&["container", "delete", id])?;
        Ok((deleted.code == 0 || deleted.stderr.contains("not found")).then_some(()))
    })?;
    remove_fifos()
}

/// `ctr` removes its fifos with the task; it does not when it was killed or the task went by itself.
fn remove_fifos() -> Result<()> {
    for entry in fs::read_dir("/run/containerd/fifo").into_iter().flatten().flatten() {
        fs::remove_dir_all(entry.path()).context("Removing a killed client's fifos")?;
    }
    Ok(())
}

fn works(context: &Context) -> Result<()> {
    let output = context.run(BUSYBOX, "good").words(&["echo", "works"]).output()?.ok()?;
    expect("afterwards", output.text().as_str(), "works")
}

fn ten_pods_at_once(context: &Context) -> Result<()> {
    let mut clients = Vec::new();
    for number in 0..10 {
        let script = format!("echo pod {number}; sleep 3; exit {number}");
        clients.push(spawn(&mut context.run(BUSYBOX, &format!("pod{number}")).sh(&script).attached())?);
    }
    for (number, client) in (0_i32..).zip(clients) {
        let output = finish(client)?.ended(number).with_context(|| format!("pod {number}"))?;
        expect("output", output.text().as_str(), &format!("pod {number}"))?;
    }
    Ok(())
}

/// Create, run, delete, a hundred times: containerd's descriptors don't grow (the runner looks for the rest).
fn hundred_cycles(context: &Context) -> Result<()> {
    let descriptors = || -> Result<usize> {
        let path = format!("/proc/{}/fd", containerd_pid()?.as_raw_nonzero());
        Ok(fs::read_dir(&path).with_context(|| format!("Listing {path}"))?.count())
    };
    // The first runs fill caches.
    let mut before = 0;
    for number in 0..100 {
        let code = number % 7;
        let script = format!("exit {code}");
        context.run(BUSYBOX, &format!("run{number}")).sh(&script).output()?.ended(code)?;
        if number == 4 {
            before = descriptors()?;
        }
    }
    let after = wait_for("containerd to close what it opened", Duration::from_secs(10), || {
        let now = descriptors()?;
        Ok((now <= before + 2).then_some(now))
    });
    after.with_context(|| format!("containerd had {before} descriptors open")).map(drop)
}
