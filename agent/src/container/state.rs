//! What may happen to a process, and when.
//!
//! The init of a container and every further process of it go through the same states. Only the
//! pod (`container::Pod`) moves them, under its lock.
//!
//! ```text
//!              Prepared           Start              Started
//!  Creating ------------> Created ------> Starting ----------> Running <---+
//!     |                      |               |  |                |  |      | Resume
//!     | Exit                 | Exit     Exit |  | StartFailed    |  | Pause|
//!     v                      v               v  v           Exit |  v      |
//!  Stopped <-----------------+---------------+--+----------------+-Paused -+
//!                                                                Exit
//! ```
//!
//! A process is forgotten from `Created` or `Stopped`. Further processes never pause on their own:
//! the container's state says whether they run.

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The request that makes it is still at work.
    Creating,
    /// Ready; no user code has run.
    Created,
    /// The request that starts it is still at work.
    Starting,
    /// User code runs.
    Running,
    /// Its cgroup is frozen.
    Paused,
    /// It ended, or could not be started.
    Stopped,
}

/// What happens to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Everything up to the user's code is done.
    Prepared,
    /// A start was asked for.
    Start,
    /// The user's code runs.
    Started,
    /// The user's code could not be run.
    StartFailed,
    /// The cgroup was frozen.
    Pause,
    /// The cgroup was thawed.
    Resume,
    /// The process was reaped.
    Exit,
}

/// A change that the state does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Cannot {} a {} process", .change.verb(), .state.name())]
pub struct Illegal {
    /// Where the process is.
    pub state: State,
    /// What was asked for.
    pub change: Change,
}

impl State {
    /// The state after `change`.
    ///
    /// # Errors
    /// [`Illegal`], and the process stays where it is.
    pub fn next(self, change: Change) -> Result<Self, Illegal> {
        match (self, change) {
            (Self::Creating, Change::Prepared) => Ok(Self::Created),
            (Self::Created, Change::Start) => Ok(Self::Starting),
            (Self::Starting, Change::Started) => Ok(Self::Running),
            (Self::Starting, Change::StartFailed) => Ok(Self::Stopped),
            (Self::Running, Change::Pause) => Ok(Self::Paused),
            (Self::Paused, Change::Resume) => Ok(Self::Running),
            (
                Self::Creating | Self::Created | Self::Starting | Self::Running | Self::Paused,
                Change::Exit,
            ) => Ok(Self::Stopped),
            (state, change) => Err(Illegal { state, change }),
        }
    }

    /// May the process be forgotten?
    pub fn is_deletable(self) -> bool {
        matches!(self, Self::Created | Self::Stopped)
    }

    /// May a further process be added to, or started in, a container in this state?
    pub fn takes_processes(self) -> bool {
        matches!(self, Self::Created | Self::Starting | Self::Running)
    }

    /// The word for messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Creating => "half-created",
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

impl Change {
    fn verb(self) -> &'static str {
        match self {
            Self::Prepared => "prepare",
            Self::Start | Self::Started | Self::StartFailed => "start",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Exit => "end",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [State; 6] =
        [State::Creating, State::Created, State::Starting, State::Running, State::Paused, State::Stopped];
    const CHANGES: [Change; 7] = [
        Change::Prepared,
        Change::Start,
        Change::Started,
        Change::StartFailed,
        Change::Pause,
        Change::Resume,
        Change::Exit,
    ];

    /// Rows: states; columns: changes; `-` is illegal.
    const TABLE: &str = "\
        Creating  Created - - - - - Stopped
        Created   - Starting - - - - Stopped
        Starting  - - Running Stopped - - Stopped
        Running   - - - - Paused - Stopped
        Paused    - - - - - Running Stopped
        Stopped   - - - - - - -";

    #[test]
    fn every_pair_of_state_and_change_is_as_drawn() {
        for (row, state) in TABLE.lines().zip(STATES) {
            let mut cells = row.split_whitespace();
            assert_eq!(cells.next(), Some(format!("{state:?}").as_str()));
            for change in CHANGES {
                let expected = cells.next().unwrap();
                match state.next(change) {
                    Ok(next) => assert_eq!(format!("{next:?}"), expected, "{state:?} {change:?}"),
                    Err(illegal) => {
                        assert_eq!(expected, "-", "{state:?} {change:?}");
                        assert_eq!(illegal, Illegal { state, change });
                    }
                }
            }
        }
    }

    #[test]
    fn only_created_and_stopped_processes_are_forgotten() {
        let deletable: Vec<State> = STATES.into_iter().filter(|s| s.is_deletable()).collect();
        assert_eq!(deletable, [State::Created, State::Stopped]);
    }

    #[test]
    fn messages_name_what_was_asked_and_the_state() {
        let illegal = State::Stopped.next(Change::Start).unwrap_err();
        assert_eq!(illegal.to_string(), "Cannot start a stopped process");
    }
}
