//! The streams of a process: one connection to the host for each, with back-pressure end to end.
//!
//! ```text
//! host --STREAM--> stdin pump  --> pipe or pty master --> process
//! host <-STREAM--- output pump <-- pipe or pty master <-- process
//! ```
//! A pump moves bytes only when both sides can take them, so a host that does not read stops the
//! process at a full pipe and costs the guest one buffer. The end travels too: the host's half-close
//! closes the pipe; the last writer's close half-closes the connection. A terminal has one stream
//! each way and no end of input.

mod terminal;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use async_trait::async_trait;
use hull_protocol::limits::STREAM_HEADER_DEADLINE;
use hull_protocol::ports;
use rustix::fs::{Mode, OFlags, Uid};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;

use self::terminal::Master;

/// Buffer of a quiet stream.
const MIN_BUFFER_BYTES: usize = 1 << 10;
/// Buffer of a busy stream, and size of its pipe: larger ones measured no faster.
const MAX_BUFFER_BYTES: usize = 128 << 10;
/// How long output that nobody reads is kept for the host after its process is deleted.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);

/// A connection to the host.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// The host, as the agent's streams need it.
#[async_trait]
pub trait Host: Send + Sync {
    /// Connects to a port of the host.
    async fn dial(&self, port: u32) -> io::Result<Box<dyn Connection>>;
}

/// What can go wrong in this room.
#[derive(Debug, thiserror::Error)]
pub enum IoError {
    /// The host did not take the connection in time.
    #[error("Stream {id} cannot be connected to the host")]
    Dial {
        /// The host's name for it.
        id: u64,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A step on the guest's side.
    #[error("Cannot {step}")]
    Local {
        /// What was tried.
        step: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// There is none.
    #[error("The process has no terminal")]
    NoTerminal,
}

/// Size of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

impl Size {
    /// A size from the contract; 0 by 0 means that it is not known.
    pub fn new(width: u32, height: u32) -> Option<Self> {
        let clamp = |number| u16::try_from(number).unwrap_or(u16::MAX);
        (width != 0 || height != 0).then(|| Self { width: clamp(width), height: clamp(height) })
    }
}

/// The streams that the host wants of a process: ids of the contract, 0 for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Input.
    pub stdin: u64,
    /// Output.
    pub stdout: u64,
    /// Errors; a terminal has none of its own.
    pub stderr: u64,
    /// One terminal instead of three pipes.
    pub terminal: bool,
    /// Its first size.
    pub size: Option<Size>,
}

/// Connections to the host, not yet joined to a process.
pub struct Streams {
    stdin: Option<Box<dyn Connection>>,
    stdout: Option<Box<dyn Connection>>,
    stderr: Option<Box<dyn Connection>>,
}

impl std::fmt::Debug for Streams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Streams").finish_non_exhaustive()
    }
}

impl Streams {
    /// Connects every wanted stream.
    ///
    /// # Errors
    /// [`IoError::Dial`].
    pub async fn dial(host: &dyn Host, wanted: &Wanted) -> Result<Self, IoError> {
        Ok(Self {
            stdin: dial(host, wanted.stdin).await?,
            stdout: dial(host, wanted.stdout).await?,
            stderr: dial(host, wanted.stderr).await?,
        })
    }
}

async fn dial(host: &dyn Host, id: u64) -> Result<Option<Box<dyn Connection>>, IoError> {
    if id == 0 {
        return Ok(None);
    }
    let connect = async {
        let mut connection = host.dial(ports::STREAM).await?;
        connection.write_all(&id.to_le_bytes()).await?;
        Ok(connection)
    };
    let connected = tokio::time::timeout(STREAM_HEADER_DEADLINE, connect).await;
    let result = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    result.map(Some).map_err(|source| IoError::Dial { id, source })
}

/// The pumps of one process. Dropping it leaves them running; use [`Io::close`].
#[derive(Debug)]
pub struct Io {
    input: Option<JoinHandle<()>>,
    outputs: Vec<JoinHandle<()>>,
    terminal: Option<Terminal>,
}

#[derive(Debug)]
struct Terminal {
    /// Until the process has its terminal.
    waiting: Option<Streams>,
    master: Option<Master>,
    size: Option<Size>,
}

impl Io {
    /// Joins `streams` to three pipes and returns the ends for the process, which `uid` may reopen.
    ///
    /// # Errors
    /// [`IoError::Local`].
    pub fn pipes(streams: Streams, uid: u32) -> Result<(Self, [OwnedFd; 3]), IoError> {
        let mut io = Self { input: None, outputs: Vec::new(), terminal: None };
        let stdin = match streams.stdin {
            None => null()?,
            Some(connection) => {
                let (read, write) = pipe_for(uid)?;
                let sender = pipe::Sender::from_owned_fd(write).map_err(local("make a pipe"))?;
                io.input = Some(tokio::spawn(pump_input(connection, sender)));
                read
            }
        };
        let mut output = |connection: Option<Box<dyn Connection>>| match connection {
            None => null(),
            Some(connection) => {
                let (read, write) = pipe_for(uid)?;
                let receiver = pipe::Receiver::from_owned_fd(read).map_err(local("make a pipe"))?;
                io.outputs.push(tokio::spawn(pump_output(Source::Pipe(receiver), connection)));
                Ok(write)
            }
        };
        let (stdout, stderr) = (output(streams.stdout)?, output(streams.stderr)?);
        Ok((io, [stdin, stdout, stderr]))
    }

    /// Keeps `streams` for the terminal that the process will open.
    pub fn terminal(streams: Streams, size: Option<Size>) -> Self {
        let terminal = Terminal { waiting: Some(streams), master: None, size };
        Self { input: None, outputs: Vec::new(), terminal: Some(terminal) }
    }

    /// Joins the streams to the terminal `master`, whose slave `uid` may reopen.
    ///
    /// # Errors
    /// [`IoError::NoTerminal`] for a process of pipes, or [`IoError::Local`].
    pub fn attach(&mut self, master: OwnedFd, uid: u32) -> Result<(), IoError> {
        let terminal = self.terminal.as_mut().ok_or(IoError::NoTerminal)?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        ioctl_tiocgptpeer(&master, flags)
            .and_then(|slave| rustix::fs::fchown(&slave, Some(Uid::from_raw(uid)), None))
            .map_err(|error| local("give the terminal to its user")(error.into()))?;
        let master = Master::new(master).map_err(local("read the terminal"))?;
        terminal.master = Some(master.clone());
        if let Some(size) = terminal.size {
            master.resize(size).map_err(local("size the terminal"))?;
        }
        if let Some(streams) = terminal.waiting.take() {
            if let Some(connection) = streams.stdin {
                self.input = Some(tokio::spawn(pump_input(connection, master.clone())));
            }
            if let Some(connection) = streams.stdout {
                self.outputs.push(tokio::spawn(pump_output(Source::Terminal(master), connection)));
            }
        }
        Ok(())
    }

    /// Sizes the terminal, now or when the process has it.
    ///
    /// # Errors
    /// [`IoError::NoTerminal`] for a process of pipes, or [`IoError::Local`].
    pub fn resize(&mut self, size: Size) -> Result<(), IoError> {
        let terminal = self.terminal.as_mut().ok_or(IoError::NoTerminal)?;
        terminal.size = Some(size);
        match &terminal.master {
            Some(master) => master.resize(size).map_err(local("size the terminal")),
            None => Ok(()),
        }
    }

    /// The size that a terminal not yet open will have.
    pub fn size(&self) -> Option<Size> {
        self.terminal.as_ref().and_then(|terminal| terminal.size)
    }

    /// Ends the input; lets the outputs, whose process is gone, run dry within a deadline.
    pub fn close(self) {
        if let Some(input) = self.input {
            input.abort();
        }
        let outputs = self.outputs;
        if outputs.is_empty() {
            return;
        }
        tokio::spawn(async move {
            let stop: Vec<_> = outputs.iter().map(JoinHandle::abort_handle).collect();
            if tokio::time::timeout(DRAIN_DEADLINE, futures::future::join_all(outputs)).await.is_err() {
                stop.iter().for_each(tokio::task::AbortHandle::abort);
            }
        });
    }
}

fn null() -> Result<OwnedFd, IoError> {
    rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| local("open /dev/null")(error.into()))
}

fn pipe_for(uid: u32) -> Result<(OwnedFd, OwnedFd), IoError> {
    let make = || {
        let ends = pipe_with(PipeFlags::CLOEXEC)?;
        // The process opens /dev/stdout and its like anew, as its user.
        rustix::fs::fchown(&ends.0, Some(Uid::from_raw(uid)), None)?;
        Ok(ends)
    };
    make().map_err(|error: rustix::io::Errno| local("make a pipe")(error.into()))
}

fn local(step: &'static str) -> impl Fn(io::Error) -> IoError {
    move |source| IoError::Local { step, source }
}

/// From the host to the process, until either ends.
async fn pump_input(mut connection: Box<dyn Connection>, mut process: impl AsyncWrite + Unpin) {
    let mut buffer = vec![0; MIN_BUFFER_BYTES];
    loop {
        match connection.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(length) => {
                let bytes = buffer.get(..length).unwrap_or_default();
                if process.write_all(bytes).await.is_err() {
                    return; // nobody reads any more; the host learns it from the close
                }
                grow(&mut buffer, length);
            }
        }
    }
}

/// From the process to the host, until every writer has closed and every byte is sent.
async fn pump_output(mut process: Source, mut connection: Box<dyn Connection>) {
    let mut buffer = vec![0; MIN_BUFFER_BYTES];
    loop {
        match process.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(length) => {
                let bytes = buffer.get(..length).unwrap_or_default();
                if connection.write_all(bytes).await.is_err() {
                    return; // the host does not want it: the process sees a closed pipe
                }
                if grow(&mut buffer, length) {
                    process.widen();
                }
            }
        }
    }
    // If the host is gone there is nobody to tell.
    let _ = connection.shutdown().await;
}

/// Enlarges a buffer that was filled; says whether it has just become the largest.
fn grow(buffer: &mut Vec<u8>, filled: usize) -> bool {
    if filled < buffer.len() || buffer.len() >= MAX_BUFFER_BYTES {
        return false;
    }
    buffer.resize((buffer.len() * 8).min(MAX_BUFFER_BYTES), 0);
    buffer.len() == MAX_BUFFER_BYTES
}

/// Where output comes from.
enum Source {
    Pipe(pipe::Receiver),
    Terminal(Master),
}

impl Source {
    /// Fewer, larger steps for a process that writes much.
    fn widen(&self) {
        if let Self::Pipe(receiver) = self {
            // Without it the pipe only stays as it is.
            let _ = fcntl_setpipe_size(receiver.as_fd(), MAX_BUFFER_BYTES);
        }
    }

    async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Pipe(receiver) => receiver.read(buffer).await,
            Self::Terminal(master) => master.read(buffer).await,
        }
    }
}

#[cfg(test)]
mod tests;
