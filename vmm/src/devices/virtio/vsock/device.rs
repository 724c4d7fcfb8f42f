//! The virtio side of the device: configuration, activation, the thread's life.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::GUEST_CID;
use super::limits::{EVENT_RING_SIZE, RING_SIZE};
use super::metrics::Counters;
use super::mux::Mux;
use super::shared::{Shared, Vsock};
use super::worker::{HOST_REQUEST, RECEIVE_KICK, State, TRANSMIT_KICK, Worker};
use crate::devices::virtio::{ActivateError, Activation, ActiveQueue, Counter, VirtioDevice};
use crate::seccomp::{Allowed, allow};

/// Socket device (virtio 1.2, 5.10.1).
const DEVICE_TYPE: u32 = 19;
const QUEUES: [u16; 3] = [RING_SIZE, RING_SIZE, EVENT_RING_SIZE];
const THREAD: &str = "vsock";

/// What the thread asks of the kernel beyond the common calls.
const SYSCALLS: &[Allowed] = &[
    allow(libc::SYS_epoll_wait, "sleeps until a ring, a host's end or a request needs it"),
    allow(libc::SYS_epoll_ctl, "watches a connection's host's end"),
    allow(libc::SYS_sendmsg, "gives the guest's data to a host's end"),
    allow(libc::SYS_sendto, "gives parked data to a host's end"),
    allow(libc::SYS_recvmsg, "takes data for the guest from a host's end"),
    allow(libc::SYS_recvfrom, "takes unread bytes out of a host's end before it is closed"),
    allow(libc::SYS_shutdown, "ends one direction of a host's end"),
    allow(libc::SYS_socketpair, "makes the ends of a connection that the guest opens"),
    allow(libc::SYS_setsockopt, "sizes their buffers"),
];

/// The device. Dropping it stops its thread and ends listeners and connections.
#[derive(Debug)]
pub struct VsockDevice {
    shared: Arc<Shared>,
    counters: Arc<Counters>,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl VsockDevice {
    /// A device that the guest has not brought up yet.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self { shared: Arc::new(Shared::new()?), counters: Arc::default(), running: None })
    }

    /// For the rest of the process. It works before the guest brings the device up.
    #[must_use]
    pub fn handle(&self) -> Vsock {
        Vsock::new(Arc::clone(&self.shared))
    }

    fn worker(&self, activation: Activation, stop: Arc<AtomicBool>) -> Result<Worker, ActivateError> {
        let Activation { memory, queues, interrupt, .. } = activation;
        let found = queues.len();
        let [receive, transmit, _event] = <[ActiveQueue; 3]>::try_from(queues)
            .map_err(|_| ActivateError::QueueCount { expected: QUEUES.len(), found })?;
        let epoll = Epoll::new().map_err(|source| ActivateError::Descriptor { what: "epoll", source })?;
        watch(&epoll, &receive.kick, RECEIVE_KICK)?;
        watch(&epoll, &transmit.kick, TRANSMIT_KICK)?;
        watch(&epoll, self.shared.wake_event(), HOST_REQUEST)?;
        let mux = Mux::new(epoll, Arc::clone(&self.shared), Arc::clone(&self.counters));
        let counters = Arc::clone(&self.counters);
        Ok(Worker { memory, receive, transmit, interrupt, mux, stop, counters, state: State::default() })
    }
}

fn watch(epoll: &Epoll, event: &EventFd, data: u64) -> Result<(), ActivateError> {
    let interest = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, data);
    epoll
        .ctl(ControlOperation::Add, event.as_raw_fd(), interest)
        .map_err(|source| ActivateError::Descriptor { what: "epoll registration", source })
}

impl VirtioDevice for VsockDevice {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    /// No seqpacket; streams need no feature bit.
    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = GUEST_CID.to_le_bytes();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let mut bytes = config.get(start..).unwrap_or_default().iter();
        for byte in data {
            *byte = bytes.next().copied().unwrap_or(0);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.reset();
        let stop = Arc::new(AtomicBool::new(false));
        let workers = activation.workers.clone();
        let worker = self.worker(activation, Arc::clone(&stop))?;
        let thread = workers
            .spawn(THREAD, SYSCALLS, move || worker.run())
            .map_err(|source| ActivateError::Thread { name: THREAD.to_owned(), source })?;
        self.running = Some(Running { stop, thread });
        Ok(())
    }

    /// Bounded: a round moves at most `ROUND_CHAINS` chains each way, and nothing in it blocks.
    fn reset(&mut self) {
        if let Some(Running { stop, thread }) = self.running.take() {
            stop.store(true, Ordering::Release);
            self.shared.wake();
            // A panic of the thread has been reported by `Workers` already.
            let _ = thread.join();
        }
    }

    fn counters(&self) -> Vec<Counter> {
        self.counters.list()
    }
}

impl Drop for VsockDevice {
    fn drop(&mut self) {
        self.reset();
        self.shared.stop();
    }
}
