//! Virtio devices behind the MMIO transport.
//!
//! ```text
//!            vCPU thread                                device's own worker thread(s)
//!   guest -> transport.rs: register writes              ^ kick (ioeventfd, never an exit to us)
//!              | DRIVER_OK                              | pops chains, does the I/O
//!              v                                        v
//!            VirtioDevice::activate(Activation) ----> Activation { memory, queues, interrupt }
//!              | status = 0 / machine stops             | interrupt.signal_used_queue() (irqfd)
//!              v
//!            VirtioDevice::reset (joins the workers)
//! ```
//!
//! A device is a folder here: `mod.rs`, its request parsing, its `SYSCALLS` list for seccomp, its
//! counters, and one row in `devices::TABLE`.

pub mod block;
pub mod queue;
pub mod transport;
pub mod vsock;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

use crate::memory::GuestRam;
use crate::thread::Workers;

/// What a device is to the transport.
///
/// # Contract
/// - All methods are called with the transport's lock held, from whichever vCPU thread touched the
///   register (or from `Machine::stop`); they must not wait for the guest and take at most a few
///   milliseconds.
/// - Order: any number of `read_config`; then `activate` at most once; then `reset`; and again
///   from the start. `reset` may also come when the device is not active (no effect) and is called
///   a last time before the machine's memory goes.
/// - The device trusts nothing in the queues: addresses, lengths and order come from the guest.
pub trait VirtioDevice: Send {
    /// The virtio device id (1 net, 2 block, 19 vsock), never 0.
    fn device_type(&self) -> u32;

    /// Device-specific feature bits only (0..=23 and 50..). The transport adds `VERSION_1`,
    /// `ACCESS_PLATFORM` and `EVENT_IDX`.
    fn features(&self) -> u64;

    /// Largest size of each queue, a power of two each. The slice's length is the queue count.
    fn queue_sizes(&self) -> &[u16];

    /// Copies device configuration from `offset` on; bytes beyond the configuration read as zero.
    /// The guest cannot write configuration.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// The driver is ready: take the queues and start serving them on own threads, started with
    /// `activation.workers`. Nothing of the I/O happens on the calling thread, which is a vCPU's and
    /// under `seccomp::VCPU`. Buffers may be available already; their kick is then pending.
    ///
    /// # Errors
    /// The transport then sets `DEVICE_NEEDS_RESET`; the machine runs on without the device.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Stop serving, join the workers, drop queues and memory. Idempotent; bounded time: workers
    /// that may block on host I/O must be woken by closing or by an eventfd.
    fn reset(&mut self);

    /// Counters for `Machine::metrics`, in a fixed order.
    fn counters(&self) -> Vec<Counter> {
        Vec::new()
    }
}

/// One counter of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter {
    /// `snake_case`, with the unit at the end (`bytes_read`).
    pub name: &'static str,
    /// Since the machine started.
    pub value: u64,
}

/// All that an active device works with. Dropping it gives everything back.
#[derive(Debug)]
pub struct Activation {
    /// The guest's memory.
    pub memory: GuestRam,
    /// Feature bits that the driver accepted.
    pub features: u64,
    /// The queues that the driver made ready, in order; as many as `queue_sizes` has. The transport
    /// has checked each with `is_valid` and set `EVENT_IDX` where negotiated.
    pub queues: Vec<ActiveQueue>,
    /// How to tell the driver about used buffers.
    pub interrupt: Interrupt,
    /// Starts the device's threads.
    pub workers: Workers,
}

/// One queue and the eventfd that the guest's notification writes to.
#[derive(Debug)]
pub struct ActiveQueue {
    /// Ring state. Only the device touches it from now on.
    pub queue: Queue,
    /// Readable when the driver has made buffers available (non-blocking eventfd).
    pub kick: EventFd,
}

/// The device's interrupt line. Cheap to clone, usable from any thread.
#[derive(Clone, Debug)]
pub struct Interrupt {
    status: Arc<AtomicU32>,
    line: Arc<EventFd>,
}

/// Interrupt status bit: a queue has used buffers.
pub const STATUS_USED_QUEUE: u32 = 1;

impl Interrupt {
    /// `line` is the irqfd; `status` is what the guest reads as `InterruptStatus`.
    #[must_use]
    pub fn new(status: Arc<AtomicU32>, line: Arc<EventFd>) -> Self {
        Self { status, line }
    }

    /// Tells the driver that a queue has used buffers. Call it only where
    /// `Queue::needs_notification` said so.
    ///
    /// # Errors
    /// When the eventfd cannot be written, which means that the machine is being torn down.
    pub fn signal_used_queue(&self) -> io::Result<()> {
        self.status.fetch_or(STATUS_USED_QUEUE, Ordering::SeqCst);
        self.line.write(1)
    }
}

/// A device could not start serving its queues.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// An eventfd, epoll or similar descriptor could not be made.
    #[error("Cannot make the {what} of the virtio device")]
    Descriptor {
        /// Which.
        what: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A queue is not ready, or its rings are crooked or outside the memory.
    #[error("The driver's queue {index} is not valid")]
    Queue {
        /// Which.
        index: usize,
    },
    /// The device got a number of queues that it does not have.
    #[error("The device has {expected} queues and was given {found}")]
    QueueCount {
        /// By `queue_sizes`.
        expected: usize,
        /// In the activation.
        found: usize,
    },
    /// The machine is being taken down.
    #[error("The machine is being taken down")]
    ShutDown,
    /// A worker thread could not be started.
    #[error("Cannot start the thread hull-{name}")]
    Thread {
        /// The thread's name.
        name: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}
