//! The connection's states, each against each operation and each event of the host's end.

use super::super::limits::WINDOW_LARGE;
use super::*;

const PORTS: Ports = Ports { host: 1025, guest: 5000 };

fn packet(op: Op) -> Header {
    Header { op: op as u16, buf_alloc: 4096, ..Header::default() }
}

fn shutdown(flags: u32) -> Header {
    Header { flags, ..packet(Op::Shutdown) }
}

fn requesting() -> Connection {
    let mut connection = Connection::requesting(PORTS, WINDOW_LARGE);
    assert_eq!(connection.next_control(0, false).unwrap().op, Op::Request as u16);
    connection
}

fn open() -> Connection {
    let mut connection = Connection::accepted(PORTS, WINDOW_LARGE, &packet(Op::Request));
    assert_eq!(connection.next_control(0, false).unwrap().op, Op::Response as u16);
    connection
}

fn guest_ended() -> Connection {
    let mut connection = open();
    assert_eq!(connection.receive(Op::Shutdown, &shutdown(SHUTDOWN_SEND), 0), Verdict::Continue);
    connection
}

fn guest_deaf() -> Connection {
    let mut connection = open();
    assert_eq!(connection.receive(Op::Shutdown, &shutdown(SHUTDOWN_RECEIVE), 0), Verdict::Continue);
    connection
}

fn host_ended() -> Connection {
    let mut connection = open();
    connection.host_ended();
    connection
}

fn host_deaf() -> Connection {
    let mut connection = open();
    connection.host_deaf();
    connection
}

fn draining() -> Connection {
    let mut connection = open();
    connection.drain();
    connection
}

/// Rows: states. Columns: the operations in the order of their numbers; SHUTDOWN once for both
/// directions, data with one byte.
#[test]
fn every_state_has_an_answer_to_every_operation() {
    use Verdict::{Abandon, Continue, Deliver, Discard, Finish, Violate};
    let unexpected = Violate(Violation::UnexpectedOp);
    let late = Violate(Violation::DataAfterShutdown);
    type Row = (&'static str, fn() -> Connection, [Verdict; 7]);
    #[rustfmt::skip]
    let table: [Row; 7] = [
        //                            REQUEST     RESPONSE    RST      SHUTDOWN    DATA        UPDATE      CREDIT?
        ("requesting",  requesting,  [unexpected, Continue,   Abandon, unexpected, unexpected, unexpected, unexpected]),
        ("open",        open,        [unexpected, unexpected, Abandon, Finish,     Deliver,    Continue,   Continue]),
        ("guest ended", guest_ended, [unexpected, unexpected, Abandon, Finish,     late,       Continue,   Continue]),
        ("guest deaf",  guest_deaf,  [unexpected, unexpected, Abandon, Finish,     Deliver,    Continue,   Continue]),
        ("host ended",  host_ended,  [unexpected, unexpected, Abandon, Finish,     Deliver,    Continue,   Continue]),
        ("host deaf",   host_deaf,   [unexpected, unexpected, Abandon, Finish,     Discard,    Continue,   Continue]),
        ("draining",    draining,    [unexpected, unexpected, Abandon, unexpected, unexpected, unexpected, unexpected]),
    ];
    for (name, state, verdicts) in table {
        for (op, expected) in Op::ALL.into_iter().zip(verdicts) {
            let header = Header {
                length: u32::from(op == Op::Data),
                flags: if op == Op::Shutdown { SHUTDOWN_BOTH } else { 0 },
                ..packet(op)
            };
            assert_eq!(state().receive(op, &header, 0), expected, "{name} and {op:?}");
        }
    }
}

#[test]
fn a_payload_belongs_to_data_only() {
    for op in Op::ALL.into_iter().filter(|op| !matches!(op, Op::Data | Op::Reset)) {
        let verdict = open().receive(op, &Header { length: 1, ..packet(op) }, 0);
        assert_eq!(verdict, Verdict::Violate(Violation::PayloadOnControl), "{op:?}");
    }
}

#[test]
fn the_window_bounds_what_is_parked() {
    let data = |length| Header { length, ..packet(Op::Data) };
    assert_eq!(open().receive(Op::Data, &data(100), WINDOW_LARGE - 100), Verdict::Deliver);
    assert_eq!(
        open().receive(Op::Data, &data(101), WINDOW_LARGE - 100),
        Verdict::Violate(Violation::CreditExceeded)
    );
}

#[test]
fn ends_of_the_host_are_announced_once_and_together_when_they_come_together() {
    let mut connection = open();
    connection.host_ended();
    let first = connection.next_control(0, false).unwrap();
    assert_eq!((first.op, first.flags), (Op::Shutdown as u16, SHUTDOWN_SEND));
    assert!(!connection.is_over());
    assert_eq!(connection.next_control(0, false), None);
    connection.host_deaf();
    let second = connection.next_control(0, false).unwrap();
    assert_eq!((second.op, second.flags), (Op::Shutdown as u16, SHUTDOWN_BOTH));
    assert!(connection.is_over());

    let mut connection = open();
    connection.host_deaf();
    connection.host_ended();
    assert_eq!(connection.next_control(0, false).unwrap().flags, SHUTDOWN_BOTH);
    assert!(connection.is_over());
}

/// The two ends that stop hearing each other have nothing more to say, in either order.
#[test]
fn a_deaf_guest_and_a_deaf_host_are_over() {
    let mut guest_first = guest_deaf();
    guest_first.host_deaf();
    let mut host_first = host_deaf();
    host_first.receive(Op::Shutdown, &shutdown(SHUTDOWN_RECEIVE), 0);
    for mut connection in [guest_first, host_first] {
        assert_eq!(connection.next_control(0, true).unwrap().flags, SHUTDOWN_BOTH);
        assert!(connection.is_over());
    }
}

#[test]
fn the_two_halves_of_a_shutdown_add_up() {
    let mut connection = guest_ended();
    assert_eq!(connection.receive(Op::Shutdown, &shutdown(SHUTDOWN_RECEIVE), 0), Verdict::Finish);
    let mut connection = open();
    assert_eq!(
        connection.receive(Op::Shutdown, &shutdown(0xFFFF_FFFC), 0),
        Verdict::Continue,
        "unknown flags"
    );
    assert!(connection.guest_sends() && connection.guest_hears());
}

#[test]
fn data_flows_only_while_both_sides_want_it() {
    type Row = (&'static str, fn() -> Connection, u32);
    let states: [Row; 7] = [
        ("requesting", requesting, 0),
        ("open", open, 4096),
        ("guest ended", guest_ended, 4096),
        ("guest deaf", guest_deaf, 0),
        ("host ended", host_ended, 0),
        ("host deaf", host_deaf, 4096),
        ("draining", draining, 0),
    ];
    for (name, state, sendable) in states {
        let mut connection = state();
        connection.credit.learn(4096, 0);
        assert_eq!(connection.sendable(), sendable, "{name}");
    }
}

#[test]
fn a_credit_request_is_answered_with_the_truth() {
    let mut connection = open();
    connection.credit.forward(7);
    connection.receive(Op::CreditRequest, &packet(Op::CreditRequest), 0);
    let answer = connection.next_control(0, false).unwrap();
    assert_eq!((answer.op, answer.buf_alloc, answer.fwd_cnt), (Op::CreditUpdate as u16, WINDOW_LARGE, 7));
    assert_eq!(connection.next_control(0, false), None);
}

#[test]
fn a_dry_sender_asks_once() {
    let mut connection = open();
    connection.credit.send(4096);
    assert_eq!(connection.next_control(0, false), None, "nothing to send, nothing to ask");
    assert_eq!(connection.next_control(0, true).unwrap().op, Op::CreditRequest as u16);
    assert_eq!(connection.next_control(0, true), None);
}

#[test]
fn has_control_foretells_next_control() {
    let states = [requesting, open, guest_ended, guest_deaf, host_ended, host_deaf, draining];
    for state in states {
        for backlog in [false, true] {
            let mut connection = state();
            assert_eq!(connection.has_control(0, backlog), connection.next_control(0, backlog).is_some());
        }
    }
}
