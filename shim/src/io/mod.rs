//! The streams of one process: containerd's fifos (or files, or a logger) on one side, one vsock
//! connection each on the other.
//!
//! ```text
//! client -> stdin fifo  -> [copy task] -> guest      ends at CloseIO + last writer gone, or at exit
//! guest  -> [copy task] -> stdout sink -> client     ends when the guest has closed it
//! ```
//! A task that waits for a full fifo reads nothing from its connection, so back-pressure reaches the
//! process and stays with it. Exits never wait for a copy; Delete does, for a bounded time.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hull_protocol::agent::Stdio;
use tokio::task::JoinHandle;
use ttrpc::Code;

use crate::streams::{StreamBroker, Ticket};

mod copy;
mod fifo;
mod logger;

pub use logger::{LOGGER_VERB, run as run_logger};

/// Why the streams cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum IoError {
    /// A fifo or file.
    #[error("The stream {path} cannot be opened")]
    Open {
        /// Its path.
        path: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A path that is no fifo.
    #[error("The stream {0} is no fifo")]
    NotAFifo(String),
    /// A URI whose scheme nobody knows.
    #[error("The stream {0} has an unknown scheme; there are fifo, file and binary")]
    UnknownScheme(String),
    /// The logging program.
    #[error("The logging program {path} does not start")]
    Logger {
        /// Its path.
        path: String,
        /// What went wrong.
        source: std::io::Error,
    },
}

impl IoError {
    /// The gRPC code that this error travels as.
    pub fn code(&self) -> Code {
        match self {
            IoError::Open { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Code::NOT_FOUND,
            IoError::Open { .. } | IoError::Logger { .. } => Code::INTERNAL,
            IoError::NotAFifo(_) | IoError::UnknownScheme(_) => Code::INVALID_ARGUMENT,
        }
    }
}

/// What containerd asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StdioPaths {
    /// Empty: no input.
    pub stdin: String,
    /// Empty: thrown away. A path, or a URI with scheme fifo, file or binary.
    pub stdout: String,
    /// As stdout; not looked at with a terminal.
    pub stderr: String,
    /// One terminal instead of three streams.
    pub terminal: bool,
}

/// The open streams of a process. Dropping it closes everything.
#[derive(Debug)]
pub struct ProcessIo {
    /// Our own writer on the stdin fifo: while it is open, a client that goes away is no end of input.
    stdin_hold: Option<fifo::Hold>,
    stdin: Option<JoinHandle<()>>,
    outputs: Vec<JoinHandle<()>>,
}

/// Whose streams they are: a logging program is told.
#[derive(Debug, Clone, Copy)]
pub struct Owner<'a> {
    /// Container.
    pub container: &'a str,
    /// containerd's namespace.
    pub namespace: &'a str,
}

impl ProcessIo {
    /// Opens everything on containerd's side and begins to expect the guest's connections. The second
    /// value is what the agent must be told.
    ///
    /// # Errors
    /// [`IoError`]; nothing stays open then.
    pub async fn open(
        paths: &StdioPaths,
        owner: Owner<'_>,
        broker: &Arc<StreamBroker>,
    ) -> Result<(Self, Stdio), IoError> {
        let mut io = ProcessIo { stdin_hold: None, stdin: None, outputs: Vec::new() };
        let mut ids = Stdio { terminal: paths.terminal, ..Default::default() };
        if !paths.stdin.is_empty() {
            let (fifo, hold) = fifo::open_input(fifo_path(&paths.stdin)?)?;
            let ticket = broker.expect();
            ids.stdin = ticket.id;
            io.stdin_hold = Some(hold);
            io.stdin = Some(tokio::spawn(copy::input(fifo, ticket)));
        }
        let stderr = if paths.terminal { "" } else { paths.stderr.as_str() };
        if is_logger(&paths.stdout) {
            let (out, err) = logger::start(&paths.stdout, owner).await?;
            ids.stdout = io.output(copy::Sink::Pipe(out), broker);
            if !paths.terminal {
                ids.stderr = io.output(copy::Sink::Pipe(err), broker);
            }
            return Ok((io, ids));
        }
        if let Some(sink) = sink(&paths.stdout)? {
            ids.stdout = io.output(sink, broker);
        } else if paths.terminal {
            // Somebody must read a terminal's output, or its process blocks.
            ids.stdout = io.output(copy::Sink::Nowhere, broker);
        }
        if let Some(sink) = sink(stderr)? {
            ids.stderr = io.output(sink, broker);
        }
        Ok((io, ids))
    }

    fn output(&mut self, sink: copy::Sink, broker: &Arc<StreamBroker>) -> u64 {
        let ticket: Ticket = broker.expect();
        let id = ticket.id;
        self.outputs.push(tokio::spawn(copy::output(ticket, sink)));
        id
    }

    /// CloseIO: the process sees the end of input once every client has closed the fifo.
    pub fn close_stdin(&mut self) {
        self.stdin_hold = None;
    }

    /// Nobody will read its input any more. Its output may still be on the way.
    pub fn process_ended(&mut self) {
        self.stdin_hold = None;
        if let Some(task) = self.stdin.take() {
            task.abort();
        }
    }

    /// Waits until all output has reached its reader, at most `limit` in all, then closes everything.
    pub async fn drain(mut self, limit: Duration) {
        let outputs = std::mem::take(&mut self.outputs);
        let aborts: Vec<_> = outputs.iter().map(JoinHandle::abort_handle).collect();
        let all = async {
            for output in outputs {
                let _ = output.await;
            }
        };
        if tokio::time::timeout(limit, all).await.is_err() {
            tracing::warn!("output that nobody reads is thrown away");
            aborts.iter().for_each(tokio::task::AbortHandle::abort);
        }
    }
}

impl Drop for ProcessIo {
    fn drop(&mut self) {
        self.stdin.iter().chain(&self.outputs).for_each(JoinHandle::abort);
    }
}

fn is_logger(uri: &str) -> bool {
    uri.starts_with("binary:") || uri.starts_with("binary-v2:")
}

fn fifo_path(uri: &str) -> Result<&Path, IoError> {
    match uri.split_once("://") {
        None => Ok(Path::new(uri)),
        Some(("fifo", path)) => Ok(Path::new(path)),
        Some(_) => Err(IoError::UnknownScheme(uri.to_owned())),
    }
}

fn sink(uri: &str) -> Result<Option<copy::Sink>, IoError> {
    if uri.is_empty() {
        return Ok(None);
    }
    match uri.split_once("://") {
        Some(("file", path)) => {
            let path = percent_decode(path);
            Ok(Some(copy::Sink::File(fifo::open_file(Path::new(&path))?)))
        }
        _ => Ok(Some(fifo::open_output(fifo_path(uri)?)?)),
    }
}

/// Bytes that a URI spells as `%20`.
fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let digits = tail.get(..2).filter(|digits| first == b'%' && digits.iter().all(u8::is_ascii_hexdigit));
        let value = digits
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(value.unwrap_or(first));
        rest = if value.is_some() { tail.get(2..).unwrap_or_default() } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests;
