//! The device's thread: takes requests off the queue and answers them, one after the other.
//!
//! ```text
//! asleep --kick--> serving (notifications off) --queue empty, notifications on--> asleep
//!    \--stop--> gone
//! ```
//! A queue that breaks the rules (indices that run ahead, a ring that cannot be read) is left alone
//! until the guest resets the device.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use virtio_bindings::virtio_blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP};
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::request::{self, Command, Malformed, Request};
use super::{Counters, Extents, ID_LENGTH, SYSCALLS};
use crate::devices::virtio::{ActivateError, Activation, ActiveQueue, Interrupt};
use crate::memory::GuestRam;
use crate::thread::join_within;

/// epoll's names for the two descriptors.
const KICK: u64 = 0;
const STOP: u64 = 1;

/// What the thread serves.
pub(super) struct Disk {
    pub id: [u8; ID_LENGTH],
    pub extents: Arc<Extents>,
    pub counters: Arc<Counters>,
}

/// A running thread.
#[derive(Debug)]
pub(super) struct Worker {
    thread: JoinHandle<()>,
    /// Set before `wake`: seen between two requests, so that a guest which keeps the queue full
    /// cannot keep the thread.
    stop: Arc<AtomicBool>,
    wake: EventFd,
}

/// How long `stop` waits for the one read that may be under way. A host file system that takes
/// longer has hung; the thread then keeps its memory and file until that read comes back.
const STOP_LIMIT: Duration = Duration::from_secs(2);

impl Worker {
    /// Starts serving.
    pub fn start(name: &str, disk: Disk, activation: Activation) -> Result<Self, ActivateError> {
        let Activation { memory, queues, interrupt, workers, .. } = activation;
        let found = queues.len();
        let Ok([ActiveQueue { queue, kick }]) = <[ActiveQueue; 1]>::try_from(queues) else {
            return Err(ActivateError::QueueCount { expected: 1, found });
        };
        let wake = EventFd::new(EFD_NONBLOCK).map_err(descriptor("stop eventfd"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let epoll = Epoll::new().map_err(descriptor("epoll"))?;
        // Edge-triggered: each kick is a new edge, so the counter need not be read back.
        let watch = |fd: &EventFd, events, data| {
            epoll.ctl(ControlOperation::Add, fd.as_raw_fd(), EpollEvent::new(events, data))
        };
        watch(&kick, EventSet::IN | EventSet::EDGE_TRIGGERED, KICK)
            .and_then(|()| watch(&wake, EventSet::IN, STOP))
            .map_err(descriptor("epoll entry"))?;
        let mut server = Server { disk, memory, queue, interrupt, stop: Arc::clone(&stop) };
        let thread = workers
            .spawn(name, SYSCALLS, move || {
                // Owned by the thread, so that the watched descriptor stays open as long as it.
                let _kick = kick;
                server.serve(&epoll);
            })
            .map_err(|source| ActivateError::Thread { name: name.to_owned(), source })?;
        Ok(Self { thread, stop, wake })
    }

    /// Ends the thread, within [`STOP_LIMIT`].
    pub fn stop(self) {
        self.stop.store(true, Ordering::SeqCst);
        // An eventfd only refuses when its counter is full, and then the thread is awake anyway.
        let _ = self.wake.write(1);
        join_within(self.thread, STOP_LIMIT);
    }
}

fn descriptor(what: &'static str) -> impl FnOnce(io::Error) -> ActivateError {
    move |source| ActivateError::Descriptor { what, source }
}

struct Server {
    disk: Disk,
    memory: GuestRam,
    queue: Queue,
    interrupt: Interrupt,
    stop: Arc<AtomicBool>,
}

impl Server {
    fn serve(&mut self, epoll: &Epoll) {
        let mut events = [EpollEvent::default(); 2];
        loop {
            let ready = match epoll.wait(-1, &mut events) {
                Ok(ready) => ready,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            let told = events.iter().take(ready).any(|event| event.data() == STOP);
            if told || self.drain().is_err() || self.stopping() {
                return;
            }
        }
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Serves until the queue is empty and the driver will notify again, or the device is stopped.
    fn drain(&mut self) -> Result<(), virtio_queue::Error> {
        let ram = self.memory.clone();
        let memory = ram.view();
        loop {
            self.queue.disable_notification(memory)?;
            while let Some(chain) = self.queue.iter(memory)?.next() {
                let head = chain.head_index();
                let written = self.disk.answer(memory, chain);
                self.queue.add_used(memory, head, written)?;
                if self.queue.needs_notification(memory)? {
                    // Refused only while the machine goes.
                    let _ = self.interrupt.signal_used_queue();
                }
                if self.stopping() {
                    return Ok(());
                }
            }
            if !self.queue.enable_notification(memory)? {
                return Ok(());
            }
        }
    }
}

impl Disk {
    /// Does what a chain asks for. Returns the bytes written to guest memory.
    fn answer(&self, memory: &GuestMemoryMmap, chain: DescriptorChain<&GuestMemoryMmap>) -> u32 {
        let (status, address, written) = match request::parse(memory, chain) {
            Ok(request) => {
                let (status, written) = self.serve(memory, &request);
                (status, request.status, written)
            }
            Err(malformed) => {
                self.counters.malformed.fetch_add(1, Ordering::Relaxed);
                match malformed {
                    Malformed::At(address) => (VIRTIO_BLK_S_IOERR, address, 0),
                    Malformed::Mute => return 0,
                }
            }
        };
        match memory.write_obj(status as u8, address) {
            // MAX_BYTES fits.
            Ok(()) => written as u32 + 1,
            Err(_) => 0,
        }
    }

    fn serve(&self, memory: &GuestMemoryMmap, request: &Request) -> (u32, u64) {
        let result = match request.command {
            Command::Read(offset) => self.read(memory, offset, &request.data),
            Command::GetId => self.get_id(memory, &request.data),
            Command::Flush => Some(0),
            Command::Other(_) => return (VIRTIO_BLK_S_UNSUPP, 0),
        };
        match result {
            Some(written) => (VIRTIO_BLK_S_OK, written),
            None => {
                self.counters.failed.fetch_add(1, Ordering::Relaxed);
                (VIRTIO_BLK_S_IOERR, 0)
            }
        }
    }

    fn read(&self, memory: &GuestMemoryMmap, offset: u64, data: &[(GuestAddress, usize)]) -> Option<u64> {
        let read = self.extents.read(offset, slices(memory, data)?).ok()?;
        self.counters.reads.fetch_add(1, Ordering::Relaxed);
        self.counters.bytes_read.fetch_add(read, Ordering::Relaxed);
        Some(read)
    }

    fn get_id(&self, memory: &GuestMemoryMmap, data: &[(GuestAddress, usize)]) -> Option<u64> {
        let (address, length) = data.first()?;
        let id = self.id.get(..ID_LENGTH.min(*length))?;
        memory.write_slice(id, *address).ok()?;
        Some(id.len() as u64)
    }
}

/// The guest's buffers, or nothing where one lies outside the memory. A buffer that crosses from one
/// RAM region to the next is outside too: no driver makes one over the device hole.
fn slices<'a>(memory: &'a GuestMemoryMmap, data: &[(GuestAddress, usize)]) -> Option<Vec<VolatileSlice<'a>>> {
    data.iter()
        .map(|(address, length)| GuestMemoryBackend::get_slice(memory, *address, *length).ok())
        .collect()
}
