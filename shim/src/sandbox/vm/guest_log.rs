//! What the guest has to say: the agent's log lines, its last words, and the debug console. All of it is
//! the guest's to choose, so lines are cut, counted and escaped before they reach containerd's log.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hull_protocol::limits::MAX_LOG_LINE_BYTES;
use hull_protocol::ports::LAST_WORDS;
use rustix::pipe::PipeFlags;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::sync::Notify;
use tracing::{error, info, warn};

use super::Connections;
use crate::log::RateLimit;

/// Lines that may come at once, and the time in which one more is earned.
const BURST: u32 = 200;
const EARN: Duration = Duration::from_millis(50);
/// Buffer for one connection; a line may be longer.
const BUFFER_BYTES: usize = 1024;

/// Why the agent gave up, if it said so.
#[derive(Debug, Clone, Default)]
pub struct LastWords(Arc<(Mutex<Option<String>>, Notify)>);

impl LastWords {
    fn set(&self, words: &str) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(words.to_owned());
        self.0.1.notify_one();
    }

    fn get(&self) -> Option<String> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The words, waiting a moment for them: they travel another way than the news of the end.
    pub async fn wait(&self, limit: Duration) -> Option<String> {
        if self.get().is_none() {
            let _ = tokio::time::timeout(limit, self.0.1.notified()).await;
        }
        self.get()
    }
}

/// Logs the agent's lines, one connection at a time: there is one agent.
pub async fn serve(mut connections: Connections, words: LastWords) {
    let mut limit = RateLimit::new(BURST, EARN);
    while let Some(connection) = connections.recv().await {
        let stream =
            connection.set_nonblocking(true).and_then(|()| tokio::net::UnixStream::from_std(connection));
        if let Ok(stream) = stream {
            let take = |line: &str| match line.strip_prefix(LAST_WORDS) {
                Some(last) => {
                    words.set(last);
                    error!(reason = last, "the agent gave up");
                }
                None => log(&mut limit, "agent", line),
            };
            lines(BufReader::with_capacity(BUFFER_BYTES, stream), take).await;
        }
    }
}

/// A pipe whose lines are logged; the VMM gets the other end.
pub fn console() -> io::Result<OwnedFd> {
    let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    let reader = pipe::Receiver::from_owned_fd(reader)?;
    tokio::spawn(async move {
        let mut limit = RateLimit::new(BURST, EARN);
        let reader = BufReader::with_capacity(BUFFER_BYTES, reader);
        lines(reader, |line| log(&mut limit, "console", line)).await;
    });
    Ok(writer)
}

fn log(limit: &mut RateLimit, source: &str, line: &str) {
    if let Some(dropped) = limit.pass() {
        if dropped > 0 {
            info!(source, dropped, "lines of the guest were dropped");
        }
        match warning(line) {
            Some(text) => warn!(source, "{text}"),
            None => info!(source, "{}", line.strip_prefix("info ").unwrap_or(line)),
        }
    }
}

/// The text of a line that the agent marked as a warning.
fn warning(line: &str) -> Option<&str> {
    line.strip_prefix("warning ")
}

/// Calls `take` for each line; of a longer one than the contract allows, the beginning.
async fn lines(mut reader: impl AsyncBufRead + Unpin, mut take: impl FnMut(&str)) {
    let mut line = Vec::new();
    loop {
        let buffer = match reader.fill_buf().await {
            Ok(buffer) if !buffer.is_empty() => buffer,
            _ => break,
        };
        let end = buffer.iter().position(|&byte| byte == b'\n');
        let part = buffer.get(..end.unwrap_or(buffer.len())).unwrap_or_default();
        let room = MAX_LOG_LINE_BYTES.saturating_sub(line.len());
        line.extend(part.iter().take(room));
        let used = part.len() + usize::from(end.is_some());
        reader.consume(used);
        if end.is_some() {
            take(String::from_utf8_lossy(&line).trim_end());
            line.clear();
        }
    }
    if !line.is_empty() {
        take(String::from_utf8_lossy(&line).trim_end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_marked_line_is_a_warning() {
        assert_eq!(warning("warning a layer is left"), Some("a layer is left"));
        assert_eq!(warning("info warning"), None);
        assert_eq!(warning("warnings"), None);
    }

    #[tokio::test]
    async fn lines_are_cut_not_collected() {
        let long = "x".repeat(MAX_LOG_LINE_BYTES + 1000);
        let text = format!("one\r\n{long}\nlast");
        let mut seen = Vec::new();
        lines(BufReader::with_capacity(16, text.as_bytes()), |line| seen.push(line.to_owned())).await;
        assert_eq!(seen.len(), 3);
        assert_eq!((seen[0].as_str(), seen[1].len(), seen[2].as_str()), ("one", MAX_LOG_LINE_BYTES, "last"));
    }

    #[tokio::test]
    async fn last_words_are_kept() {
        let words = LastWords::default();
        assert_eq!(words.wait(Duration::from_millis(1)).await, None);
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let (mut guest, host) = std::os::unix::net::UnixStream::pair().unwrap();
        sender.send(host).await.unwrap();
        let task = tokio::spawn(serve(receiver, words.clone()));
        io::Write::write_all(&mut guest, b"hello\nPANIC no cgroups\n").unwrap();
        assert_eq!(words.wait(Duration::from_secs(5)).await.as_deref(), Some("no cgroups"));
        drop((guest, sender));
        task.await.unwrap();
    }
}
