//! Moving bytes between a guest connection and a pipe, by splice(2): they never enter the shim.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::pipe::SpliceFlags;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tracing::debug;

use super::fifo::Hold;
use crate::streams::Ticket;

/// Bytes that one splice may move: a pipe holds 64 KiB.
const CHUNK_BYTES: usize = 64 << 10;
/// Buffer for sinks that are no pipes.
const BUFFER_BYTES: usize = 16 << 10;

/// Where output goes.
#[derive(Debug)]
pub enum Sink {
    /// A fifo of containerd's, with our own reader on it.
    Fifo(pipe::Sender, #[allow(dead_code)] Hold), // the hold is held, never used
    /// A pipe to a logging program.
    Pipe(pipe::Sender),
    /// A log file.
    File(File),
    /// Read and thrown away.
    Nowhere,
}

/// Copies a guest's output until the guest closes it.
pub async fn output(ticket: Ticket, sink: Sink) {
    let Some(stream) = ticket.arrive().await else { return };
    let copied = match &sink {
        Sink::Fifo(pipe, _) | Sink::Pipe(pipe) => splice_to_pipe(&stream, pipe).await,
        Sink::File(file) => read_all(stream, |bytes| (&*file).write_all(bytes)).await,
        Sink::Nowhere => read_all(stream, |_| Ok(())).await,
    };
    if let Err(error) = copied {
        debug!(%error, "an output stream ended early");
    }
}

/// Copies a client's input until the last writer has closed the fifo, then tells the guest.
pub async fn input(pipe: pipe::Receiver, ticket: Ticket) {
    let Some(mut stream) = ticket.arrive().await else { return };
    match splice_from_pipe(&pipe, &stream).await {
        Ok(()) => drop(stream.shutdown().await),
        Err(error) => debug!(%error, "an input stream ended early"),
    }
}

async fn splice_to_pipe(stream: &UnixStream, pipe: &pipe::Sender) -> io::Result<()> {
    loop {
        stream.readable().await?;
        pipe.writable().await?;
        match splice(stream, pipe)? {
            Progress::Moved => {}
            Progress::End => return Ok(()),
            // Which side it was only poll(2) knows; that side's readiness was stale.
            Progress::Stuck => {
                let (readable, writable) = ready(stream, pipe)?;
                if !readable {
                    let _ = stream.try_io(Interest::READABLE, stale);
                }
                if !writable {
                    let _ = pipe.try_io(stale);
                }
                if readable && writable {
                    tokio::task::yield_now().await;
                }
            }
        }
    }
}

async fn splice_from_pipe(pipe: &pipe::Receiver, stream: &UnixStream) -> io::Result<()> {
    loop {
        pipe.readable().await?;
        stream.writable().await?;
        match splice(pipe, stream)? {
            Progress::Moved => {}
            Progress::End => return Ok(()),
            Progress::Stuck => {
                let (readable, writable) = ready(pipe, stream)?;
                if !readable {
                    let _ = pipe.try_io(stale);
                }
                if !writable {
                    let _ = stream.try_io(Interest::WRITABLE, stale);
                }
                if readable && writable {
                    tokio::task::yield_now().await;
                }
            }
        }
    }
}

enum Progress {
    Moved,
    End,
    Stuck,
}

fn splice(from: impl AsFd, to: impl AsFd) -> io::Result<Progress> {
    let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
    match rustix::pipe::splice(from, None, to, None, CHUNK_BYTES, flags) {
        Ok(0) => Ok(Progress::End),
        Ok(_) => Ok(Progress::Moved),
        Err(rustix::io::Errno::AGAIN) => Ok(Progress::Stuck),
        Err(rustix::io::Errno::INTR) => Ok(Progress::Moved),
        Err(error) => Err(error.into()),
    }
}

/// Tells tokio to wait for the next edge.
fn stale() -> io::Result<()> {
    Err(io::ErrorKind::WouldBlock.into())
}

fn ready(from: &impl AsFd, to: &impl AsFd) -> io::Result<(bool, bool)> {
    let mut fds = [PollFd::new(from, PollFlags::IN), PollFd::new(to, PollFlags::OUT)];
    rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    let [from, to] = fds;
    // A hang-up or an error shows itself in the next splice.
    Ok((!from.revents().is_empty(), !to.revents().is_empty()))
}

async fn read_all(mut stream: UnixStream, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        take(buffer.get(..length).unwrap_or_default())?;
    }
}
