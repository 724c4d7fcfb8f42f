//! The control group (v2) of one container.
//!
//! The pod makes it before the container, so that nothing of the container is ever outside, and
//! removes it after. Limits at creation are libcontainer's; changes of them go the same way, through
//! libcgroups. Everything else is a file here.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use libcgroups::common::{CgroupManager, ControllerOpt};
use libcgroups::v2::manager::Manager;
use libcontainer::oci_spec::runtime::LinuxResources;
use tokio::time::{Instant, sleep};

use crate::init::{CGROUP_PARENT, CGROUP_ROOT};

/// How long the kernel may take to freeze, or to let go of killed processes.
const DEADLINE: Duration = Duration::from_millis(1500);
/// Between two looks at a file while waiting.
const PAUSE: Duration = Duration::from_millis(2);
/// Depth to which groups made inside the container are followed.
const MAX_DEPTH: usize = 16;

/// What can go wrong in this room.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A file of the group.
    #[error("Cannot {step} control group file {path}", path = .path.display())]
    File {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Limits that the kernel or libcgroups does not take.
    #[error("Limits cannot be changed: {reason}")]
    Update {
        /// In the words of libcgroups.
        reason: String,
    },
    /// The kernel took too long.
    #[error("Container did not {what} within {} ms", DEADLINE.as_millis())]
    TimedOut {
        /// What was waited for.
        what: &'static str,
    },
}

/// A control group; the directory may be gone.
#[derive(Clone, Debug)]
pub struct Cgroup {
    name: String,
    path: PathBuf,
}

impl Cgroup {
    /// Makes the group `name`, which is the agent's choice, not the host's.
    ///
    /// # Errors
    /// [`CgroupError::File`].
    pub fn create(name: String) -> Result<Self, CgroupError> {
        let path = Path::new(CGROUP_PARENT).join(&name);
        fs::create_dir(&path).map_err(|source| CgroupError::File {
            step: "create",
            path: path.clone(),
            source,
        })?;
        Ok(Self { name, path })
    }

    /// Where its files are.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its place in the hierarchy, as an OCI spec has it.
    pub fn place(&self) -> PathBuf {
        Path::new("/hull").join(&self.name)
    }

    /// How many processes the kernel has killed here for want of memory.
    pub fn oom_kills(&self) -> u64 {
        // Unreadable means that the group is gone, and with it everything that could be killed.
        let events = self.read("memory.events").unwrap_or_default();
        pairs(&events).get("oom_kill").copied().unwrap_or_default()
    }

    /// Every process in it, groups below included.
    ///
    /// # Errors
    /// [`CgroupError::File`].
    pub fn pids(&self) -> Result<Vec<i32>, CgroupError> {
        let mut pids = Vec::new();
        collect_pids(&self.path, MAX_DEPTH, &mut pids).map_err(|source| CgroupError::File {
            step: "read",
            path: self.path.join("cgroup.procs"),
            source,
        })?;
        pids.sort_unstable();
        Ok(pids)
    }

    /// Kills every process in it. A group that is gone has none.
    ///
    /// # Errors
    /// [`CgroupError::File`].
    pub fn kill(&self) -> Result<(), CgroupError> {
        if self.is_gone() { Ok(()) } else { self.write("cgroup.kill", "1") }
    }

    /// Waits until no process is left.
    ///
    /// # Errors
    /// [`CgroupError::TimedOut`] or [`CgroupError::File`].
    pub async fn wait_until_empty(&self) -> Result<(), CgroupError> {
        if self.is_gone() { Ok(()) } else { self.wait_for("populated", 0, "end").await }
    }

    /// Freezes it and waits until everything in it stands still. A freeze that does not come about
    /// is taken back.
    ///
    /// # Errors
    /// [`CgroupError::TimedOut`] or [`CgroupError::File`].
    pub async fn freeze(&self) -> Result<(), CgroupError> {
        self.write("cgroup.freeze", "1")?;
        let frozen = self.wait_for("frozen", 1, "freeze").await;
        if frozen.is_err() {
            self.thaw()?;
        }
        frozen
    }

    /// Lets it run again.
    ///
    /// # Errors
    /// [`CgroupError::File`].
    pub fn thaw(&self) -> Result<(), CgroupError> {
        self.write("cgroup.freeze", "0")
    }

    /// Changes its limits.
    ///
    /// # Errors
    /// [`CgroupError::Update`].
    pub fn update(&self, resources: &LinuxResources) -> Result<(), CgroupError> {
        let update = |reason: String| CgroupError::Update { reason };
        let manager =
            Manager::new(CGROUP_ROOT.into(), self.place()).map_err(|error| update(error.to_string()))?;
        let options =
            ControllerOpt { resources, disable_oom_killer: false, oom_score_adj: None, freezer_state: None };
        manager.apply(&options).map_err(|error| update(error.to_string()))
    }

    /// Removes it and the groups below; waits for the kernel to let go. One that is gone is no error.
    ///
    /// # Errors
    /// [`CgroupError::File`].
    pub async fn remove(&self) -> Result<(), CgroupError> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match remove_tree(&self.path, MAX_DEPTH) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(source) if Instant::now() >= deadline => {
                    return Err(CgroupError::File { step: "remove", path: self.path.clone(), source });
                }
                Err(_) => sleep(PAUSE).await,
            }
        }
    }

    /// What it uses.
    ///
    /// # Errors
    /// [`CgroupError::File`] if the group is gone; a controller that is off counts nothing.
    pub fn stats(&self) -> Result<Stats, CgroupError> {
        let cpu = self.read("cpu.stat")?;
        let read = |name| self.read(name).unwrap_or_default();
        Ok(Stats {
            cpu: pairs(&cpu),
            memory: pairs(&read("memory.stat")),
            memory_events: pairs(&read("memory.events")),
            memory_usage: number(&read("memory.current")),
            memory_limit: number(&read("memory.max")),
            memory_peak: number(&read("memory.peak")),
            swap_usage: number(&read("memory.swap.current")),
            swap_limit: number(&read("memory.swap.max")),
            pids: number(&read("pids.current")),
            pids_limit: limit_or_none(&read("pids.max")),
            io: io_stats(&read("io.stat")),
        })
    }

    /// libcontainer removes the group of a container that it could not make.
    fn is_gone(&self) -> bool {
        !self.path.exists()
    }

    async fn wait_for(&self, key: &str, value: u64, what: &'static str) -> Result<(), CgroupError> {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if pairs(&self.read("cgroup.events")?).get(key) == Some(&value) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(CgroupError::TimedOut { what });
            }
            sleep(PAUSE).await;
        }
    }

    fn read(&self, name: &str) -> Result<String, CgroupError> {
        let path = self.path.join(name);
        fs::read_to_string(&path).map_err(|source| CgroupError::File { step: "read", path, source })
    }

    fn write(&self, name: &str, text: &str) -> Result<(), CgroupError> {
        let path = self.path.join(name);
        fs::write(&path, text).map_err(|source| CgroupError::File { step: "write", path, source })
    }
}

/// What a group uses: names and units as in its files; no limit is `u64::MAX`, but 0 for processes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// `cpu.stat`
    pub cpu: HashMap<String, u64>,
    /// `memory.stat`
    pub memory: HashMap<String, u64>,
    /// `memory.events`
    pub memory_events: HashMap<String, u64>,
    /// `memory.current`
    pub memory_usage: u64,
    /// `memory.max`
    pub memory_limit: u64,
    /// `memory.peak`
    pub memory_peak: u64,
    /// `memory.swap.current`
    pub swap_usage: u64,
    /// `memory.swap.max`
    pub swap_limit: u64,
    /// `pids.current`
    pub pids: u64,
    /// `pids.max`
    pub pids_limit: u64,
    /// `io.stat`
    pub io: Vec<IoStats>,
}

/// One device of `io.stat`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IoStats {
    /// Device number.
    pub device: (u64, u64),
    /// `rbytes`, `wbytes`, `rios`, `wios`.
    pub counters: HashMap<String, u64>,
}

fn collect_pids(group: &Path, depth: usize, pids: &mut Vec<i32>) -> io::Result<()> {
    let text = fs::read_to_string(group.join("cgroup.procs"))?;
    pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    for below in groups_below(group, depth)? {
        collect_pids(&below, depth - 1, pids)?;
    }
    Ok(())
}

fn remove_tree(group: &Path, depth: usize) -> io::Result<()> {
    for below in groups_below(group, depth)? {
        remove_tree(&below, depth - 1)?;
    }
    fs::remove_dir(group)
}

fn groups_below(group: &Path, depth: usize) -> io::Result<Vec<PathBuf>> {
    if depth == 0 {
        return Ok(Vec::new());
    }
    let mut groups = Vec::new();
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            groups.push(entry.path());
        }
    }
    Ok(groups)
}

/// Lines of `key value`.
fn pairs(text: &str) -> HashMap<String, u64> {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(key, value)| Some((key.to_owned(), value.trim().parse().ok()?)))
        .collect()
}

/// A number or `max`; nothing counts as 0.
fn number(text: &str) -> u64 {
    match text.trim() {
        "max" => u64::MAX,
        digits => digits.parse().unwrap_or_default(),
    }
}

fn limit_or_none(text: &str) -> u64 {
    match number(text) {
        u64::MAX => 0,
        limit => limit,
    }
}

/// Lines of `major:minor key=value ...`.
fn io_stats(text: &str) -> Vec<IoStats> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (major, minor) = words.next()?.split_once(':')?;
            let counters = words
                .filter_map(|word| word.split_once('='))
                .filter_map(|(key, value)| Some((key.to_owned(), value.parse().ok()?)))
                .collect();
            Some(IoStats { device: (major.parse().ok()?, minor.parse().ok()?), counters })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flat_files_are_read() {
        let events = pairs("low 0\nhigh 2\nmax 17\noom 1\noom_kill 1\nbroken\nworse x\n");
        assert_eq!(events.len(), 5);
        assert_eq!(events.get("max"), Some(&17));
    }

    #[test]
    fn numbers_may_be_max_or_missing() {
        for (text, value, limit) in [("max\n", u64::MAX, 0), ("4096\n", 4096, 4096), ("", 0, 0), ("-1", 0, 0)]
        {
            assert_eq!((number(text), limit_or_none(text)), (value, limit), "{text:?}");
        }
    }

    #[test]
    fn io_lines_are_read_and_others_skipped() {
        let stats = io_stats("254:16 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n(unknown)\n");
        assert_eq!(stats.len(), 1);
        assert_eq!(stats[0].device, (254, 16));
        assert_eq!(stats[0].counters.get("rbytes"), Some(&4096));
    }

    #[test]
    fn groups_are_walked_and_removed_from_below() {
        let root = std::env::temp_dir().join(format!("hull-cgroup-{}", std::process::id()));
        let below = root.join("a/b");
        fs::create_dir_all(&below).unwrap();
        for (dir, text) in [(root.clone(), "3\n1\n"), (root.join("a"), ""), (below, "2\n")] {
            fs::write(dir.join("cgroup.procs"), text).unwrap();
        }
        let group = Cgroup { name: "test".into(), path: root.clone() };
        assert_eq!(group.pids().unwrap(), [1, 2, 3]);
        fs::remove_dir_all(&root).unwrap();
        assert!(group.pids().is_err());
        assert_eq!(group.oom_kills(), 0);
    }

    #[tokio::test]
    async fn removing_a_group_that_is_gone_is_harmless() {
        let group = Cgroup { name: "gone".into(), path: "/nonexistent/gone".into() };
        group.remove().await.unwrap();
    }
}
