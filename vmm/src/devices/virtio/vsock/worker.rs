//! The device's thread: takes from and puts into the rings, sleeps when there is nothing to do.
//!
//! ```text
//!        +--> sleep until: guest's kick, host's end, new request, stop
//!        |        |
//!        |        v
//!        |    transmit ring -> mux        (stops while the guest owes us room for refusals)
//!        |        v
//!        |    mux -> receive ring         (stops when the guest's buffers are used up)
//!        |        v
//!        +--- one interrupt, if the driver wants one
//! ```
//! The driver waits for received packets, so their interrupt leaves with the round. Nobody waits
//! for the return of transmit buffers unless the ring runs full: that news is held back for the next
//! interrupt, a quarter of the ring or [`TRANSMIT_HOLD_MS`], whichever comes first.
//!
//! A round takes a bounded number of chains from each ring and then looks at all descriptors
//! again. Every descriptor is watched by edges, eventfds too: a new write is a new edge, so no
//! eventfd is ever read.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::{error, warn};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestMemoryMmap, VolatileSlice};
use vmm_sys_util::epoll::EpollEvent;

use super::chain::{Chain, ChainError, Offer, read_packet, truncate};
use super::limits::{ROUND_CHAINS, TRANSMIT_HOLD_MS, TRANSMIT_HOLD_ROUNDS};
use super::metrics::Counters;
use super::mux::{Job, Mux};
use super::packet::Header;
use super::table::Token;
use crate::devices::virtio::{ActiveQueue, Interrupt};
use crate::memory::GuestRam;

/// Epoll data of the receive ring's kick.
pub const RECEIVE_KICK: u64 = 0;
/// Epoll data of the transmit ring's kick.
pub const TRANSMIT_KICK: u64 = 1;
/// Epoll data of the host's requests.
pub const HOST_REQUEST: u64 = 2;

const _: () = assert!(HOST_REQUEST < Token::FIRST);

/// The guest has broken a ring.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// An index or address of the ring is impossible.
    #[error("The guest broke a ring of the vsock device")]
    Ring(#[from] virtio_queue::Error),
    /// A receive buffer is not one.
    #[error("The guest offered an unusable receive buffer")]
    Offer(#[from] ChainError),
}

/// What the thread works with.
#[derive(Debug)]
pub struct Worker {
    /// The guest's memory.
    pub memory: GuestRam,
    /// Device to driver. Its kick stays with it, because epoll forgets a descriptor that is closed.
    pub receive: ActiveQueue,
    /// Driver to device.
    pub transmit: ActiveQueue,
    /// To the driver.
    pub interrupt: Interrupt,
    /// The connections.
    pub mux: Mux,
    /// Set by the owner, who then writes the request eventfd.
    pub stop: Arc<AtomicBool>,
    /// Shared with the device.
    pub counters: Arc<Counters>,
    /// What the thread remembers from round to round.
    pub state: State,
}

/// What the thread remembers from round to round.
#[derive(Debug)]
pub struct State {
    /// There may be something in the transmit ring.
    transmit_due: bool,
    /// The driver has been asked to kick when it adds receive buffers.
    starved: bool,
    /// Descriptors returned in the transmit ring that the driver has not been told about.
    held: u16,
    /// Rounds since the first of them.
    held_rounds: u32,
    /// Chains used in the receive ring since the last interrupt.
    received: usize,
}

impl Default for State {
    /// A kick may have come before the thread listened.
    fn default() -> Self {
        Self { transmit_due: true, starved: true, held: 0, held_rounds: 0, received: 0 }
    }
}

impl Worker {
    /// Serves until told to stop. Dropping the worker ends all connections.
    pub fn run(mut self) {
        let mut events = [EpollEvent::default(); 32];
        self.mux.take_connects();
        let mut busy = true;
        let mut broken = false;
        while !self.stop.load(Ordering::Acquire) {
            let timeout = match self.state.held {
                _ if busy => 0,
                0 => -1,
                _ => TRANSMIT_HOLD_MS,
            };
            let count = match self.mux.epoll().wait(timeout, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => {
                    error!(%error, "hull-vsock cannot wait for events and ends");
                    return;
                }
            };
            self.counters.wakeups.increment();
            for event in events.iter().take(count) {
                self.dispatch(event);
            }
            if count == 0 && !busy {
                self.state.held_rounds = TRANSMIT_HOLD_ROUNDS;
            }
            busy = false;
            if broken {
                self.mux.clear(); // requests of the host that came after the break
                continue;
            }
            match self.round() {
                Ok(more) => busy = more,
                Err(error) => {
                    if self.counters.broken_rings.increment() == 0 {
                        // Once: the guest decides how often it happens.
                        warn!(
                            error = &error as &dyn std::error::Error,
                            "vsock stands still until the guest resets it"
                        );
                    }
                    self.mux.clear();
                    self.state.held = 0;
                    broken = true;
                }
            }
        }
    }

    fn dispatch(&mut self, event: &EpollEvent) {
        match event.data() {
            RECEIVE_KICK => {} // the round looks at the ring if it has a use for it
            TRANSMIT_KICK => self.state.transmit_due = true,
            HOST_REQUEST => self.mux.take_connects(),
            token => self.mux.host_event(Token::from_event(token), event.events()),
        }
    }

    /// One round over both rings. True when there is more to do at once.
    fn round(&mut self) -> Result<bool, RingError> {
        if self.state.transmit_due {
            self.serve_transmit()?;
        }
        let more = self.serve_receive()?;
        self.notify()?;
        Ok(more || (self.state.transmit_due && !self.mux.is_congested()))
    }

    fn serve_transmit(&mut self) -> Result<(), RingError> {
        let memory = self.memory.view();
        let mut segments = Vec::with_capacity(4);
        self.transmit.queue.disable_notification(memory)?;
        for _ in 0..ROUND_CHAINS {
            if self.mux.is_congested() {
                return Ok(());
            }
            if let Some(mut chain) = pop(&mut self.transmit.queue, memory)? {
                let descriptors = match read_packet(memory, &mut chain, &mut segments) {
                    Ok((header, descriptors)) => {
                        self.mux.receive(&header, &mut segments);
                        descriptors
                    }
                    Err(_) => {
                        self.counters.malformed_packets.increment();
                        self.transmit.queue.size() // however many they are
                    }
                };
                self.state.held = self.state.held.saturating_add(descriptors);
                self.transmit.queue.add_used(memory, chain.head_index(), 0)?;
            } else if !self.transmit.queue.enable_notification(memory)? {
                self.state.transmit_due = false;
                return Ok(());
            }
        }
        Ok(())
    }

    /// True when the round's share is used up and there may be more.
    fn serve_receive(&mut self) -> Result<bool, RingError> {
        let memory = self.memory.view();
        let mut offers = Offers { waiting: VecDeque::new(), scratch: Vec::new() };
        let mut space = Vec::new();
        let mut used = 0;
        while self.mux.has_work() && used < ROUND_CHAINS {
            offers.take(&mut self.receive.queue, memory, 1)?;
            if offers.waiting.is_empty() {
                self.counters.receive_starvations.increment();
                self.state.starved = true;
                if self.receive.queue.enable_notification(memory)? {
                    continue; // the driver was faster
                }
                break;
            }
            if std::mem::take(&mut self.state.starved) {
                self.receive.queue.disable_notification(memory)?;
            }
            used += match self.mux.next_job() {
                None => break,
                Some(Job::Packet(header)) => offers.put(&mut self.receive.queue, memory, header, 0)?,
                Some(Job::Data { token, buffers, bytes }) => {
                    offers.take(&mut self.receive.queue, memory, buffers)?;
                    offers.gather(buffers, bytes, &mut space);
                    let (header, bytes) = self.mux.fill(token, &space);
                    offers.put_data(&mut self.receive.queue, memory, header, bytes)?
                }
            };
        }
        self.counters.packets_to_guest.add(used as u64);
        self.state.received += used;
        for _ in &offers.waiting {
            self.receive.queue.go_to_previous_position(); // the last ones taken, in a row
        }
        Ok(self.mux.has_work() && !self.state.starved)
    }

    /// Raises at most one interrupt for both rings.
    fn notify(&mut self) -> Result<(), RingError> {
        let memory = self.memory.view();
        let state = &mut self.state;
        let mut wanted = state.received > 0 && self.receive.queue.needs_notification(memory)?;
        state.received = 0;
        if state.held > 0 {
            state.held_rounds += 1;
            let full = state.held >= self.transmit.queue.size() / 4;
            if wanted || full || state.held_rounds > TRANSMIT_HOLD_ROUNDS {
                wanted |= self.transmit.queue.needs_notification(memory)?;
                (state.held, state.held_rounds) = (0, 0);
            }
        }
        if wanted {
            self.counters.interrupts.increment();
            if let Err(error) = self.interrupt.signal_used_queue() {
                warn!(%error, "The guest cannot be interrupted for vsock");
            }
        }
        Ok(())
    }
}

fn pop<'m>(queue: &mut Queue, memory: &'m GuestMemoryMmap) -> Result<Option<Chain<'m>>, RingError> {
    Ok(queue.iter(memory)?.next())
}

/// Receive buffers that were taken from the ring and are not used yet.
struct Offers<'m> {
    waiting: VecDeque<Offer<'m>>,
    scratch: Vec<VolatileSlice<'m>>,
}

impl<'m> Offers<'m> {
    /// Takes buffers until there are `count`, or as many as there are.
    fn take(
        &mut self,
        queue: &mut Queue,
        memory: &'m GuestMemoryMmap,
        count: usize,
    ) -> Result<(), RingError> {
        let missing = count.saturating_sub(self.waiting.len());
        if missing > 0 {
            for chain in queue.iter(memory)?.take(missing) {
                self.waiting.push_back(Offer::new(memory, chain, &mut self.scratch)?);
            }
        }
        Ok(())
    }

    /// Lists the payload areas of the first `buffers`, `bytes` in all at most.
    fn gather(&self, buffers: usize, bytes: usize, space: &mut Vec<VolatileSlice<'m>>) {
        space.clear();
        for offer in self.waiting.iter().take(buffers) {
            offer.payload(space);
        }
        truncate(space, bytes);
    }

    /// Gives the guest one packet, whose payload lies in the first buffer already. Returns the
    /// chains used.
    fn put(
        &mut self,
        queue: &mut Queue,
        memory: &GuestMemoryMmap,
        header: Header,
        length: u32,
    ) -> Result<usize, RingError> {
        let Some(offer) = self.waiting.pop_front() else { return Ok(0) };
        let written = offer.finish(&Header { length, ..header });
        queue.add_used(memory, offer.head, written)?;
        Ok(1)
    }

    /// Gives the guest `bytes` of payload that lie in the buffers already, a packet for each.
    fn put_data(
        &mut self,
        queue: &mut Queue,
        memory: &GuestMemoryMmap,
        header: Header,
        bytes: usize,
    ) -> Result<usize, RingError> {
        let mut left = bytes;
        let mut used = 0;
        while let Some(offer) = self.waiting.front().filter(|_| left > 0) {
            let length = offer.capacity.min(left);
            left -= length;
            used += self.put(queue, memory, header, length as u32)?; // at most TURN_BYTES
        }
        Ok(used)
    }
}
