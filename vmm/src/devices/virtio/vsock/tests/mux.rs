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
        let header = Header {
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
        self.mux.receive(&header, &mut Vec::new());
    }

    /// Hands on the events that have come.
    fn events(&mut self) {
        let mut events = [EpollEvent::default(); 16];
        let count = self.mux.epoll().wait(0, &mut events).unwrap();
        for event in &events[..count] {
            self.mux.host_event(Token::from_event(event.data()), event.events());
        }
    }

    /// Serves one data turn with a page and returns the guest's port and the bytes.
    fn turn(&mut self) -> (u32, usize) {
        let Some(Job::Data { token, .. }) = self.mux.next_job() else { panic!("no data") };
        let slices = self.memory.get_slices(GuestAddress(0), 4096, Permissions::Write).unwrap();
        let space: Vec<_> = slices.map(Result::unwrap).collect();
        let (header, bytes) = self.mux.fill(token, &space);
        (header.destination_port, bytes)
    }
}

fn write(stream: &mut UnixStream, length: usize) {
    std::io::Write::write_all(stream, &vec![1; length]).unwrap();
}

#[test]
fn turns_go_round_whoever_has_more() {
    let mut fixture = Fixture::new();
    let mut listener = fixture.vsock.listen(1025).unwrap();
    let mut streams: Vec<_> = (0..3)
        .map(|port| {
            fixture.accept(port);
            listener.try_recv().unwrap()
        })
        .collect();
    write(&mut streams[0], 100_000);
    write(&mut streams[1], 2 * 4096 - 1); // its second turn is short, so there is no third
    write(&mut streams[2], 100_000);
    fixture.events();
    let turns: Vec<u32> = (0..8).map(|_| fixture.turn().0).collect();
    let [a, b, c] = turns[..3] else { panic!() };
    let [x, y] = [a, b, c].into_iter().filter(|port| *port != 1).collect::<Vec<_>>()[..] else { panic!() };
    assert_eq!(turns, [a, b, c, a, b, c, x, y]);
}

#[test]
fn refusals_go_before_data() {
    let mut fixture = Fixture::new();
    let mut listener = fixture.vsock.listen(1025).unwrap();
    fixture.accept(1);
    let mut stream = listener.try_recv().unwrap();
    write(&mut stream, 10);
    fixture.events();
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

#[test]
fn bursts_grow_with_bulk_and_shrink_with_small_talk() {
    let mut fixture = Fixture::new();
    let mut listener = fixture.vsock.listen(1025).unwrap();
    fixture.accept(1);
    let mut stream = listener.try_recv().unwrap();
    write(&mut stream, 100_000);
    fixture.events();
    for _ in 0..3 {
        fixture.turn();
    }
    assert!(matches!(fixture.mux.next_job(), Some(Job::Data { buffers: TURN_BUFFERS, .. })));
}
