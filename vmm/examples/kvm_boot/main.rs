//! The machine on real KVM: starts guests and checks what they see and how they end.
//! `cargo xtask` builds it static and runs it inside the test node. It fails where KVM is unusable;
//! it never skips. It needs `mkfs.erofs` and 4 GiB of memory.
//!
//! ```text
//! kvm_boot --kernel vmlinux [--work DIR] [--only NAME]     all scenarios, or one
//! kvm_boot --kernel vmlinux --bench N                      N starts; one line of figures each
//! ```
//! The guests' `/agent` is this very program (`guest`), in root images that `images` makes.
#![allow(clippy::print_stdout, reason = "it is a command")]

mod guest;
mod images;
mod scenarios;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use hull_vmm::{Machine, MachineConfig, MachineExit, MachineKind};

/// What every part of this program returns.
pub type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// Longest that a guest may take for anything, in a node that emulates the CPU.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Where things are.
#[derive(Debug)]
pub struct Place {
    kernel: PathBuf,
    work: PathBuf,
}

impl Place {
    /// A small machine whose guest plays `role`.
    pub fn config(&self, role: guest::Role) -> Outcome<MachineConfig> {
        Ok(MachineConfig {
            vcpus: 1,
            memory_mib: 256,
            kernel: self.kernel.clone(),
            kernel_sha256: None,
            root_image: images::root(&self.work, role)?,
            root_image_sha256: None,
            console: None,
            kind: MachineKind::Kvm,
        })
    }
}

/// Waits for the machine's end.
pub fn wait(machine: &Machine) -> Outcome<MachineExit> {
    let mut exited = machine.exited();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let exit = runtime.block_on(async {
        tokio::time::timeout(PATIENCE, exited.wait_for(Option::is_some))
            .await
            .map(|exit| exit.map(|exit| exit.clone()))
    });
    exit.map_err(|_| "the machine does not end")??.ok_or_else(|| "no reason".into())
}

fn main() -> ExitCode {
    if std::process::id() == 1 {
        return guest::main();
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("kvm_boot: FAILED: {}", chain(&*error));
            ExitCode::FAILURE
        }
    }
}

/// An error with all its causes.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

fn run() -> Outcome {
    let mut place =
        Place { kernel: "target/guest/vmlinux".into(), work: std::env::temp_dir().join("hull-kvm-boot") };
    let (mut only, mut bench) = (None, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--kernel" => place.kernel = value.into(),
            "--work" => place.work = value.into(),
            "--only" => only = Some(value),
            "--bench" => bench = Some(value.parse()?),
            _ => return Err(format!("unknown option {name}").into()),
        }
    }
    std::fs::create_dir_all(&place.work)?;
    match bench {
        Some(count) => measure(&place, count),
        None => scenarios::run(&place, only.as_deref()),
    }
}

/// From the call of `Machine::start` to the power-off that is the guest's first act in userspace.
fn measure(place: &Place, count: u32) -> Outcome {
    for _ in 0..count {
        let config = place.config(guest::Role::Off)?;
        let begin = Instant::now();
        let machine = Machine::start(config)?;
        let exit = wait(&machine)?;
        let total = begin.elapsed();
        let metrics = machine.metrics();
        let stopping = Instant::now();
        machine.stop();
        print!(
            "bench exit={exit:?} userspace_ns={} stop_ns={}",
            total.as_nanos(),
            stopping.elapsed().as_nanos()
        );
        for span in &metrics.boot {
            print!(" boot_{}_ns={}", span.name, span.took.as_nanos());
        }
        for counter in metrics.kvm {
            print!(" kvm_{}={}", counter.name, counter.value);
        }
        for counter in metrics.exits {
            print!(" exits_{}={}", counter.name, counter.value);
        }
        println!();
    }
    Ok(())
}
