//! Ends: processes that were reaped, and the kernel's kills for want of memory.
//!
//! Order for the host: an OOM event before the exit that it caused, the exits of further processes
//! before their init's. An init's exit is held back while further processes, which are killed with
//! it, have yet to be reaped; if the kernel cannot end one in time the host hears of the init anyway.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::inotify;
use rustix::process::{Pid, WaitStatus};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::state::{Change, State};
use super::{Container, Id, Pod, ProcessId, Table};
use crate::events::Event;
use crate::init;
use crate::log::{info, warning};
use crate::sys::ready;

/// How long an init's exit is held back for processes that were killed with it.
const HOLD_DEADLINE: Duration = Duration::from_secs(5);
/// Room for inotify's records of one read; each is 16 bytes.
const INOTIFY_BUFFER_BYTES: usize = 4096;

/// How and when a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reaped {
    /// Exit code, or 128 + signal.
    pub status: u32,
    /// When.
    pub unix_time_ns: i64,
}

impl Reaped {
    /// What wait(2) told, now.
    pub fn now(status: WaitStatus) -> Self {
        let signal = status.terminating_signal().map(|signal| 128 + signal);
        let code = status.exit_status().or(signal).unwrap_or_default();
        Self { status: code.try_into().unwrap_or_default(), unix_time_ns: init::now_unix_ns() }
    }
}

/// An inotify instance for [`Pod::watch_memory`].
pub fn memory_watch() -> io::Result<AsyncFd<OwnedFd>> {
    let instance = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    ready::register(instance, Interest::READABLE)
}

impl Pod {
    /// Takes in that `pid` was reaped. Called by the reaper only, for every process there is.
    pub fn reaped(self: &Arc<Self>, pid: Pid, reaped: Reaped) {
        let mut table = self.table();
        if let Some(waiting) = table.helpers.remove(&pid) {
            // The request may have its report already.
            let _ = waiting.send(());
        } else if let Some((id, process_id)) = table.owners.remove(&pid) {
            self.finish(&mut table, &id, &process_id, reaped);
        } else if table.unnamed > 0 {
            table.early.insert(pid, reaped);
        } // else an orphan of some container, or a helper's step
    }

    /// Makes `pid` the process `(id, process_id)`; it may have ended already.
    pub(super) fn adopt(self: &Arc<Self>, table: &mut Table, pid: Pid, id: &Id, process_id: &ProcessId) {
        match table.early.remove(&pid) {
            Some(reaped) => self.finish(table, id, process_id, reaped),
            None => {
                table.owners.insert(pid, (id.clone(), process_id.clone()));
            }
        }
    }

    /// Tells the host of every OOM kill as it happens. Runs for the machine's life.
    ///
    /// # Errors
    /// The kernel's, if it takes the watch away.
    pub async fn watch_memory(self: Arc<Self>) -> io::Result<()> {
        loop {
            let mut guard = self.memory.readable().await?;
            let mut buffer = [MaybeUninit::uninit(); INOTIFY_BUFFER_BYTES];
            let mut reader = inotify::Reader::new(self.memory.as_fd(), &mut buffer);
            while let Ok(event) = reader.next() {
                self.look_at_memory(event.wd());
            }
            guard.clear_ready();
        }
    }

    /// Sends a held exit of `id` once no further process is left, and tells who waits.
    pub(super) fn settle(&self, table: &mut Table, id: &Id) {
        if let Some(container) = table.containers.get_mut(id)
            && !container.has_live_processes()
            && let Some(reaped) = container.held_exit.take()
        {
            self.publish(id, &None, container, reaped);
        }
        self.changed.notify_waiters();
    }

    fn finish(self: &Arc<Self>, table: &mut Table, id: &Id, process_id: &ProcessId, reaped: Reaped) {
        let Some(container) = table.containers.get_mut(id) else { return };
        self.check_oom(id, container);
        if let Ok(process) = container.process(process_id) {
            process.pid = None;
        }
        if process_id.is_some() {
            self.publish(id, process_id, container, reaped);
        } else {
            container.held_exit = Some(reaped);
            self.kill_rest(id, container);
        }
        self.settle(table, id);
    }

    fn publish(&self, id: &Id, process_id: &ProcessId, container: &mut Container, reaped: Reaped) {
        let Ok(process) = container.process(process_id) else { return };
        // Every living state allows an exit.
        process.state = process.state.next(Change::Exit).unwrap_or(State::Stopped);
        let process_id = process_id.as_ref().map_or_else(String::new, Id::to_string);
        info!("container {id} process {process_id:?} ended with status {}", reaped.status);
        let Reaped { status, unix_time_ns } = reaped;
        self.events.push(Event::Exit { container_id: id.to_string(), process_id, status, unix_time_ns });
    }

    /// Ends what an init that is gone leaves behind, and bounds how long its exit waits for that.
    fn kill_rest(self: &Arc<Self>, id: &Id, container: &Container) {
        if let Some(cgroup) = &container.resources.cgroup {
            // A paused container's processes can only end; a frozen empty group would stay frozen.
            if let Err(error) = cgroup.kill().and_then(|()| cgroup.thaw()) {
                warning!("container {id}: {error}");
            }
        }
        if !container.has_live_processes() {
            return;
        }
        let (pod, id) = (Arc::clone(self), id.clone());
        tokio::spawn(async move {
            tokio::time::sleep(HOLD_DEADLINE).await;
            let mut table = pod.table();
            let Some(container) = table.containers.get_mut(&id) else { return };
            if let Some(reaped) = container.held_exit.take() {
                warning!("container {id}: killed processes are still there");
                pod.publish(&id, &None, container, reaped);
                pod.changed.notify_waiters();
            }
        });
    }

    fn look_at_memory(&self, watch: i32) {
        let mut table = self.table();
        let Some(id) = table.watches.get(&watch).cloned() else { return };
        if let Some(container) = table.containers.get_mut(&id) {
            self.check_oom(&id, container);
        }
    }

    fn check_oom(&self, id: &Id, container: &mut Container) {
        let kills = container.resources.cgroup.as_ref().map_or(0, super::Cgroup::oom_kills);
        if kills > container.oom_kills {
            container.oom_kills = kills;
            info!("container {id}: the kernel has killed {kills} processes for want of memory");
            self.events.push(Event::Oom { container_id: id.to_string() });
        }
    }

    /// Watches the memory events of a new container's group.
    pub(super) fn add_watch(&self, table: &mut Table, id: &Id, cgroup: &Path) -> io::Result<i32> {
        let file = cgroup.join("memory.events");
        let watch = inotify::add_watch(self.memory.as_fd(), &file, inotify::WatchFlags::MODIFY)?;
        table.watches.insert(watch, id.clone());
        Ok(watch)
    }

    /// Ends a watch; the kernel has done so itself if the group is gone.
    pub(super) fn remove_watch(&self, table: &mut Table, watch: i32) {
        table.watches.remove(&watch);
        let _ = inotify::remove_watch(self.memory.as_fd(), watch);
    }
}

impl Container {
    fn has_live_processes(&self) -> bool {
        self.processes
            .values()
            .any(|process| process.pid.is_some() || matches!(process.state, State::Starting))
    }
}
