//! The test node: a virtual machine with KVM and containerd inside, made anywhere in a few seconds.
//!
//! ```text
//! this machine                          the node (QEMU, one CPU)             in it
//!   /                    --9p, ro-->      / (overlay, writes go to RAM)
//!   target/node/RUN/     --9p, rw-->      /hull/share                          boot.sh, then cmd.sh
//!   state disk (cached)  --virtio-blk-->  /hull/state (writes thrown away)     containerd's images
//! ```
//!
//! A node runs one command and goes away. Its output passes through files in the run's directory, which the
//! caller follows while they grow, so that bytes and streams arrive as they were written. Everything waits at
//! most until the deadline: then the machine is killed and its console log kept.
//!
//! Why no ready-made tool: the steps are few, the boot is three times as fast without udev and systemd-tmpfiles,
//! and nothing has to be fetched for it.

mod boot_files;
mod console;
mod cpio;
mod qemu;
pub mod state;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

pub use qemu::{Accelerator, Clock};

/// How many runs' directories are kept for reading afterwards.
const KEPT_RUNS: usize = 12;

/// How often the command's output is looked at.
const FOLLOW_EVERY: Duration = Duration::from_millis(50);

/// The containerd that runs in the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Containerd {
    /// "1.6" or "2.3": picks the configuration's format.
    pub version: String,
    /// The directory with `containerd`, `ctr` and runc's shim.
    pub bin: PathBuf,
}

/// One run of a node.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// The checkout; the command starts in it.
    pub top: PathBuf,
    /// A shell command (bash).
    pub command: String,
    /// The containerd to start; none for commands that only need KVM.
    pub containerd: Option<Containerd>,
    /// The disk with containerd's state (see [`state`]); none means an empty state in RAM.
    pub state: Option<Disk>,
    /// Memory of the node. Its file systems live in it.
    pub memory_mib: u32,
    /// The command and the boot together may take this long.
    pub deadline: Duration,
    /// How time passes in the node.
    pub clock: Clock,
    /// Further variables for the node's scripts and the command.
    pub env: Vec<(String, String)>,
    /// Whether the command's output is copied to this process's own while it runs.
    pub echo: bool,
}

/// A disk image for the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// A raw image.
    pub image: PathBuf,
    /// Whether what the node writes stays.
    pub keep_writes: bool,
}

impl NodeConfig {
    /// A node in the checkout `top` that runs `command`, without containerd.
    #[must_use]
    pub fn new(top: &Path, command: &str) -> Self {
        Self {
            top: top.to_path_buf(),
            command: command.to_owned(),
            containerd: None,
            state: None,
            memory_mib: 6144,
            deadline: Duration::from_secs(600),
            clock: Clock::Real,
            env: Vec::new(),
            echo: true,
        }
    }
}

/// What a run left.
#[derive(Debug)]
pub struct Outcome {
    /// The command's exit code, as the shell gives it.
    pub code: u8,
    /// The run's directory: `stdout`, `stderr`, `console.log`, `containerd.log` and whatever the command wrote
    /// to `$HULL_SHARE`.
    pub directory: PathBuf,
    /// From QEMU's start to its end.
    pub elapsed: Duration,
}

/// Boots a node, runs the command, gives its exit code.
///
/// # Errors
/// The node's files can't be made, QEMU can't be started, the deadline passed, or the node ended without an
/// exit code. The message names the console log.
pub fn run(config: &NodeConfig) -> Result<Outcome> {
    let directory = new_run(&config.top)?;
    let files = boot_files::prepare(&config.top)?;
    write_run_files(config, &directory)?;
    let start = Instant::now();
    let mut machine = qemu::command(config, &files, &directory)
        .spawn()
        .context("Starting qemu-system-x86_64 (is qemu-system-x86 installed?)")?;
    let mut follower = console::Follower::new(&directory, config.echo);
    let status = loop {
        follower.copy()?;
        if let Some(status) = machine.try_wait().context("Waiting for QEMU")? {
            break status;
        }
        if start.elapsed() > config.deadline {
            machine.kill().context("Killing the node")?;
            machine.wait().context("Waiting for the killed node")?;
            follower.copy()?;
            bail!(
                "The node did not end within {} s and was killed.\n{}",
                config.deadline.as_secs(),
                console::last_words(&directory)
            );
        }
        std::thread::sleep(FOLLOW_EVERY);
    };
    follower.copy()?;
    finish(directory, status, start.elapsed())
}

fn finish(directory: PathBuf, status: ExitStatus, elapsed: Duration) -> Result<Outcome> {
    let Ok(text) = fs::read_to_string(directory.join("exit-code")) else {
        bail!("The node ended ({status}) before its command did.\n{}", console::last_words(&directory));
    };
    let code = text.trim().parse().with_context(|| format!("The node's exit code is {text:?}"))?;
    Ok(Outcome { code, directory, elapsed })
}

/// A fresh directory `target/node/NNNN-PID`, after dropping the oldest ones.
fn new_run(top: &Path) -> Result<PathBuf> {
    let runs = top.join("target/node");
    fs::create_dir_all(&runs).with_context(|| format!("Making {}", runs.display()))?;
    let mut old: Vec<(u32, PathBuf)> = fs::read_dir(&runs)
        .with_context(|| format!("Listing {}", runs.display()))?
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let number = path.file_name()?.to_str()?.split('-').next()?.parse().ok()?;
            Some((number, path))
        })
        .collect();
    old.sort();
    let next = old.last().map_or(1, |(number, _)| number + 1);
    for (_, path) in old.iter().rev().skip(KEPT_RUNS - 1) {
        if !is_in_use(path) {
            // One that stays all the same costs disk only.
            let _ = fs::remove_dir_all(path);
        }
    }
    let run = runs.join(format!("{next:04}-{}", std::process::id()));
    fs::create_dir(&run).with_context(|| format!("Making {}", run.display()))?;
    Ok(run)
}

/// Whether the process that made this run is alive: its number is the name's last part.
fn is_in_use(run: &Path) -> bool {
    let process = run.file_name().and_then(|name| name.to_str()?.rsplit('-').next());
    process.is_some_and(|process| Path::new("/proc").join(process).exists())
}

/// What the node's scripts read from the share.
fn write_run_files(config: &NodeConfig, directory: &Path) -> Result<()> {
    let mut env = vec![
        ("HULL_TOP".to_owned(), config.top.display().to_string()),
        ("HULL_DEADLINE".to_owned(), config.deadline.as_secs().to_string()),
        ("HULL_STATE".to_owned(), if config.state.is_some() { "disk" } else { "ram" }.to_owned()),
    ];
    if let Some(containerd) = &config.containerd {
        env.push(("HULL_CONTAINERD".to_owned(), containerd.version.clone()));
        env.push(("HULL_CONTAINERD_BIN".to_owned(), containerd.bin.display().to_string()));
    }
    env.extend(config.env.iter().cloned());
    let lines: String = env
        .iter()
        .map(|(name, value)| format!("export {name}='{}'\n", value.replace('\'', "'\\''")))
        .collect();
    let put = |name: &str, text: &str| {
        let path = directory.join(name);
        fs::write(&path, text).with_context(|| format!("Writing {}", path.display()))
    };
    put("env", &lines)?;
    for script in ["boot.sh", "containerd.sh"] {
        let from = config.top.join("tests/node").join(script);
        put(script, &fs::read_to_string(&from).with_context(|| format!("Reading {}", from.display()))?)?;
    }
    put("cmd.sh", &config.command)?;
    put("stdout", "")?;
    put("stderr", "")
}
