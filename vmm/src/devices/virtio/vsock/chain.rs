//! Descriptor chains -> pieces of host memory with a header in front.
//!
//! The guest chooses how a packet lies in descriptors: Linux puts a received packet into one
//! descriptor, sends small ones in two and large ones in a header and several fragments. So the
//! device takes any framing (virtio 1.2, 2.7.4) and checks only direction, sizes and count.

use virtio_queue::DescriptorChain;
use vm_memory::{GuestMemory, GuestMemoryMmap, Permissions, VolatileSlice};

use super::limits::MAX_SEGMENTS;
use super::packet::{HEADER_BYTES, Header};

/// A chain as the queue hands it out.
pub type Chain<'m> = DescriptorChain<&'m GuestMemoryMmap>;

/// A chain that cannot carry a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// A readable descriptor in a receive chain or the reverse.
    #[error("A descriptor has the wrong direction")]
    Direction,
    /// A descriptor that points outside of the guest's memory.
    #[error("A descriptor points to {length} bytes at {address:#x}, not all of them memory")]
    Memory {
        /// Where.
        address: u64,
        /// How much.
        length: u32,
    },
    /// More pieces than the device keeps track of.
    #[error("The chain has more than {MAX_SEGMENTS} pieces")]
    Segments,
    /// No room for a header, or for nothing else in a receive chain.
    #[error("The chain has {found} bytes, the header alone has {HEADER_BYTES}")]
    Short {
        /// In all descriptors.
        found: usize,
    },
}

/// Replaces the contents of `segments` with the memory that a transmitted packet lies in, splits
/// the header off and copies it out. What remains is the payload area. Also returns how many
/// descriptors the chain has.
///
/// # Errors
/// When the chain holds no readable header.
pub fn read_packet<'m>(
    memory: &'m GuestMemoryMmap,
    chain: &mut Chain<'m>,
    segments: &mut Vec<VolatileSlice<'m>>,
) -> Result<(Header, u16), ChainError> {
    let descriptors = collect(memory, chain, Permissions::Read, segments)?;
    let mut bytes = [0; HEADER_BYTES];
    let mut filled = 0;
    for segment in segments.iter() {
        let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) else { break };
        filled += segment.copy_to(rest);
    }
    advance(segments, HEADER_BYTES)?;
    Ok((Header::decode(&bytes), descriptors))
}

/// Memory that the guest offers for one packet.
#[derive(Debug)]
pub struct Offer<'m> {
    /// What goes into the used ring.
    pub head: u16,
    /// Bytes of payload that fit behind the header.
    pub capacity: usize,
    /// Linux offers one piece, and then this is all.
    first: VolatileSlice<'m>,
    rest: Vec<VolatileSlice<'m>>,
}

impl<'m> Offer<'m> {
    /// Reads the descriptors of a receive chain; `scratch` is only an allocation to use again.
    ///
    /// # Errors
    /// When a packet with at least one byte does not fit.
    pub fn new(
        memory: &'m GuestMemoryMmap,
        mut chain: Chain<'m>,
        scratch: &mut Vec<VolatileSlice<'m>>,
    ) -> Result<Self, ChainError> {
        let head = chain.head_index();
        collect(memory, &mut chain, Permissions::Write, scratch)?;
        let found = total(scratch);
        let short = ChainError::Short { found };
        let capacity = found.checked_sub(HEADER_BYTES).filter(|capacity| *capacity > 0).ok_or(short)?;
        let mut pieces = scratch.drain(..);
        let first = pieces.next().ok_or(short)?;
        Ok(Self { head, capacity, first, rest: pieces.collect() })
    }

    /// Appends the pieces where the payload goes.
    pub fn payload(&self, space: &mut Vec<VolatileSlice<'m>>) {
        let mut skip = HEADER_BYTES;
        for segment in self.segments() {
            if !covers(&mut skip, segment.len())
                && let Ok(rest) = segment.offset(std::mem::take(&mut skip))
            {
                space.push(rest);
            }
        }
    }

    /// Writes the header and returns what the used ring says: the bytes written in all.
    pub fn finish(&self, header: &Header) -> u32 {
        let bytes = header.encode();
        let mut rest = bytes.as_slice();
        for segment in self.segments() {
            segment.copy_from(rest);
            rest = rest.get(segment.len()..).unwrap_or_default();
        }
        (HEADER_BYTES as u32).saturating_add(header.length)
    }

    fn segments(&self) -> impl Iterator<Item = &VolatileSlice<'m>> {
        std::iter::once(&self.first).chain(&self.rest)
    }
}

/// All memory of a chain, in order, with the permission that it was offered for. Returns the number
/// of descriptors.
fn collect<'m>(
    memory: &'m GuestMemoryMmap,
    chain: &mut Chain<'m>,
    access: Permissions,
    segments: &mut Vec<VolatileSlice<'m>>,
) -> Result<u16, ChainError> {
    segments.clear();
    let mut descriptors = 0_u16;
    for descriptor in chain {
        descriptors = descriptors.saturating_add(1);
        if descriptor.is_write_only() != (access == Permissions::Write) {
            return Err(ChainError::Direction);
        }
        let bad = ChainError::Memory { address: descriptor.addr().0, length: descriptor.len() };
        let slices = memory.get_slices(descriptor.addr(), descriptor.len() as usize, access);
        for slice in slices.map_err(|_| bad)? {
            if segments.len() == MAX_SEGMENTS {
                return Err(ChainError::Segments);
            }
            segments.push(slice.map_err(|_| bad)?);
        }
    }
    Ok(descriptors)
}

/// Removes the first `count` bytes.
fn advance(segments: &mut Vec<VolatileSlice<'_>>, count: usize) -> Result<(), ChainError> {
    let short = ChainError::Short { found: total(segments) };
    let mut left = count;
    let whole = segments.iter().take_while(|segment| covers(&mut left, segment.len())).count();
    segments.drain(..whole);
    if left > 0 {
        let first = segments.first_mut().ok_or(short)?;
        *first = first.offset(left).map_err(|_| short)?;
    }
    Ok(())
}

/// Keeps the first `count` bytes; the rest goes.
pub fn truncate(segments: &mut Vec<VolatileSlice<'_>>, count: usize) {
    let mut left = count;
    let whole = segments.iter().take_while(|segment| covers(&mut left, segment.len())).count();
    segments.truncate(whole.saturating_add(usize::from(left > 0)));
    if left > 0
        && let Some(last) = segments.get_mut(whole)
        && let Ok(start) = last.subslice(0, left)
    {
        *last = start;
    }
}

/// Bytes in all pieces. They are pieces of one address space, so the sum is one too; saturating
/// because a guest may describe the same memory often.
pub fn total(segments: &[VolatileSlice<'_>]) -> usize {
    segments.iter().fold(0, |sum, segment| sum.saturating_add(segment.len()))
}

/// Whether `left` covers `length` whole bytes; takes them off if so.
fn covers(left: &mut usize, length: usize) -> bool {
    match left.checked_sub(length) {
        Some(rest) => {
            *left = rest;
            true
        }
        None => false,
    }
}

#[cfg(test)]
#[path = "tests/chain.rs"]
mod tests;
