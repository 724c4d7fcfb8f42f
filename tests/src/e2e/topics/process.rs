//! What a process finds: arguments, environment, directory, user and groups, name of the machine, limits, devices.

use anyhow::{Result, bail};

use crate::context::{BUSYBOX, Context, Needs, Test, expect, expect_part};

pub(crate) const TESTS: &[Test] = &[
    Test::new("process::arguments", arguments),
    Test::new("process::environment", environment),
    Test::new("process::directory", directory),
    Test::new("process::user_by_number", user_by_number).needs(Needs::Ctr2),
    Test::new("process::user_by_name", user_by_name).needs(Needs::Ctr2),
    Test::new("process::user_of_exec", user_of_exec),
    Test::new("process::hostname", hostname).needs(Needs::Ctr2),
    Test::new("process::first_of_its_pid_namespace", first_of_its_pid_namespace),
    Test::new("process::privileges", privileges),
    Test::new("process::devices", devices),
    Test::new("process::kernel_of_its_own", kernel_of_its_own).needs(Needs::Hull),
];

/// Words that shells and serialisers like to change.
const WORDS: [&str; 8] =
    ["plain", "two words", "", "quote'\"", "back\\slash $HOME `x`", "new\nline", "ü€𝄞", "--flag"];

fn arguments(context: &Context) -> Result<()> {
    let mut words = vec!["printf", "<%s>"];
    words.extend(WORDS);
    let wanted: String = WORDS.iter().map(|word| format!("<{word}>")).collect();
    // `--`: ctr would take a flag among the words for its own only before the container's id.
    let output = context.run(BUSYBOX, "run").words(&words).output()?.ok()?;
    expect("arguments of init", String::from_utf8_lossy(&output.stdout).as_ref(), &wanted)?;
    let long = "x".repeat(100_000);
    let output =
        context.run(BUSYBOX, "long").words(&["sh", "-c", "echo ${#1}", "sh", &long]).output()?.ok()?;
    expect("length of a long argument", output.text().as_str(), "100000")
}

fn environment(context: &Context) -> Result<()> {
    let run = context.run(BUSYBOX, "run").flags(&["--env", "ONE=1", "--env", "TWO=a b=c", "--env", "EMPTY="]);
    let text = run.words(&["env"]).output()?.ok()?.text();
    for line in
        ["ONE=1", "TWO=a b=c", "EMPTY=", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
    {
        if !text.lines().any(|found| found == line) {
            bail!("{line} is not in the environment: {text:?}");
        }
    }
    Ok(())
}

fn directory(context: &Context) -> Result<()> {
    let run = context.run(BUSYBOX, "set").flags(&["--cwd", "/home/user"]).words(&["pwd"]);
    expect("directory", run.output()?.ok()?.text().as_str(), "/home/user")?;
    let pod = context.run(BUSYBOX, "pod").words(&["sleep", "600"]).detach()?;
    expect("default directory", pod.says("pwd")?.as_str(), "/")?;
    let output = crate::ctr::finish(crate::ctr::spawn(&mut pod.exec_command(&["--cwd", "/tmp"], &["pwd"]))?)?;
    expect("directory of an exec", output.ok()?.text().as_str(), "/tmp")?;
    pod.remove()
}

const WHO: &str = "id -u; id -g; id -G";

fn user_by_number(context: &Context) -> Result<()> {
    let run = context.run(BUSYBOX, "known").flags(&["--user", "1000:1000"]).sh(WHO);
    expect("a user of the image", run.output()?.ok()?.text().as_str(), "1000\n1000\n1000")?;
    let run = context.run(BUSYBOX, "unknown").flags(&["--user", "4242:4343"]).sh(WHO);
    expect("a user that the image lacks", run.output()?.ok()?.text().as_str(), "4242\n4343\n4343")
}

fn user_by_name(context: &Context) -> Result<()> {
    let run =
        context.run(BUSYBOX, "run").flags(&["--user", "user"]).sh(&format!("{WHO}; touch /home/user/x /x"));
    let output = run.output()?;
    expect("user by name", output.text().as_str(), "1000\n1000\n1000 2000 2001")?;
    expect_part("writing where only root may", &output.stderr, "/x: Permission denied")
}

fn user_of_exec(context: &Context) -> Result<()> {
    let pod = context.run(BUSYBOX, "pod").words(&["sleep", "600"]).detach()?;
    expect("groups of root", pod.says(WHO)?.as_str(), "0\n0\n0 2001")?;
    let command = &mut pod.exec_command(&["--user", "1000"], &["id", "-u"]);
    let output = crate::ctr::finish(crate::ctr::spawn(command)?)?;
    expect("user of an exec", output.ok()?.text().as_str(), "1000")?;
    pod.remove()
}

fn hostname(context: &Context) -> Result<()> {
    let run = context.run(BUSYBOX, "run").flags(&["--hostname", "a-name.example"]).words(&["hostname"]);
    expect("hostname", run.output()?.ok()?.text().as_str(), "a-name.example")
}

fn first_of_its_pid_namespace(context: &Context) -> Result<()> {
    let run = context
        .run(BUSYBOX, "run")
        .sh("echo $$; set -- /proc/[0-9]*; echo $#; tr '\\0' ' ' </proc/1/cmdline; true");
    let text = run.output()?.ok()?.text();
    let mut lines = text.lines();
    expect("own pid", lines.next().unwrap_or_default(), "1")?;
    expect("processes in a fresh container", lines.next().unwrap_or_default(), "1")?;
    expect_part("process 1", lines.next().unwrap_or_default(), "sh -c")
}

fn privileges(context: &Context) -> Result<()> {
    let pod = context.run(BUSYBOX, "pod").words(&["sleep", "600"]).detach()?;
    let status = pod.says("grep -E '^(Cap|NoNewPrivs)' /proc/self/status; ulimit -n")?;
    for line in ["CapEff:\t00000000a80425fb", "CapBnd:\t00000000a80425fb", "NoNewPrivs:\t1", "1024"] {
        expect_part("privileges", &status, line)?;
    }
    pod.sh("mount -t tmpfs x /tmp")?
        .refused("not permitted")
        .or_else(|_| pod.sh("mount -t tmpfs x /tmp")?.refused("denied"))?;
    pod.sh("echo 1 >/proc/sys/kernel/panic")?.refused("Read-only file system")?;
    // A kernel need not have all of them.
    let masked =
        "for f in kcore keys timer_list; do [ ! -e /proc/$f ] || [ $(wc -c </proc/$f) = 0 ] || echo $f; done";
    expect("masked files with something in them", pod.says(masked)?.as_str(), "")?;
    pod.remove()
}

fn devices(context: &Context) -> Result<()> {
    let pod = context.run(BUSYBOX, "pod").words(&["sleep", "600"]).detach()?;
    let nodes = pod.says("cd /dev; stat -c '%n %F %t %T %a' null zero full random urandom tty")?;
    let kinds = "null character special file 1 3 666\nzero character special file 1 5 666\n\
                 full character special file 1 7 666\nrandom character special file 1 8 666\n\
                 urandom character special file 1 9 666\ntty character special file 5 0 666";
    expect("devices", nodes.as_str(), kinds)?;
    pod.says("head -c 100 /dev/urandom | wc -c; echo x >/dev/null; echo shared >/dev/shm/x; ls /dev/mqueue /dev/pts")?;
    // the kernel's log, a device that every kernel has and no container may open
    pod.sh("mknod /tmp/kmsg c 1 11 && head -c 1 /tmp/kmsg")?.refused("not permitted")?;
    for link in ["fd", "stdin", "stdout", "stderr"] {
        expect_part("links in /dev", &pod.says(&format!("readlink /dev/{link}"))?, "/proc/self/fd")?;
    }
    pod.remove()
}

fn kernel_of_its_own(context: &Context) -> Result<()> {
    let here = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let there = context.run(BUSYBOX, "run").words(&["uname", "-r"]).output()?.ok()?.text();
    if here.trim() == there {
        bail!("The container runs on the node's kernel {there}");
    }
    Ok(())
}
