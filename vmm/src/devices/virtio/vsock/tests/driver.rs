//! A guest's vsock driver, small and literal: rings in real guest memory, one packet at a time,
//! with knobs for everything that a driver may get wrong.

use std::collections::{HashMap, VecDeque};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::super::limits::WINDOW_LARGE;
use super::super::packet::{HEADER_BYTES, Header, Op, SHUTDOWN_BOTH, TYPE_STREAM};
use super::super::{GUEST_CID, HOST_CID, Vsock, VsockDevice};
use super::ring::Ring;
use crate::devices::virtio::{Activation, Interrupt, VirtioDevice};
use crate::memory::GuestRam;
use crate::thread::Workers;

/// No wait of a test is longer.
pub const PATIENCE: Duration = Duration::from_secs(20);

const WRITE: u16 = 2;
const RECEIVE_BUFFERS: u64 = 0x10_0000;
const TRANSMIT_SLOTS: u64 = 0x80_0000;
const SLOT_BYTES: u64 = 0x1_1000;

/// What the driver sets up.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub receive_size: u16,
    pub transmit_size: u16,
    pub receive_buffer: u32,
    pub event_idx: bool,
    /// The guest's receive window for each connection.
    pub window: u32,
    /// Receive buffers that are offered from the start.
    pub offered: u16,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            receive_size: 64,
            transmit_size: 64,
            receive_buffer: 3776,
            event_idx: true,
            window: 256 << 10,
            offered: 64,
        }
    }
}

/// A socket in the guest.
#[derive(Debug, Default)]
pub struct Socket {
    /// Our REQUEST was answered, or we answered one.
    pub open: bool,
    /// RST came.
    pub reset: bool,
    /// SHUTDOWN flags that came.
    pub shutdown: u32,
    /// All data that came and was not taken.
    pub received: VecDeque<u8>,
    /// Data packets that came.
    pub packets: usize,
    /// `buf_alloc` and `fwd_cnt` of the device.
    pub host_window: u32,
    pub host_forwarded: u32,
    /// Bytes sent.
    pub sent: u32,
    /// Bytes taken from `received`, and as last told.
    pub forwarded: u32,
    pub reported: u32,
}

impl Socket {
    /// Bytes that may be sent.
    pub fn credit(&self) -> u32 {
        self.host_window - self.sent.wrapping_sub(self.host_forwarded)
    }
}

/// The guest.
#[derive(Debug)]
pub struct Guest {
    pub device: VsockDevice,
    pub vsock: Vsock,
    pub ram: GuestRam,
    pub setup: Setup,
    pub receive: Ring,
    pub transmit: Ring,
    pub sockets: HashMap<(u32, u32), Socket>,
    /// Headers of everything but data, in order.
    pub log: Vec<Header>,
    /// Ports on which the guest answers REQUEST with RESPONSE.
    pub listening: Vec<u32>,
    interrupt: Arc<EventFd>,
    sleep: Epoll,
    slots: HashMap<u16, u64>,
    free_slots: Vec<u64>,
    receive_at: HashMap<u16, u64>,
}

impl Guest {
    /// A machine whose driver has brought the device up.
    pub fn new(setup: Setup) -> Self {
        Self::boot_with(VsockDevice::new().unwrap(), setup)
    }

    /// As [`Self::new`], for a device that has been in use.
    pub fn boot_with(device: VsockDevice, setup: Setup) -> Self {
        let vsock = device.handle();
        Self::boot(device, vsock, GuestRam::allocate(32).unwrap(), setup)
    }

    fn boot(mut device: VsockDevice, vsock: Vsock, ram: GuestRam, setup: Setup) -> Self {
        let receive = Ring::new(&ram, 0, setup.receive_size, setup.event_idx);
        let transmit = Ring::new(&ram, 1, setup.transmit_size, setup.event_idx);
        let event = Ring::new(&ram, 2, 8, setup.event_idx);
        let line = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap());
        let activation = Activation {
            memory: ram.clone(),
            features: 0,
            queues: vec![receive.queue(), transmit.queue(), event.queue()],
            interrupt: Interrupt::new(Arc::new(AtomicU32::new(0)), Arc::clone(&line)),
            workers: Workers::default(),
        };
        device.activate(activation).unwrap();
        let sleep = Epoll::new().unwrap();
        sleep.ctl(ControlOperation::Add, line.as_raw_fd(), EpollEvent::new(EventSet::IN, 0)).unwrap();
        let mut guest = Self {
            device,
            vsock,
            ram,
            setup,
            receive,
            transmit,
            sockets: HashMap::new(),
            log: Vec::new(),
            listening: Vec::new(),
            interrupt: line,
            sleep,
            slots: HashMap::new(),
            free_slots: (0..64).map(|slot| TRANSMIT_SLOTS + slot * SLOT_BYTES).collect(),
            receive_at: HashMap::new(),
        };
        for index in 0..setup.offered.min(setup.receive_size) {
            guest.offer(RECEIVE_BUFFERS + 0x1_1000 * u64::from(index));
        }
        guest
    }

    /// The driver resets the device and brings it up again with empty rings.
    pub fn reboot(mut self) -> Self {
        self.device.reset();
        let Self { device, vsock, ram, setup, .. } = self;
        Self::boot(device, vsock, ram, setup)
    }

    /// Gives the device one receive buffer.
    pub fn offer(&mut self, address: u64) {
        let head = self.receive.add(&[(address, self.setup.receive_buffer, WRITE)]);
        self.receive_at.insert(head, address);
    }

    /// Offers the receive buffer with this number, for set-ups that start with fewer.
    pub fn offer_numbered(&mut self, index: u64) {
        self.offer(RECEIVE_BUFFERS + 0x1_1000 * index);
    }

    /// A header from the guest's port to the host's.
    pub fn header(&self, op: Op, guest: u32, host: u32) -> Header {
        let socket = self.sockets.get(&(guest, host));
        Header {
            source_cid: GUEST_CID,
            destination_cid: HOST_CID,
            source_port: guest,
            destination_port: host,
            kind: TYPE_STREAM,
            op: op as u16,
            buf_alloc: self.setup.window,
            fwd_cnt: socket.map_or(0, |socket| socket.forwarded),
            ..Header::default()
        }
    }

    /// Sends a packet whose payload lies in `pieces` descriptors. Waits for room in the ring.
    pub fn send_in(&mut self, header: &Header, payload: &[u8], pieces: usize) {
        let count = 1 + if payload.is_empty() { 0 } else { pieces };
        self.until("room to send", |guest| guest.transmit.has_room(count) && !guest.free_slots.is_empty());
        let slot = self.free_slots.pop().unwrap();
        let memory = self.ram.view();
        memory.write_slice(&header.encode(), GuestAddress(slot)).unwrap();
        let data = slot + 64;
        memory.write_slice(payload, GuestAddress(data)).unwrap();
        let mut chain = vec![(slot, HEADER_BYTES as u32, 0)];
        let mut offset = 0;
        for piece in 1..count {
            let end = payload.len() * piece / pieces;
            chain.push((data + offset as u64, (end - offset) as u32, 0));
            offset = end;
        }
        let head = self.transmit.add(&chain);
        self.slots.insert(head, slot);
    }

    /// Sends a packet without payload.
    pub fn send(&mut self, header: &Header) {
        self.send_in(header, &[], 0);
    }

    /// Sends a control packet on a socket.
    pub fn control(&mut self, op: Op, guest: u32, host: u32, flags: u32) {
        let header = Header { flags, ..self.header(op, guest, host) };
        self.send(&header);
    }

    /// Returns when the device has dealt with everything that was sent before. Leaves no trace in the
    /// log.
    pub fn barrier(&mut self) {
        const NOBODY: (u32, u32) = (65000, 1);
        assert!(!self.connect(NOBODY.0, NOBODY.1), "somebody listens on port 1");
        self.sockets.remove(&NOBODY);
        self.log.retain(|header| (header.destination_port, header.source_port) != NOBODY);
    }

    /// Closes a socket as Linux does.
    pub fn close(&mut self, guest: u32, host: u32) {
        self.control(Op::Shutdown, guest, host, SHUTDOWN_BOTH);
    }

    /// Opens a connection to the host; `true` if the host accepts.
    pub fn connect(&mut self, guest: u32, host: u32) -> bool {
        self.sockets.insert((guest, host), Socket::default());
        self.control(Op::Request, guest, host, 0);
        self.until("an answer to REQUEST", |guest_| {
            let socket = &guest_.sockets[&(guest, host)];
            socket.open || socket.reset
        });
        self.sockets[&(guest, host)].open
    }

    /// Sends as much of `data` as there is credit for, in one packet. Returns how much.
    pub fn send_some(&mut self, guest: u32, host: u32, data: &[u8]) -> usize {
        let credit = self.sockets[&(guest, host)].credit() as usize;
        let length = data.len().min(credit).min(64 << 10);
        if length > 0 {
            let header = Header { length: length as u32, ..self.header(Op::Data, guest, host) };
            self.sockets.get_mut(&(guest, host)).unwrap().sent += length as u32;
            self.send_in(&header, &data[..length], if length > 32 << 10 { 2 } else { 1 });
        }
        length
    }

    /// Sends all of `data`, waiting for credit.
    pub fn send_all(&mut self, guest: u32, host: u32, mut data: &[u8]) {
        while !data.is_empty() {
            self.until("credit", |guest_| guest_.sockets[&(guest, host)].credit() > 0);
            let sent = self.send_some(guest, host, data);
            data = &data[sent..];
        }
    }

    /// Sends from `data` until the device has parked a whole window for a reader that does not read.
    /// Returns how much.
    pub fn send_until_parked(&mut self, guest: u32, host: u32, data: &[u8]) -> usize {
        let mut sent = 0;
        self.until("a full window", |guest_| {
            sent += guest_.send_some(guest, host, &data[sent..]);
            guest_.counter("bytes_parked") == u64::from(WINDOW_LARGE)
        });
        sent
    }

    /// Takes up to `count` received bytes and tells the host when it is worth it, as Linux does.
    pub fn read(&mut self, guest: u32, host: u32, count: usize) -> Vec<u8> {
        let socket = self.sockets.get_mut(&(guest, host)).unwrap();
        let bytes: Vec<u8> = socket.received.drain(..count.min(socket.received.len())).collect();
        socket.forwarded = socket.forwarded.wrapping_add(bytes.len() as u32);
        if socket.forwarded.wrapping_sub(socket.reported) > self.setup.window / 2 {
            socket.reported = socket.forwarded;
            self.control(Op::CreditUpdate, guest, host, 0);
        }
        bytes
    }

    /// Takes what the device has used. Returns whether there was anything.
    pub fn pump(&mut self) -> bool {
        let mut progress = false;
        while let Some((head, _)) = self.transmit.take() {
            self.free_slots.extend(self.slots.remove(&head));
            progress = true;
        }
        while let Some((head, length)) = self.receive.take() {
            let address = self.receive_at.remove(&head).unwrap();
            self.take_packet(address, length);
            self.offer(address);
            progress = true;
        }
        progress
    }

    fn take_packet(&mut self, address: u64, length: u32) {
        let mut bytes = [0; HEADER_BYTES];
        self.ram.view().read_slice(&mut bytes, GuestAddress(address)).unwrap();
        let header = Header::decode(&bytes);
        assert_eq!(length, HEADER_BYTES as u32 + header.length, "used length and header disagree");
        let key = (header.destination_port, header.source_port);
        let op = Op::from_number(header.op).expect("the device sent no operation");
        if op != Op::Data {
            self.log.push(header);
        }
        if op == Op::Request {
            assert!(!self.sockets.contains_key(&key) || self.sockets[&key].reset);
            let open = self.listening.contains(&key.0);
            self.sockets.insert(key, Socket { open, ..Socket::default() });
            self.control(if open { Op::Response } else { Op::Reset }, key.0, key.1, 0);
        }
        let Some(socket) = self.sockets.get_mut(&key) else { return };
        if op != Op::Reset {
            (socket.host_window, socket.host_forwarded) = (header.buf_alloc, header.fwd_cnt);
        }
        match op {
            Op::Response => socket.open = true,
            Op::Reset => socket.reset = true,
            Op::Shutdown => socket.shutdown |= header.flags,
            Op::Data => {
                assert_eq!(socket.shutdown & 2, 0, "data after SHUTDOWN(send)");
                let mut data = vec![0; header.length as usize];
                let at = GuestAddress(address + HEADER_BYTES as u64);
                self.ram.view().read_slice(&mut data, at).unwrap();
                socket.packets += 1;
                socket.received.extend(data);
                assert!(socket.received.len() <= self.setup.window as usize, "more than our window");
            }
            _ => {}
        }
    }

    /// Sleeps until the device interrupts, at most `limit`. Returns whether it did.
    pub fn wait_interrupt(&self, limit: Duration) -> bool {
        let mut events = [EpollEvent::default()];
        let ready = self.sleep.wait(limit.as_millis() as i32, &mut events).unwrap() > 0;
        if ready {
            self.interrupt.read().unwrap();
        }
        ready
    }

    /// Serves the rings, woken by interrupts only, until `done`.
    pub fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let progress = self.pump();
            if done(self) {
                return;
            }
            assert!(Instant::now() < deadline, "no {what} in {PATIENCE:?}");
            if !progress {
                // The host's side of a test runs in other threads, so silence is legal for a while;
                // used chains without an interrupt are not: `take` asked for one.
                let called = self.wait_interrupt(Duration::from_millis(20));
                if !called && self.receive.used_waiting() + self.transmit.used_waiting() > 0 {
                    assert!(self.wait_interrupt(Duration::from_secs(1)), "lost interrupt");
                }
            }
        }
    }

    /// Serves the rings for a while, for proofs that something does not happen.
    pub fn idle(&mut self, time: Duration) {
        let deadline = Instant::now() + time;
        while Instant::now() < deadline {
            self.pump();
            self.wait_interrupt(Duration::from_millis(5));
        }
    }

    /// The operations in the log, as numbers of [`Op`].
    pub fn ops(&self) -> Vec<Op> {
        self.log.iter().map(|header| Op::from_number(header.op).unwrap()).collect()
    }

    /// A counter of the device.
    pub fn counter(&self, name: &str) -> u64 {
        self.device.counters().iter().find(|counter| counter.name == name).unwrap().value
    }
}
