//! How connections come into being, from either side, and why not.

use std::io;

use tracing::warn;
use vmm_sys_util::epoll::{ControlOperation, EpollEvent};

use super::super::connection::{Connection, Ports};
use super::super::host_end::{self, HostEnd};
use super::super::limits::FIRST_HOST_PORT;
use super::super::packet::Header;
use super::super::shared::Connect;
use super::super::table::Token;
use super::{Mux, interest};

/// Why the guest's connection is refused.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("Nobody listens, or the listener has all that it can queue")]
    Listener,
    #[error("There are as many connections as may be")]
    Limit,
    #[error("No descriptors for a connection")]
    Descriptors(#[from] io::Error),
}

impl Mux {
    /// Opens a connection for the guest's REQUEST, or refuses it.
    pub(super) fn accept(&mut self, request: &Header) {
        match self.try_accept(request) {
            Ok(token) => {
                self.counters.connections_accepted.increment();
                self.settle(token);
            }
            Err(reason) => {
                if !matches!(reason, Refused::Listener) {
                    self.over_limit(&reason);
                }
                self.refuse(request);
            }
        }
    }

    fn try_accept(&mut self, request: &Header) -> Result<Token, Refused> {
        let ports = Ports::of(request);
        let listener = self.shared.listener(ports.host).ok_or(Refused::Listener)?;
        let place = listener.try_reserve().map_err(|_| Refused::Listener)?;
        let window = self.table.next_window().ok_or(Refused::Limit)?;
        let (ours, theirs) = host_end::pair()?;
        let connection = Connection::accepted(ports, window, request);
        let token = self.insert(connection, HostEnd::new(ours, window)?)?;
        place.send(theirs);
        Ok(token)
    }

    /// Takes up the connections that the host has asked for.
    pub fn take_connects(&mut self) {
        for connect in self.shared.take_connects() {
            match self.request(connect) {
                Ok(token) => {
                    self.counters.connections_requested.increment();
                    self.settle(token);
                }
                Err(reason) => self.over_limit(&reason), // the dropped end shows EOF
            }
        }
    }

    fn request(&mut self, connect: Connect) -> Result<Token, Refused> {
        let window = self.table.next_window().ok_or(Refused::Limit)?;
        let ports = self.free_ports(connect.guest_port);
        let host = HostEnd::new(connect.socket, window)?;
        Ok(self.insert(Connection::requesting(ports, window), host)?)
    }

    /// A host port that has no connection to the guest's port. There are a million times more of
    /// them than connections.
    fn free_ports(&mut self, guest: u32) -> Ports {
        loop {
            let ports = Ports { host: self.next_host_port, guest };
            // The last number is "any port" in the socket interface.
            let next = self.next_host_port.saturating_add(1);
            self.next_host_port = if next == u32::MAX { FIRST_HOST_PORT } else { next };
            if self.table.find(ports).is_none() {
                return ports;
            }
        }
    }

    fn insert(&mut self, connection: Connection, host: HostEnd) -> io::Result<Token> {
        let descriptor = host.descriptor();
        let token = self.table.insert(connection, host);
        let event = EpollEvent::new(interest(false), token.to_event());
        if let Err(error) = self.epoll.ctl(ControlOperation::Add, descriptor, event) {
            self.table.remove(token);
            return Err(error);
        }
        Ok(token)
    }

    fn over_limit(&mut self, reason: &Refused) {
        if self.counters.connections_over_limit.increment() == 0 {
            // Once: the guest decides how often it happens.
            warn!(%reason, connections = self.table.len(), "vsock connections are being refused");
        }
    }
}
