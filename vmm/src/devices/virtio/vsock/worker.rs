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
use super::limits::ROUND_CHAINS;
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
    /// There may be something in the transmit ring.
    pub transmit_due: bool,
    /// The driver has been asked to kick when it adds receive buffers.
    pub starved: bool,
}

impl Worker {
    /// Serves until told to stop. Dropping the worker ends all connections.
    pub fn run(mut self) {
        let mut events = [EpollEvent::default(); 32];
        self.mux.take_connects();
        let mut busy = true;
        let mut broken = false;
        while !self.stop.load(Ordering::Acquire) {
            let timeout = if busy { 0 } else { -1 };
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
            busy = false;
            if broken {
                self.mux.clear(); // requests of the host that came after the break
                continue;
            }
            match self.round() {
                Ok(more) => busy = more,
                Err(error) => {
                    warn!(
                        error = &error as &dyn std::error::Error,
                        "vsock stands still until the guest resets it"
                    );
                    self.mux.clear();
                    broken = true;
                }
            }
        }
    }

    fn dispatch(&mut self, event: &EpollEvent) {
        match event.data() {
            RECEIVE_KICK => {} // the round looks at the ring if it has a use for it
            TRANSMIT_KICK => self.transmit_due = true,
            HOST_REQUEST => self.mux.take_connects(),
            token => self.mux.host_event(Token::from_event(token), event.events()),
        }
    }

    /// One round over both rings. True when there is more to do at once.
    fn round(&mut self) -> Result<bool, RingError> {
        if self.transmit_due {
            self.serve_transmit()?;
        }
        let more = self.serve_receive()?;
        self.notify()?;
        Ok(more || (self.transmit_due && !self.mux.is_congested()))
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
                match read_packet(memory, &mut chain, &mut segments) {
                    Ok(header) => self.mux.receive(&header, &mut segments),
                    Err(_) => self.counters.malformed_packets.increment(),
                }
                self.transmit.queue.add_used(memory, chain.head_index(), 0)?;
            } else if !self.transmit.queue.enable_notification(memory)? {
                self.transmit_due = false;
                return Ok(());
            }
        }
        Ok(())
    }

    /// True when the round's share is used up and there may be more.
    fn serve_receive(&mut self) -> Result<bool, RingError> {
        let memory = self.memory.view();
        let mut offers = VecDeque::new();
        let mut space = Vec::new();
        let mut used = 0;
        while self.mux.has_work() && used < ROUND_CHAINS {
            take_offers(&mut self.receive.queue, memory, &mut offers, 1)?;
            if offers.is_empty() {
                self.counters.receive_starvations.increment();
                self.starved = true;
                if self.receive.queue.enable_notification(memory)? {
                    continue; // the driver was faster
                }
                return Ok(false);
            }
            if std::mem::take(&mut self.starved) {
                self.receive.queue.disable_notification(memory)?;
            }
            used += match self.mux.next_job() {
                None => break,
                Some(Job::Packet(header)) => {
                    put_packet(&mut self.receive.queue, memory, &mut offers, header, 0)?
                }
                Some(Job::Data { token, buffers, bytes }) => {
                    take_offers(&mut self.receive.queue, memory, &mut offers, buffers)?;
                    gather(&offers, buffers, bytes, &mut space);
                    let (header, bytes) = self.mux.fill(token, &space);
                    put_data(&mut self.receive.queue, memory, &mut offers, header, bytes)?
                }
            };
        }
        self.counters.packets_to_guest.add(used as u64);
        for _ in &offers {
            self.receive.queue.go_to_previous_position(); // the last ones taken, in a row
        }
        Ok(self.mux.has_work())
    }

    /// Raises at most one interrupt for both rings.
    fn notify(&mut self) -> Result<(), RingError> {
        let memory = self.memory.view();
        let transmit = self.transmit.queue.needs_notification(memory)?;
        let receive = self.receive.queue.needs_notification(memory)?;
        if transmit || receive {
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

/// Takes receive buffers until there are `count`, or as many as there are.
fn take_offers<'m>(
    queue: &mut Queue,
    memory: &'m GuestMemoryMmap,
    offers: &mut VecDeque<Offer<'m>>,
    count: usize,
) -> Result<(), RingError> {
    if offers.len() >= count {
        return Ok(());
    }
    for chain in queue.iter(memory)?.take(count - offers.len()) {
        offers.push_back(Offer::new(memory, chain)?);
    }
    Ok(())
}

/// Lists the payload areas of the first `buffers` offers, `bytes` in all at most.
fn gather<'m>(
    offers: &VecDeque<Offer<'m>>,
    buffers: usize,
    bytes: usize,
    space: &mut Vec<VolatileSlice<'m>>,
) {
    space.clear();
    for offer in offers.iter().take(buffers) {
        space.extend_from_slice(offer.payload());
    }
    truncate(space, bytes);
}

/// Puts one packet, whose payload lies in the first offer already. Returns the chains used.
fn put_packet(
    queue: &mut Queue,
    memory: &GuestMemoryMmap,
    offers: &mut VecDeque<Offer<'_>>,
    header: Header,
    length: u32,
) -> Result<usize, RingError> {
    let Some(offer) = offers.pop_front() else { return Ok(0) };
    let written = offer.finish(&Header { length, ..header });
    queue.add_used(memory, offer.head, written)?;
    Ok(1)
}

/// Puts `bytes` of payload that lie in the offers already, one packet for each offer.
fn put_data(
    queue: &mut Queue,
    memory: &GuestMemoryMmap,
    offers: &mut VecDeque<Offer<'_>>,
    header: Header,
    bytes: usize,
) -> Result<usize, RingError> {
    let mut left = bytes;
    let mut used = 0;
    while left > 0 {
        let Some(length) = offers.front().map(|offer| offer.capacity().min(left)) else { break };
        left -= length;
        used += put_packet(queue, memory, offers, header, length as u32)?; // at most TURN_BYTES
    }
    Ok(used)
}
