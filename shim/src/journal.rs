//! What a pod has acquired that would outlive the shim's death, written down before it is acquired.
//!
//! One file for each pod, `/run/hull/<namespace>/<group>/journal`, one JSON object on each line. The
//! daemon is the only writer; `delete` replays the file backwards when the daemon is gone. Almost
//! everything else needs no entry, because it dies with the process: the machine, unnamed image files,
//! pipes, private mount namespaces. /run is a tmpfs, so nothing is synced.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};

/// Root of all journals.
pub const ROOT: &str = "/run/hull";
/// Name of the journal in its directory.
const FILE: &str = "journal";

/// One acquisition, or the end of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Entry {
    /// The daemon itself.
    Daemon {
        /// Process id.
        pid: i32,
        /// Start time in clock ticks since boot: tells a reused process id apart.
        start: u64,
    },
    /// The listening socket.
    Socket {
        /// Its path.
        path: PathBuf,
    },
    /// A container's record; `delete` must not kill the machine while another one is there.
    Container {
        /// Its id.
        id: String,
    },
    /// The container is gone.
    ContainerGone {
        /// Its id.
        id: String,
    },
}

/// The writer's end of a journal.
#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    file: Option<File>,
}

/// Directory of the journal of `group`. Ids are containerd's own: one path component each.
pub fn directory(root: &Path, namespace: &str, group: &str) -> PathBuf {
    root.join(namespace).join(group)
}

impl Journal {
    /// Opens the journal in `dir`, making the directory.
    ///
    /// # Errors
    /// What the kernel says about the directory or the file.
    pub fn open(dir: PathBuf) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let file = OpenOptions::new().create(true).append(true).open(dir.join(FILE))?;
        Ok(Journal { dir, file: Some(file) })
    }

    /// A journal that has nothing left to remember.
    pub fn closed() -> Self {
        Journal { dir: PathBuf::new(), file: None }
    }

    /// Writes an entry. Call it before the acquisition.
    ///
    /// # Errors
    /// What the kernel says about the write; then do not acquire.
    pub fn write(&mut self, entry: &Entry) -> io::Result<()> {
        let Some(file) = self.file.as_mut() else { return Ok(()) };
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        file.write_all(&line)
    }

    /// Removes the journal: everything in it is released.
    pub fn close(&mut self) {
        if self.file.take().is_some() {
            remove(&self.dir);
        }
    }
}

/// Reads a journal; a missing one is empty, and a torn last line is no entry.
pub fn read(dir: &Path) -> Vec<Entry> {
    let text = std::fs::read_to_string(dir.join(FILE)).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Containers that the journal says are there.
pub fn containers(entries: &[Entry]) -> Vec<String> {
    let mut present = Vec::new();
    for entry in entries {
        match entry {
            Entry::Container { id } => present.push(id.clone()),
            Entry::ContainerGone { id } => present.retain(|other| other != id),
            Entry::Daemon { .. } | Entry::Socket { .. } => {}
        }
    }
    present
}

/// Releases everything in `entries`, last first, then the journal itself. Does nothing twice.
pub fn replay_backwards(dir: &Path, entries: &[Entry]) {
    for entry in entries.iter().rev() {
        match entry {
            Entry::Socket { path } => drop(std::fs::remove_file(path)),
            Entry::Daemon { pid, start } => kill(*pid, *start),
            Entry::Container { .. } | Entry::ContainerGone { .. } => {}
        }
    }
    remove(dir);
}

fn remove(dir: &Path) {
    let _ = std::fs::remove_file(dir.join(FILE));
    let _ = std::fs::remove_dir(dir);
    // The namespace's directory goes with its last pod; the kernel refuses while there is another.
    if let Some(parent) = dir.parent() {
        let _ = std::fs::remove_dir(parent);
    }
}

/// Start time of a process, in clock ticks since boot.
pub fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in field 2 may contain anything, so count from its closing parenthesis.
    let after_name = stat.rsplit_once(')')?.1;
    after_name.split_whitespace().nth(19)?.parse().ok()
}

/// Whether the process of an entry is alive (a zombie is not).
pub fn is_alive(pid: i32, start: u64) -> bool {
    let zombie = std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z')));
    start_time(pid) == Some(start) && !zombie
}

/// Kills the daemon of an entry and waits until it is gone, at most two seconds: then a machine
/// with much memory is still being torn down, and the kernel finishes that without us.
fn kill(pid: i32, start: u64) {
    let Some(id) = Pid::from_raw(pid) else { return };
    let Ok(handle) = rustix::process::pidfd_open(id, PidfdFlags::empty()) else { return };
    // Only now is the id pinned, so only now does the start time prove anything.
    if start_time(pid) != Some(start) {
        return;
    }
    let _ = rustix::process::pidfd_send_signal(&handle, Signal::KILL);
    wait_gone(&handle, std::time::Duration::from_secs(2));
}

/// Waits until the process behind a pidfd has ended; false if it has not in time.
pub fn wait_gone(handle: &std::os::fd::OwnedFd, limit: std::time::Duration) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec};
    let limit = Timespec::try_from(limit).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
    let mut fds = [PollFd::new(handle, PollFlags::IN)];
    matches!(rustix::event::poll(&mut fds, Some(&limit)), Ok(ready) if ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("hull-journal-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        dir
    }

    #[test]
    fn writes_reads_and_releases() {
        let root = scratch("cycle");
        let dir = directory(&root, "ns", "group");
        let socket = root.join("socket");
        let mut journal = Journal::open(dir.clone()).unwrap();
        journal.write(&Entry::Socket { path: socket.clone() }).unwrap();
        std::fs::write(&socket, "").unwrap();
        journal.write(&Entry::Container { id: "a".to_owned() }).unwrap();
        journal.write(&Entry::Container { id: "b".to_owned() }).unwrap();
        journal.write(&Entry::ContainerGone { id: "a".to_owned() }).unwrap();
        let entries = read(&dir);
        assert_eq!(entries.len(), 4);
        assert_eq!(containers(&entries), ["b"]);
        replay_backwards(&dir, &entries);
        assert!(!socket.exists() && !dir.exists());
        replay_backwards(&dir, &entries);
        std::fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn torn_lines_are_ignored() {
        let root = scratch("torn");
        std::fs::create_dir_all(&root).unwrap();
        std::fs::write(root.join(FILE), "{\"kind\":\"container\",\"id\":\"a\"}\n{\"kind\":\"sock").unwrap();
        assert_eq!(read(&root), [Entry::Container { id: "a".to_owned() }]);
        std::fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn kills_only_the_process_it_means() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let start = start_time(pid).unwrap();
        kill(pid, start + 1);
        assert!(child.try_wait().unwrap().is_none());
        assert!(is_alive(pid, start));
        kill(pid, start);
        assert!(!is_alive(pid, start));
        child.wait().unwrap();
    }
}
