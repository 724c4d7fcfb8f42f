//! What the rest of the process holds of the device: [`Vsock`].

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc::{Receiver, Sender, channel};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::host_end;
use super::limits::{ACCEPT_BACKLOG, FIRST_HOST_PORT, MAX_PENDING_CONNECTS};

/// A stream cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// Somebody listens there already.
    #[error("Port {port} of the vsock device already has a listener")]
    PortInUse {
        /// The port.
        port: u32,
    },
    /// The port is not one that a listener can have.
    #[error("Port {port} of the vsock device cannot be listened on, only ports below {FIRST_HOST_PORT}")]
    PortReserved {
        /// The port.
        port: u32,
    },
    /// The guest has not brought the device up and enough connections wait for it.
    #[error("{MAX_PENDING_CONNECTS} connections already wait for the guest's vsock driver")]
    Pending,
    /// No descriptors.
    #[error("Cannot make the descriptors of a vsock connection")]
    Descriptors(#[source] io::Error),
    /// The machine has stopped.
    #[error("The machine has stopped, its vsock device with it")]
    Stopped,
}

/// The host's side of the machine's vsock. Clones are the same device.
#[derive(Clone, Debug)]
pub struct Vsock {
    shared: Arc<Shared>,
}

impl Vsock {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Takes the guest's connections to `port`, in the order of their arrival; each stream is
    /// non-blocking. They wait in a bounded queue; the guest's connections beyond it, to ports
    /// without a listener, or after the receiver is dropped are refused. The guest may come and go
    /// (it reboots its driver): the listener stays. It ends (`recv` gives `None`) when the machine
    /// stops.
    ///
    /// # Errors
    /// When the port has a listener or is reserved, or the machine has stopped.
    pub fn listen(&self, port: u32) -> Result<Receiver<UnixStream>, VsockError> {
        if port >= FIRST_HOST_PORT {
            return Err(VsockError::PortReserved { port });
        }
        let mut state = self.shared.state();
        if state.stopped {
            return Err(VsockError::Stopped);
        }
        if state.listeners.get(&port).is_some_and(|listener| !listener.is_closed()) {
            return Err(VsockError::PortInUse { port });
        }
        let (sender, receiver) = channel(ACCEPT_BACKLOG);
        state.listeners.insert(port, sender);
        Ok(receiver)
    }

    /// Opens a connection to `guest_port`. The stream is non-blocking and usable at once: what is
    /// written waits for the guest to accept. A refusal, or a cap reached, shows as EOF. Closing
    /// the stream before the guest has accepted takes the connection back.
    ///
    /// # Errors
    /// When too many connections wait for the guest's driver, the process is out of descriptors,
    /// or the machine has stopped.
    pub fn connect(&self, guest_port: u32) -> Result<UnixStream, VsockError> {
        let (ours, theirs) = host_end::pair().map_err(VsockError::Descriptors)?;
        let mut state = self.shared.state();
        if state.stopped {
            return Err(VsockError::Stopped);
        }
        if state.connects.len() >= MAX_PENDING_CONNECTS {
            return Err(VsockError::Pending);
        }
        state.connects.push_back(Connect { guest_port, socket: ours });
        drop(state);
        self.shared.wake();
        Ok(theirs)
    }
}

/// A connection that the host wants.
#[derive(Debug)]
pub struct Connect {
    /// Where to.
    pub guest_port: u32,
    /// The device's end.
    pub socket: UnixStream,
}

/// What the handles and the device's thread share.
#[derive(Debug)]
pub struct Shared {
    state: Mutex<State>,
    wake: EventFd,
}

#[derive(Debug, Default)]
struct State {
    listeners: HashMap<u32, Sender<UnixStream>>,
    connects: VecDeque<Connect>,
    stopped: bool,
}

impl Shared {
    /// Nobody listens yet.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self { state: Mutex::default(), wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)? })
    }

    /// Who listens on the port.
    pub fn listener(&self, port: u32) -> Option<Sender<UnixStream>> {
        self.state().listeners.get(&port).cloned()
    }

    /// Connections that the host has asked for since the last call.
    pub fn take_connects(&self) -> VecDeque<Connect> {
        std::mem::take(&mut self.state().connects)
    }

    /// Readable when there is something in [`Self::take_connects`] or the worker shall stop.
    pub fn wake_event(&self) -> &EventFd {
        &self.wake
    }

    /// Gets the worker's attention.
    pub fn wake(&self) {
        // It fails only when the counter is at its end, and then the worker is awake anyway.
        let _ = self.wake.write(1);
    }

    /// The machine is no more: listeners end, waiting connections read EOF.
    pub fn stop(&self) {
        let mut state = self.state();
        *state = State { stopped: true, ..State::default() };
    }

    /// A panic while the lock was held would have ended the process (release) or the test; the
    /// state is whole between any two statements under it.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn vsock() -> (Vsock, Arc<Shared>) {
        let shared = Arc::new(Shared::new().unwrap());
        (Vsock::new(Arc::clone(&shared)), shared)
    }

    #[test]
    fn a_port_has_one_listener_at_a_time() {
        let (vsock, shared) = vsock();
        let first = vsock.listen(1024).unwrap();
        assert!(matches!(vsock.listen(1024), Err(VsockError::PortInUse { port: 1024 })));
        drop(first);
        let second = vsock.listen(1024).unwrap();
        assert!(shared.listener(1024).is_some_and(|sender| !sender.is_closed()));
        drop(second);
    }

    #[test]
    fn the_hosts_own_ports_are_reserved() {
        let (vsock, _shared) = vsock();
        assert!(vsock.listen(FIRST_HOST_PORT - 1).is_ok());
        for port in [FIRST_HOST_PORT, u32::MAX] {
            assert!(matches!(vsock.listen(port), Err(VsockError::PortReserved { .. })));
        }
    }

    #[test]
    fn waiting_connections_are_capped() {
        let (vsock, shared) = vsock();
        let streams: Vec<_> = (0..MAX_PENDING_CONNECTS).map(|_| vsock.connect(1).unwrap()).collect();
        assert!(matches!(vsock.connect(1), Err(VsockError::Pending)));
        assert_eq!(shared.take_connects().len(), streams.len());
        assert!(vsock.connect(1).is_ok());
    }

    #[test]
    fn stopping_ends_everything_and_refuses_more() {
        let (vsock, shared) = vsock();
        let mut listener = vsock.listen(1024).unwrap();
        let mut stream = vsock.connect(1).unwrap();
        shared.stop();
        assert!(listener.blocking_recv().is_none());
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        assert!(matches!(vsock.listen(1025), Err(VsockError::Stopped)));
        assert!(matches!(vsock.connect(1), Err(VsockError::Stopped)));
    }
}
