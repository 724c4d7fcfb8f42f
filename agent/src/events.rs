//! The queue of events for the host's `NextEvent`.
//!
//! The pod pushes, in the order in which the host must hear; one request at a time takes. An event
//! leaves the queue in the same step in which the answer is made, so a request that is dropped
//! while it waits loses none. The queue needs no cap of its own: every process has one exit, and
//! processes are capped; OOM events are pushed once per container while one is waiting.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

/// Something the host must hear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A process ended.
    Exit {
        /// Its container.
        container_id: String,
        /// Empty for the container's init.
        process_id: String,
        /// Exit code, or 128 + signal.
        status: u32,
        /// When it was reaped.
        unix_time_ns: i64,
    },
    /// The kernel killed a process of this container for want of memory.
    Oom {
        /// The container.
        container_id: String,
    },
}

/// Another request is waiting for the next event already.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("Another NextEvent request is waiting")]
pub struct Busy;

/// The queue.
#[derive(Debug, Default)]
pub struct Events {
    queue: Mutex<VecDeque<Event>>,
    pushed: Notify,
    taker: tokio::sync::Mutex<()>,
}

impl Events {
    /// Appends `event`; an OOM of a container that is already waiting is not repeated.
    pub fn push(&self, event: Event) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(event, Event::Oom { .. }) && queue.contains(&event) {
            return;
        }
        queue.push_back(event);
        drop(queue);
        self.pushed.notify_one();
    }

    /// Takes the oldest event; waits until there is one.
    ///
    /// # Errors
    /// [`Busy`] if another caller waits.
    pub async fn next(&self) -> Result<Event, Busy> {
        let _taker = self.taker.try_lock().map_err(|_| Busy)?;
        loop {
            if let Some(event) = self.pop() {
                return Ok(event);
            }
            self.pushed.notified().await;
        }
    }

    fn pop(&self) -> Option<Event> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn oom(id: &str) -> Event {
        Event::Oom { container_id: id.into() }
    }

    fn exit(id: &str) -> Event {
        Event::Exit { container_id: id.into(), process_id: String::new(), status: 1, unix_time_ns: 2 }
    }

    #[tokio::test]
    async fn events_come_in_order_and_oom_once() {
        let events = Events::default();
        for event in [oom("a"), oom("a"), oom("b"), exit("a")] {
            events.push(event);
        }
        for expected in [oom("a"), oom("b"), exit("a")] {
            assert_eq!(events.next().await, Ok(expected));
        }
        events.push(oom("a"));
        assert_eq!(events.next().await, Ok(oom("a")));
    }

    #[tokio::test]
    async fn a_dropped_request_loses_no_event() {
        let events = Events::default();
        {
            let waiting = events.next();
            tokio::pin!(waiting);
            tokio::select! {
                biased;
                _ = &mut waiting => panic!("there was no event"),
                () = tokio::task::yield_now() => {}
            }
            events.push(exit("a"));
        }
        assert_eq!(events.next().await, Ok(exit("a")));
    }

    #[tokio::test]
    async fn a_second_waiter_is_refused() {
        let events = Events::default();
        let first = events.next();
        tokio::pin!(first);
        tokio::select! {
            biased;
            _ = &mut first => panic!("there was no event"),
            () = tokio::task::yield_now() => {}
        }
        assert_eq!(events.next().await, Err(Busy));
    }
}
