//! From a descriptor chain to a request: the guest's bytes, read once and checked.
//!
//! A request is a 16-byte header, data buffers, and one status byte. We take it only in the framing
//! that drivers use: the header in a descriptor of its own, the status in the last one.

use std::ops::Deref;

use virtio_bindings::virtio_blk::{VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN};
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap};

use super::SECTOR;

/// Most data buffers of a request: 126 pages of read-ahead and a request without indirect
/// descriptors still fits the queue with header and status.
pub(super) const MAX_SEGMENTS: usize = 126;
/// Most bytes of a request: Linux asks for 1.25 MiB at most.
pub(super) const MAX_BYTES: u64 = 4 << 20;
/// Bytes of the header.
const HEADER: usize = 16;

/// What the guest wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Data from a byte offset on.
    Read(u64),
    /// The id string.
    GetId,
    /// Nothing to do on a read-only disk.
    Flush,
    /// Writes among others: refused with `UNSUPP`.
    Other(u32),
}

/// A checked request. The addresses may still lie outside the memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub command: Command,
    pub data: Vec<(GuestAddress, usize)>,
    pub status: GuestAddress,
}

/// A chain that is no request. Its status byte, where it has one, is told `IOERR`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Malformed {
    /// No writable last descriptor: nothing can be answered.
    Mute,
    /// Answer here.
    At(GuestAddress),
}

/// Reads a chain.
pub(super) fn parse<M>(memory: &GuestMemoryMmap, chain: DescriptorChain<M>) -> Result<Request, Malformed>
where
    M: Deref,
    M::Target: GuestMemory,
{
    // Header, data, status: one more than allowed shows an overlong chain without walking it all.
    let mut descriptors: Vec<_> = chain.take(MAX_SEGMENTS + 3).collect();
    let last = descriptors.pop().filter(|last| last.is_write_only() && last.len() >= 1);
    let status = last.ok_or(Malformed::Mute)?.addr();
    let malformed = Malformed::At(status);
    let mut descriptors = descriptors.into_iter();
    let header = descriptors.next().filter(|first| !first.is_write_only() && first.len() as usize == HEADER);
    let mut bytes = [0; HEADER];
    let read = header.map(|header| memory.read_slice(&mut bytes, header.addr()));
    if !matches!(read, Some(Ok(()))) || descriptors.len() > MAX_SEGMENTS {
        return Err(malformed);
    }
    let command = command(bytes).ok_or(Malformed::At(status))?;
    let mut data = Vec::with_capacity(descriptors.len());
    let mut total = 0;
    for descriptor in descriptors {
        total += u64::from(descriptor.len());
        let wanted = matches!(command, Command::Read(_) | Command::GetId);
        if total > MAX_BYTES || wanted && !descriptor.is_write_only() {
            return Err(malformed);
        }
        data.push((descriptor.addr(), descriptor.len() as usize));
    }
    if matches!(command, Command::Read(_)) && (total == 0 || !total.is_multiple_of(SECTOR)) {
        return Err(malformed);
    }
    Ok(Request { command, data, status })
}

/// The header's type and sector. `None` for a sector beyond all disks.
fn command(header: [u8; HEADER]) -> Option<Command> {
    let [a, b, c, d, _, _, _, _, sector @ ..] = header;
    let sector = u64::from_le_bytes(sector);
    Some(match u32::from_le_bytes([a, b, c, d]) {
        VIRTIO_BLK_T_IN => Command::Read(sector.checked_mul(SECTOR)?),
        VIRTIO_BLK_T_GET_ID => Command::GetId,
        VIRTIO_BLK_T_FLUSH => Command::Flush,
        other => Command::Other(other),
    })
}
