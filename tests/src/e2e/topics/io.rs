//! Standard streams: separate, complete, unchanged; ends and stalls in the right places.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::bytes::noise;
use crate::context::{BUSYBOX, Context, Test, expect, wait_for};
use crate::ctr::{finish, spawn, with_input};

pub(crate) const TESTS: &[Test] = &[
    Test::new("io::separate_streams", separate_streams),
    Test::new("io::stdin_to_its_end", stdin_to_its_end),
    Test::new("io::every_byte_both_ways", every_byte_both_ways),
    Test::new("io::stdin_of_exec", stdin_of_exec),
    Test::new("io::last_words", last_words),
    Test::new("io::quarter_gibibyte", quarter_gibibyte).seconds(240),
    Test::new("io::fifo_that_nobody_reads", fifo_that_nobody_reads),
    Test::new("io::to_a_file", to_a_file),
];

fn separate_streams(context: &Context) -> Result<()> {
    let output =
        context.run(BUSYBOX, "run").sh("echo one; echo two >&2; printf three; printf four >&2").output()?;
    expect("stdout", String::from_utf8_lossy(&output.stdout).as_ref(), "one\nthree")?;
    expect("stderr", output.ok()?.stderr.as_str(), "two\nfour")
}

fn stdin_to_its_end(context: &Context) -> Result<()> {
    let run = context.run(BUSYBOX, "some").sh("echo ready; read line; echo \"<$line>\"; cat; echo end");
    let output = with_input(run.attached(), b"first\nsecond\nthird")?.ok()?;
    expect("echoed", String::from_utf8_lossy(&output.stdout).as_ref(), "<first>\nsecond\nthirdend\n")?;
    let output =
        with_input(context.run(BUSYBOX, "none").sh("echo ready; cat; echo end").attached(), b"")?.ok()?;
    expect("from an empty stdin", output.text().as_str(), "end")
}

/// Three megabytes: more than every buffer on the way together.
fn every_byte_both_ways(context: &Context) -> Result<()> {
    let input = noise(1, 3_000_001);
    let output = with_input(context.run(BUSYBOX, "run").sh("echo ready; cat").attached(), &input)?.ok()?;
    expect("length", &output.stdout.len(), &input.len())?;
    expect("contents are equal", &(output.stdout == input), &true)
}

fn stdin_of_exec(context: &Context) -> Result<()> {
    let pod = context.run(BUSYBOX, "pod").words(&["sleep", "600"]).detach()?;
    let input = noise(2, 300_000);
    let output = with_input(pod.exec_command(&[], &["sh", "-c", "echo ready; cat"]), &input)?.ok()?;
    expect("contents are equal", &(output.stdout == input), &true)?;
    // A process that ends without reading its stdin must not hang anything.
    with_input(pod.exec_command(&[], &["echo", "ready"]), &input)?.ok()?;
    pod.remove()
}

/// What is written just before the end arrives.
fn last_words(context: &Context) -> Result<()> {
    for number in 0..3 {
        let run = context.run(BUSYBOX, &format!("run{number}")).sh("seq 1 20000; echo last >&2; exit 3");
        let output = run.output()?.ended(3)?;
        let wanted: String = (1..=20000).map(|line| format!("{line}\n")).collect();
        expect("all lines came", &(output.stdout == wanted.as_bytes()), &true)?;
        expect("stderr", output.stderr.as_str(), "last\n")?;
    }
    Ok(())
}

/// SHA-256 of `yes 0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ | head -c 268435456`.
const QUARTER_GIB_SHA256: &str = "f8cad143b0735eeddb78ed285681c6fbffb5b4aa5942bc8f01af7a0babdb6b2a";

fn quarter_gibibyte(context: &Context) -> Result<()> {
    let script = "yes 0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ | head -c 268435456";
    let mut run = context.run(BUSYBOX, "run").sh(script).attached();
    let mut container = spawn(run.stderr(Stdio::inherit()))?;
    let stdout = container.stdout.take().context("No pipe from ctr")?;
    let sum = finish(spawn(Command::new("sha256sum").stdin(stdout).stdout(Stdio::piped()))?)?.ok()?.text();
    finish(container)?.ok()?;
    expect("SHA-256", sum.split(' ').next().unwrap_or_default(), QUARTER_GIB_SHA256)
}

/// A detached container whose output nobody reads fills its fifo and waits; it can still be asked and killed.
fn fifo_that_nobody_reads(context: &Context) -> Result<()> {
    let pod = context.run(BUSYBOX, "pod").sh("yes; sleep 600").detach()?;
    std::thread::sleep(Duration::from_secs(2));
    expect("an exec beside it", pod.says("echo there")?.as_str(), "there")?;
    pod.kill("KILL", &[])?.ok()?;
    pod.wait_status("STOPPED")?;
    pod.remove()
}

/// `file://` logging: both streams are appended to the file.
fn to_a_file(context: &Context) -> Result<()> {
    let log = context.scratch().join("new directory/container.log");
    let uri = format!("file://{}", log.display());
    let run = context.run(BUSYBOX, "pod").flags(&["--log-uri", &uri]).sh("echo one; sleep 1; echo two >&2");
    let pod = run.detach()?;
    pod.wait_status("STOPPED")?;
    let text = wait_for("the log's lines", Duration::from_secs(10), || {
        Ok(fs::read_to_string(&log).ok().filter(|text| text.contains("two")))
    })?;
    expect("the log", text.as_str(), "one\ntwo\n")?;
    pod.remove()
}
