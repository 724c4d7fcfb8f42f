//! Requests that look at, or poke, what is there: signals, pause, limits, numbers.

use libcontainer::oci_spec::runtime::LinuxResources;

use super::cgroup::{Cgroup, Stats};
use super::error::PodError;
use super::io::Size;
use super::state::{Change, State};
use super::{Container, Id, Pod, Process, ProcessId};
use crate::sys::process::kill;

/// Highest signal number of Linux.
const MAX_SIGNAL: u32 = 64;
/// Signals that do not end a process which does nothing about them.
const HARMLESS: [i32; 9] = [
    0,
    libc::SIGCHLD,
    libc::SIGCONT,
    libc::SIGURG,
    libc::SIGWINCH,
    libc::SIGSTOP,
    libc::SIGTSTP,
    libc::SIGTTIN,
    libc::SIGTTOU,
];

/// A signal number, checked; 0 asks only whether the process is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal(i32);

impl Signal {
    /// Checks a number.
    ///
    /// # Errors
    /// [`PodError::Signal`].
    pub fn new(number: u32) -> Result<Self, PodError> {
        let signal = i32::try_from(number).ok().filter(|_| number <= MAX_SIGNAL);
        signal.map(Self).ok_or(PodError::Signal { number })
    }
}

impl Pod {
    /// Signals a process, or with `all` every process of its container.
    ///
    /// # Errors
    /// [`PodError::Finished`], [`PodError::NotStarted`], or who is unknown.
    pub fn signal(&self, id: &Id, process_id: &ProcessId, signal: Signal, all: bool) -> Result<(), PodError> {
        let mut table = self.table();
        let container = table.container(id)?;
        if all {
            let cgroup = container.cgroup(id)?;
            return signal_all(container, &cgroup, signal);
        }
        let is_init = process_id.is_none();
        let process = container.process(process_id)?;
        signal_one(process, is_init, signal)
    }

    /// Sizes a process's terminal, now or when it is started.
    ///
    /// # Errors
    /// [`PodError::Finished`], [`PodError::Io`], or who is unknown.
    pub fn resize(&self, id: &Id, process_id: &ProcessId, size: Option<Size>) -> Result<(), PodError> {
        let mut table = self.table();
        let process = table.process(id, process_id)?;
        if process.state == State::Stopped {
            return Err(PodError::Finished);
        }
        match (size, &mut process.io) {
            (Some(size), Some(io)) => Ok(io.resize(size)?),
            // Some clients send 0 by 0: nothing to do.
            _ => Ok(()),
        }
    }

    /// Stops a running container in its tracks.
    ///
    /// # Errors
    /// [`PodError::Illegal`], or that the kernel does not freeze it in time.
    pub async fn pause(&self, id: &Id) -> Result<(), PodError> {
        let cgroup = {
            let mut table = self.table();
            let container = table.container(id)?;
            container.init.state.next(Change::Pause)?;
            container.cgroup(id)?
        };
        cgroup.freeze().await?;
        let mut table = self.table();
        let init = &mut table.container(id)?.init;
        match init.state.next(Change::Pause) {
            Ok(state) => {
                init.state = state;
                Ok(())
            }
            // It ended meanwhile: what is left must be able to.
            Err(illegal) => cgroup.thaw().map_err(PodError::from).and(Err(illegal.into())),
        }
    }

    /// Lets a paused container run again.
    ///
    /// # Errors
    /// [`PodError::Illegal`] or [`PodError::Cgroup`].
    pub fn resume(&self, id: &Id) -> Result<(), PodError> {
        let mut table = self.table();
        let container = table.container(id)?;
        let state = container.init.state.next(Change::Resume)?;
        container.cgroup(id)?.thaw()?;
        container.init.state = state;
        Ok(())
    }

    /// Changes a container's limits.
    ///
    /// # Errors
    /// [`PodError::ContainerState`] once it has stopped, or [`PodError::Cgroup`].
    pub fn update(&self, id: &Id, resources: &LinuxResources) -> Result<(), PodError> {
        Ok(self.living_cgroup(id)?.update(resources)?)
    }

    /// What a container uses.
    ///
    /// # Errors
    /// [`PodError::ContainerState`] once it has stopped, or [`PodError::Cgroup`].
    pub fn stats(&self, id: &Id) -> Result<Stats, PodError> {
        Ok(self.living_cgroup(id)?.stats()?)
    }

    /// The processes of a container; none once it has stopped.
    ///
    /// # Errors
    /// [`PodError::Cgroup`], or who is unknown.
    pub fn pids(&self, id: &Id) -> Result<Vec<i32>, PodError> {
        let cgroup = self.table().container(id)?.cgroup(id)?;
        Ok(cgroup.pids()?)
    }

    fn living_cgroup(&self, id: &Id) -> Result<Cgroup, PodError> {
        let mut table = self.table();
        let container = table.container(id)?;
        if container.init.state == State::Stopped {
            return Err(PodError::ContainerState { id: id.to_string(), state: State::Stopped });
        }
        container.cgroup(id)
    }
}

fn signal_one(process: &Process, is_init: bool, signal: Signal) -> Result<(), PodError> {
    let state = process.state;
    let Some(pid) = process.pid else {
        let gone = state == State::Stopped || (is_init && state != State::Creating);
        return Err(if gone { PodError::Finished } else { PodError::NotStarted { state } });
    };
    send(pid, effective(state, signal))
}

fn signal_all(container: &Container, cgroup: &Cgroup, signal: Signal) -> Result<(), PodError> {
    if container.init.pid.is_none() {
        return Err(PodError::Finished);
    }
    let signal = effective(container.init.state, signal);
    if signal == libc::SIGKILL {
        return Ok(cgroup.kill()?);
    }
    for pid in cgroup.pids()?.into_iter().filter_map(rustix::process::Pid::from_raw) {
        match send(pid, signal) {
            // It ended between the list and the signal.
            Ok(()) | Err(PodError::Finished) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// An init that waits for its start runs none of the user's code, so it can do nothing about a
/// signal; the kernel would drop one that is meant to end it.
fn effective(state: State, signal: Signal) -> i32 {
    let waits = matches!(state, State::Created);
    if waits && !HARMLESS.contains(&signal.0) { libc::SIGKILL } else { signal.0 }
}

fn send(pid: rustix::process::Pid, signal: i32) -> Result<(), PodError> {
    kill(pid, signal).map_err(|source| match source.raw_os_error() {
        Some(libc::ESRCH) => PodError::Finished,
        _ => PodError::System { step: "signal the process", source },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signal_numbers_are_checked() {
        assert_eq!(Signal::new(64).unwrap(), Signal(64));
        assert!(matches!(Signal::new(65), Err(PodError::Signal { number: 65 })));
        assert!(Signal::new(u32::MAX).is_err());
    }

    #[test]
    fn ending_signals_end_an_init_that_waits() {
        for (state, signal, expected) in [
            (State::Created, libc::SIGTERM, libc::SIGKILL),
            (State::Created, libc::SIGUSR1, libc::SIGKILL),
            (State::Created, libc::SIGWINCH, libc::SIGWINCH),
            (State::Running, libc::SIGTERM, libc::SIGTERM),
            (State::Paused, libc::SIGKILL, libc::SIGKILL),
        ] {
            assert_eq!(effective(state, Signal(signal)), expected, "{state:?} {signal}");
        }
    }

    #[test]
    fn signals_to_processes_that_are_not_there_are_told_apart() {
        let process = |state| Process { state, pid: None, uid: 0, io: None, plan: None };
        for (state, is_init, finished) in [
            (State::Stopped, true, true),
            (State::Stopped, false, true),
            (State::Running, true, true), // reaped, its exit held back
            (State::Created, false, false),
            (State::Creating, true, false),
        ] {
            let error = signal_one(&process(state), is_init, Signal(9)).unwrap_err();
            assert_eq!(matches!(error, PodError::Finished), finished, "{state:?} {is_init}");
        }
    }
}
