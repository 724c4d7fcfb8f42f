//! The device's connections: slots with generations, found by token or by ports, and the budget
//! that their windows come from.

use std::collections::HashMap;

use super::connection::{Connection, Ports};
use super::host_end::HostEnd;
use super::limits::{MAX_CONNECTIONS, WINDOW_BUDGET, WINDOW_LARGE, WINDOW_SMALL};

/// Names a connection for as long as it lives and never another one after it: generation above,
/// slot below. Epoll events and the turn queue carry it, and both may be late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token(u64);

impl Token {
    /// Tokens of connections start here; smaller numbers are free for the worker's own descriptors.
    pub const FIRST: u64 = 1 << 32;

    fn new(slot: u32, generation: u32) -> Self {
        Self((u64::from(generation) << 32) | u64::from(slot))
    }

    /// From an epoll event.
    pub fn from_event(data: u64) -> Self {
        Self(data)
    }

    /// For an epoll registration.
    pub fn to_event(self) -> u64 {
        self.0
    }

    fn slot(self) -> usize {
        (self.0 & 0xFFFF_FFFF) as usize
    }

    fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// A connection and what belongs to it.
#[derive(Debug)]
pub struct Link {
    /// The protocol's state.
    pub connection: Connection,
    /// The host's end.
    pub host: HostEnd,
    /// It is in the turn queue.
    pub queued: bool,
    /// Epoll reports room in the socket.
    pub watched: bool,
    /// Bytes left of its turn, 0 when it is not its turn.
    pub turn: u32,
    /// Receive buffers that its next read asks for.
    pub burst: usize,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    link: Option<Link>,
}

/// All connections.
#[derive(Debug, Default)]
pub struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_ports: HashMap<Ports, Token>,
    open: usize,
    promised: usize,
}

impl Table {
    /// The window that one more connection gets, or `None` when there are as many as may be. A
    /// large one as long as all connections that may still come can have the small one.
    pub fn next_window(&self) -> Option<u32> {
        let later = MAX_CONNECTIONS.checked_sub(self.open)?.checked_sub(1)?;
        let with_large = self.promised + WINDOW_LARGE as usize + later * WINDOW_SMALL as usize;
        Some(if with_large <= WINDOW_BUDGET { WINDOW_LARGE } else { WINDOW_SMALL })
    }

    /// Adds a connection under its ports, which must be free.
    pub fn insert(&mut self, connection: Connection, host: HostEnd) -> Token {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            (self.slots.len() - 1) as u32 // MAX_CONNECTIONS at most
        });
        self.open += 1;
        self.promised += connection.credit.window() as usize;
        let ports = connection.ports();
        let mut token = Token(0);
        if let Some(place) = self.slots.get_mut(slot as usize) {
            place.generation = place.generation.wrapping_add(1).max(1);
            token = Token::new(slot, place.generation);
            place.link = Some(Link { connection, host, queued: false, watched: false, turn: 0, burst: 1 });
        }
        self.by_ports.insert(ports, token);
        token
    }

    /// The connection with this token, unless it is gone.
    pub fn get(&mut self, token: Token) -> Option<&mut Link> {
        let slot = self.slots.get_mut(token.slot())?;
        if slot.generation == token.generation() { slot.link.as_mut() } else { None }
    }

    /// The connection that the guest means by these ports.
    pub fn find(&self, ports: Ports) -> Option<Token> {
        self.by_ports.get(&ports).copied()
    }

    /// The guest may use the ports again; the connection stays until [`Self::remove`].
    pub fn forget_ports(&mut self, token: Token) {
        if let Some(link) = self.get(token) {
            let ports = link.connection.ports();
            if self.by_ports.get(&ports) == Some(&token) {
                self.by_ports.remove(&ports);
            }
        }
    }

    /// Takes the connection out.
    pub fn remove(&mut self, token: Token) -> Option<Link> {
        self.forget_ports(token);
        let slot = self.slots.get_mut(token.slot())?;
        if slot.generation != token.generation() {
            return None;
        }
        let link = slot.link.take()?;
        self.free.push(token.slot() as u32);
        self.open -= 1;
        self.promised -= link.connection.credit.window() as usize;
        Some(link)
    }

    /// Connections, draining ones included.
    pub fn len(&self) -> usize {
        self.open
    }

    /// Bytes that the windows of all connections add up to.
    #[cfg(test)]
    pub fn promised(&self) -> usize {
        self.promised
    }
}

#[cfg(test)]
mod tests {
    use super::super::host_end;
    use super::*;
    use std::os::unix::net::UnixStream;

    fn ports(guest: u32) -> Ports {
        Ports { host: 1024, guest }
    }

    fn add(table: &mut Table, guest: u32) -> (Token, u32, UnixStream) {
        let window = table.next_window().unwrap();
        let (ours, theirs) = host_end::pair().unwrap();
        let token =
            table.insert(Connection::requesting(ports(guest), window), HostEnd::new(ours, window).unwrap());
        (token, window, theirs)
    }

    #[test]
    fn the_promise_is_kept_within_the_budget_by_every_mix() {
        let mut table = Table::default();
        let mut ends = Vec::new();
        for guest in 0..MAX_CONNECTIONS as u32 {
            ends.push(add(&mut table, guest));
            assert!(table.promised() <= WINDOW_BUDGET);
        }
        assert_eq!(table.next_window(), None, "no connection beyond the cap");
        assert_eq!((ends[0].1, ends.last().unwrap().1), (WINDOW_LARGE, WINDOW_SMALL));
        let large = ends.iter().filter(|end| end.1 == WINDOW_LARGE).count();
        assert!(large >= 64, "only {large} large windows");

        for (token, ..) in ends.drain(..100) {
            assert!(table.remove(token).is_some());
        }
        for guest in 0..100 {
            add(&mut table, guest);
            assert!(table.promised() <= WINDOW_BUDGET);
        }
        assert_eq!(table.len(), MAX_CONNECTIONS);
    }

    #[test]
    fn a_late_token_meets_nobody() {
        let mut table = Table::default();
        let (first, ..) = add(&mut table, 1);
        assert!(first.to_event() >= Token::FIRST);
        table.remove(first);
        let (second, ..) = add(&mut table, 2);
        assert_eq!(first.slot(), second.slot(), "the slot is used again");
        assert!(table.get(first).is_none());
        assert!(table.remove(first).is_none());
        assert!(table.get(second).is_some());
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn forgotten_ports_can_be_used_again_while_the_old_connection_lives() {
        let mut table = Table::default();
        let (old, ..) = add(&mut table, 1);
        table.forget_ports(old);
        assert_eq!(table.find(ports(1)), None);
        let (new, ..) = add(&mut table, 1);
        table.remove(old);
        assert_eq!(table.find(ports(1)), Some(new), "the old one takes only its own name away");
    }
}
