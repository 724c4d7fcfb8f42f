//! QEMU's command line for a node: one place for the machine that the suites run on.
//!
//! Rules that measurements gave: a stock QEMU emulates nested paging reliably with one CPU only; counting
//! instructions (`Clock::Counted`) needs one CPU too and `sleep=on`, anything else hangs at start-up.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use super::NodeConfig;
use super::boot_files::BootFiles;

/// How time passes in the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// As on this machine.
    Real,
    /// One executed instruction is one nanosecond: slow, but repeatable. Implies emulation.
    Counted,
}

/// Who executes the node's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// This machine's KVM, with nesting.
    Kvm,
    /// QEMU's emulator.
    Tcg,
}

impl Accelerator {
    /// KVM where it is usable: /dev/kvm opens *and* the CPU says that it can nest. A paravirtual /dev/kvm without
    /// the CPU flags exists on some machines; kernels hardly run on it.
    #[must_use]
    pub fn detect() -> Self {
        let opens = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
        let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let nests = flags
            .lines()
            .find(|line| line.starts_with("flags"))
            .is_some_and(|line| line.split_whitespace().any(|flag| flag == "vmx" || flag == "svm"));
        if opens && nests { Self::Kvm } else { Self::Tcg }
    }
}

/// The command that starts the node; it ends when the node powers off.
pub(super) fn command(config: &NodeConfig, files: &BootFiles, run: &Path) -> Command {
    let accelerator = match config.clock {
        Clock::Real => Accelerator::detect(),
        Clock::Counted => Accelerator::Tcg,
    };
    // setpriv: a node must not outlive the command that started it.
    let mut qemu = Command::new("setpriv");
    qemu.args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64"]);
    qemu.args(["-machine", "q35", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    match accelerator {
        Accelerator::Kvm => qemu.args(["-accel", "kvm", "-cpu", "host", "-smp", "2"]),
        // One CPU needs no second thread, and counting refuses to have one.
        Accelerator::Tcg => qemu.args(["-accel", "tcg,thread=single,tb-size=1024"]).args([
            "-cpu",
            "EPYC-Milan,+svm,+npt",
            "-smp",
            "1",
        ]),
    };
    if config.clock == Clock::Counted {
        qemu.args(["-icount", "shift=0,sleep=on"]);
    }
    qemu.args(["-m", &format!("{}M", config.memory_mib)]);
    qemu.arg("-kernel").arg(&files.kernel).arg("-initrd").arg(&files.initramfs);
    // mitigations=off: the node's kernel guards nobody, and emulated mitigations cost time.
    qemu.args([
        "-append",
        "console=ttyS0 quiet panic=-1 reboot=t mitigations=off random.trust_cpu=on tsc=reliable",
    ]);
    qemu.arg("-serial").arg(format!("file:{}", run.join("console.log").display()));
    share(&mut qemu, "root", Path::new("/"), "readonly=on,multidevs=remap");
    share(&mut qemu, "share", run, "readonly=off");
    if let Some(disk) = &config.state {
        // Writes need not survive a crash of this machine; without keep_writes they go to a file that is gone
        // when QEMU ends.
        let snapshot = if disk.keep_writes { "off" } else { "on" };
        let image = disk.image.display();
        qemu.args([
            "-drive",
            &format!("if=none,id=state,format=raw,cache=unsafe,snapshot={snapshot},file={image}"),
        ]);
        qemu.args(["-device", "virtio-blk-pci,drive=state,serial=state"]);
    }
    // QEMU's warnings (features that the emulated CPU lacks) belong with the console log, not in our output.
    let warnings = fs::File::create(run.join("qemu.log")).map_or_else(|_| Stdio::null(), Stdio::from);
    qemu.stdin(Stdio::null()).stdout(Stdio::null()).stderr(warnings);
    qemu
}

fn share(qemu: &mut Command, tag: &str, path: &Path, options: &str) {
    let path = path.display();
    qemu.args(["-fsdev", &format!("local,id={tag},path={path},security_model=none,{options}")]);
    qemu.args(["-device", &format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}")]);
}
