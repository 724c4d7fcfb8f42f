//! First program of the guests that `hull-bench` boots: says that user space runs, times reads of a disk if there
//! is one, and powers off. The same file runs under every VMM that is compared.
//!
//! Its lines on the console: `HELLO-GUEST`, then for a disk `READ <what> <bytes> <nanoseconds>`.
#![allow(clippy::print_stdout, reason = "its output is its purpose")]

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::time::Instant;

use rustix::fs::OFlags;
use rustix::mount::MountFlags;
use rustix::system::RebootCommand;

const MIB: usize = 1 << 20;
/// Where reading begins: a layer disk has its first layer a page after its first MiB.
const START_BYTES: usize = 2 * MIB;
/// Read from there on, 1 MiB at a time.
const SEQUENTIAL_BYTES: usize = 32 * MIB;
/// Single 4 KiB reads, spread over the same part of the disk.
const RANDOM_READS: usize = 512;
/// What O_DIRECT asks of a buffer's address.
const ALIGNMENT: usize = 4096;

fn main() {
    if let Ok(mut console) = console() {
        // A console that cannot be written shows in the bench as a run without its line.
        let _ = console.write_all(b"HELLO-GUEST\n");
        // The layer disk where there are two, else the only one; a machine that is only booted has none.
        if let Some(path) = ["/dev/vdb", "/dev/vda"].iter().find(|path| std::path::Path::new(path).exists()) {
            let text = read_disk(path).unwrap_or_else(|error| format!("{path}: {error}\n"));
            let _ = console.write_all(text.as_bytes());
        }
        let _ = console.write_all(b"BYE\n");
    }
    let _ = rustix::system::reboot(RebootCommand::PowerOff);
}

/// The console; devtmpfs has to be mounted first where the root came as an initial ramdisk, which has a console only.
fn console() -> std::io::Result<File> {
    if !std::path::Path::new("/dev/null").exists() {
        std::fs::create_dir_all("/dev")?;
        rustix::mount::mount("dev", "/dev", "devtmpfs", MountFlags::empty(), None)?;
    }
    OpenOptions::new().write(true).open("/dev/console")
}

fn read_disk(path: &str) -> std::io::Result<String> {
    let direct = i32::try_from(OFlags::DIRECT.bits()).unwrap_or(0);
    let disk = OpenOptions::new().read(true).custom_flags(direct).open(path)?;
    let mut memory = vec![0u8; MIB + ALIGNMENT];
    let start = memory.as_ptr().align_offset(ALIGNMENT);
    let buffer = memory.get_mut(start..start + MIB).ok_or(std::io::ErrorKind::OutOfMemory)?;

    let clock = Instant::now();
    for offset in (0..SEQUENTIAL_BYTES).step_by(MIB) {
        disk.read_exact_at(buffer, (START_BYTES + offset) as u64)?;
    }
    let sequential = clock.elapsed().as_nanos();

    let page = buffer.get_mut(..ALIGNMENT).ok_or(std::io::ErrorKind::OutOfMemory)?;
    let pages = SEQUENTIAL_BYTES / ALIGNMENT;
    let clock = Instant::now();
    for turn in 0..RANDOM_READS {
        // A step that is prime to the number of pages visits them in no order that a read-ahead would guess.
        let number = (turn * 4099) % pages;
        disk.read_exact_at(page, (START_BYTES + number * ALIGNMENT) as u64)?;
    }
    let random = clock.elapsed().as_nanos();
    Ok(format!(
        "READ sequential {SEQUENTIAL_BYTES} {sequential}\nREAD random {} {random}\n",
        RANDOM_READS * ALIGNMENT
    ))
}
