//! The pod: every container and process of this machine, with one owner.
//!
//! [`Pod`] holds the table behind one lock that is never held across a wait. Requests (`rpc`) and
//! the reaper call it; what takes time (helpers, dialling, freezing) happens outside the lock, with
//! the state saying meanwhile what is going on. The rooms:
//!
//! * `lifecycle`: create and delete; `processes`: start, further processes; `control`: signals, pause, limits, numbers;
//!   `exits`: what the reaper and the kernel's memory events report;
//! * `spec`, `cgroup`, `devices`, `io`, `helper`, `channel`: the parts of a container;
//! * `create`, `exec`, `program`: run in helper processes, never in the agent.
//!
//! Paths and names in the guest are made from a number that the pod counts up, never from an id of
//! the host.

pub mod cgroup;
pub mod channel;
mod control;
pub mod create;
mod devices;
pub mod error;
pub mod exec;
mod exits;
pub mod helper;
pub mod io;
mod lifecycle;
mod processes;
pub mod program;
pub mod spec;
pub mod state;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use hull_protocol::limits::MAX_ID_BYTES;
use libcontainer::oci_spec::runtime::Process as OciProcess;
use rustix::process::Pid;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, oneshot};

use self::cgroup::Cgroup;
use self::error::PodError;
use self::io::{Host, Io};
use self::state::State;
use crate::events::{Event, Events};
use crate::init;
use crate::storage::{Rootfs, Storage};

pub use self::control::Signal;
pub use self::exits::Reaped;
pub use self::lifecycle::CreateContainer;
pub use self::processes::CreateProcess;

/// An id of the host's, checked. It is only compared and sent back.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(String);

impl Id {
    /// Checks an id.
    ///
    /// # Errors
    /// [`PodError::Id`].
    pub fn new(id: String) -> Result<Self, PodError> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
        if id.is_empty() || id.len() > MAX_ID_BYTES || !id.bytes().all(is_plain) {
            return Err(PodError::Id { id: id.chars().take(MAX_ID_BYTES).collect() });
        }
        Ok(Self(id))
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A process of a container: `None` is its init.
pub type ProcessId = Option<Id>;

/// The machine's containers.
pub struct Pod {
    table: Mutex<Table>,
    events: Events,
    host: Box<dyn Host>,
    /// Rings after every exit.
    changed: Notify,
    /// Watches every container's `memory.events`.
    memory: AsyncFd<OwnedFd>,
}

impl fmt::Debug for Pod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pod").finish_non_exhaustive()
    }
}

/// Behind the pod's lock.
struct Table {
    greeted: bool,
    has_hostname: bool,
    next_number: u64,
    storage: Storage,
    containers: BTreeMap<Id, Container>,
    /// The pod's first container: the one whose process namespace others may share.
    first: Option<Id>,
    /// Who a process id belongs to, until it is reaped.
    owners: HashMap<Pid, (Id, ProcessId)>,
    /// Helpers at work; told when they are reaped.
    helpers: HashMap<Pid, oneshot::Sender<()>>,
    /// Processes that ended while a helper was about to name them.
    early: HashMap<Pid, Reaped>,
    /// Helpers whose process is not yet in `owners`.
    unnamed: usize,
    /// Which container a watch of `memory.events` is for.
    watches: HashMap<i32, Id>,
}

struct Container {
    number: u64,
    init: Process,
    processes: BTreeMap<Id, Process>,
    resources: Resources,
    oom_kills: u64,
    /// The init's exit, while further processes have yet to be reaped.
    held_exit: Option<Reaped>,
    removing: bool,
}

/// What has to be given back when a container goes.
#[derive(Default)]
struct Resources {
    dir: Option<PathBuf>,
    cgroup: Option<Cgroup>,
    rootfs: Option<Rootfs>,
    watch: Option<i32>,
}

struct Process {
    state: State,
    pid: Option<Pid>,
    uid: u32,
    io: Option<Io>,
    /// Of a further process that was not started yet.
    plan: Option<Plan>,
}

struct Plan {
    process: OciProcess,
    /// Its ends of the pipes; none for a terminal.
    streams: Vec<OwnedFd>,
}

impl Pod {
    /// An empty pod.
    ///
    /// # Errors
    /// The kernel's, for the memory watch.
    pub fn new(host: Box<dyn Host>) -> std::io::Result<Self> {
        Ok(Self {
            table: Mutex::new(Table::new()),
            events: Events::default(),
            host,
            changed: Notify::new(),
            memory: exits::memory_watch()?,
        })
    }

    /// The first request of a session.
    ///
    /// # Errors
    /// [`PodError::Init`] for what the kernel does not take.
    pub fn greet(&self, hostname: &str, unix_time_ns: i64, shm_bytes: u64) -> Result<(), PodError> {
        let mut table = self.table();
        if unix_time_ns > 0 {
            init::set_clock(unix_time_ns)?;
        }
        if !hostname.is_empty() {
            init::set_hostname(hostname)?;
            table.has_hostname = true;
        }
        if !table.greeted {
            init::mount_shm(shm_bytes)?;
            table.greeted = true;
        }
        Ok(())
    }

    /// The oldest event not yet handed out; waits for one.
    ///
    /// # Errors
    /// [`PodError::Busy`] or [`PodError::NotGreeted`].
    pub async fn next_event(&self) -> Result<Event, PodError> {
        self.table().check_greeted()?;
        Ok(self.events.next().await?)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // A panic ends the machine (main), so no half-done change can be met here.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn new() -> Self {
        Self {
            greeted: false,
            has_hostname: false,
            next_number: 0,
            storage: Storage::new(format!("{}/layers", init::RUN)),
            containers: BTreeMap::new(),
            first: None,
            owners: HashMap::new(),
            helpers: HashMap::new(),
            early: HashMap::new(),
            unnamed: 0,
            watches: HashMap::new(),
        }
    }

    fn check_greeted(&self) -> Result<(), PodError> {
        if self.greeted { Ok(()) } else { Err(PodError::NotGreeted) }
    }

    fn container(&mut self, id: &Id) -> Result<&mut Container, PodError> {
        self.check_greeted()?;
        self.containers.get_mut(id).ok_or_else(|| PodError::UnknownContainer { id: id.to_string() })
    }

    fn process(&mut self, id: &Id, process_id: &ProcessId) -> Result<&mut Process, PodError> {
        self.container(id)?.process(process_id)
    }
}

impl Container {
    fn new(number: u64) -> Self {
        Self {
            number,
            init: Process { state: State::Creating, pid: None, uid: 0, io: None, plan: None },
            processes: BTreeMap::new(),
            resources: Resources::default(),
            oom_kills: 0,
            held_exit: None,
            removing: false,
        }
    }

    fn process(&mut self, process_id: &ProcessId) -> Result<&mut Process, PodError> {
        match process_id {
            None => Ok(&mut self.init),
            Some(id) => {
                self.processes.get_mut(id).ok_or_else(|| PodError::UnknownProcess { id: id.to_string() })
            }
        }
    }

    /// The control group of a container that is more than half-created.
    fn cgroup(&self, id: &Id) -> Result<Cgroup, PodError> {
        let wrong = || PodError::ContainerState { id: id.to_string(), state: self.init.state };
        match self.init.state {
            State::Creating => Err(wrong()),
            _ => self.resources.cgroup.clone().ok_or_else(wrong),
        }
    }
}

#[cfg(test)]
mod tests;
