//! Memory of an idle pod, from the shim's smaps. The guest's RAM is the mapping of at least 64 MiB that is
//! neither a file nor a reservation without access; everything else is the shim's own.

use std::fs;

use anyhow::{Context as _, Result};

use crate::report::Report;
use crate::shell::{HULL, Running};

/// Smaller mappings are not a guest's RAM.
const RAM_MIN_KIB: u64 = 64 << 10;
/// Pods measured, one after the other.
const PODS: usize = 5;
const KIB_PER_MIB: f64 = 1024.0;

/// KiB of a process.
#[derive(Debug, Default, PartialEq)]
struct Usage {
    rss: u64,
    pss: u64,
    anonymous: u64,
    guest: u64,
}

pub(crate) fn measure(report: &mut Report) -> Result<()> {
    let mut all = Vec::new();
    for number in 0..PODS {
        let pod = Running::start(HULL, &format!("bench-memory-{number}"))?;
        // Idle: the guest's start-up work is over.
        std::thread::sleep(std::time::Duration::from_secs(2));
        let shim = shim_of(&pod.0)?;
        let text = fs::read_to_string(format!("/proc/{shim}/smaps")).context("Reading the shim's smaps")?;
        all.push(usage(&text));
    }
    let mib = |pick: fn(&Usage) -> u64| -> Vec<f64> {
        all.iter().map(|usage| pick(usage) as f64 / KIB_PER_MIB).collect()
    };
    report.value("shim RSS beyond guest RAM, idle pod", "MiB", &mib(|usage| usage.rss), Some(6.0))?;
    report.value("shim PSS beyond guest RAM, idle pod", "MiB", &mib(|usage| usage.pss), None)?;
    report.value("of it anonymous", "MiB", &mib(|usage| usage.anonymous), Some(2.0))?;
    report.value("guest RAM touched, idle pod", "MiB", &mib(|usage| usage.guest), Some(32.0))
}

/// The shim whose command line names the container.
fn shim_of(id: &str) -> Result<u32> {
    for entry in fs::read_dir("/proc").context("Listing /proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0);
        let program = words.next().unwrap_or_default();
        if program.ends_with(b"containerd-shim-hull-v2") && words.any(|word| word == id.as_bytes()) {
            return Ok(pid);
        }
    }
    anyhow::bail!("No shim runs for {id}")
}

/// Adds up `/proc/PID/smaps`.
fn usage(smaps: &str) -> Usage {
    let mut usage = Usage::default();
    let mut is_ram = false;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let (Some(first), Some(second)) = (words.next(), words.next()) else { continue };
        if !first.ends_with(':') {
            // A mapping's first line: range, permissions, offset, device, inode, path.
            let size_kib = range_kib(first).unwrap_or(0);
            let path = line.split_whitespace().nth(5).unwrap_or_default();
            is_ram = size_kib >= RAM_MIN_KIB && second.starts_with("rw") && !path.starts_with("/usr");
            continue;
        }
        let kib: u64 = second.parse().unwrap_or(0);
        match first {
            "Rss:" if is_ram => usage.guest += kib,
            "Rss:" => usage.rss += kib,
            "Pss:" if !is_ram => usage.pss += kib,
            "Anonymous:" if !is_ram => usage.anonymous += kib,
            _ => {}
        }
    }
    usage
}

fn range_kib(range: &str) -> Option<u64> {
    let (start, end) = range.split_once('-')?;
    Some((u64::from_str_radix(end, 16).ok()? - u64::from_str_radix(start, 16).ok()?) >> 10)
}
