//! The packet header of virtio-vsock: bytes <-> [`Header`] (virtio 1.2, 5.10.6).

use super::limits::MAX_PACKET_BYTES;

/// Size of a header in guest memory.
pub const HEADER_BYTES: usize = 44;
/// The only socket type that the device offers. Seqpacket (2) is a feature that it does not have.
pub const TYPE_STREAM: u16 = 1;
/// SHUTDOWN flag: the sender will receive no more.
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// SHUTDOWN flag: the sender will send no more.
pub const SHUTDOWN_SEND: u32 = 2;
/// Both: the sender has closed the connection.
pub const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// What a packet asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Op {
    /// Open a connection.
    Request = 1,
    /// The connection is open.
    Response = 2,
    /// There is no such connection, or not any more.
    Reset = 3,
    /// One or both directions end.
    Shutdown = 4,
    /// Data.
    Data = 5,
    /// Here is my credit.
    CreditUpdate = 6,
    /// What is your credit?
    CreditRequest = 7,
}

impl Op {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 7] = [
        Self::Request,
        Self::Response,
        Self::Reset,
        Self::Shutdown,
        Self::Data,
        Self::CreditUpdate,
        Self::CreditRequest,
    ];

    /// The operation with this number, if there is one.
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|op| *op as u16 == number)
    }
}

/// One packet's header, copied out of guest memory and not believed yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Context id of the sender.
    pub source_cid: u64,
    /// Context id of the receiver.
    pub destination_cid: u64,
    /// Port of the sender.
    pub source_port: u32,
    /// Port of the receiver.
    pub destination_port: u32,
    /// Payload bytes behind the header.
    pub length: u32,
    /// Socket type.
    pub kind: u16,
    /// An [`Op`] as a number.
    pub op: u16,
    /// SHUTDOWN flags.
    pub flags: u32,
    /// Receive window of the sender.
    pub buf_alloc: u32,
    /// Bytes that the sender has taken out of its window since the connection opened.
    pub fwd_cnt: u32,
}

impl Header {
    /// Reads the little-endian form.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Self {
        let mut rest = bytes.as_slice();
        Self {
            source_cid: u64::from_le_bytes(take(&mut rest)),
            destination_cid: u64::from_le_bytes(take(&mut rest)),
            source_port: u32::from_le_bytes(take(&mut rest)),
            destination_port: u32::from_le_bytes(take(&mut rest)),
            length: u32::from_le_bytes(take(&mut rest)),
            kind: u16::from_le_bytes(take(&mut rest)),
            op: u16::from_le_bytes(take(&mut rest)),
            flags: u32::from_le_bytes(take(&mut rest)),
            buf_alloc: u32::from_le_bytes(take(&mut rest)),
            fwd_cnt: u32::from_le_bytes(take(&mut rest)),
        }
    }

    /// Writes the little-endian form.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut rest = bytes.as_mut_slice();
        put(&mut rest, self.source_cid.to_le_bytes());
        put(&mut rest, self.destination_cid.to_le_bytes());
        put(&mut rest, self.source_port.to_le_bytes());
        put(&mut rest, self.destination_port.to_le_bytes());
        put(&mut rest, self.length.to_le_bytes());
        put(&mut rest, self.kind.to_le_bytes());
        put(&mut rest, self.op.to_le_bytes());
        put(&mut rest, self.flags.to_le_bytes());
        put(&mut rest, self.buf_alloc.to_le_bytes());
        put(&mut rest, self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// The refusal of this packet: RST with the addresses swapped. Nothing answers an RST.
    pub fn refusal(&self) -> Option<Self> {
        if self.op == Op::Reset as u16 {
            return None;
        }
        Some(Self {
            source_cid: self.destination_cid,
            destination_cid: self.source_cid,
            source_port: self.destination_port,
            destination_port: self.source_port,
            kind: self.kind,
            op: Op::Reset as u16,
            ..Self::default()
        })
    }

    /// Whether the payload has a size that a packet may have.
    pub fn has_legal_length(&self) -> bool {
        self.length <= MAX_PACKET_BYTES
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    match rest.split_first_chunk::<N>() {
        Some((head, tail)) => {
            *rest = tail;
            *head
        }
        None => [0; N], // the fields above add up to HEADER_BYTES, which the tests hold
    }
}

fn put<const N: usize>(rest: &mut &mut [u8], value: [u8; N]) {
    if let Some((head, tail)) = std::mem::take(rest).split_first_chunk_mut::<N>() {
        *head = value;
        *rest = tail;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtio_vsock::packet::PKT_HEADER_SIZE;

    fn sample() -> Header {
        Header {
            source_cid: 0x0102_0304_0506_0708,
            destination_cid: 0x1112_1314_1516_1718,
            source_port: 0x2122_2324,
            destination_port: 0x3132_3334,
            length: 0x4142_4344,
            kind: 0x5152,
            op: 0x6162,
            flags: 0x7172_7374,
            buf_alloc: 0x8182_8384,
            fwd_cnt: 0x9192_9394,
        }
    }

    /// The fields one after the other, little endian (virtio 1.2, 5.10.6). Each byte of the sample occurs once.
    #[test]
    fn the_layout_is_the_specification_s() {
        let fields: [&[u8]; 10] = [
            &[8, 7, 6, 5, 4, 3, 2, 1],
            &[0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11],
            &[0x24, 0x23, 0x22, 0x21],
            &[0x34, 0x33, 0x32, 0x31],
            &[0x44, 0x43, 0x42, 0x41],
            &[0x52, 0x51],
            &[0x62, 0x61],
            &[0x74, 0x73, 0x72, 0x71],
            &[0x84, 0x83, 0x82, 0x81],
            &[0x94, 0x93, 0x92, 0x91],
        ];
        assert_eq!(sample().encode().to_vec(), fields.concat());
        assert_eq!(HEADER_BYTES, PKT_HEADER_SIZE, "rust-vmm's crate has the same length");
    }

    #[test]
    fn decode_is_the_inverse_of_encode() {
        assert_eq!(Header::decode(&sample().encode()), sample());
    }

    #[test]
    fn operations_are_1_to_7_and_nothing_else() {
        let known: Vec<u16> = (0..=u16::MAX).filter(|number| Op::from_number(*number).is_some()).collect();
        assert_eq!(known, [1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn a_refusal_goes_back_where_the_packet_came_from() {
        let packet = sample();
        let refusal = packet.refusal().unwrap();
        assert_eq!(
            (refusal.source_cid, refusal.source_port),
            (packet.destination_cid, packet.destination_port)
        );
        assert_eq!(
            (refusal.destination_cid, refusal.destination_port),
            (packet.source_cid, packet.source_port)
        );
        assert_eq!((refusal.op, refusal.kind, refusal.length), (Op::Reset as u16, packet.kind, 0));
        assert_eq!(refusal.refusal(), None, "two ends that answer RST with RST never stop");
    }

    #[test]
    fn the_length_cap_is_inclusive() {
        assert!(Header { length: MAX_PACKET_BYTES, ..sample() }.has_legal_length());
        assert!(!Header { length: MAX_PACKET_BYTES + 1, ..sample() }.has_legal_length());
    }
}
