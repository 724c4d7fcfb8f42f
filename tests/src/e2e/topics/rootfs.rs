//! The root file system: exactly the image's, writable or not, nobody else's.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::context::{BUSYBOX, Context, DEBIAN, Test, expect, expect_part};
use crate::ctr::{ctr, finish, spawn};

pub(crate) const TESTS: &[Test] = &[
    Test::new("rootfs::read_only", read_only),
    Test::new("rootfs::writes_stay_in_the_container", writes_stay_in_the_container),
    Test::new("rootfs::whole_tree", whole_tree).seconds(240),
];

/// Prints a line for each file of a tree with all that a file system keeps of it, and a hash of the lines.
const TREE: &str = include_str!("tree.py");

fn read_only(context: &Context) -> Result<()> {
    let run = context
        .run(BUSYBOX, "run")
        .flags(&["--read-only"])
        .sh("cat /etc/group | head -n 1; echo x >/x; echo y >/tmp/y; echo z >/dev/shm/z");
    let output = run.output()?;
    expect("reading", output.text().as_str(), "root:x:0:")?;
    expect_part("writing", &output.stderr, "/x: Read-only file system")?;
    expect_part("writing", &output.stderr, "/tmp/y: Read-only file system")?;
    if output.stderr.contains("/dev/shm/z") {
        bail!("/dev/shm is read-only too: {}", output.stderr);
    }
    Ok(())
}

fn writes_stay_in_the_container(context: &Context) -> Result<()> {
    let change = "rm /etc/group; echo mine >/etc/passwd; mkdir -p /new/dir; mv /home/user /home/other; \
                  chmod 700 /tmp; ln /etc/passwd /etc/linked; setup=1; ls /home /new; cat /etc/linked";
    let pod = context.run(BUSYBOX, "changed").sh(&format!("{change}; sleep 600")).detach()?;
    expect(
        "in it",
        pod.says("cat /etc/passwd; ls /home; ls /etc/group 2>&1 | wc -l")?.as_str(),
        "mine\nother\n1",
    )?;
    let other = context.run(BUSYBOX, "other").sh("head -n 1 /etc/passwd; ls /home /new; stat -c %a /tmp");
    let output = other.output()?;
    expect("in another", output.text().as_str(), "root:x:0:0:root:/root:/bin/sh\n/home:\nuser\n1777")?;
    pod.remove()
}

/// Every file of the Debian image, as python3 sees it in a container and on the node.
fn whole_tree(context: &Context) -> Result<()> {
    let view = context.scratch().join("view");
    fs::create_dir_all(&view).context("Making a directory for the image")?;
    let target = view.to_string_lossy().into_owned();
    ctr(&["image", "mount", DEBIAN, &target])?.ok()?;
    let here = Command::new("/usr/bin/python3")
        .args(["-c", TREE, &target])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("Starting python3")
        .and_then(finish);
    ctr(&["image", "unmount", "--rm", &target])?.ok()?;
    let here = here?.ok()?.text();
    let there = context.run(DEBIAN, "run").words(&["python3", "-c", TREE, "/"]).attached();
    let there = finish(spawn(&mut { there })?)?.ok()?.text();
    compare(&here, &there)
}

/// Names the files that differ instead of showing two hashes.
fn compare(here: &str, there: &str) -> Result<()> {
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>();
    let (here, there) = (lines(here), lines(there));
    if here.len() < 2000 {
        bail!("The image has only {} files", here.len());
    }
    let differ: Vec<String> = here
        .symmetric_difference(&there)
        .take(20)
        .map(|line| format!("{} {line}", if here.contains(line) { "image:    " } else { "container:" }))
        .collect();
    if differ.is_empty() { Ok(()) } else { bail!("{}", differ.join("\n")) }
}
