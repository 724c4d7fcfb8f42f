//! The device's end of a pair: order, parking, ends.

use std::io::Write;

use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

use super::super::limits::{WINDOW_LARGE, WINDOW_SMALL};
use super::*;

const WINDOW: u32 = WINDOW_LARGE;
/// More than a socket's buffer holds, so that parking is certain.
const MUCH: usize = 2 << 20;

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MUCH)]).unwrap()
}

fn slices(memory: &GuestMemoryMmap, address: u64, length: usize) -> Vec<VolatileSlice<'_>> {
    let found = memory.get_slices(GuestAddress(address), length, Permissions::ReadWrite).unwrap();
    found.map(Result::unwrap).collect()
}

fn ends() -> (HostEnd, UnixStream) {
    let (ours, theirs) = pair().unwrap();
    theirs.set_nonblocking(false).unwrap();
    (HostEnd::new(ours, WINDOW).unwrap(), theirs)
}

/// Bytes whose place shows in their value.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index / 251 + index) as u8).collect()
}

#[test]
fn a_pair_never_blocks() {
    let (ours, theirs) = pair().unwrap();
    for mut end in [&ours, &theirs] {
        assert_eq!(end.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
    for mut end in [&ours, &theirs] {
        while end.write(&[0; 65536]).is_ok() {}
        assert_eq!(end.write(&[0; 65536]).unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}

/// The kernel's buffer towards the reader is the guest's to fill, so it is bounded by the window.
#[test]
fn the_socket_holds_about_a_window() {
    let memory = memory();
    for (window, least, most) in [(WINDOW_SMALL, 8 << 10, 64 << 10), (WINDOW_LARGE, 128 << 10, 1 << 20)] {
        let (ours, _theirs) = pair().unwrap();
        let mut end = HostEnd::new(ours, window).unwrap();
        let sent = end.deliver(&slices(&memory, 0, MUCH)).unwrap();
        assert!((least..most).contains(&sent), "{sent} bytes with a window of {window}");
    }
}

#[test]
fn what_the_socket_does_not_take_is_parked_and_follows_in_order() {
    let memory = memory();
    let data = pattern(MUCH);
    memory.write_slice(&data, GuestAddress(0)).unwrap();
    let (mut end, mut theirs) = ends();

    let sent = end.deliver(&[slices(&memory, 0, 10), slices(&memory, 10, MUCH - 20)].concat()).unwrap();
    assert!((1..MUCH / 2).contains(&sent), "the socket took {sent} bytes");
    assert_eq!(end.parked() as usize, MUCH - 10 - sent);
    assert_eq!(end.deliver(&slices(&memory, MUCH as u64 - 10, 10)).unwrap(), 0, "nothing overtakes");
    assert_eq!(end.parked() as usize, MUCH - sent);

    let mut read = vec![0; MUCH];
    let mut have = 0;
    while have < read.len() {
        have += theirs.read(&mut read[have..]).unwrap();
        end.flush().unwrap();
    }
    assert_eq!(read, data);
    assert_eq!(end.parked(), 0);
}

#[test]
fn parked_bytes_take_no_more_memory_than_the_window_and_give_it_back() {
    let memory = memory();
    let mut parked = Parked::new(1000);
    for _ in 0..1000 {
        parked.push(&slices(&memory, 7, 1)[0]);
        assert!(parked.bytes.capacity() <= 1000, "{}", parked.bytes.capacity());
    }
    parked.consume(600);
    parked.push(&slices(&memory, 0, 600)[0]);
    assert_eq!((parked.len(), parked.bytes.capacity()), (1000, 1000));
    let first = parked.front().len();
    parked.consume(first);
    parked.consume(1000 - first);
    assert_eq!((parked.len(), parked.bytes.capacity()), (0, 0));
}

#[test]
fn a_reader_that_is_gone_is_reported_and_nothing_stays_parked() {
    let memory = memory();
    let (mut end, theirs) = ends();
    end.deliver(&slices(&memory, 0, MUCH)).unwrap();
    assert!(end.parked() > 0);
    drop(theirs);
    assert_eq!(end.flush(), Err(Deaf));
    assert_eq!(end.parked(), 0);
    assert_eq!(end.deliver(&slices(&memory, 0, 1)), Err(Deaf));
}

#[test]
fn reading_stops_when_dry_and_ends_after_the_last_byte() {
    let memory = memory();
    let (mut end, mut theirs) = ends();
    end.mark_readable(false);
    assert_eq!(end.fill(&slices(&memory, 0, 10)), Filled::Dry);
    assert!(!end.is_readable());

    theirs.write_all(b"twelve bytes").unwrap();
    end.mark_readable(false);
    assert_eq!(end.fill(&slices(&memory, 0, 6)), Filled::Bytes(6));
    assert!(end.is_readable(), "a full read may leave something");
    assert_eq!(end.fill(&slices(&memory, 6, 100)), Filled::Bytes(6));
    assert!(!end.is_readable(), "a short read leaves nothing");

    theirs.write_all(b"last").unwrap();
    drop(theirs);
    end.mark_readable(true);
    assert_eq!(end.fill(&slices(&memory, 0, 100)), Filled::Bytes(4));
    assert!(end.is_readable(), "the end comes without a further edge");
    assert_eq!(end.fill(&slices(&memory, 0, 100)), Filled::End);
}

#[test]
fn the_other_end_reads_eof_even_if_we_leave_its_bytes_unread() {
    let memory = memory();
    let (mut end, mut theirs) = ends();
    end.deliver(&slices(&memory, 0, 3)).unwrap();
    theirs.write_all(&[1; 100_000]).unwrap();
    drop(end);
    let mut rest = Vec::new();
    theirs.read_to_end(&mut rest).unwrap();
    assert_eq!(rest.len(), 3);
}

#[test]
fn each_direction_ends_alone() {
    let memory = memory();
    let (mut end, mut theirs) = ends();
    end.finish();
    assert_eq!(theirs.read(&mut [0; 8]).unwrap(), 0, "EOF");
    theirs.write_all(b"still").unwrap();
    end.mark_readable(false);
    assert_eq!(end.fill(&slices(&memory, 0, 5)), Filled::Bytes(5));
    end.refuse_writes();
    assert_eq!(theirs.write(b"no more").unwrap_err().kind(), ErrorKind::BrokenPipe);
}
