//! Processes: signals by number, and a fork whose child belongs to the caller's parent.

use std::io;

use rustix::process::Pid;

/// Sends `signal` to `pid`; 0 only asks whether the process is there.
///
/// # Errors
/// The kernel's: `ESRCH` if it is gone, `EINVAL` for a number that is no signal.
pub fn kill(pid: Pid, signal: i32) -> io::Result<()> {
    // SAFETY: kill(2) takes two integers and touches no memory of ours.
    check(unsafe { libc::kill(pid.as_raw_nonzero().get(), signal) }.into()).map(drop)
}

/// Which side of [`fork_sibling`] this is.
#[derive(Debug)]
pub enum Forked {
    /// The caller; the child has this process id in the caller's namespace.
    Parent(Pid),
    /// The new process.
    Child,
}

/// Proof that this process has one thread. Taken before `setns`, behind which /proc is another's;
/// nothing in a helper process makes a thread afterwards.
#[derive(Debug)]
pub struct SingleThread(());

impl SingleThread {
    /// Counts the threads.
    ///
    /// # Errors
    /// The kernel's; `EBUSY` if there are more.
    pub fn check() -> io::Result<Self> {
        match std::fs::read_dir("/proc/self/task")?.count() {
            1 => Ok(Self(())),
            _ => Err(io::Error::from_raw_os_error(libc::EBUSY)),
        }
    }
}

/// Forks a child whose parent is the caller's parent, and which lives in the process namespace
/// that the caller's last `setns` named.
///
/// # Errors
/// The kernel's.
pub fn fork_sibling(_: SingleThread) -> io::Result<Forked> {
    let flags = libc::CLONE_PARENT as libc::c_ulong;
    // SAFETY: with no CLONE_VM and no stack the child gets a copy of this process, as with fork(2);
    // the process has one thread (SingleThread), so no lock can be held by a thread that the copy
    // lacks.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) })?;
    Ok(match i32::try_from(pid).ok().and_then(Pid::from_raw) {
        Some(pid) => Forked::Parent(pid),
        None => Forked::Child,
    })
}

/// Ends this process at once, without the exit handlers of the program it was copied from.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) takes an integer and does not return.
    unsafe { libc::_exit(code) }
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kill_with_a_number_that_is_no_signal_is_refused() {
        let error = kill(rustix::process::getpid(), 4096).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn kill_with_zero_asks_for_existence() {
        kill(rustix::process::getpid(), 0).unwrap();
    }
}
