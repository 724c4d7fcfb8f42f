//! The agent's log: lines for the host's LOG port, kept in a bounded queue until it takes them.
//!
//! Anyone may call the macros; they never wait. One task ([`forward`]) owns the connection. When
//! the queue is full the newest line is dropped and counted: a host that does not read must not
//! cost the guest memory. [`last_words`] is the way out of a panic: it takes nothing but a file
//! descriptor and cannot fail.

use std::collections::VecDeque;
use std::fmt;
use std::io::Write;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use hull_protocol::limits::MAX_LOG_LINE_BYTES;
use hull_protocol::ports::LAST_WORDS;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

/// Lines that wait for the host: a pod's start and end are about 20 lines per container.
const MAX_QUEUED_LINES: usize = 1024;
/// How long the last words may take to leave the guest.
const LAST_WORDS_DEADLINE: Duration = Duration::from_millis(500);

static LOG: Log = Log::new();
/// A second descriptor of the LOG connection, for [`last_words`].
static WAY_OUT: OnceLock<OwnedFd> = OnceLock::new();

/// Logs what went as it should.
macro_rules! info {
    ($($arg:tt)*) => { $crate::log::line("info", format_args!($($arg)*)) };
}
/// Logs what the operator may have to look at.
macro_rules! warning {
    ($($arg:tt)*) => { $crate::log::line("warning", format_args!($($arg)*)) };
}
pub(crate) use {info, warning};

/// Queues one line. Use the macros.
pub fn line(level: &str, text: fmt::Arguments<'_>) {
    LOG.push(format!("{level} {text}"));
}

/// Writes the queue to `connection` for as long as it lives.
///
/// # Errors
/// The connection's, when it is lost.
pub async fn forward(mut connection: impl AsyncWrite + Unpin) -> std::io::Result<()> {
    loop {
        let line = LOG.next().await;
        connection.write_all(line.as_bytes()).await?;
    }
}

/// Keeps `descriptor`, of the LOG connection, for [`last_words`].
pub fn keep_way_out(descriptor: OwnedFd) {
    // A second connection would only be an error of main's; the first serves as well.
    let _ = WAY_OUT.set(descriptor);
}

/// Tells the host why the power-off follows, and waits until it has heard or the deadline passed.
pub fn last_words(reason: &str) {
    let line = one_line(&format!("{LAST_WORDS}{reason}"));
    if let Ok(mut kernel_log) = std::fs::OpenOptions::new().write(true).open("/dev/kmsg") {
        // With no debug console nobody reads it, and nothing more can be done about a failure.
        let _ = kernel_log.write_all(line.as_bytes());
    }
    let Some(connection) = WAY_OUT.get().and_then(|fd| rustix::io::dup(fd.as_fd()).ok()) else {
        return;
    };
    // Reads, writes and shutdown are the same for every stream socket.
    let mut connection = UnixStream::from(connection);
    let told = connection
        .set_nonblocking(false)
        .and_then(|()| connection.set_write_timeout(Some(LAST_WORDS_DEADLINE)))
        .and_then(|()| connection.set_read_timeout(Some(LAST_WORDS_DEADLINE)))
        .and_then(|()| connection.write_all(line.as_bytes()))
        .and_then(|()| connection.shutdown(Shutdown::Write));
    if told.is_ok() {
        // The host closes once it has read the end: then the line has left the guest.
        let _ = std::io::Read::read(&mut connection, &mut [0; 1]);
    }
}

struct Log {
    queue: Mutex<Queue>,
    filled: Notify,
}

struct Queue {
    lines: VecDeque<String>,
    dropped: u64,
}

impl Log {
    const fn new() -> Self {
        Self { queue: Mutex::new(Queue { lines: VecDeque::new(), dropped: 0 }), filled: Notify::const_new() }
    }

    fn push(&self, line: String) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.lines.len() >= MAX_QUEUED_LINES {
            queue.dropped += 1;
            return;
        }
        queue.lines.push_back(one_line(&line));
        drop(queue);
        self.filled.notify_one();
    }

    async fn next(&self) -> String {
        loop {
            if let Some(line) = self.pop() {
                return line;
            }
            self.filled.notified().await;
        }
    }

    fn pop(&self) -> Option<String> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = queue.lines.pop_front() {
            return Some(line);
        }
        match std::mem::take(&mut queue.dropped) {
            0 => None,
            dropped => Some(format!("warning {dropped} log lines were dropped: the host did not read\n")),
        }
    }
}

/// `text` as exactly one line, short enough for the host.
fn one_line(text: &str) -> String {
    let mut end = text.len().min(MAX_LOG_LINE_BYTES - 1);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut line = text.get(..end).unwrap_or_default().replace(['\n', '\r'], " ");
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_stays_one_line_and_short() {
        assert_eq!(one_line("a\nb\r"), "a b \n");
        let long = one_line(&"ä".repeat(MAX_LOG_LINE_BYTES));
        assert!(long.len() <= MAX_LOG_LINE_BYTES && long.ends_with("ä\n"));
    }

    #[test]
    fn full_queue_drops_the_newest_and_says_so() {
        let log = Log::new();
        for number in 0..MAX_QUEUED_LINES + 3 {
            log.push(format!("{number}"));
        }
        let lines: Vec<String> = std::iter::from_fn(|| log.pop()).collect();
        assert_eq!(lines.len(), MAX_QUEUED_LINES + 1);
        assert_eq!(lines.first().unwrap(), "0\n");
        assert!(lines.last().unwrap().contains("3 log lines"));
    }
}
