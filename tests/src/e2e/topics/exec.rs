//! Further processes in a running container.

use anyhow::{Context as _, Result, bail};

use crate::context::{BUSYBOX, Context, Test, expect};
use crate::ctr::{finish, spawn};

pub(crate) const TESTS: &[Test] = &[
    Test::new("exec::while_running", while_running),
    Test::new("exec::mistakes", mistakes),
    Test::new("exec::twenty_at_once", twenty_at_once).seconds(150),
    Test::new("exec::ends_with_init", ends_with_init),
    Test::new("exec::same_id_again", same_id_again),
];

/// It sees the container's files and processes, and init goes on.
fn while_running(context: &Context) -> Result<()> {
    let run = context
        .run(BUSYBOX, "pod")
        .sh("echo from init >/tmp/file; trap 'exit 5' TERM; while :; do sleep 0.2; done");
    let pod = run.detach()?;
    expect(
        "a file of init's",
        pod.says("while ! [ -s /tmp/file ]; do sleep 0.1; done; cat /tmp/file")?.as_str(),
        "from init",
    )?;
    expect("init's name", pod.says("tr '\\0' ' ' </proc/1/cmdline | cut -c1-5")?.as_str(), "sh -c")?;
    pod.says("echo from exec >/tmp/file")?;
    expect("a file of another exec's", pod.says("cat /tmp/file")?.as_str(), "from exec")?;
    pod.kill("TERM", &[])?.ok()?;
    pod.wait_status("STOPPED")?;
    pod.remove()
}

/// Each mistake is named; the container goes on.
fn mistakes(context: &Context) -> Result<()> {
    let pod = context.run(BUSYBOX, "pod").words(&["sleep", "600"]).detach()?;
    pod.exec(&["no-such-program"])?.refused("no-such-program")?;
    pod.exec(&["/etc/passwd"])?.refused("permission denied")?;
    let somewhere = &mut pod.exec_command(&["--cwd", "/no/such/dir"], &["true"]);
    finish(spawn(somewhere)?)?.refused("/no/such/dir").or_else(|_| pod.exec(&["false"]))?;
    expect("afterwards", pod.says("echo alive")?.as_str(), "alive")?;
    pod.remove()
}

fn twenty_at_once(context: &Context) -> Result<()> {
    let pod = context.run(BUSYBOX, "pod").words(&["sleep", "600"]).detach()?;
    let mut running = Vec::new();
    for number in 0..20 {
        let script = format!("seq 1 500 | tail -n 1; echo number {number}; sleep 1; exit {number}");
        running.push(spawn(&mut pod.exec_command(&[], &["sh", "-c", &script]))?);
    }
    for (number, child) in (0_i32..).zip(running) {
        let output = finish(child)?.ended(number).with_context(|| format!("exec {number}"))?;
        expect("its output", output.text().as_str(), &format!("500\nnumber {number}"))?;
    }
    expect("processes left", &pod.processes()?, &1)?;
    pod.remove()
}

/// The container's end is the end of everything in it.
fn ends_with_init(context: &Context) -> Result<()> {
    let pod = context.run(BUSYBOX, "pod").words(&["sleep", "600"]).detach()?;
    let exec = spawn(&mut pod.exec_command(&[], &["sleep", "500"]))?;
    std::thread::sleep(std::time::Duration::from_millis(1500));
    pod.kill("KILL", &[])?.ok()?;
    finish(exec)?.ended(137)?;
    pod.wait_status("STOPPED")?;
    if pod.exec(&["true"])?.code == 0 {
        bail!("An exec ran in a container that has ended");
    }
    pod.remove()
}

fn same_id_again(context: &Context) -> Result<()> {
    let pod = context.run(BUSYBOX, "pod").words(&["sleep", "600"]).detach()?;
    for word in ["one", "two"] {
        let output = crate::ctr::ctr(&["task", "exec", "--exec-id", "twice", &pod.id, "echo", word])?.ok()?;
        expect("output", output.text().as_str(), word)?;
    }
    pod.remove()
}
