//! Framings that a guest may choose, legal and not.

use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{Bytes, GuestAddress};

use super::super::packet::Op;
use super::*;

const WRITE: u16 = 2;

/// Two regions with a border at 0x10_0000, and a hole behind the second.
fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000), (GuestAddress(0x10_0000), 0x10_0000)])
        .unwrap()
}

fn chain<'m>(memory: &'m GuestMemoryMmap, pieces: &[(u64, u32)], flags: u16) -> Chain<'m> {
    let descriptors: Vec<RawDescriptor> = pieces
        .iter()
        .map(|&(address, length)| RawDescriptor::from(Descriptor::new(address, length, flags, 0)))
        .collect();
    let queue: &'m MockSplitQueue<'m, _> = Box::leak(Box::new(MockSplitQueue::new(memory, 64)));
    queue.build_desc_chain(&descriptors).unwrap()
}

fn header() -> Header {
    Header { source_port: 7, op: Op::Data as u16, length: 5, ..Header::default() }
}

fn read(memory: &GuestMemoryMmap, pieces: &[(u64, u32)]) -> Result<(Header, Vec<u8>), ChainError> {
    let mut segments = Vec::new();
    let (header, descriptors) = read_packet(memory, &mut chain(memory, pieces, 0), &mut segments)?;
    assert_eq!(usize::from(descriptors), pieces.len());
    truncate(&mut segments, header.length as usize);
    let mut bytes = Vec::new();
    for segment in segments {
        let mut piece = vec![0; segment.len()];
        segment.copy_to(&mut piece);
        bytes.extend(piece);
    }
    Ok((header, bytes))
}

#[test]
fn a_packet_is_read_in_any_framing() {
    let memory = memory();
    let packet = [header().encode().as_slice(), b"helloXX"].concat();
    let framings: [&[(u64, u32)]; 5] = [
        &[(0x8000, 51)],
        &[(0x8000, 44), (0x802c, 7)],
        &[(0x8000, 10), (0x800a, 34), (0x802c, 2), (0x802e, 0), (0x802e, 5)],
        &[(0x8000, 43), (0x802b, 8)],
        &[(0x8000, 46), (0x802e, 5)],
    ];
    memory.write_slice(&packet, GuestAddress(0x8000)).unwrap();
    for framing in framings {
        assert_eq!(read(&memory, framing), Ok((header(), b"hello".to_vec())), "{framing:?}");
    }
    memory.write_slice(&packet, GuestAddress(0x10_0000 - 20)).unwrap();
    assert_eq!(read(&memory, &[(0x10_0000 - 20, 51)]), Ok((header(), b"hello".to_vec())), "across regions");
}

#[test]
fn bad_transmit_chains_are_refused() {
    let memory = memory();
    let cases: [(&[(u64, u32)], ChainError); 5] = [
        (&[(0x8000, 43)], ChainError::Short { found: 43 }),
        (&[(0x8000, 20), (0x9000, 20)], ChainError::Short { found: 40 }),
        (&[(0x1F_FFF0, 44)], ChainError::Memory { address: 0x1F_FFF0, length: 44 }),
        (&[(0x8000, 44), (u64::MAX - 1, 5)], ChainError::Memory { address: u64::MAX - 1, length: 5 }),
        (&[(0x8000, 2); MAX_SEGMENTS + 1], ChainError::Segments),
    ];
    for (pieces, error) in cases {
        assert_eq!(read(&memory, pieces).unwrap_err(), error, "{pieces:?}");
    }
    let mut segments = Vec::new();
    let mut writable = chain(&memory, &[(0x8000, 44)], WRITE);
    assert_eq!(read_packet(&memory, &mut writable, &mut segments), Err(ChainError::Direction));
}

#[test]
fn a_chain_that_names_its_own_end_or_nothing_is_short() {
    let memory = memory();
    let queue = MockSplitQueue::new(&memory, 64);
    let descriptor =
        |address, length, flags, next| RawDescriptor::from(Descriptor::new(address, length, flags, next));
    let mut broken = queue.build_desc_chain(&[descriptor(0x8000, 10, 0, 0)]).unwrap();
    queue.desc_table().store(0, descriptor(0x8000, 10, 1, 900)).unwrap(); // next is outside of the table
    let error = read_packet(&memory, &mut broken, &mut Vec::new()).unwrap_err();
    assert_eq!(error, ChainError::Short { found: 10 });

    let mut endless = queue.build_desc_chain(&[descriptor(0x8000, 0, 0, 0)]).unwrap();
    queue.desc_table().store(0, descriptor(0x8000, 0, 1, 0)).unwrap(); // next is itself
    let error = read_packet(&memory, &mut endless, &mut Vec::new()).unwrap_err();
    assert_eq!(error, ChainError::Short { found: 0 });
}

#[test]
fn a_header_is_written_in_any_framing() {
    let memory = memory();
    let framings: [&[(u64, u32)]; 3] =
        [&[(0x8000, 100)], &[(0x8000, 44), (0x802c, 56)], &[(0x8000, 1), (0x8001, 60), (0x803d, 39)]];
    for framing in framings {
        memory.write_slice(&[0xEE; 100], GuestAddress(0x8000)).unwrap();
        let offer = Offer::new(&memory, chain(&memory, framing, WRITE), &mut Vec::new()).unwrap();
        assert_eq!((offer.head, offer.capacity), (0, 56), "{framing:?}");
        assert_eq!(offer.finish(&header()), 49);
        let mut bytes = [0; 45];
        memory.read_slice(&mut bytes, GuestAddress(0x8000)).unwrap();
        assert_eq!(bytes[..44], header().encode());
        assert_eq!(bytes[44], 0xEE, "the payload area is left alone");
        let mut offset = 0x802c;
        let mut payload = Vec::new();
        offer.payload(&mut payload);
        for piece in payload {
            piece.copy_from(&[0xDD_u8; 56][..piece.len()]);
            offset += piece.len() as u64;
        }
        assert_eq!(offset, 0x8064);
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0x8063)).unwrap(), 0xDD);
    }
}

#[test]
fn bad_receive_chains_are_refused() {
    let memory = memory();
    let offer = |pieces: &[(u64, u32)], flags| {
        Offer::new(&memory, chain(&memory, pieces, flags), &mut Vec::new()).map(|_| ())
    };
    assert_eq!(offer(&[(0x8000, 45)], WRITE), Ok(()));
    assert_eq!(offer(&[(0x8000, 44)], WRITE), Err(ChainError::Short { found: 44 }), "no data would ever fit");
    assert_eq!(offer(&[(0x8000, 100)], 0), Err(ChainError::Direction));
    let outside = ChainError::Memory { address: 0x20_0000, length: 100 };
    assert_eq!(offer(&[(0x20_0000, 100)], WRITE), Err(outside));
}
