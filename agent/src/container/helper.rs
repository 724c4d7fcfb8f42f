//! Helper processes as the agent sees them: start one, hand it descriptors, wait for its word.
//!
//! The helper is this same program with a verb (`create`, `exec`). The pod tells [`Helper::finish`]
//! when it has reaped the helper: one that dies without a word has failed.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::process::Pid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use super::channel::{self, Channel, Report};
use crate::sys::process::kill;
use crate::sys::ready;

/// Verb of the helper that makes a container.
pub const CREATE: &str = "container-create";
/// Verb of the helper that runs a further process.
pub const EXEC: &str = "container-exec";

/// How long a helper may take: shorter than the host's own deadline for such requests, so that the
/// host hears the reason.
const DEADLINE: Duration = Duration::from_secs(50);

/// What can go wrong in this room.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// The kernel refused something the agent needs for it.
    #[error("Cannot run the helper process")]
    Spawn(#[source] io::Error),
    /// The request is at fault: no such program or directory.
    #[error("{text}")]
    Refused {
        /// In the words that users of runc know.
        text: String,
    },
    /// The helper says why.
    #[error("{text}")]
    Failed {
        /// In its words.
        text: String,
    },
    /// It ended, or was killed, without a word.
    #[error("The helper process ended without a report")]
    Died,
    /// It took too long and was killed.
    #[error("The helper process did not finish within {} s", DEADLINE.as_secs())]
    TimedOut,
}

/// A running helper.
#[derive(Debug)]
pub struct Helper {
    channel: AsyncFd<OwnedFd>,
    pid: Pid,
}

/// The process that a helper made.
#[derive(Debug)]
pub struct Made {
    /// Its id in the guest.
    pub pid: Pid,
    /// The master of its terminal, if it has one.
    pub console: Option<OwnedFd>,
}

impl Helper {
    /// Starts the helper `verb` and hands it `descriptors`.
    ///
    /// # Errors
    /// [`HelperError::Spawn`].
    pub fn spawn(
        verb: &str,
        arguments: &[&OsStr],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Self, HelperError> {
        let (own, its) = Channel::pair().map_err(HelperError::Spawn)?;
        own.go(descriptors).map_err(HelperError::Spawn)?;
        rustix::fs::fcntl_setfl(&own, OFlags::NONBLOCK).map_err(|error| HelperError::Spawn(error.into()))?;
        let child = Command::new("/proc/self/exe")
            .arg(verb)
            .args(arguments)
            .env_clear()
            .stdin(Stdio::from(its.into_descriptor()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(HelperError::Spawn)?;
        // The reaper waits for it, as for everything.
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(HelperError::Died)?;
        let channel =
            ready::register(own.into_descriptor(), Interest::READABLE).map_err(HelperError::Spawn)?;
        Ok(Self { channel, pid })
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Waits for its last report; `reaped` is kept until the helper is.
    ///
    /// # Errors
    /// Every variant but `Spawn`.
    pub async fn finish(self, mut reaped: oneshot::Receiver<()>) -> Result<Made, HelperError> {
        match tokio::time::timeout(DEADLINE, self.wait_for_report(&mut reaped)).await {
            Ok(result) => result,
            Err(_) => {
                // Not reaped, so the id is still its own. If it is gone, that was the aim.
                let _ = kill(self.pid, libc::SIGKILL);
                Err(HelperError::TimedOut)
            }
        }
    }

    async fn wait_for_report(&self, reaped: &mut oneshot::Receiver<()>) -> Result<Made, HelperError> {
        let mut console = None;
        loop {
            let report = tokio::select! {
                biased;
                report = self.channel.async_io(Interest::READABLE, channel::take_report) => report,
                // A report that was sent before the end is read first; there is none.
                _ = &mut *reaped => channel::take_report(self.channel.get_ref()),
            };
            match report {
                Ok(Report::Console(master)) => console = Some(master),
                Ok(Report::Ready(pid)) => return Ok(Made { pid, console }),
                Ok(Report::Failed(text)) => return Err(failure(text)),
                Err(_) => return Err(HelperError::Died),
            }
        }
    }
}

fn failure(text: String) -> HelperError {
    if text.starts_with("exec: ") || text.starts_with("chdir to cwd ") {
        HelperError::Refused { text }
    } else {
        HelperError::Failed { text }
    }
}
