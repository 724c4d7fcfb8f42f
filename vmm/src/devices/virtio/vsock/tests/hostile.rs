//! Packets and rings that no honest driver makes.

use super::super::limits::{MAX_CONNECTIONS, MAX_PACKET_BYTES, MAX_REFUSALS, WINDOW_LARGE};
use super::super::packet::{Header, Op, SHUTDOWN_SEND, TYPE_STREAM};
use super::super::{GUEST_CID, HOST_CID};
use super::*;
use vm_memory::{Bytes, GuestAddress};

/// Sends `edit`ed data on an open connection and returns what came back for the connection.
fn abuse(edit: impl FnOnce(&mut Header), payload: &[u8]) -> (Guest, UnixStream, Vec<Header>) {
    let (mut guest, stream, _listener) = connected(Setup::default());
    let mut header = Header { length: payload.len() as u32, ..guest.header(Op::Data, 5000, PORT) };
    edit(&mut header);
    guest.log.clear();
    guest.send_in(&header, payload, 1);
    guest.barrier();
    let log = guest.log.clone();
    (guest, stream, log)
}

/// Every way to break the protocol on a connection: RST, and EOF for the host.
#[test]
fn a_broken_protocol_ends_the_connection() {
    type Edit = fn(&mut Header);
    let edits: [(&str, Edit); 8] = [
        ("length beyond the buffer", |header| header.length = 5),
        ("length beyond the cap", |header| header.length = MAX_PACKET_BYTES + 1),
        ("endless length", |header| header.length = u32::MAX),
        ("operation 0", |header| header.op = 0),
        ("operation 8", |header| header.op = 8),
        ("operation 65535", |header| header.op = u16::MAX),
        ("payload on control", |header| header.op = Op::CreditUpdate as u16),
        ("REQUEST on an open connection", |header| (header.op, header.length) = (Op::Request as u16, 0)),
    ];
    for (name, edit) in edits {
        let (mut guest, mut stream, log) = abuse(edit, b"4444");
        let ops: Vec<u16> = log.iter().map(|header| header.op).collect();
        assert_eq!(ops, [Op::Reset as u16], "{name}");
        assert_eq!((log[0].source_port, log[0].destination_port), (PORT, 5000), "{name}");
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "{name}");
        assert_eq!(guest.counter("violations"), 1, "{name}");
        assert!(!guest.connect(6000, 1), "{name}: the device still works");
    }
}

#[test]
fn more_than_the_window_is_a_violation_however_it_is_cut() {
    let (mut guest, mut stream, _listener) = connected(Setup::default());
    let data = vec![7; 64 << 10];
    // A reader that takes nothing: sooner or later the window is full, and one byte more is a lie.
    guest.until("RST", |guest| {
        let header = Header { length: data.len() as u32, ..guest.header(Op::Data, 5000, PORT) };
        guest.send_in(&header, &data, 3);
        guest.sockets[&(5000, PORT)].reset
    });
    assert!(guest.counter("bytes_parked") <= u64::from(WINDOW_LARGE));
    assert_eq!(guest.counter("violations"), 1);
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert!(rest.iter().all(|byte| *byte == 7));
}

#[test]
fn data_after_the_end_is_a_violation() {
    let (mut guest, _stream, _listener) = connected(Setup::default());
    guest.control(Op::Shutdown, 5000, PORT, SHUTDOWN_SEND);
    guest.send_some(5000, PORT, b"x");
    guest.until("RST", |guest| guest.sockets[&(5000, PORT)].reset);
}

/// Wrong addresses never reach the connection that has the same ports.
#[test]
fn wrong_addresses_are_refused_or_ignored() {
    let (mut guest, stream, log) = abuse(|header| header.destination_cid = 99, b"4444");
    assert_eq!(log.len(), 1);
    assert_eq!(
        (log[0].op, log[0].source_cid),
        (Op::Reset as u16, 99),
        "answered in the name that was called"
    );
    assert!(is_quiet(&stream));
    guest.send_all(5000, PORT, b"x");
    (&stream).read_exact(&mut [0]).unwrap();

    let (guest, stream, log) = abuse(|header| header.source_cid = 4, b"4444");
    assert!(log.is_empty(), "an answer to a stranger: {log:?}");
    assert!(is_quiet(&stream));
    assert_eq!(guest.counter("malformed_packets"), 1);

    let (_guest, stream, log) = abuse(|header| header.kind = 2, b"4444");
    assert_eq!((log.len(), log[0].op, log[0].kind), (1, Op::Reset as u16, 2), "no seqpacket here");
    assert!(is_quiet(&stream));
}

#[test]
fn every_operation_on_an_unknown_connection_is_refused_but_rst() {
    let mut guest = Guest::new(Setup::default());
    let _listener = guest.vsock.listen(PORT).unwrap();
    for op in Op::ALL.into_iter().filter(|op| *op != Op::Request) {
        guest.log.clear();
        let header = guest.header(op, 5000, PORT);
        guest.send(&header);
        guest.barrier();
        let expected: &[Op] = if op == Op::Reset { &[] } else { &[Op::Reset] };
        assert_eq!(guest.ops(), expected, "{op:?}");
    }
}

#[test]
fn chains_without_a_packet_are_returned_and_counted() {
    let mut guest = Guest::new(Setup::default());
    let slot = 0x50_0000;
    let chains: [&[(u64, u32, u16)]; 4] = [
        &[(slot, 43, 0)],
        &[(slot, 44, 2)],
        &[(u64::MAX - 3, 44, 0)],
        &[(slot, 44, 0), (0x200_0000_0000, 4, 0)],
    ];
    for chain in chains {
        guest.transmit.add(chain);
    }
    guest.barrier();
    guest.until("the chains", |guest| guest.transmit.has_room(64));
    assert_eq!(guest.counter("malformed_packets"), 4);
    assert!(!guest.connect(6000, 1), "the device still works");
}

/// A guest that asks and never listens stands still; its rings move again when it listens.
#[test]
fn refusals_are_bounded_by_not_reading_on() {
    let mut guest = Guest::new(Setup { offered: 0, ..Setup::default() });
    let wanted = MAX_REFUSALS + 40;
    let request = Header {
        source_cid: GUEST_CID,
        destination_cid: HOST_CID,
        destination_port: 1,
        op: Op::Request as u16,
        kind: TYPE_STREAM,
        ..Header::default()
    };
    for source_port in 0..wanted as u32 {
        guest.send(&Header { source_port, ..request });
    }
    guest.idle(Duration::from_millis(50));
    assert_eq!(guest.counter("packets_from_guest"), MAX_REFUSALS as u64);
    for index in 0..8 {
        guest.offer_numbered(index);
    }
    guest.until("all refusals", |guest| guest.log.len() == wanted);
    let ports: Vec<u32> = guest.log.iter().map(|header| header.destination_port).collect();
    assert_eq!(ports, (0..wanted as u32).collect::<Vec<_>>(), "each once, in order");
}

#[test]
fn connections_are_capped() {
    let files = rustix::process::Resource::Nofile;
    let limit = rustix::process::getrlimit(files);
    rustix::process::setrlimit(files, rustix::process::Rlimit { current: limit.maximum, ..limit }).unwrap();
    let mut guest = Guest::new(Setup::default());
    let mut listener = guest.vsock.listen(PORT).unwrap();
    let mut streams = Vec::new();
    for port in 0..MAX_CONNECTIONS as u32 {
        assert!(guest.connect(5000 + port, PORT), "connection {port}");
        streams.push(listener.try_recv().unwrap());
    }
    assert!(!guest.connect(9000, PORT), "one more");
    let mut own = blocking(guest.vsock.connect(1).unwrap());
    assert_eq!(own.read(&mut [0]).unwrap(), 0, "nor for the host");
    assert_eq!(guest.counter("connections_over_limit"), 2);
    streams.pop();
    guest.until("its end", |guest| guest.sockets[&(5000 + MAX_CONNECTIONS as u32 - 1, PORT)].shutdown == 3);
    assert!(guest.connect(9001, PORT));
}

/// Broken rings: the host's ends read EOF, the thread lives, a reset heals.
#[test]
fn a_broken_ring_ends_all_connections_until_the_reset() {
    type Break = fn(&mut Guest);
    let breaks: [(&str, Break); 4] = [
        ("transmit index", |guest| guest.transmit.publish(0, 1000)),
        ("transmit head", |guest| guest.transmit.publish(64, 1)),
        ("receive buffer without room", |guest| {
            guest.receive.add(&[(0x50_0000, 44, 2)]);
        }),
        ("receive buffer that cannot be written", |guest| {
            guest.receive.add(&[(0x50_0000, 4096, 0)]);
        }),
    ];
    for (name, break_it) in breaks {
        let (mut guest, mut stream, _listener) = {
            let (mut guest, stream, listener) = connected(Setup { offered: 1, ..Setup::default() });
            guest.pump();
            (guest, stream, listener)
        };
        let own = blocking(guest.vsock.connect(1).unwrap()); // takes the only buffer
        break_it(&mut guest);
        // Work for the receive ring; it fails where the break has been seen by now.
        let _ = (&stream).write_all(b"work");
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "{name}");
        assert_eq!((&own).read(&mut [0]).unwrap(), 0, "{name}");
        let later = blocking(guest.vsock.connect(1).unwrap());
        assert_eq!((&later).read(&mut [0]).unwrap(), 0, "{name}: requests after the break");
        assert_eq!(guest.counter("broken_rings"), 1, "{name}");
        let mut guest = guest.reboot();
        assert!(!guest.connect(6000, 1), "{name}: works again");
    }
}

/// The whole header space, at random, on a device with an open connection.
#[test]
fn random_packets_break_nothing() {
    let (mut guest, stream, mut listener) = connected(Setup::default());
    let mut state = 0x1234_5678_9ABC_DEF0_u64;
    let mut random = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) % below
    };
    for _ in 0..3000 {
        let length = random(300) as u32;
        let header = Header {
            source_cid: if random(10) == 0 { random(5) } else { GUEST_CID },
            destination_cid: if random(10) == 0 { random(5) } else { HOST_CID },
            source_port: 5000 + random(3) as u32,
            destination_port: PORT + random(2) as u32,
            length: if random(10) == 0 { random(1 << 32) as u32 } else { length },
            kind: if random(10) == 0 { random(4) as u16 } else { TYPE_STREAM },
            op: random(9) as u16,
            flags: random(5) as u32,
            buf_alloc: random(1 << 32) as u32,
            fwd_cnt: random(1 << 32) as u32,
        };
        let payload = vec![1; random(300) as usize];
        let pieces = 1 + random(3) as usize;
        guest.send_in(&header, &payload, pieces);
        while listener.try_recv().is_ok() {}
    }
    drop(stream);
    guest.sockets.clear();
    assert!(guest.connect(7000, PORT), "the device still works");
    let scratch = guest.ram.view().read_obj::<u8>(GuestAddress(0));
    assert_eq!(scratch.unwrap(), 0, "memory that was never offered is untouched");
}
