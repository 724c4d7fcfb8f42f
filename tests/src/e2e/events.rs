//! containerd's event stream while a test runs.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::ctr::{ctr, spawn};

/// One event about a task: its topic without the `/tasks/` and the JSON behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) topic: String,
    pub(crate) body: String,
}

/// A running `ctr events`.
#[derive(Debug)]
pub(crate) struct Events {
    ctr: Child,
    lines: Receiver<String>,
}

impl Events {
    /// Subscribes, and makes sure that the subscription is in place before it returns.
    pub(crate) fn subscribe() -> Result<Self> {
        let mut command = Command::new("ctr");
        command.arg("events").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = spawn(&mut command)?;
        let stdout = child.stdout.take().context("No pipe from ctr events")?;
        let (send, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        let events = Self { ctr: child, lines };
        events.wait_until_live()?;
        Ok(events)
    }

    /// Nothing tells when a subscription begins: a namespace is labelled until the event about it arrives.
    fn wait_until_live(&self) -> Result<()> {
        for number in 0..40 {
            ctr(&["namespace", "label", "default", &format!("e2e=subscription-{number}")])?.ok()?;
            if self.lines.recv_timeout(Duration::from_millis(250)).is_ok() {
                return Ok(());
            }
        }
        bail!("ctr events shows no events")
    }

    /// The task events about `id` until one with `topic` arrives, which is the last of them.
    pub(crate) fn until(&self, id: &str, topic: &str, limit: Duration) -> Result<Vec<Event>> {
        let end = Instant::now() + limit;
        let mut seen = Vec::new();
        while let Ok(line) = self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            let Some((_, rest)) = line.split_once("/tasks/") else { continue };
            let (name, body) = rest.split_once(' ').unwrap_or((rest, ""));
            if !body.contains(&format!("\"{id}\"")) {
                continue;
            }
            seen.push(Event { topic: name.to_owned(), body: body.to_owned() });
            if name == topic {
                return Ok(seen);
            }
        }
        bail!("No {topic} event for {id} within {} s; seen: {seen:?}", limit.as_secs())
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // It may have ended with containerd already.
        let _ = self.ctr.kill();
        let _ = self.ctr.wait();
    }
}

/// The topics in order.
pub(crate) fn topics(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| event.topic.as_str()).collect()
}
