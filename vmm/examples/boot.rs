//! Boots one machine with its console on standard output and waits for its end; the bench runs it beside other VMMs.
//!
//! ```text
//! boot --kernel vmlinux --root image.erofs [--layer FILE]
//! ```
#![allow(clippy::print_stderr, reason = "it is a command")]

use std::error::Error;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::time::Duration;

use hull_vmm::{Machine, MachineConfig, MachineKind};

/// How often the machine's end is looked for: nothing that is measured depends on it.
const LOOK_EVERY: Duration = Duration::from_millis(20);
const MEMORY_MIB: u32 = 256;

fn main() -> Result<(), Box<dyn Error>> {
    let (mut kernel, mut root, mut layer) = (PathBuf::new(), PathBuf::new(), None);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let path = words.next().map(PathBuf::from).ok_or_else(|| format!("{word} needs a path"))?;
        match word.as_str() {
            "--kernel" => kernel = path,
            "--root" => root = path,
            "--layer" => layer = Some(path),
            _ => return Err(format!("Unknown option {word}").into()),
        }
    }
    let machine = Machine::start(MachineConfig {
        vcpus: 1,
        memory_mib: MEMORY_MIB,
        kernel,
        kernel_sha256: None,
        root_image: root,
        root_image_sha256: None,
        console: Some(io::stdout().as_fd().try_clone_to_owned()?),
        kind: MachineKind::Kvm,
    })?;
    if let Some(path) = layer {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        machine.layers().map(file, length)?;
    }
    let exited = machine.exited();
    while exited.borrow().is_none() {
        std::thread::sleep(LOOK_EVERY);
    }
    eprintln!("{:?}", exited.borrow().as_ref());
    machine.stop();
    Ok(())
}
