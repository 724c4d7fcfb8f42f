//! One connection's protocol state. Pure: no descriptor, no guest memory, no clock.
//!
//! ```text
//!       host connects                                     guest sends REQUEST, a listener has room
//!            | REQUEST ->                                              | RESPONSE ->
//!            v              <- RESPONSE                                v
//!       Requesting ----------------------------------------------->  Open
//!            | <- RST                      guest ends both  |  | <- RST    | host ends both
//!            | host hangs up: RST ->       RST ->           |  |           | SHUTDOWN(both) ->
//!            v                                              v  v           v
//!          (gone)  <--- nothing parked any more ---------- Draining      (gone)
//! ```
//! In `Open`, each of the four half-directions ends on its own:
//!
//! | half          | ends by                                  | consequence                             |
//! |---------------|------------------------------------------|-----------------------------------------|
//! | guest sends   | <- SHUTDOWN(send)                        | the host reads EOF after all data       |
//! | guest hears   | <- SHUTDOWN(receive)                     | the host's writes fail                  |
//! | host sends    | EOF from the host's end, all data sent   | SHUTDOWN(send) ->                       |
//! | host hears    | the host's end is closed for reading     | SHUTDOWN(receive) ->, data is discarded |
//!
//! `Draining` no longer exists for the guest: its port may be used again while bytes that the
//! device has accepted still wait for a slow reader. After our SHUTDOWN(both) the connection is
//! forgotten at once: the guest's RST in answer meets nobody, which RST is made for. Everything
//! that the protocol does not allow ends the connection with RST ([`Violation`]).

use super::credit::Credit;
use super::packet::{Header, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM};

/// The two ports that name a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ports {
    /// On the host's side.
    pub host: u32,
    /// On the guest's side.
    pub guest: u32,
}

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The host has asked and the guest has not answered.
    Requesting,
    /// Both ends are there.
    Open,
    /// The guest is gone, parked bytes wait for the host's reader.
    Draining,
}

/// What to do after a packet from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing beyond what the state says now.
    Continue,
    /// Give the payload to the host's end.
    Deliver,
    /// Nobody reads any more: the payload is dropped and its credit given back.
    Discard,
    /// The guest has closed: answer RST, then drain.
    Finish,
    /// The guest has dropped the connection or refused it: drain, answer nothing.
    Abandon,
    /// Answer RST and drop everything.
    Violate(Violation),
}

/// A packet that this state does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// An operation that cannot come now.
    UnexpectedOp,
    /// More bytes than the window has room for.
    CreditExceeded,
    /// Data after SHUTDOWN(send).
    DataAfterShutdown,
    /// A payload on something else than data.
    PayloadOnControl,
}

/// A connection's state.
#[derive(Debug)]
pub struct Connection {
    ports: Ports,
    phase: Phase,
    /// REQUEST or RESPONSE has still to leave.
    greeting_due: bool,
    guest_sends: bool,
    guest_hears: bool,
    host_sends: bool,
    host_hears: bool,
    /// SHUTDOWN flags that the guest has been told.
    announced: u32,
    /// The guest asked for our credit.
    credit_owed: bool,
    /// The accounts of both directions.
    pub credit: Credit,
}

impl Connection {
    /// The host opens: REQUEST is the first packet out.
    pub fn requesting(ports: Ports, window: u32) -> Self {
        Self::new(ports, window, Phase::Requesting)
    }

    /// The guest's REQUEST was accepted: RESPONSE is the first packet out.
    pub fn accepted(ports: Ports, window: u32, request: &Header) -> Self {
        let mut connection = Self::new(ports, window, Phase::Open);
        connection.credit.learn(request.buf_alloc, request.fwd_cnt);
        connection
    }

    fn new(ports: Ports, window: u32, phase: Phase) -> Self {
        Self {
            ports,
            phase,
            greeting_due: true,
            guest_sends: true,
            guest_hears: true,
            host_sends: true,
            host_hears: true,
            announced: 0,
            credit_owed: false,
            credit: Credit::new(window),
        }
    }

    /// The name.
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// Where it is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Takes a packet that is addressed to this connection; `parked` bytes are in our window.
    pub fn receive(&mut self, op: Op, header: &Header, parked: u32) -> Verdict {
        if op == Op::Reset {
            return Verdict::Abandon;
        }
        if header.length > 0 && op != Op::Data {
            return Verdict::Violate(Violation::PayloadOnControl);
        }
        self.credit.learn(header.buf_alloc, header.fwd_cnt);
        match (self.phase, op) {
            (Phase::Requesting, Op::Response) => {
                self.phase = Phase::Open;
                Verdict::Continue
            }
            (Phase::Open, Op::Data) => self.receive_data(header.length, parked),
            (Phase::Open, Op::Shutdown) => self.receive_shutdown(header.flags),
            (Phase::Open, Op::CreditUpdate) => Verdict::Continue,
            (Phase::Open, Op::CreditRequest) => {
                self.credit_owed = true;
                Verdict::Continue
            }
            _ => Verdict::Violate(Violation::UnexpectedOp),
        }
    }

    fn receive_data(&mut self, length: u32, parked: u32) -> Verdict {
        if !self.guest_sends {
            return Verdict::Violate(Violation::DataAfterShutdown);
        }
        if !self.credit.admits(parked, length) {
            return Verdict::Violate(Violation::CreditExceeded);
        }
        if self.host_hears { Verdict::Deliver } else { Verdict::Discard }
    }

    fn receive_shutdown(&mut self, flags: u32) -> Verdict {
        self.guest_sends &= flags & SHUTDOWN_SEND == 0;
        self.guest_hears &= flags & SHUTDOWN_RECEIVE == 0;
        if !self.guest_sends && !self.guest_hears {
            return Verdict::Finish;
        }
        // What a host's end that is gone left unsent will never be wanted.
        self.host_sends &= self.guest_hears || self.host_hears;
        Verdict::Continue
    }

    /// The host's end has delivered its last byte.
    pub fn host_ended(&mut self) {
        self.host_sends = false;
    }

    /// The host's end will read no more.
    pub fn host_deaf(&mut self) {
        self.host_hears = false;
        self.host_sends &= self.guest_hears;
    }

    /// The guest no longer knows this connection.
    pub fn drain(&mut self) {
        self.phase = Phase::Draining;
        self.guest_sends = false;
        self.guest_hears = false;
    }

    /// Whether the guest may still send data.
    pub fn guest_sends(&self) -> bool {
        self.guest_sends
    }

    /// Whether the guest still takes data.
    pub fn guest_hears(&self) -> bool {
        self.guest_hears
    }

    /// Bytes from the host's end that may go to the guest now.
    pub fn sendable(&self) -> u32 {
        let open = self.phase == Phase::Open && self.host_sends && self.guest_hears;
        if open { self.credit.sendable() } else { 0 }
    }

    /// Whether [`Self::next_control`] has a packet.
    pub fn has_control(&self, parked: u32, backlog: bool) -> bool {
        self.control(parked, backlog).is_some()
    }

    /// The next packet without data for the guest, which counts as sent from now on. `backlog`
    /// tells that the host's end has bytes for the guest.
    pub fn next_control(&mut self, parked: u32, backlog: bool) -> Option<Header> {
        let op = self.control(parked, backlog)?;
        let flags = if op == Op::Shutdown { self.ended_flags() } else { 0 };
        match op {
            Op::Request | Op::Response => self.greeting_due = false,
            Op::Shutdown => self.announced = flags,
            Op::CreditUpdate => self.credit_owed = false,
            Op::CreditRequest => self.credit.requested(),
            Op::Reset | Op::Data => {}
        }
        Some(Header { flags, ..self.header(op, 0) })
    }

    fn control(&self, parked: u32, backlog: bool) -> Option<Op> {
        match self.phase {
            Phase::Requesting if self.greeting_due => return Some(Op::Request),
            Phase::Open if self.greeting_due => return Some(Op::Response),
            Phase::Open => {}
            Phase::Requesting | Phase::Draining => return None,
        }
        let sends = self.host_sends && self.guest_hears;
        if self.ended_flags() != self.announced {
            Some(Op::Shutdown)
        } else if self.credit_owed || (self.guest_sends && self.credit.update_due(parked)) {
            Some(Op::CreditUpdate)
        } else if backlog && sends && self.credit.request_due() {
            Some(Op::CreditRequest)
        } else {
            None
        }
    }

    /// Whether the guest has been told that the host is done with both directions.
    pub fn is_over(&self) -> bool {
        self.announced == SHUTDOWN_BOTH
    }

    /// A header from this connection to the guest, with our credit as of now.
    pub fn header(&mut self, op: Op, length: u32) -> Header {
        let (buf_alloc, fwd_cnt) = self.credit.report();
        Header { op: op as u16, length, buf_alloc, fwd_cnt, ..self.ports.address() }
    }

    fn ended_flags(&self) -> u32 {
        let send = if self.host_sends { 0 } else { SHUTDOWN_SEND };
        let receive = if self.host_hears { 0 } else { SHUTDOWN_RECEIVE };
        send | receive
    }
}

impl Ports {
    /// The names in a header from the guest.
    pub fn of(header: &Header) -> Self {
        Self { host: header.destination_port, guest: header.source_port }
    }

    /// A header to the guest with nothing but the addresses.
    fn address(self) -> Header {
        Header {
            source_cid: super::HOST_CID,
            destination_cid: super::GUEST_CID,
            source_port: self.host,
            destination_port: self.guest,
            kind: TYPE_STREAM,
            ..Header::default()
        }
    }

    /// RST for a connection of ours that the guest still believes in.
    pub fn reset(self) -> Header {
        Header { op: Op::Reset as u16, ..self.address() }
    }
}

#[cfg(test)]
#[path = "tests/connection.rs"]
mod tests;
