//! Turns and names, without rings and thread.

use std::os::unix::net::UnixStream;

use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

use super::super::shared::Vsock;
use super::*;

struct Fixture {
    mux: Mux,
    vsock: Vsock,
    memory: GuestMemoryMmap,
}

impl Fixture {
    fn new() -> Self {
        let shared = Arc::new(Shared::new().unwrap());
        let mux = Mux::new(Epoll::new().unwrap(), Arc::clone(&shared), Arc::default());
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x2_0000)]).unwrap();
        Self { mux, vsock: Vsock::new(shared), memory }
    }

    /// The guest opens a connection from `port` to 1025 and takes the RESPONSE.
    fn accept(&mut self, port: u32) {
        self.send(Op::Request, port, 0);
        assert!(matches!(self.mux.next_job(), Some(Job::Packet(header)) if header.op == Op::Response as u16));
    }

    fn send(&mut self, op: Op, port: u32, flags: u32) {
        self.send_data(op, port, flags, 0);
    }

    fn send_data(&mut self, op: Op, port: u32, flags: u32, length: u32) {
        let header = Header {
            length,
            source_cid: GUEST_CID,
            destination_cid: HOST_CID,
            source_port: port,
            destination_port: 1025,
            kind: TYPE_STREAM,
            op: op as u16,
            flags,
            buf_alloc: 1 << 20,
            ..Header::default()
        };
        let payload = self.memory.get_slices(GuestAddress(0), length as usize, Permissions::Read).unwrap();
        self.mux.receive(&header, &mut payload.map(Result::unwrap).collect());
    }

    /// Hands on the events that have come.
    fn events(&mut self) {
        let mut events = [EpollEvent::default(); 16];
        let count = self.mux.epoll().wait(0, &mut events).unwrap();
        for event in &events[..count] {
            self.mux.host_event(Token::from_event(event.data()), event.events());
        }
    }

    /// Serves one data job with at most `room` bytes and returns the guest's port.
    fn serve(&mut self, room: usize) -> u32 {
        let Some(Job::Data { token, bytes, .. }) = self.mux.next_job() else { panic!("no data") };
        let slices = self.memory.get_slices(GuestAddress(0), bytes.min(room), Permissions::Write).unwrap();
        let space: Vec<_> = slices.map(Result::unwrap).collect();
        let (header, bytes) = self.mux.fill(token, &space);
        assert!(bytes > 0);
        header.destination_port
    }

    /// Connections from these ports, whose host's ends have written so much.
    fn writers(&mut self, sizes: &[usize]) -> Vec<UnixStream> {
        let mut listener = self.vsock.listen(1025).unwrap();
        let streams = sizes.iter().zip(0..).map(|(size, port)| {
            self.accept(port);
            let mut stream = listener.try_recv().unwrap();
            std::io::Write::write_all(&mut stream, &vec![1; *size]).unwrap();
            stream
        });
        let streams = streams.collect();
        self.events();
        streams
    }
}

#[test]
fn turns_go_round_whoever_has_more() {
    let mut fixture = Fixture::new();
    let turn = TURN_BYTES as usize;
    let _streams = fixture.writers(&[3 * turn, turn + 1, 3 * turn]);
    let turns: Vec<u32> = (0..7).map(|_| fixture.serve(turn)).collect();
    let [a, b, c] = turns[..3] else { panic!() };
    let [x, y] = [a, b, c].into_iter().filter(|port| *port != 1).collect::<Vec<_>>()[..] else { panic!() };
    assert_eq!(turns, [a, b, c, a, b, c, x]);
    assert_eq!(fixture.serve(turn), y);
}

#[test]
fn a_turn_goes_on_when_the_guest_has_room_again() {
    let mut fixture = Fixture::new();
    let turn = TURN_BYTES as usize;
    let _streams = fixture.writers(&[2 * turn, 2 * turn]);
    let served: Vec<u32> = (0..16).map(|_| fixture.serve(turn / 8)).collect();
    assert_eq!(served[..8], [served[0]; 8]);
    assert_eq!(served[8..], [1 - served[0]; 8]);
}

#[test]
fn refusals_go_before_data() {
    let mut fixture = Fixture::new();
    let _streams = fixture.writers(&[10]);
    fixture.send(Op::Data, 99, 0);
    assert!(matches!(fixture.mux.next_job(), Some(Job::Packet(header)) if header.destination_port == 99));
    assert!(matches!(fixture.mux.next_job(), Some(Job::Data { .. })));
}

#[test]
fn a_reset_of_the_old_connection_comes_before_anything_of_a_new_one_with_its_name() {
    let mut fixture = Fixture::new();
    let mut listener = fixture.vsock.listen(1025).unwrap();
    fixture.accept(1);
    fixture.send(Op::Shutdown, 1, 3);
    fixture.send(Op::Request, 1, 0);
    let ops: Vec<u16> = std::iter::from_fn(|| fixture.mux.next_job())
        .map(|job| if let Job::Packet(header) = job { header.op } else { 0 })
        .collect();
    assert_eq!(ops, [Op::Reset as u16, Op::Response as u16]);
    assert!(listener.try_recv().is_ok() && listener.try_recv().is_ok());
}

#[test]
fn host_ports_go_up_and_start_again_before_any_port() {
    let mut fixture = Fixture::new();
    fixture.mux.next_host_port = u32::MAX - 1;
    let _streams: Vec<_> = (0..3).map(|_| fixture.vsock.connect(7).unwrap()).collect();
    fixture.mux.take_connects();
    fixture.mux.next_host_port = u32::MAX - 1;
    let _more = fixture.vsock.connect(7).unwrap();
    fixture.mux.take_connects();
    let ports: Vec<u32> = std::iter::from_fn(|| fixture.mux.next_job())
        .map(|job| if let Job::Packet(header) = job { header.source_port } else { 0 })
        .collect();
    let expected = [u32::MAX - 1, FIRST_HOST_PORT, FIRST_HOST_PORT + 1, FIRST_HOST_PORT + 2];
    assert_eq!(ports, expected, "a port that is taken is passed over");
}

/// Every byte that the guest sent is accounted for, whichever way it left the window.
#[test]
fn a_reader_that_stops_gives_all_credit_back() {
    type Stop = fn(&mut UnixStream);
    let stops: [(&str, Stop); 3] = [
        ("closes", |stream| *stream = UnixStream::pair().unwrap().0),
        ("reads on", |stream| while std::io::Read::read(stream, &mut [0; 65536]).is_ok() {}),
        ("reads on, then stops", |stream| {
            while std::io::Read::read(stream, &mut [0; 65536]).is_ok() {}
            stream.shutdown(std::net::Shutdown::Read).unwrap();
        }),
    ];
    for (name, stop) in stops {
        let mut fixture = Fixture::new();
        let mut streams = fixture.writers(&[0]);
        let mut sent = 0;
        while fixture.mux.counters.bytes_parked.value() < 200_000 {
            fixture.send_data(Op::Data, 0, 0, 50_000);
            sent += 50_000;
        }
        stop(&mut streams[0]);
        fixture.events();
        fixture.send(Op::CreditRequest, 0, 0);
        let Some(Job::Packet(header)) = fixture.mux.next_job() else { panic!() };
        assert_eq!(header.fwd_cnt, sent, "the reader {name}");
    }
}

/// A guest that opens and drops connections without taking a single packet.
#[test]
fn connections_that_come_and_go_leave_nothing_behind() {
    let mut fixture = Fixture::new();
    let mut listener = fixture.vsock.listen(1025).unwrap();
    for _ in 0..5 * MAX_CONNECTIONS {
        fixture.send(Op::Request, 1, 0);
        fixture.send(Op::Reset, 1, 0);
        listener.try_recv().unwrap();
        assert!(fixture.mux.turns.len() <= 2 * MAX_CONNECTIONS);
    }
    assert_eq!((fixture.mux.table.len(), fixture.mux.next_job()), (0, None));
}

#[test]
fn bursts_grow_with_bulk_and_shrink_with_small_talk() {
    let mut fixture = Fixture::new();
    let mut streams = fixture.writers(&[100_000]);
    for _ in 0..3 {
        fixture.serve(4096);
    }
    let Some(Job::Data { token, buffers: TURN_BUFFERS, .. }) = fixture.mux.next_job() else { panic!() };
    fixture.mux.fill(token, &[]); // no buffers now
    while let Some(Job::Data { .. }) = fixture.mux.next_job() {}
    std::io::Write::write_all(&mut streams[0], b"x").unwrap();
    fixture.events();
    for _ in 0..2 {
        fixture.serve(TURN_BYTES as usize);
    }
    std::io::Write::write_all(&mut streams[0], b"x").unwrap();
    fixture.events();
    assert!(matches!(fixture.mux.next_job(), Some(Job::Data { buffers, .. }) if buffers < TURN_BUFFERS));
}
