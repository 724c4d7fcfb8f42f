//! What a test left behind in the node: processes, mounts, sockets, bundles, cgroups, files, network devices.
//!
//! Compared are the node's state before and after the test. Clean-up ends a little after `ctr` does, so the second
//! look is repeated for a while.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::context::wait_for;
use crate::ctr::ctr;

/// How long clean-up may go on after a test.
const SETTLE: Duration = Duration::from_secs(10);

/// Directories whose entries belong to pods, with the depth to look to.
const DIRECTORIES: [(&str, usize); 6] = [
    ("/run/containerd/s", 1),
    ("/run/containerd/fifo", 1),
    ("/run/containerd/io.containerd.runtime.v2.task", 2),
    ("/var/lib/containerd/io.containerd.runtime.v2.task", 2),
    ("/run/hull", 3),
    ("/var/lib/hull", 2),
];

/// Hull's cache of finished images, which is meant to stay.
const IMAGE_CACHE: &str = "/var/lib/hull/images";

/// Everything that pods own in the node, one line each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Snapshot(BTreeSet<String>);

impl Snapshot {
    pub(crate) fn take() -> Self {
        let mut all = BTreeSet::new();
        processes(&mut all);
        mounts(&mut all);
        for (directory, depth) in DIRECTORIES {
            entries(Path::new(directory), depth, &mut all);
        }
        cgroups(Path::new("/sys/fs/cgroup"), &mut all);
        names("/sys/class/net", "network device", &mut all);
        names("/sys/block", "block device", &mut all);
        Self(all)
    }

    /// What is there now and was not before; empty when all is clean.
    pub(crate) fn added_since(&self) -> Vec<String> {
        let mut left = Vec::new();
        let settled = wait_for("clean-up", SETTLE, || {
            left = Self::take().0.difference(&self.0).cloned().collect();
            Ok(left.is_empty().then_some(()))
        });
        match settled {
            Ok(()) => Vec::new(),
            Err(_) => left,
        }
    }
}

/// Containers that containerd still knows.
pub(crate) fn containers() -> Result<Vec<String>> {
    Ok(ctr(&["container", "list", "--quiet"])?.ok()?.text().lines().map(str::to_owned).collect())
}

/// Removes by force what a failed test left, so that the next one starts clean.
pub(crate) fn sweep() {
    let script = r#"
        for id in $(ctr task list -q); do timeout 20 ctr task delete --force "$id"; done
        for id in $(ctr container list -q); do timeout 20 ctr container delete "$id"; done
        sleep 1
        pkill -KILL -f '^[^ ]*containerd-shim-'
        sleep 1
        grep -E ' /(run/containerd|run/hull|var/lib/hull/)' /proc/self/mounts | cut -d' ' -f2 | sort -r |
            while read -r m; do umount -l "$m"; done
        rm -rf /run/containerd/s/* /run/hull/*
    "#;
    // What it can't remove shows up in the next snapshot as there before.
    let _ = Command::new("sh").args(["-c", script]).output();
}

fn processes(all: &mut BTreeSet<String>) {
    for process in list("/proc") {
        if process.parse::<u32>().is_err() {
            continue;
        }
        let Ok(line) = fs::read(format!("/proc/{process}/cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let program = line.split(' ').next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
        if program.starts_with("containerd-shim-") || program == "runc" || program == "mkfs.erofs" {
            all.insert(format!("process {process} {}", line.trim()));
        }
    }
}

fn mounts(all: &mut BTreeSet<String>) {
    for line in fs::read_to_string("/proc/self/mounts").unwrap_or_default().lines() {
        let mut words = line.split(' ');
        if let (Some(source), Some(target)) = (words.next(), words.next()) {
            all.insert(format!("mount {source} on {target}"));
        }
    }
}

fn entries(directory: &Path, depth: usize, all: &mut BTreeSet<String>) {
    for name in list(&directory.to_string_lossy()) {
        let path = directory.join(name);
        if directory == Path::new(IMAGE_CACHE) && path.extension().is_some_and(|ending| ending == "erofs") {
            continue;
        }
        if depth > 1 && path.is_dir() {
            entries(&path, depth - 1, all);
        } else {
            all.insert(format!("file {}", path.display()));
        }
    }
}

fn cgroups(directory: &Path, all: &mut BTreeSet<String>) {
    for name in list(&directory.to_string_lossy()) {
        let path = directory.join(name);
        if path.is_dir() {
            all.insert(format!("cgroup {}", path.display()));
            cgroups(&path, all);
        }
    }
}

fn names(directory: &str, kind: &str, all: &mut BTreeSet<String>) {
    all.extend(list(directory).into_iter().map(|name| format!("{kind} {name}")));
}

fn list(directory: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}
