//! One process of a container as the shim sees it: its state, its exit, who waits for it.
//!
//! ```text
//!                created          start           started          pause
//!   (new) Creating ----> Created ------> Starting ------> Running <-------> Paused
//!                          |  |             |  exit held     |     resume     |
//!                          |  | exit        | start failed   | exit           | exit
//!                          |  +-----------> +--> Stopped <---+----------------+
//!                          | delete                 | delete
//!                          +------> Deleting <------+             then the record is dropped
//! ```
//! Only the pod's actor moves it. While a process is Creating, Starting or Deleting, an operation in
//! the guest is under way; requests that depend on its outcome are parked in the record until then.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use protobuf::well_known_types::timestamp::Timestamp;
use tokio::sync::oneshot;

use crate::error::Error;
use crate::io::{ProcessIo, StdioPaths};
use crate::sandbox::Command;

/// Where a process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The guest is preparing it.
    Creating,
    /// Prepared; no user code has run.
    Created,
    /// The guest is starting it.
    Starting,
    /// Its code runs.
    Running,
    /// Frozen.
    Paused,
    /// Ended; its exit is known.
    Stopped,
    /// Being forgotten.
    Deleting,
}

/// What can happen to a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The guest has prepared it.
    Created,
    /// A Start request was accepted.
    StartBegun,
    /// The guest runs it.
    Started,
    /// It has ended, or never will run.
    Exited,
    /// Frozen.
    Paused,
    /// Thawed.
    Resumed,
    /// A Delete request was accepted.
    DeleteBegun,
}

impl State {
    /// Every state, for tables.
    #[cfg(test)]
    pub const ALL: [State; 7] = [
        State::Creating,
        State::Created,
        State::Starting,
        State::Running,
        State::Paused,
        State::Stopped,
        State::Deleting,
    ];

    /// The state after a step; `None` if the step cannot happen here.
    pub fn next(self, step: Step) -> Option<State> {
        match (self, step) {
            (State::Creating, Step::Created) => Some(State::Created),
            (State::Created, Step::StartBegun) => Some(State::Starting),
            (State::Starting, Step::Started) => Some(State::Running),
            (State::Running, Step::Paused) => Some(State::Paused),
            (State::Paused, Step::Resumed) => Some(State::Running),
            (State::Created | State::Starting | State::Running | State::Paused, Step::Exited) => {
                Some(State::Stopped)
            }
            (State::Created | State::Stopped, Step::DeleteBegun) => Some(State::Deleting),
            _ => None,
        }
    }

    /// Whether an operation is under way whose outcome decides the next state.
    pub fn in_transition(self) -> bool {
        matches!(self, State::Creating | State::Starting | State::Deleting)
    }

    /// Word for error messages.
    pub fn name(self) -> &'static str {
        match self {
            State::Creating => "being created",
            State::Created => "created",
            State::Starting => "being started",
            State::Running => "running",
            State::Paused => "paused",
            State::Stopped => "stopped",
            State::Deleting => "being deleted",
        }
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exited {
    /// Exit code, or 128 + signal.
    pub status: u32,
    /// When.
    pub at: SystemTime,
}

/// Status of a process whose machine died under it: as if killed.
pub const MACHINE_DIED: u32 = 137;
/// Status of a process that could not be started: containerd's own "unknown".
pub const NEVER_RAN: u32 = 255;

impl Exited {
    /// An exit now.
    pub fn now(status: u32) -> Self {
        Exited { status, at: SystemTime::now() }
    }
}

/// Sends a request's answer back to its handler.
pub type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// The record of one process.
#[derive(Debug)]
pub struct Process {
    /// Where it is in its life.
    pub state: State,
    /// The streams' paths, repeated in State.
    pub stdio: StdioPaths,
    /// The open streams.
    pub io: Option<ProcessIo>,
    /// Set exactly while Stopped (and Deleting after it).
    pub exit: Option<Exited>,
    /// An exit that came before the answer to Start: the Start event goes first.
    pub held_exit: Option<Exited>,
    /// Whether Start succeeded once.
    pub started: bool,
    waiters: Vec<Reply<Exited>>,
    /// Requests that wait for the operation under way.
    pub parked: Vec<Command>,
}

impl Process {
    /// A record in state Creating.
    pub fn new(stdio: StdioPaths) -> Self {
        Process {
            state: State::Creating,
            stdio,
            io: None,
            exit: None,
            held_exit: None,
            started: false,
            waiters: Vec::new(),
            parked: Vec::new(),
        }
    }

    /// Moves to the next state.
    ///
    /// # Errors
    /// [`Error::WrongState`] if the step cannot happen here; `verb` is for its message.
    pub fn step(&mut self, step: Step, verb: &'static str) -> Result<(), Error> {
        match self.state.next(step) {
            Some(state) => {
                self.state = state;
                Ok(())
            }
            None => Err(Error::WrongState { verb, state: self.state.name() }),
        }
    }

    /// Answers now if the process has ended, else when it does.
    pub fn wait(&mut self, reply: Reply<Exited>) {
        if let Some(exit) = self.exit {
            let _ = reply.send(Ok(exit));
            return;
        }
        // Callers that went away would pile up over a long life.
        self.waiters.retain(|waiter| !waiter.is_closed());
        self.waiters.push(reply);
    }

    /// Stores the exit and wakes everyone who waits. False if it had ended already.
    pub fn finish(&mut self, exit: Exited) -> bool {
        if self.step(Step::Exited, "stopped").is_err() {
            return false;
        }
        self.exit = Some(exit);
        self.wake(exit);
        if let Some(io) = self.io.as_mut() {
            io.process_ended();
        }
        true
    }

    /// Answers everyone who waits.
    pub fn wake(&mut self, exit: Exited) {
        for waiter in self.waiters.drain(..) {
            let _ = waiter.send(Ok(exit));
        }
    }
}

/// A time as protobuf has it.
pub fn timestamp(at: SystemTime) -> Timestamp {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or_default(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_and_step() {
        use State::*;
        use Step as S;
        let legal = [
            (Creating, S::Created, Created),
            (Created, S::StartBegun, Starting),
            (Created, S::Exited, Stopped),
            (Created, S::DeleteBegun, Deleting),
            (Starting, S::Started, Running),
            (Starting, S::Exited, Stopped),
            (Running, S::Paused, Paused),
            (Running, S::Exited, Stopped),
            (Paused, S::Resumed, Running),
            (Paused, S::Exited, Stopped),
            (Stopped, S::DeleteBegun, Deleting),
        ];
        let steps = [S::Created, S::StartBegun, S::Started, S::Exited, S::Paused, S::Resumed, S::DeleteBegun];
        for state in State::ALL {
            for step in steps {
                let expected = legal.iter().find(|row| row.0 == state && row.1 == step).map(|row| row.2);
                assert_eq!(state.next(step), expected, "{state:?} {step:?}");
            }
        }
    }

    #[test]
    fn an_exit_is_stored_once_and_wakes_all() {
        let mut process = Process::new(StdioPaths::default());
        process.state = State::Running;
        let (first, mut first_answer) = oneshot::channel();
        let (second, mut second_answer) = oneshot::channel();
        process.wait(first);
        process.wait(second);
        let exit = Exited::now(3);
        assert!(process.finish(exit));
        assert!(!process.finish(Exited::now(4)));
        assert_eq!(first_answer.try_recv().unwrap().unwrap(), exit);
        assert_eq!(second_answer.try_recv().unwrap().unwrap(), exit);
        let (late, mut late_answer) = oneshot::channel();
        process.wait(late);
        assert_eq!(late_answer.try_recv().unwrap().unwrap(), exit);
    }

    #[test]
    fn timestamps_keep_nanoseconds() {
        let stamp = timestamp(UNIX_EPOCH + Duration::new(5, 7));
        assert_eq!((stamp.seconds, stamp.nanos), (5, 7));
    }
}
