//! How connections end: each direction alone, all orders, nothing lost on the way.

use super::super::packet::{Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::*;
use std::net::Shutdown;

/// Waits until the guest has `count` bytes and the SHUTDOWN `flags`.
fn guest_sees(guest: &mut Guest, count: usize, flags: u32) {
    guest.until("data and shutdown", |guest| {
        let socket = &guest.sockets[&(5000, PORT)];
        socket.received.len() == count && socket.shutdown == flags
    });
}

fn read_to_end(mut stream: &UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn the_guest_ends_first() {
    let (mut guest, stream, _listener) = connected(Setup::default());
    guest.send_all(5000, PORT, b"last words");
    guest.control(Op::Shutdown, 5000, PORT, SHUTDOWN_SEND);
    assert_eq!(read_to_end(&stream), b"last words");

    (&stream).write_all(b"answer").unwrap();
    guest.until("the answer", |guest| guest.sockets[&(5000, PORT)].received.len() == 6);
    stream.shutdown(Shutdown::Write).unwrap();
    // Both directions have ended: for the host the connection is over.
    guest_sees(&mut guest, 6, SHUTDOWN_BOTH);
}

#[test]
fn the_host_ends_first() {
    let (mut guest, stream, _listener) = connected(Setup::default());
    (&stream).write_all(&pattern(200_000)).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    guest_sees(&mut guest, 200_000, SHUTDOWN_SEND);
    assert_eq!(guest.read(5000, PORT, usize::MAX), pattern(200_000));

    guest.send_all(5000, PORT, b"answer");
    guest.close(5000, PORT);
    assert_eq!(read_to_end(&stream), b"answer");
    guest.until("RST", |guest| guest.sockets[&(5000, PORT)].reset);
}

#[test]
fn the_guest_closes() {
    let (mut guest, stream, _listener) = connected(Setup::default());
    guest.send_all(5000, PORT, &pattern(1000));
    guest.close(5000, PORT);
    guest.until("RST", |guest| guest.sockets[&(5000, PORT)].reset);
    assert_eq!(read_to_end(&stream), pattern(1000));
    assert_eq!((&stream).write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
}

#[test]
fn the_guest_closes_with_the_hosts_bytes_unread() {
    let (mut guest, stream, _listener) = connected(Setup { window: 0, ..Setup::default() });
    (&stream).write_all(b"nobody takes this").unwrap();
    guest.close(5000, PORT);
    guest.until("RST", |guest| guest.sockets[&(5000, PORT)].reset);
    assert_eq!(read_to_end(&stream), b"", "EOF, not an error");
}

#[test]
fn the_host_closes() {
    let (mut guest, stream, _listener) = connected(Setup::default());
    (&stream).write_all(b"bye").unwrap();
    drop(stream);
    guest_sees(&mut guest, 3, SHUTDOWN_BOTH);
    guest.control(Op::Reset, 5000, PORT, 0); // as Linux answers
    guest.barrier();
    assert!(!guest.sockets[&(5000, PORT)].reset, "RST was answered with RST");
}

/// The host's end is gone with bytes for the guest on the way and the guest still sending.
#[test]
fn the_host_closes_with_data_under_way_in_both_directions() {
    let (mut guest, stream, _listener) = connected(Setup { window: 1000, ..Setup::default() });
    (&stream).write_all(&pattern(5000)).unwrap();
    guest.send_all(5000, PORT, &pattern(100_000));
    drop(stream);
    guest_sees(&mut guest, 1000, SHUTDOWN_RECEIVE);
    let mut all = Vec::new();
    guest.send_all(5000, PORT, &pattern(400_000)); // is discarded, with credit
    while all.len() < 5000 {
        guest.until("data", |guest| !guest.sockets[&(5000, PORT)].received.is_empty());
        all.extend(guest.read(5000, PORT, usize::MAX));
    }
    assert_eq!(all, pattern(5000));
    guest_sees(&mut guest, 0, SHUTDOWN_BOTH);
}

#[test]
fn the_guest_stops_listening_and_goes_on_talking() {
    let (mut guest, stream, _listener) = connected(Setup::default());
    guest.control(Op::Shutdown, 5000, PORT, SHUTDOWN_RECEIVE);
    guest.send_all(5000, PORT, b"a");
    (&stream).read_exact(&mut [0]).unwrap();
    assert_eq!((&stream).write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    guest.send_all(5000, PORT, b"bc");
    guest.close(5000, PORT);
    assert_eq!(read_to_end(&stream), b"bc");
}

#[test]
fn the_host_stops_listening_and_goes_on_talking() {
    let (mut guest, stream, _listener) = connected(Setup::default());
    stream.shutdown(Shutdown::Read).unwrap();
    guest.send_all(5000, PORT, b"not wanted");
    guest_sees(&mut guest, 0, SHUTDOWN_RECEIVE);
    (&stream).write_all(b"still here").unwrap();
    guest.until("data", |guest| guest.sockets[&(5000, PORT)].received.len() == 10);
    drop(stream);
    guest_sees(&mut guest, 10, SHUTDOWN_BOTH);
}

#[test]
fn an_abort_by_the_guest_shows_as_eof_after_what_was_accepted() {
    let (mut guest, stream, _listener) = connected(Setup::default());
    guest.send_all(5000, PORT, b"accepted");
    guest.control(Op::Reset, 5000, PORT, 0);
    assert_eq!(read_to_end(&stream), b"accepted");
    guest.barrier();
    assert!(!guest.sockets[&(5000, PORT)].reset);
}

/// The guest closes while a slow reader owes it a window, and uses the port again at once.
#[test]
fn a_closed_connection_drains_beside_its_successor() {
    let (mut guest, slow, mut listener) = connected(Setup::default());
    let data = pattern(2 << 20);
    let sent = guest.send_until_parked(5000, PORT, &data);
    guest.close(5000, PORT);
    guest.until("RST", |guest| guest.sockets[&(5000, PORT)].reset);

    assert!(guest.connect(5000, PORT), "the port is free again");
    let successor = blocking(listener.try_recv().unwrap());
    guest.send_all(5000, PORT, b"successor");
    guest.close(5000, PORT);
    assert_eq!(read_to_end(&successor), b"successor");
    assert!(read_to_end(&slow) == data[..sent]);
}

/// The host takes a connection back before the guest has answered.
#[test]
fn a_request_that_is_withdrawn_is_reset() {
    let mut guest = Guest::new(Setup { offered: 0, ..Setup::default() });
    let stream = guest.vsock.connect(77).unwrap();
    guest.until("the request", |guest| guest.counter("connections_requested") == 1); // and no buffer for it
    drop(stream);
    guest.until("its end", |guest| guest.counter("connections_closed") == 1);
    guest.offer_numbered(0);
    guest.barrier();
    assert_eq!(guest.ops(), [Op::Reset]);
    assert!(guest.sockets.is_empty());
}
