//! The shim's errors, and the one table that says which gRPC code each of them is.
//!
//! containerd acts on the code (NOT_FOUND is "gone already", UNIMPLEMENTED from Create makes it try
//! the older API) and shows the text to the user. The match has no wildcard: a new variant does not
//! compile until somebody chooses its code.

use containerd_shim_protos::ttrpc;
use ttrpc::Code;

use crate::agent::AgentError;
use crate::io::IoError;
use crate::rootfs::RootfsError;
use crate::sandbox::vm::BootError;
use crate::spec::SpecError;

/// Everything that a request can end with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Unknown container.
    #[error("There is no task {0:?}")]
    NoSuchTask(String),
    /// Unknown further process.
    #[error("Task {id:?} has no process {exec_id:?}")]
    NoSuchProcess {
        /// Container.
        id: String,
        /// Process.
        exec_id: String,
    },
    /// The id is taken.
    #[error("There is a task {0:?} already")]
    TaskExists(String),
    /// The exec id is taken.
    #[error("Task {id:?} has a process {exec_id:?} already")]
    ProcessExists {
        /// Container.
        id: String,
        /// Process.
        exec_id: String,
    },
    /// A cap of the contract is reached.
    #[error("The pod has {limit} {what} already, the most there can be")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The cap.
        limit: usize,
    },
    /// The request does not fit the process's state.
    #[error("The process cannot be {verb}: it is {state}")]
    WrongState {
        /// Past participle of the request.
        verb: &'static str,
        /// Name of the state.
        state: &'static str,
    },
    /// A signal for a process that has ended. The words are those that CRI looks for.
    #[error("process already finished")]
    Finished,
    /// A request that this shim does not serve.
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    /// A request that makes no sense.
    #[error("The request is wrong: {0}")]
    Invalid(String),
    /// The container's specification.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The container's root file system.
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    /// The container's streams.
    #[error(transparent)]
    Io(#[from] IoError),
    /// The machine did not start.
    #[error("The pod's machine did not start")]
    Boot(#[from] std::sync::Arc<BootError>),
    /// The layer disk took no image.
    #[error("The container's image cannot be put on the layer disk: {0}")]
    LayerDisk(String),
    /// The agent refused or did not answer.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The machine is dead.
    #[error("The pod's machine is gone: {0}")]
    MachineGone(String),
    /// The journal cannot be written, so nothing may be acquired.
    #[error("The journal cannot be written")]
    Journal(#[source] std::io::Error),
    /// The pod is being torn down.
    #[error("The pod is ending")]
    Ending,
}

/// Result with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The gRPC code that this error travels as.
    pub fn code(&self) -> Code {
        match self {
            Error::NoSuchTask(_) | Error::NoSuchProcess { .. } | Error::Finished => Code::NOT_FOUND,
            Error::TaskExists(_) | Error::ProcessExists { .. } => Code::ALREADY_EXISTS,
            Error::TooMany { .. } => Code::RESOURCE_EXHAUSTED,
            Error::WrongState { .. } => Code::FAILED_PRECONDITION,
            Error::Unsupported(_) => Code::UNIMPLEMENTED,
            Error::Invalid(_) | Error::Spec(_) => Code::INVALID_ARGUMENT,
            Error::Rootfs(error) => error.code(),
            Error::Io(error) => error.code(),
            Error::Boot(_) => Code::INTERNAL,
            Error::LayerDisk(_) => Code::INTERNAL,
            Error::Agent(error) => error.code(),
            Error::MachineGone(_) | Error::Ending => Code::UNAVAILABLE,
            Error::Journal(_) => Code::INTERNAL,
        }
    }
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        ttrpc::Error::RpcStatus(ttrpc::get_status(error.code(), chain(&error)))
    }
}

/// An error and its sources in one line: containerd shows no more than that.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing() -> std::io::Error {
        std::io::Error::from(std::io::ErrorKind::NotFound)
    }

    #[test]
    fn every_variant_has_its_code() {
        let text = || "x".to_owned();
        let table = [
            (Error::NoSuchTask(text()), Code::NOT_FOUND),
            (Error::NoSuchProcess { id: text(), exec_id: text() }, Code::NOT_FOUND),
            (Error::TaskExists(text()), Code::ALREADY_EXISTS),
            (Error::ProcessExists { id: text(), exec_id: text() }, Code::ALREADY_EXISTS),
            (Error::TooMany { what: "x", limit: 1 }, Code::RESOURCE_EXHAUSTED),
            (Error::WrongState { verb: "x", state: "y" }, Code::FAILED_PRECONDITION),
            (Error::Finished, Code::NOT_FOUND),
            (Error::Unsupported("x"), Code::UNIMPLEMENTED),
            (Error::Invalid(text()), Code::INVALID_ARGUMENT),
            (Error::Spec(SpecError::NoProcess), Code::INVALID_ARGUMENT),
            (Error::Rootfs(RootfsError::NoRoot), Code::INVALID_ARGUMENT),
            (Error::Io(IoError::UnknownScheme(text())), Code::INVALID_ARGUMENT),
            (Error::Boot(std::sync::Arc::new(BootError::Silent { seconds: 1 })), Code::INTERNAL),
            (Error::LayerDisk(text()), Code::INTERNAL),
            (Error::Agent(AgentError::Closed { request: "x", reason: text() }), Code::UNAVAILABLE),
            (Error::MachineGone(text()), Code::UNAVAILABLE),
            (Error::Journal(missing()), Code::INTERNAL),
            (Error::Ending, Code::UNAVAILABLE),
        ];
        for (error, code) in table {
            assert_eq!(error.code(), code, "{error}");
        }
    }

    #[test]
    fn the_chain_is_one_line_with_every_cause() {
        let text = chain(&Error::Journal(missing()));
        assert!(text.starts_with("The journal cannot be written: "), "{text}");
    }
}
