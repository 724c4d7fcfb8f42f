//! Everything that a request can fail with, and what each failure is called on the wire.

use hull_protocol::limits::{MAX_CONTAINERS, MAX_ID_BYTES, MAX_PROCESSES_PER_CONTAINER};
use ttrpc::Code;

use super::cgroup::CgroupError;
use super::devices::DevicesError;
use super::helper::HelperError;
use super::io::IoError;
use super::spec::SpecError;
use super::state::{Illegal, State};
use crate::events::Busy;
use crate::init::InitError;
use crate::storage::StorageError;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// The task that served it is gone: only at the machine's end.
    #[error("The agent is shutting down")]
    Aborted,
    /// See [`Busy`].
    #[error(transparent)]
    Busy(#[from] Busy),
    /// See [`CgroupError`].
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The id is taken.
    #[error("Container {id:?} exists already")]
    ContainerExists {
        /// As it came.
        id: String,
    },
    /// The container's state does not allow further processes, or looking at it.
    #[error("Container {id:?} is {}", .state.name())]
    ContainerState {
        /// Its id.
        id: String,
        /// Where it is.
        state: State,
    },
    /// See [`DevicesError`].
    #[error(transparent)]
    Devices(#[from] DevicesError),
    /// The process is gone.
    #[error("process already finished")]
    Finished,
    /// See [`HelperError`].
    #[error(transparent)]
    Helper(#[from] HelperError),
    /// Not an id of the contract.
    #[error("Id {id:?} is not made of 1 to {MAX_ID_BYTES} letters, digits, '_', '-' and '.'")]
    Id {
        /// Its beginning.
        id: String,
    },
    /// See [`Illegal`].
    #[error(transparent)]
    Illegal(#[from] Illegal),
    /// See [`InitError`].
    #[error(transparent)]
    Init(#[from] InitError),
    /// See [`IoError`].
    #[error(transparent)]
    Io(#[from] IoError),
    /// Only created and stopped processes can be.
    #[error("cannot delete a {} process", .state.name())]
    NotDeletable {
        /// Where it is.
        state: State,
    },
    /// Another request came before Hello.
    #[error("The session did not begin with Hello")]
    NotGreeted,
    /// Signals need a process.
    #[error("The process is {}: it takes no signals yet", .state.name())]
    NotStarted {
        /// Where it is.
        state: State,
    },
    /// The id is taken.
    #[error("Process {id:?} exists already in its container")]
    ProcessExists {
        /// As it came.
        id: String,
    },
    /// A delete of it is at work.
    #[error("Container {id:?} is being deleted")]
    Removing {
        /// Its id.
        id: String,
    },
    /// Not a number of a signal.
    #[error("Signal {number} is unknown")]
    Signal {
        /// As it came.
        number: u32,
    },
    /// See [`SpecError`].
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// See [`StorageError`].
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The kernel refused something that only the agent is to blame for.
    #[error("Cannot {step}")]
    System {
        /// What was tried.
        step: &'static str,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// The cap of the contract.
    #[error("The pod has {MAX_CONTAINERS} containers already")]
    TooManyContainers,
    /// The cap of the contract.
    #[error("The container has {MAX_PROCESSES_PER_CONTAINER} processes already")]
    TooManyProcesses,
    /// There is none.
    #[error("Container {id:?} is unknown")]
    UnknownContainer {
        /// As it came.
        id: String,
    },
    /// There is none.
    #[error("Process {id:?} is unknown in its container")]
    UnknownProcess {
        /// As it came.
        id: String,
    },
    /// Shim and image are of different releases.
    #[error("The shim speaks version {theirs} of the protocol, this agent version {ours}")]
    Version {
        /// The shim's.
        theirs: u32,
        /// The agent's.
        ours: u32,
    },
}

impl PodError {
    /// What it is called on the wire. Exhaustive on purpose: a new failure needs a decision.
    pub fn code(&self) -> Code {
        match self {
            Self::Id { .. } | Self::Signal { .. } => Code::INVALID_ARGUMENT,
            Self::UnknownContainer { .. } | Self::UnknownProcess { .. } | Self::Finished => Code::NOT_FOUND,
            Self::ContainerExists { .. } | Self::ProcessExists { .. } => Code::ALREADY_EXISTS,
            Self::TooManyContainers | Self::TooManyProcesses => Code::RESOURCE_EXHAUSTED,
            Self::Busy(_)
            | Self::ContainerState { .. }
            | Self::Illegal(_)
            | Self::NotDeletable { .. }
            | Self::NotGreeted
            | Self::NotStarted { .. }
            | Self::Removing { .. }
            | Self::Version { .. } => Code::FAILED_PRECONDITION,
            Self::Aborted | Self::System { .. } => Code::INTERNAL,
            Self::Cgroup(error) => match error {
                CgroupError::Update { .. } => Code::INVALID_ARGUMENT,
                CgroupError::TimedOut { .. } => Code::DEADLINE_EXCEEDED,
                CgroupError::File { .. } => Code::INTERNAL,
            },
            Self::Devices(error) => match error {
                DevicesError::TooMany { .. } | DevicesError::Unknown { .. } => Code::INVALID_ARGUMENT,
                DevicesError::Kernel(_) => Code::INTERNAL,
            },
            Self::Helper(error) => match error {
                HelperError::Refused { .. } => Code::INVALID_ARGUMENT,
                HelperError::TimedOut => Code::DEADLINE_EXCEEDED,
                HelperError::Spawn(_) | HelperError::Failed { .. } | HelperError::Died => Code::INTERNAL,
            },
            Self::Init(error) => match error {
                InitError::ForeignSysctl { .. }
                | InitError::Sysctl { .. }
                | InitError::HostnameTooLong { .. } => Code::INVALID_ARGUMENT,
                InitError::SetUp { .. } => Code::INTERNAL,
            },
            Self::Io(error) => match error {
                IoError::NoTerminal => Code::FAILED_PRECONDITION,
                IoError::Dial { .. } | IoError::Local { .. } => Code::INTERNAL,
            },
            Self::Spec(error) => match error {
                SpecError::UnknownNamespace { .. } => Code::UNIMPLEMENTED,
                SpecError::NoPodProcessNamespace => Code::FAILED_PRECONDITION,
                SpecError::TooLong { .. }
                | SpecError::Malformed { .. }
                | SpecError::Missing { .. }
                | SpecError::Hooks { .. }
                | SpecError::HostNamespace { .. }
                | SpecError::Mount { .. }
                | SpecError::Sysctl { .. }
                | SpecError::Process { .. } => Code::INVALID_ARGUMENT,
            },
            Self::Storage(error) => match error {
                StorageError::UnknownType { .. }
                | StorageError::Misaligned { .. }
                | StorageError::LayerCount { .. }
                | StorageError::Image { .. } => Code::INVALID_ARGUMENT,
                StorageError::Map { .. } | StorageError::Overlay { .. } => Code::INTERNAL,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_have_the_codes_of_the_contract() {
        let id = || "x".to_owned();
        for (error, code) in [
            (PodError::UnknownContainer { id: id() }, Code::NOT_FOUND),
            (PodError::Finished, Code::NOT_FOUND),
            (PodError::ContainerExists { id: id() }, Code::ALREADY_EXISTS),
            (PodError::NotDeletable { state: State::Running }, Code::FAILED_PRECONDITION),
            (
                PodError::Illegal(Illegal {
                    state: State::Stopped,
                    change: super::super::state::Change::Start,
                }),
                Code::FAILED_PRECONDITION,
            ),
            (PodError::NotGreeted, Code::FAILED_PRECONDITION),
            (PodError::TooManyContainers, Code::RESOURCE_EXHAUSTED),
            (SpecError::Missing { part: "root" }.into(), Code::INVALID_ARGUMENT),
            (HelperError::Refused { text: id() }.into(), Code::INVALID_ARGUMENT),
            (HelperError::Died.into(), Code::INTERNAL),
            (CgroupError::Update { reason: id() }.into(), Code::INVALID_ARGUMENT),
        ] {
            assert_eq!(error.code(), code, "{error}");
        }
    }
}
