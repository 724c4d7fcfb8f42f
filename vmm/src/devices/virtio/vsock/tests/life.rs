//! Activation, reset and the end; wake-ups and interrupts.

use std::thread;
use std::time::Instant;

use super::super::VsockDevice;
use super::super::VsockError;
use super::super::limits::TRANSMIT_HOLD_MS;
use super::super::packet::Op;
use super::*;
use crate::devices::virtio::VirtioDevice;
use vm_memory::{Bytes, GuestAddress};

#[test]
fn the_device_says_what_it_is() {
    let device = VsockDevice::new().unwrap();
    assert_eq!((device.device_type(), device.features(), device.queue_sizes().len()), (19, 0, 3));
    let mut config = [0xFF; 12];
    device.read_config(0, &mut config);
    assert_eq!(config, [3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    device.read_config(4, &mut config);
    assert_eq!(config, [0; 12]);
    device.read_config(u64::MAX, &mut config);
    assert_eq!(config, [0; 12]);
}

#[test]
fn a_reset_while_busy_ends_everything_quickly_and_the_driver_can_come_back() {
    let (mut guest, stream, mut listener) = connected(Setup::default());
    let mut output = stream.try_clone().unwrap();
    let writer = thread::spawn(move || while output.write_all(&[1; 65536]).is_ok() {});
    for _ in 0..20 {
        guest.send_some(5000, PORT, &pattern(60_000));
        guest.pump();
        guest.read(5000, PORT, usize::MAX);
    }
    let waiting = blocking(guest.vsock.connect(1).unwrap());
    guest.until("the request", |guest| guest.counter("connections_requested") == 1);

    let start = Instant::now();
    let mut guest = guest.reboot();
    assert!(start.elapsed() < Duration::from_secs(2), "the reset took {:?}", start.elapsed());
    writer.join().unwrap();
    let mut rest = Vec::new();
    (&stream).read_to_end(&mut rest).unwrap(); // what the socket pair held, then EOF
    assert_eq!((&waiting).read(&mut [0]).unwrap(), 0);

    assert!(guest.connect(5000, PORT), "the listener has outlived the reset");
    let mut stream = blocking(listener.try_recv().unwrap());
    guest.send_all(5000, PORT, b"again");
    let mut text = [0; 5];
    stream.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"again");
}

#[test]
fn the_end_of_the_device_is_the_end_of_streams_and_listeners() {
    let (guest, mut stream, mut listener) = connected(Setup::default());
    let vsock = guest.vsock.clone();
    let start = Instant::now();
    drop(guest);
    assert!(start.elapsed() < Duration::from_secs(2));
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    assert!(listener.blocking_recv().is_none());
    assert!(matches!(vsock.connect(1), Err(VsockError::Stopped)));
}

#[test]
fn resetting_what_is_not_active_does_nothing() {
    let mut device = VsockDevice::new().unwrap();
    device.reset();
    device.reset();
    assert!(device.handle().listen(1).is_ok());
}

/// The thread sleeps when nobody wants anything, even with data that the guest has no room for.
#[test]
fn waiting_costs_nothing() {
    let (mut guest, stream, _listener) = connected(Setup { window: 1000, ..Setup::default() });
    (&stream).write_all(&pattern(100_000)).unwrap(); // no credit for most of it
    let idle = guest.vsock.connect(1).unwrap();
    guest.until("all that may come", |guest| guest.sockets[&(5000, PORT)].received.len() == 1000);
    guest.barrier();
    thread::sleep(Duration::from_millis(100)); // the hold of the transmit ring is over
    let before = guest.counter("wakeups");
    thread::sleep(Duration::from_millis(200));
    assert_eq!(guest.counter("wakeups") - before, 0);
    drop(idle);
}

/// Room in a socket is news only while something waits for it.
#[test]
fn a_reader_that_keeps_up_does_not_wake_the_device() {
    let (mut guest, stream, _listener) = connected(Setup::default());
    guest.send_all(5000, PORT, &pattern(100_000));
    guest.barrier();
    thread::sleep(Duration::from_millis(100)); // the hold of the transmit ring is over
    let before = guest.counter("wakeups");
    for _ in 0..100 {
        (&stream).read_exact(&mut [0; 1000]).unwrap();
    }
    thread::sleep(Duration::from_millis(20));
    assert_eq!(guest.counter("wakeups") - before, 0);
}

/// Many packets, one interrupt: used chains are told in batches, and not at all where the driver
/// has said that it does not care yet.
#[test]
fn interrupts_come_in_batches() {
    let (mut guest, stream, _listener) = connected(Setup::default());
    guest.barrier();
    let before = guest.counter("interrupts");
    (&stream).write_all(&pattern(150_000)).unwrap();
    guest.until("data", |guest| guest.sockets[&(5000, PORT)].received.len() == 150_000);
    let interrupts = guest.counter("interrupts") - before;
    let packets = guest.sockets[&(5000, PORT)].packets as u64;
    assert!(interrupts * 4 <= packets, "{interrupts} interrupts for {packets} packets");

    guest.receive.want_interrupt_after(30);
    while guest.wait_interrupt(Duration::from_millis(50)) {}
    let before = guest.counter("interrupts");
    (&stream).write_all(b"one").unwrap();
    let deadline = Instant::now() + PATIENCE;
    while guest.receive.used_waiting() == 0 && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1));
    }
    thread::sleep(Duration::from_millis(20));
    assert_eq!((guest.receive.used_waiting(), guest.counter("interrupts") - before), (1, 0));
}

/// A question and its answer interrupt once: the return of the transmit buffer waits for company.
#[test]
fn the_return_of_transmit_buffers_comes_with_the_answer() {
    let (mut guest, stream, _listener) = connected(Setup::default());
    let before = guest.counter("interrupts");
    for _ in 0..50 {
        guest.send_all(5000, PORT, b"question");
        (&stream).read_exact(&mut [0; 8]).unwrap();
        (&stream).write_all(b"answer").unwrap();
        guest.until("the answer", |guest| !guest.sockets[&(5000, PORT)].received.is_empty());
        guest.read(5000, PORT, 100);
    }
    let interrupts = guest.counter("interrupts") - before;
    assert!((50..=75).contains(&interrupts), "{interrupts} interrupts for 50 answers");
}

/// Without an answer it comes alone, soon, and at once when the ring runs short.
#[test]
fn the_return_of_transmit_buffers_comes_alone_if_it_must() {
    let (mut guest, _stream, _listener) = connected(Setup::default());
    guest.send_all(5000, PORT, b"statement");
    guest.until("the buffer's return", |guest| guest.transmit.has_room(64));

    let (mut guest, _stream, _listener) = connected(Setup { transmit_size: 4, ..Setup::default() });
    guest.barrier();
    guest.until("an idle ring", |guest| guest.transmit.has_room(4));
    let packet = guest.header(Op::CreditUpdate, 5000, PORT).encode(); // nothing answers it
    guest.ram.view().write_slice(&packet, GuestAddress(0x50_0000)).unwrap();
    while guest.wait_interrupt(Duration::from_millis(50)) {}
    let start = Instant::now();
    for _ in 0..200 {
        guest.transmit.want_interrupt_after(3);
        for _ in 0..4 {
            guest.transmit.add(&[(0x50_0000, packet.len() as u32, 0)]);
        }
        assert!(guest.wait_interrupt(PATIENCE), "lost interrupt");
        assert_eq!(guest.transmit.used_waiting(), 4);
        guest.pump();
    }
    let holds = start.elapsed().as_millis() / TRANSMIT_HOLD_MS as u128;
    assert!(holds < 150, "200 full rings took {holds} holds, as if each waited for one");
}

/// Kicks cost an exit each: the driver is asked for them only when the device has nothing to do
/// in the transmit ring, and for receive buffers only when it lacks them.
#[test]
fn receive_buffers_are_kicked_for_only_when_they_lack() {
    let (mut guest, stream, _listener) = connected(Setup::default());
    guest.barrier();
    let before = guest.receive.kicks;
    for _ in 0..50 {
        (&stream).write_all(b"ping").unwrap();
        guest.until("data", |guest| !guest.sockets[&(5000, PORT)].received.is_empty());
        guest.read(5000, PORT, 100);
    }
    assert!(guest.receive.kicks <= before + 1, "{} kicks for 50 refills", guest.receive.kicks - before);

    let (mut guest, stream, _listener) = connected(Setup { offered: 1, ..Setup::default() });
    for round in 0..50 {
        (&stream).write_all(&pattern(3776 * 2)).unwrap(); // more than the buffer holds
        guest.until("data", |guest| guest.sockets[&(5000, PORT)].received.len() == 3776 * 2);
        assert_eq!(guest.read(5000, PORT, usize::MAX), pattern(3776 * 2), "round {round}");
    }
    assert!(guest.counter("receive_starvations") > 0);
    assert!(guest.ops().contains(&Op::Response));
}
