//! Log lines to containerd's `log` fifo, in containerd's own format.
//!
//! Installed once by the daemon. A line is one write(2) that never blocks: while containerd is
//! away or slow, lines are lost and counted, and the pod goes on.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::OFlags;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tracing::field::{Field, Visit};
use tracing::span;
use tracing::{Event, Level, Metadata, Subscriber};

use crate::config::LogLevel;

/// A pipe takes writes up to this size whole or not at all; longer lines are cut.
const MAX_LINE_BYTES: usize = 4096;

/// Sends every event at or above `level` to the fifo `path` from now on.
pub fn install(path: &Path, level: LogLevel) {
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    // O_RDWR, so that opening never waits for containerd and its restart is no broken pipe.
    let fifo = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).ok();
    let level = match level {
        LogLevel::Trace => Level::TRACE,
        LogLevel::Debug => Level::DEBUG,
        LogLevel::Info => Level::INFO,
        LogLevel::Warn => Level::WARN,
        LogLevel::Error => Level::ERROR,
    };
    let logger = Logger { fifo, level, lost: AtomicU64::new(0) };
    // A second installation in one process cannot happen outside tests, and changes nothing.
    let _ = tracing::subscriber::set_global_default(logger);
}

struct Logger {
    fifo: Option<File>,
    level: Level,
    lost: AtomicU64,
}

impl Subscriber for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.level && metadata.is_event()
    }

    fn max_level_hint(&self) -> Option<tracing::level_filters::LevelFilter> {
        Some(self.level.into())
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let Some(mut fifo) = self.fifo.as_ref() else { return };
        let lost = self.lost.swap(0, Ordering::Relaxed);
        let mut line = line_of(event, OffsetDateTime::now_utc());
        if lost > 0 {
            let _ = write!(line, " lost_lines={lost}");
        }
        truncate(&mut line, MAX_LINE_BYTES - 1);
        line.push('\n');
        if !matches!(fifo.write(line.as_bytes()), Ok(written) if written == line.len()) {
            self.lost.fetch_add(lost + 1, Ordering::Relaxed);
        }
    }
}

fn line_of(event: &Event<'_>, now: OffsetDateTime) -> String {
    let time = now.format(&Rfc3339).unwrap_or_default();
    let level = match *event.metadata().level() {
        Level::ERROR => "error",
        Level::WARN => "warning",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    };
    let mut fields = Fields::default();
    event.record(&mut fields);
    format!("time=\"{time}\" level={level} msg={} runtime=hull{}", quoted(&fields.message), fields.rest)
}

#[derive(Default)]
struct Fields {
    message: String,
    rest: String,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            let _ = write!(self.rest, " {}={}", field.name(), quoted(value));
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

/// Quotes as Go's %q does for what can occur here, so that one message stays one line.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._/@^+:".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn truncate(line: &mut String, limit: usize) {
    let mut end = limit.min(line.len());
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    line.truncate(end);
}

/// Lets through `burst` lines at once and one more for each `interval` passed; counts the rest.
/// For lines that the guest can make as fast as it likes.
#[derive(Debug)]
pub struct RateLimit {
    tokens: u32,
    burst: u32,
    interval: std::time::Duration,
    refilled: std::time::Instant,
    dropped: u64,
}

impl RateLimit {
    /// A limit with a full burst.
    pub fn new(burst: u32, interval: std::time::Duration) -> Self {
        RateLimit { tokens: burst, burst, interval, refilled: std::time::Instant::now(), dropped: 0 }
    }

    /// Whether the next line may pass; if so, how many were dropped since the last that did.
    pub fn pass(&mut self) -> Option<u64> {
        let elapsed = self.refilled.elapsed();
        let earned = u32::try_from(elapsed.as_nanos() / self.interval.as_nanos().max(1)).unwrap_or(u32::MAX);
        if earned > 0 {
            self.tokens = self.tokens.saturating_add(earned).min(self.burst);
            self.refilled = std::time::Instant::now();
        }
        if self.tokens == 0 {
            self.dropped += 1;
            return None;
        }
        self.tokens -= 1;
        Some(std::mem::take(&mut self.dropped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_keep_a_message_on_one_line() {
        assert_eq!(quoted("plain-1.0"), "plain-1.0");
        assert_eq!(quoted("two words"), "\"two words\"");
        assert_eq!(quoted("a\n\"b\"\u{1b}"), "\"a\\n\\\"b\\\"\\u001b\"");
        assert_eq!(quoted(""), "\"\"");
    }

    #[test]
    fn truncation_respects_characters() {
        let mut line = "aé".to_owned();
        truncate(&mut line, 2);
        assert_eq!(line, "a");
    }

    #[test]
    fn rate_limit_counts_what_it_drops() {
        let mut limit = RateLimit::new(2, std::time::Duration::from_secs(3600));
        assert_eq!((limit.pass(), limit.pass(), limit.pass(), limit.pass()), (Some(0), Some(0), None, None));
        limit.tokens = 1;
        assert_eq!(limit.pass(), Some(2));
    }
}
