//! Bare machines: from the VMM's start to the first line of guest userspace, and reads of a disk in it. Hull's
//! VMM and QEMU boot the same kernel with the same first program, one vCPU, 256 MiB, a serial console.
//!
//! QEMU takes the program in an initial ramdisk (the kernel has no driver for a disk of q35's), Hull in an EROFS
//! image on its root disk as in production.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::Setup;
use crate::kvm;
use crate::report::Report;
use crate::shell::seconds;

const REPEATS: usize = 6;
/// The disk that is read; its content is written once, so that no block is a hole.
const DISK_BYTES: usize = 64 << 20;
const KERNEL_ARGUMENTS: &str = "console=ttyS0 reboot=t panic=-1 quiet";

/// Files made once for all runs, in RAM.
#[derive(Debug)]
pub(crate) struct Bench {
    directory: PathBuf,
    boot: PathBuf,
    kernel: PathBuf,
}

/// What one machine printed and when.
#[derive(Debug, Default)]
struct Seen {
    hello_seconds: Option<f64>,
    exits: u64,
    sequential: Option<f64>,
    random: Option<f64>,
}

impl Bench {
    pub(crate) fn new(setup: &Setup) -> Result<Self> {
        let directory = PathBuf::from("/tmp/hull-bench");
        let tree = directory.join("tree");
        for name in ["dev", "proc", "sys"] {
            fs::create_dir_all(tree.join(name)).context("Making the guest's root")?;
        }
        let put = |from: &Path, to: PathBuf| {
            fs::copy(from, &to)
                .map(drop)
                .with_context(|| format!("Copying {} to {}", from.display(), to.display()))
        };
        put(&setup.init, tree.join("agent"))?;
        put(&setup.init, tree.join("init"))?;
        put(&setup.kernel, directory.join("vmlinux"))?;
        put(&setup.boot, directory.join("hull-boot"))?;
        let text = |name: &str| directory.join(name).display().to_string();
        seconds(&["mkfs.erofs", "--quiet", &text("root.erofs"), &text("tree")])?;
        let pack = format!("cd {} && echo init | cpio -o -H newc --quiet > {}", text("tree"), text("initrd"));
        seconds(&["sh", "-c", &pack])?;
        let pattern: Vec<u8> = (0..DISK_BYTES).map(|at| (at / 4096 % 251) as u8).collect();
        fs::write(directory.join("disk"), pattern).context("Writing the disk")?;
        Ok(Self { boot: directory.join("hull-boot"), kernel: directory.join("vmlinux"), directory })
    }

    /// VMM start to guest userspace.
    pub(crate) fn boot(&self, report: &mut Report) -> Result<()> {
        let runs =
            self.in_turn(&|| self.hull(false), &|| self.qemu("q35,usb=off,sata=off,smbus=off", false))?;
        let times =
            |seen: &[Seen]| -> Vec<f64> { seen.iter().filter_map(|seen| seen.hello_seconds).collect() };
        let exits = |seen: &[Seen]| -> Vec<f64> { seen.iter().map(|seen| seen.exits as f64).collect() };
        report.compare(
            "VMM start to guest userspace",
            "s",
            &times(&runs.0),
            "QEMU q35",
            &times(&runs.1),
            None,
        )?;
        report.compare("KVM exits until then", "exits", &exits(&runs.0), "QEMU q35", &exits(&runs.1), None)
    }

    /// Reads of the layer disk.
    pub(crate) fn disk(&self, report: &mut Report) -> Result<()> {
        let runs = self.in_turn(&|| self.hull(true), &|| self.qemu("microvm,acpi=on", true))?;
        let rates =
            |seen: &[Seen], pick: fn(&Seen) -> Option<f64>| seen.iter().filter_map(pick).collect::<Vec<_>>();
        for (name, pick) in [
            ("layer disk, sequential 1 MiB reads", (|seen| seen.sequential) as fn(&Seen) -> Option<f64>),
            ("layer disk, random 4 KiB reads", |seen| seen.random),
        ] {
            let (hull, qemu) = (rates(&runs.0, pick), rates(&runs.1, pick));
            report.compare(name, "MiB/s", &hull, "QEMU microvm virtio-blk", &qemu, Some(1.0))?;
        }
        Ok(())
    }

    fn in_turn(
        &self,
        hull: &dyn Fn() -> Result<Seen>,
        other: &dyn Fn() -> Result<Seen>,
    ) -> Result<(Vec<Seen>, Vec<Seen>)> {
        hull()?;
        other()?;
        let mut runs = (Vec::new(), Vec::new());
        for _ in 0..REPEATS {
            runs.0.push(hull()?);
            runs.1.push(other()?);
        }
        Ok(runs)
    }

    fn hull(&self, disk: bool) -> Result<Seen> {
        let mut command = Command::new(&self.boot);
        command.arg("--kernel").arg(&self.kernel).arg("--root").arg(self.directory.join("root.erofs"));
        if disk {
            command.arg("--layer").arg(self.directory.join("disk"));
        }
        watch(command, disk)
    }

    fn qemu(&self, machine: &str, disk: bool) -> Result<Seen> {
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-M", machine, "-accel", "kvm", "-cpu", "host", "-smp", "1", "-m", "256"]);
        command.args([
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-display",
            "none",
            "-serial",
            "stdio",
        ]);
        command.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(self.directory.join("initrd"));
        command.args(["-append", KERNEL_ARGUMENTS]);
        if disk {
            let file = self.directory.join("disk");
            command.args(["-drive", &format!("if=none,id=d,format=raw,readonly=on,file={}", file.display())]);
            command.args(["-device", "virtio-blk-device,drive=d"]);
        }
        watch(command, disk)
    }
}

/// Runs a VMM until its guest says goodbye; `reads`: it has a disk to read.
fn watch(mut command: Command, reads: bool) -> Result<Seen> {
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("Starting {command:?}"))?;
    let console = child.stdout.take().context("No console")?;
    let mut seen = Seen::default();
    let mut text = String::new();
    for line in BufReader::new(console).lines() {
        let line = line.context("Reading the console")?;
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["HELLO-GUEST"] => {
                seen.hello_seconds = Some(start.elapsed().as_secs_f64());
                seen.exits = kvm::exits()?;
            }
            ["READ", what, bytes, nanoseconds] => {
                let (bytes, nanoseconds): (f64, f64) = (bytes.parse()?, nanoseconds.parse()?);
                let rate = Some(bytes / f64::from(1 << 20) / (nanoseconds / 1e9));
                if *what == "random" { seen.random = rate } else { seen.sequential = rate }
            }
            ["BYE"] => break,
            _ => {}
        }
        text.push_str(&line);
        text.push('\n');
    }
    // Either may have ended by itself after the guest's power-off.
    let _ = child.kill();
    let output = child.wait_with_output().context("Waiting for the VMM")?;
    if seen.hello_seconds.is_none() || (reads && seen.random.is_none()) {
        bail!("{command:?} did not get to its end: {text}{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(seen)
}
