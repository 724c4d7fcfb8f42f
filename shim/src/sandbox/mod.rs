//! The pod: one actor that owns every record, and the handle by which requests reach it.
//!
//! ```text
//! task.rs --Command--> [actor.rs] --spawns--> operations (ops.rs) --Done--> [actor.rs]
//! agent, machine ------News-------^
//! ```
//! The actor never waits for anything but its mailbox, so what it knows (State, Pids, Connect, Wait) is
//! always answered at once. Whatever takes time runs as an operation of its own, with deadlines, and
//! reports back. A caller that goes away changes nothing: the operation runs to its end.

use containerd_shim_protos::api::Mount;
use protobuf::well_known_types::any::Any;
use tokio::sync::{mpsc, oneshot, watch};

use crate::error::{Error, Result};
use crate::io::StdioPaths;
use crate::journal::Journal;
use crate::process::{Exited, Reply, State};

mod actor;
pub mod guest;
mod ops;
pub mod size;
mod state;
pub mod vm;

#[cfg(test)]
mod tests;

pub use actor::{Means, PodIdentity, Remains};

/// Requests that may wait in the mailbox: more than containerd ever has under way.
const MAILBOX_LENGTH: usize = 256;

/// A process of a container; an empty exec id means init.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// Container.
    pub id: String,
    /// Further process.
    pub exec_id: String,
}

/// What Create carries.
#[derive(Debug)]
pub struct CreateTask {
    /// New container.
    pub id: String,
    /// Its bundle.
    pub bundle: String,
    /// Its root file system, as containerd sees it.
    pub rootfs: Vec<Mount>,
    /// Its streams.
    pub stdio: StdioPaths,
}

/// What Exec carries.
#[derive(Debug)]
pub struct ExecTask {
    /// The new process.
    pub target: Target,
    /// Its streams.
    pub stdio: StdioPaths,
    /// OCI process, JSON.
    pub process: Vec<u8>,
}

/// What State answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Bundle directory.
    pub bundle: String,
    /// Where the process is in its life.
    pub state: State,
    /// Its streams.
    pub stdio: StdioPaths,
    /// How it ended, if it has.
    pub exit: Option<Exited>,
}

/// A request to the actor.
#[derive(Debug)]
pub enum Command {
    /// Create a container, and the machine if there is none.
    Create(CreateTask, Reply<()>),
    /// Run a created process.
    Start(Target, Reply<()>),
    /// Forget a stopped or never started process.
    Delete(Target, Reply<Exited>),
    /// Wait for a process's end.
    Wait(Target, Reply<Exited>),
    /// Send a signal; `true`: to every process of the container.
    Kill(Target, u32, bool, Reply<()>),
    /// Register a further process.
    Exec(ExecTask, Reply<()>),
    /// Set a terminal's width and height.
    Resize(Target, u32, u32, Reply<()>),
    /// Let the process see the end of its input.
    CloseStdin(Target, Reply<()>),
    /// What is known of a process.
    State(Target, Reply<Status>),
    /// Whether there is such a container.
    Exists(String, Reply<()>),
    /// Freeze a container.
    Pause(String, Reply<()>),
    /// Thaw it.
    Resume(String, Reply<()>),
    /// Change its limits.
    Update(String, Vec<u8>, Reply<()>),
    /// Read its cgroup.
    Stats(String, Reply<Any>),
    /// End the pod if nothing is left in it, or (`true`) in any case.
    Shutdown(bool, Reply<()>),
    /// Log what there is.
    LogSummary,
}

impl Command {
    /// Name for the log.
    fn name(&self) -> &'static str {
        match self {
            Command::Create(..) => "Create",
            Command::Start(..) => "Start",
            Command::Delete(..) => "Delete",
            Command::Wait(..) => "Wait",
            Command::Kill(..) => "Kill",
            Command::Exec(..) => "Exec",
            Command::Resize(..) => "ResizePty",
            Command::CloseStdin(..) => "CloseIO",
            Command::State(..) => "State",
            Command::Exists(..) => "Exists",
            Command::Pause(..) => "Pause",
            Command::Resume(..) => "Resume",
            Command::Update(..) => "Update",
            Command::Stats(..) => "Stats",
            Command::Shutdown(..) => "Shutdown",
            Command::LogSummary => "LogSummary",
        }
    }
}

/// The handle.
#[derive(Debug, Clone)]
pub struct Pod {
    mailbox: mpsc::Sender<actor::Message>,
    /// Process id that every task of the pod is reported with.
    pub shim_pid: u32,
}

impl Pod {
    /// Starts the actor. The receiver gets what remains when the pod is over. `connections` tells how
    /// many clients there are.
    pub fn start(
        identity: PodIdentity,
        config: std::sync::Arc<crate::config::Config>,
        means: Means,
        events: crate::events::EventQueue,
        journal: Journal,
        connections: watch::Receiver<usize>,
    ) -> (Self, oneshot::Receiver<Remains>) {
        let (mailbox, receiver) = mpsc::channel(MAILBOX_LENGTH);
        let shim_pid = identity.shim_pid;
        let (over, is_over) = oneshot::channel();
        let actor = actor::Actor::new(identity, config, means, events, journal, mailbox.downgrade());
        tokio::spawn(async move {
            // A receiver that is gone means that the process is ending anyway.
            let _ = over.send(actor.run(receiver, connections).await);
        });
        (Pod { mailbox, shim_pid }, is_over)
    }

    /// Sends a command and waits for its answer.
    ///
    /// # Errors
    /// What the actor answers, or [`Error::Ending`].
    pub async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let message = actor::Message::Command(command(reply));
        self.mailbox.send(message).await.map_err(|_| Error::Ending)?;
        answer.await.unwrap_or(Err(Error::Ending))
    }

    /// Ends the pod whatever is in it.
    pub async fn end(&self) {
        let _ = self.ask(|reply| Command::Shutdown(true, reply)).await;
    }

    /// Logs what there is.
    pub async fn log_summary(&self) {
        let _ = self.mailbox.send(actor::Message::Command(Command::LogSummary)).await;
    }
}
