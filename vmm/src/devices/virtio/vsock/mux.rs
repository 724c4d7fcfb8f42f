//! Finds the connection for each packet of the guest and for each event of a host's end, and
//! decides whose turn it is when the guest has room.
//!
//! Connections with something for the guest wait in one queue and get one turn each: a control
//! packet, or [`TURN_BYTES`] of data. A turn that the guest has too few buffers for goes on when it
//! has more, so scarce buffers are shared by bytes. Refusals go first; they are short and capped.

mod open;

use std::collections::VecDeque;
use std::sync::Arc;

use tracing::debug;
use vm_memory::VolatileSlice;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::chain::{total, truncate};
use super::connection::{Phase, Ports, Verdict, Violation};
use super::host_end::{Deaf, Filled};
use super::limits::{FIRST_HOST_PORT, MAX_CONNECTIONS, MAX_REFUSALS, TURN_BUFFERS, TURN_BYTES};
use super::metrics::Counters;
use super::packet::{Header, Op, TYPE_STREAM};
use super::shared::Shared;
use super::table::{Link, Table, Token};
use super::{GUEST_CID, HOST_CID};

/// Something for the guest.
#[derive(Debug, PartialEq, Eq)]
pub enum Job {
    /// A packet without payload.
    Packet(Header),
    /// A turn of data: read into the guest's buffers with [`Mux::fill`].
    Data {
        /// Whose.
        token: Token,
        /// Receive buffers that the connection has a use for.
        buffers: usize,
        /// Bytes that it may send.
        bytes: usize,
    },
}

/// All connections of one activation of the device.
#[derive(Debug)]
pub struct Mux {
    epoll: Epoll,
    shared: Arc<Shared>,
    counters: Arc<Counters>,
    table: Table,
    turns: VecDeque<Token>,
    refusals: VecDeque<Header>,
    next_host_port: u32,
}

impl Mux {
    /// No connection yet; host's ends will be watched by `epoll`.
    pub fn new(epoll: Epoll, shared: Arc<Shared>, counters: Arc<Counters>) -> Self {
        Self {
            epoll,
            shared,
            counters,
            table: Table::default(),
            turns: VecDeque::new(),
            refusals: VecDeque::new(),
            next_host_port: FIRST_HOST_PORT,
        }
    }

    /// Where events come from.
    pub fn epoll(&self) -> &Epoll {
        &self.epoll
    }

    /// Whether the guest must take refusals before it may send more.
    pub fn is_congested(&self) -> bool {
        self.refusals.len() >= MAX_REFUSALS
    }

    /// Ends all connections: the host's ends read EOF, the guest is told nothing.
    pub fn clear(&mut self) {
        self.counters.connections_closed.add(self.table.len() as u64);
        self.table = Table::default();
        self.turns.clear();
        self.refusals.clear();
        drop(self.shared.take_connects());
    }

    // From the guest

    /// Takes a packet; `payload` is the memory behind its header, all that the guest described.
    pub fn receive(&mut self, header: &Header, payload: &mut Vec<VolatileSlice<'_>>) {
        self.counters.packets_from_guest.increment();
        if header.source_cid != GUEST_CID {
            self.counters.malformed_packets.increment(); // and an answer would go nowhere
            return;
        }
        if header.destination_cid != HOST_CID || header.kind != TYPE_STREAM {
            self.refuse(header);
            return;
        }
        let complete = header.has_legal_length() && total(payload) >= header.length as usize;
        match (Op::from_number(header.op), self.table.find(Ports::of(header))) {
            (Some(op), Some(token)) if complete => self.receive_for(token, op, header, payload),
            (_, Some(token)) => self.violate(token, None),
            (Some(Op::Request), None) if complete && header.length == 0 => self.accept(header),
            (_, None) => self.refuse(header),
        }
    }

    fn receive_for(&mut self, token: Token, op: Op, header: &Header, payload: &mut Vec<VolatileSlice<'_>>) {
        let Some(link) = self.table.get(token) else { return };
        match link.connection.receive(op, header, link.host.parked()) {
            Verdict::Continue => {}
            Verdict::Deliver => {
                truncate(payload, header.length as usize);
                let parked = deliver(link, payload, header.length);
                self.counters.bytes_from_guest.add(header.length.into());
                self.counters.bytes_parked.add(parked.into());
            }
            Verdict::Discard => link.connection.credit.forward(header.length),
            Verdict::Finish => {
                self.refusals.push_back(link.connection.ports().reset());
                self.drain(token);
            }
            Verdict::Abandon => self.drain(token),
            Verdict::Violate(violation) => {
                self.violate(token, Some(violation));
                return;
            }
        }
        self.settle(token);
    }

    fn refuse(&mut self, header: &Header) {
        if let Some(refusal) = header.refusal() {
            self.counters.refusals.increment();
            self.refusals.push_back(refusal);
        }
    }

    /// Ends a connection on which the guest broke the protocol (`None`: with a packet that is none).
    fn violate(&mut self, token: Token, violation: Option<Violation>) {
        let Some(link) = self.remove(token) else { return };
        let ports = link.connection.ports();
        debug!(host = ports.host, guest = ports.guest, ?violation, "vsock connection reset: protocol broken");
        self.counters.violations.increment();
        self.refusals.push_back(ports.reset());
    }

    /// The guest is done with the connection.
    fn drain(&mut self, token: Token) {
        self.table.forget_ports(token);
        if let Some(link) = self.table.get(token) {
            link.connection.drain();
        }
    }

    // From the host

    /// An event of a host's end.
    pub fn host_event(&mut self, token: Token, events: u32) {
        let has = |set: EventSet| events & set.bits() != 0;
        let Some(link) = self.table.get(token) else { return };
        if has(EventSet::HANG_UP | EventSet::ERROR) {
            hang_up(link);
            if link.connection.phase() == Phase::Requesting {
                self.refusals.push_back(link.connection.ports().reset());
                self.remove(token);
                return;
            }
        }
        if has(EventSet::IN | EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR) {
            link.host.mark_readable(!has(EventSet::IN) || has(EventSet::READ_HANG_UP | EventSet::HANG_UP));
        }
        if has(EventSet::OUT) {
            let parked = link.host.parked();
            let flushed = link.host.flush();
            link.connection.credit.forward(parked.saturating_sub(link.host.parked()));
            if flushed == Err(Deaf) {
                hang_up(link);
            }
        }
        self.settle(token);
    }

    // To the guest

    /// Whether there may be a job. Ask before taking a receive buffer.
    pub fn has_work(&self) -> bool {
        !self.refusals.is_empty() || !self.turns.is_empty()
    }

    /// The next thing for the guest. A packet counts as sent.
    pub fn next_job(&mut self) -> Option<Job> {
        if let Some(refusal) = self.refusals.pop_front() {
            return Some(Job::Packet(refusal));
        }
        while let Some(token) = self.turns.pop_front() {
            let Some(link) = self.table.get(token) else { continue };
            link.queued = false;
            if let Some(header) = link.connection.next_control(link.host.parked(), link.host.is_readable()) {
                if link.connection.is_over() {
                    self.remove(token);
                } else {
                    self.settle(token);
                }
                return Some(Job::Packet(header));
            }
            if link.host.is_readable() && link.connection.sendable() > 0 {
                if link.turn == 0 {
                    link.turn = TURN_BYTES;
                }
                let bytes = link.connection.sendable().min(link.turn) as usize;
                return Some(Job::Data { token, buffers: link.burst, bytes });
            }
        }
        None
    }

    /// Reads a connection's data into `space`. Returns the header of its packets, without length,
    /// and how many bytes there are.
    pub fn fill(&mut self, token: Token, space: &[VolatileSlice<'_>]) -> (Header, usize) {
        let Some(link) = self.table.get(token) else { return (Header::default(), 0) };
        let mut bytes = 0;
        match link.host.fill(space) {
            Filled::Bytes(count) => {
                bytes = count;
                link.connection.credit.send(count as u32); // at most TURN_BYTES
                link.turn = link.turn.saturating_sub(count as u32);
                link.burst = if link.host.is_readable() { link.burst * 4 } else { link.burst / 2 };
                link.burst = link.burst.clamp(1, TURN_BUFFERS);
            }
            Filled::Dry => {}
            Filled::End => link.connection.host_ended(),
        }
        let header = link.connection.header(Op::Data, 0);
        if bytes == 0 || !link.host.is_readable() || link.connection.sendable() == 0 {
            link.turn = 0; // nothing to go on with
        }
        if link.turn > 0 {
            link.queued = true;
            self.turns.push_front(token);
        }
        self.counters.bytes_to_guest.add(bytes as u64);
        self.settle(token);
        (header, bytes)
    }

    // Both

    /// Brings everything around a connection in line with its state; after every change of it.
    fn settle(&mut self, token: Token) {
        let Some(link) = self.table.get(token) else { return };
        let parked = link.host.parked();
        if !link.connection.guest_sends() && parked == 0 {
            link.host.finish();
        }
        if !link.connection.guest_hears() {
            link.host.refuse_writes();
        }
        if link.connection.phase() == Phase::Draining && parked == 0 {
            self.remove(token);
            return;
        }
        let readable = link.host.is_readable();
        let data = readable && link.connection.sendable() > 0;
        let wants_turn = !link.queued && (data || link.connection.has_control(parked, readable));
        link.queued |= wants_turn;
        let watch = parked > 0;
        if link.watched != watch {
            link.watched = watch;
            let event = EpollEvent::new(interest(watch), token.to_event());
            if self.epoll.ctl(ControlOperation::Modify, link.host.descriptor(), event).is_err() {
                self.remove(token); // without events it would hang for ever
            }
        }
        if wants_turn {
            self.queue(token);
        }
    }

    fn queue(&mut self, token: Token) {
        if self.turns.len() >= 2 * MAX_CONNECTIONS {
            // A guest that opens and drops connections without taking a packet leaves these.
            self.turns.retain(|token| self.table.get(*token).is_some());
        }
        self.turns.push_back(token);
    }

    fn remove(&mut self, token: Token) -> Option<Link> {
        let link = self.table.remove(token)?;
        self.counters.connections_closed.increment();
        Some(link)
    }
}

/// Edges, so that a descriptor that cannot be served now costs nothing. Room in the socket is
/// asked for only while bytes are parked: each read of the other end would wake the thread.
fn interest(room: bool) -> EventSet {
    let always = EventSet::IN | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
    if room { always | EventSet::OUT } else { always }
}

/// Gives a payload to the host's end; returns how many bytes were parked.
fn deliver(link: &mut Link, payload: &[VolatileSlice<'_>], length: u32) -> u32 {
    match link.host.deliver(payload) {
        Ok(sent) => {
            link.connection.credit.forward(sent as u32); // at most `length`
            length.saturating_sub(sent as u32)
        }
        Err(Deaf) => {
            link.connection.credit.forward(length);
            hang_up(link);
            0
        }
    }
}

/// Nobody reads at the host's end any more; what it wrote before still goes to the guest.
fn hang_up(link: &mut Link) {
    link.connection.credit.forward(link.host.parked());
    link.host.discard();
    link.connection.host_deaf();
}

#[cfg(test)]
#[path = "tests/mux.rs"]
mod tests;
