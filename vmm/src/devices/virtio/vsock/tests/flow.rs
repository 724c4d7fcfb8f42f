//! Connecting, and bytes in order under every shortage.

use std::thread;

use super::super::limits::{ACCEPT_BACKLOG, FIRST_HOST_PORT, TURN_BYTES, WINDOW_LARGE};
use super::super::packet::{Op, SHUTDOWN_SEND};
use super::*;

const BULK: usize = 64 << 20;

#[test]
fn the_guest_connects_to_a_listener() {
    let (mut guest, mut stream, _listener) = connected(Setup::default());
    let response = guest.log[0];
    assert_eq!(
        (response.op, response.source_port, response.destination_port),
        (Op::Response as u16, PORT, 5000)
    );
    assert_eq!(response.buf_alloc, WINDOW_LARGE);

    guest.send_all(5000, PORT, b"from the guest");
    let mut text = [0; 14];
    stream.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"from the guest");

    stream.write_all(b"from the host").unwrap();
    guest.until("data", |guest| guest.sockets[&(5000, PORT)].received.len() == 13);
    assert_eq!(guest.read(5000, PORT, 100), b"from the host");
    assert_eq!(guest.counter("connections_accepted"), 1);
}

#[test]
fn the_host_connects_and_may_write_before_the_guest_accepts() {
    let mut guest = Guest::new(Setup::default());
    guest.listening = vec![2222];
    let mut stream = blocking(guest.vsock.connect(2222).unwrap());
    stream.write_all(b"early").unwrap();
    let key = (2222, FIRST_HOST_PORT);
    guest.until("data", |guest| guest.sockets.get(&key).is_some_and(|socket| socket.received.len() == 5));
    assert_eq!(guest.ops(), [Op::Request]);
    guest.send_all(2222, FIRST_HOST_PORT, b"answer");
    let mut text = [0; 6];
    stream.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"answer");
}

#[test]
fn the_host_may_even_have_finished_before_the_guest_accepts() {
    let mut guest = Guest::new(Setup { offered: 0, ..Setup::default() });
    guest.listening = vec![2222];
    let stream = blocking(guest.vsock.connect(2222).unwrap());
    (&stream).write_all(b"all of it").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    guest.until("the request", |guest| guest.counter("connections_requested") == 1);
    guest.idle(Duration::from_millis(20));
    guest.offer_numbered(0);
    let key = (2222, FIRST_HOST_PORT);
    guest.until("the end", |guest| {
        guest.sockets.get(&key).is_some_and(|socket| socket.shutdown == SHUTDOWN_SEND)
    });
    assert_eq!(guest.read(2222, FIRST_HOST_PORT, 100), b"all of it");
    guest.send_all(2222, FIRST_HOST_PORT, b"thanks");
    (&stream).read_exact(&mut [0; 6]).unwrap();
}

#[test]
fn a_connection_asked_for_before_the_driver_is_up_is_opened_then() {
    let device = super::super::VsockDevice::new().unwrap();
    let vsock = device.handle();
    let stream = blocking(vsock.connect(7).unwrap());
    (&stream).write_all(b"hi").unwrap();
    let mut guest = Guest::boot_with(device, Setup::default());
    guest.listening = vec![7];
    guest.until("data", |guest| guest.sockets.values().any(|socket| socket.received.len() == 2));
    assert!(is_quiet(&stream));
}

#[test]
fn nobody_listening_is_a_reset_in_both_directions() {
    let mut guest = Guest::new(Setup::default());
    assert!(!guest.connect(5000, 4711));
    let listener = guest.vsock.listen(4712).unwrap();
    drop(listener);
    assert!(!guest.connect(5001, 4712), "a listener that is gone");

    let mut stream = blocking(guest.vsock.connect(9).unwrap());
    guest.until("the request", |guest| guest.ops().contains(&Op::Request));
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "the guest's refusal reads as EOF");
    assert_eq!(guest.counter("refusals"), 2);
}

#[test]
fn a_full_backlog_refuses_and_serves_again_later() {
    let mut guest = Guest::new(Setup::default());
    let mut listener = guest.vsock.listen(PORT).unwrap();
    for port in 0..ACCEPT_BACKLOG as u32 {
        assert!(guest.connect(5000 + port, PORT));
    }
    assert!(!guest.connect(9000, PORT));
    let first = listener.try_recv().unwrap();
    assert!(guest.connect(9001, PORT));
    drop(first);
}

/// 64 MiB to the host through windows, rings and packets of several sizes.
#[test]
fn bulk_to_the_host_arrives_whole() {
    for (transmit_size, packet) in [(4, 64 << 10), (16, 30_000), (64, 4096)] {
        let setup = Setup { transmit_size, ..Setup::default() };
        let (mut guest, mut stream, _listener) = connected(setup);
        let length = if packet == 64 << 10 { BULK } else { BULK / 16 };
        let reader = thread::spawn(move || {
            let expected = pattern(length);
            let mut buffer = vec![0; 100_000];
            let mut offset = 0;
            while offset < length {
                let count = stream.read(&mut buffer).unwrap();
                assert!(count > 0 && buffer[..count] == expected[offset..offset + count], "at {offset}");
                offset += count;
            }
        });
        for piece in pattern(length).chunks(packet) {
            guest.send_all(5000, PORT, piece);
        }
        guest.until("the reader", |_| reader.is_finished());
        reader.join().unwrap();
        assert_eq!(guest.counter("bytes_from_guest"), length as u64);
        let updates = guest.ops().iter().filter(|op| **op == Op::CreditUpdate).count();
        assert!(updates <= length / (32 << 10), "{updates} credit updates for {length} bytes");
    }
}

/// 64 MiB to the guest through windows, rings and buffers of several sizes.
#[test]
fn bulk_to_the_guest_arrives_whole() {
    let shapes = [(64, 3776, 256 << 10), (2, 500, 8192), (8, 65580, 100_000)];
    for (receive_size, receive_buffer, window) in shapes {
        let setup = Setup { receive_size, receive_buffer, window, ..Setup::default() };
        let (mut guest, mut stream, _listener) = connected(setup);
        let length = if receive_size == 64 { BULK } else { BULK / 64 };
        let writer = thread::spawn(move || stream.write_all(&pattern(length)).map(|()| stream).unwrap());
        let expected = pattern(length);
        let mut offset = 0;
        while offset < length {
            guest.until("data", |guest| !guest.sockets[&(5000, PORT)].received.is_empty());
            let bytes = guest.read(5000, PORT, usize::MAX);
            assert!(bytes == expected[offset..offset + bytes.len()], "at {offset}");
            offset += bytes.len();
        }
        assert!(is_quiet(&writer.join().unwrap()));
        assert_eq!(guest.counter("bytes_to_guest"), length as u64);
    }
}

#[test]
fn both_directions_at_once() {
    let length = BULK / 16;
    let (mut guest, stream, _listener) =
        connected(Setup { receive_size: 8, transmit_size: 8, ..Setup::default() });
    let mut input = stream.try_clone().unwrap();
    let reader = thread::spawn(move || {
        let mut all = vec![0; length];
        input.read_exact(&mut all).unwrap();
        assert!(all == pattern(length));
    });
    let mut output = stream.try_clone().unwrap();
    let writer = thread::spawn(move || output.write_all(&pattern(length)).unwrap());
    let data = pattern(length);
    let (mut sent, mut received) = (0, 0);
    while sent < length || received < length {
        if sent < length && guest.transmit.has_room(3) {
            sent += guest.send_some(5000, PORT, &data[sent..]);
        }
        let bytes = guest.read(5000, PORT, usize::MAX);
        assert!(bytes == data[received..received + bytes.len()]);
        received += bytes.len();
        let mut first = true;
        guest.until("progress", |guest| {
            let socket = &guest.sockets[&(5000, PORT)];
            let may_send = sent < length && socket.credit() > 0 && guest.transmit.has_room(3);
            !std::mem::take(&mut first) || may_send || !socket.received.is_empty()
        });
    }
    reader.join().unwrap();
    writer.join().unwrap();
}

/// A reader that stands still: the guest runs out of credit, nothing is lost, the connection next
/// to it does not notice.
#[test]
fn a_stalled_reader_stalls_its_writer_only() {
    let (mut guest, mut stalled, mut listener) = connected(Setup::default());
    let data = pattern(2 << 20);
    let sent = guest.send_until_parked(5000, PORT, &data);
    assert!(sent < 1 << 20, "{sent} bytes were taken for a reader that reads nothing");
    guest.idle(Duration::from_millis(50));
    assert_eq!(guest.sockets[&(5000, PORT)].credit(), 0, "credit came from nowhere");

    assert!(guest.connect(5001, PORT));
    let mut other = blocking(listener.try_recv().unwrap());
    guest.send_all(5001, PORT, &data[..500_000 / 4]);
    let mut copy = vec![0; 500_000 / 4];
    other.read_exact(&mut copy).unwrap();
    assert!(copy == data[..500_000 / 4]);

    let total = data.len();
    let reader = thread::spawn(move || {
        let mut all = vec![0; total];
        stalled.read_exact(&mut all).unwrap();
        all
    });
    guest.send_all(5000, PORT, &data[sent..]);
    guest.until("the reader", |_| reader.is_finished());
    assert!(reader.join().unwrap() == data);
}

/// A guest that does not read gets its window full and nothing beyond, then is asked, then served.
#[test]
fn a_stalled_guest_gets_its_window_and_one_question() {
    let (mut guest, mut stream, _listener) = connected(Setup { window: 10_000, ..Setup::default() });
    let writer = thread::spawn(move || stream.write_all(&pattern(25_000)).unwrap());
    guest.until("a full window", |guest| guest.sockets[&(5000, PORT)].received.len() == 10_000);
    guest.until("the question", |guest| guest.ops().contains(&Op::CreditRequest));
    guest.control(Op::CreditUpdate, 5000, PORT, 0); // the truth: still nothing
    guest.idle(Duration::from_millis(50));
    assert_eq!(guest.ops().iter().filter(|op| **op == Op::CreditRequest).count(), 1);

    let mut all = Vec::new();
    while all.len() < 25_000 {
        guest.until("data", |guest| !guest.sockets[&(5000, PORT)].received.is_empty());
        all.extend(guest.read(5000, PORT, usize::MAX));
    }
    assert!(all == pattern(25_000));
    writer.join().unwrap();
}

#[test]
fn a_hundred_connections_at_once_all_get_on() {
    let mut guest = Guest::new(Setup { receive_size: 16, transmit_size: 16, ..Setup::default() });
    let mut listener = guest.vsock.listen(PORT).unwrap();
    let mut threads = Vec::new();
    for port in 0..100_u32 {
        assert!(guest.connect(5000 + port, PORT));
        let mut stream = blocking(listener.try_recv().unwrap());
        // Each host's end sends back what it gets, and first its own number.
        threads.push(thread::spawn(move || {
            stream.write_all(&port.to_le_bytes()).unwrap();
            let mut bytes = vec![0; 50_000];
            stream.read_exact(&mut bytes).unwrap();
            stream.write_all(&bytes).unwrap();
            stream
        }));
    }
    let data: Vec<Vec<u8>> = (0..100).map(|port| pattern(50_000 + port)[port..].to_vec()).collect();
    for offset in (0..50_000).step_by(10_000) {
        for port in 0..100_u32 {
            guest.send_all(5000 + port, PORT, &data[port as usize][offset..offset + 10_000]);
        }
    }
    guest.until("all echoes", |guest| guest.sockets.values().all(|socket| socket.received.len() == 50_004));
    for port in 0..100_u32 {
        let bytes = guest.read(5000 + port, PORT, usize::MAX);
        assert_eq!(bytes[..4], port.to_le_bytes(), "connections got mixed up");
        assert!(bytes[4..] == data[port as usize]);
    }
    drop(threads);
}

/// With few receive buffers, ten greedy host's ends take turns: none waits for another to finish.
#[test]
fn scarce_receive_buffers_are_shared_in_turns() {
    let mut guest = Guest::new(Setup { receive_size: 4, receive_buffer: 4096, ..Setup::default() });
    let mut listener = guest.vsock.listen(PORT).unwrap();
    let mut streams = Vec::new();
    for port in 0..10 {
        assert!(guest.connect(5000 + port, PORT));
        streams.push(listener.try_recv().unwrap());
    }
    for stream in &mut streams {
        assert_eq!(stream.write(&pattern(150_000)).unwrap(), 150_000);
    }
    guest.until("one in its third turn", |guest| {
        guest.sockets.values().any(|socket| socket.received.len() > 2 * TURN_BYTES as usize)
    });
    let least = guest.sockets.values().map(|socket| socket.received.len()).min().unwrap();
    assert!(least >= TURN_BYTES as usize, "somebody has only {least} bytes");
}

/// Bulk makes the device look at many buffers at once; those that it then has no use for are still
/// the guest's to get back one day.
#[test]
fn no_receive_buffer_is_lost_between_bulk_and_small_talk() {
    let (mut guest, stream, _listener) = connected(Setup::default());
    for _ in 0..10 {
        (&stream).write_all(&pattern(200_000)).unwrap();
        guest.until("bulk", |guest| guest.sockets[&(5000, PORT)].received.len() == 200_000);
        guest.read(5000, PORT, usize::MAX);
        for _ in 0..5 {
            (&stream).write_all(b"x").unwrap();
            guest.until("small talk", |guest| !guest.sockets[&(5000, PORT)].received.is_empty());
            guest.read(5000, PORT, usize::MAX);
        }
    }
    assert_eq!(guest.counter("receive_starvations"), 0, "64 buffers are plenty for this");
}

#[test]
fn a_driver_without_event_idx_is_served_too() {
    let setup = Setup { event_idx: false, receive_size: 4, transmit_size: 4, ..Setup::default() };
    let (mut guest, mut stream, _listener) = connected(setup);
    let echo = thread::spawn(move || {
        let mut bytes = vec![0; 300_000];
        stream.read_exact(&mut bytes).unwrap();
        stream.write_all(&bytes).unwrap();
        stream
    });
    let data = pattern(300_000);
    guest.send_all(5000, PORT, &data);
    let mut back = Vec::new();
    while back.len() < data.len() {
        guest.until("data", |guest| !guest.sockets[&(5000, PORT)].received.is_empty());
        back.extend(guest.read(5000, PORT, usize::MAX));
    }
    assert!(back == data);
    drop(echo.join().unwrap());
}
