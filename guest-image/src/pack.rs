//! `vmlinux` as the linker leaves it, packed into what a machine loads and nothing else.
//!
//! The linker's file is mostly air: symbols, holes that keep 2 MiB alignment in the file, and zeros (.bss, and a
//! 4 MiB work area that only an encrypting host uses). Whoever starts a guest reads, hashes and copies the file each
//! time, so it is rewritten: header, program headers, then the loadable segments back to back, each without the
//! zeros at its end (the machine's memory is zero already). Addresses, entry point and notes stay as they are.
//!
//! Checked on the way: a 64-bit x86 executable whose entry point lies in an executable segment at its *physical*
//! address, as the 64-bit boot protocol wants it.

use std::fmt;

/// Segments start on page boundaries in the packed file, so that a machine may map them.
const PAGE: usize = 4096;
const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
const MACHINE_X86_64: u64 = 62;
const PT_LOAD: u64 = 1;
const PT_NOTE: u64 = 4;
const EXECUTABLE: u64 = 1;
/// The kernel has five; anything beyond this is not a kernel.
const MAX_SEGMENTS: u64 = 32;

/// The file is not a kernel that can be packed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    /// Not a 64-bit little-endian x86 ELF file.
    #[error("It is not a 64-bit x86 ELF file")]
    NotElf,
    /// A table or segment reaches past the end of the file, or a number is out of range.
    #[error("Its {0} does not fit into the file")]
    Truncated(Part),
    /// The entry point is no physical address of executable code.
    #[error("Its entry point {0:#x} is not the physical address of anything executable in it")]
    BadEntry(u64),
    /// Notes must lie inside something that is loaded.
    #[error("Its notes lie outside its loaded segments")]
    LooseNotes,
}

/// A part of the file, for errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The program header table.
    ProgramHeaders,
    /// A loadable segment, counted from 0.
    Segment(usize),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Part::ProgramHeaders => f.write_str("program header table"),
            Part::Segment(index) => write!(f, "segment {index}"),
        }
    }
}

/// A program header, with the offset in the linker's file.
#[derive(Debug, Clone)]
struct Segment {
    kind: u64,
    flags: u64,
    offset: u64,
    virtual_address: u64,
    physical_address: u64,
    file_bytes: u64,
    memory_bytes: u64,
}

/// Packs a kernel.
///
/// # Errors
/// When it is not a 64-bit x86 executable, is cut short, or cannot be entered at its physical address.
pub fn pack(kernel: &[u8]) -> Result<Vec<u8>, PackError> {
    if !kernel.starts_with(b"\x7fELF\x02\x01\x01") || number(kernel, 18, 2) != Some(MACHINE_X86_64) {
        return Err(PackError::NotElf);
    }
    let entry = number(kernel, 24, 8).ok_or(PackError::NotElf)?;
    let segments = segments(kernel).ok_or(PackError::Truncated(Part::ProgramHeaders))?;
    let holds_entry = |s: &Segment| {
        s.kind == PT_LOAD
            && s.flags & EXECUTABLE != 0
            && entry.checked_sub(s.physical_address).is_some_and(|offset| offset < s.file_bytes)
    };
    if !segments.iter().any(holds_entry) {
        return Err(PackError::BadEntry(entry));
    }
    let loads: Vec<&Segment> = segments.iter().filter(|s| s.kind == PT_LOAD && s.memory_bytes > 0).collect();
    let notes: Vec<&Segment> = segments.iter().filter(|s| s.kind == PT_NOTE).collect();

    let count = loads.len() + notes.len();
    let mut packed = header(kernel, entry, count);
    let mut table = Vec::new();
    let mut body = Vec::new();
    let body_start = (HEADER_BYTES + count * PROGRAM_HEADER_BYTES).next_multiple_of(PAGE);
    for (index, load) in loads.iter().enumerate() {
        // A note may end in zeros that are part of it.
        let noted = notes.iter().filter_map(|note| note.end_inside(load)).max().unwrap_or(0);
        let data = contents(kernel, load, noted).ok_or(PackError::Truncated(Part::Segment(index)))?;
        let offset = body_start + body.len();
        table.push((
            Segment { offset: offset as u64, file_bytes: data.len() as u64, ..(*load).clone() },
            PAGE,
        ));
        body.extend_from_slice(data);
        body.resize(body.len().next_multiple_of(PAGE), 0);
    }
    for note in notes {
        let home = table
            .iter()
            .find_map(|(load, _)| note.end_inside(load).map(|end| load.offset + end - note.file_bytes));
        let offset = home.ok_or(PackError::LooseNotes)?;
        table.push((Segment { offset, ..note.clone() }, 4));
    }
    for (segment, align) in &table {
        segment.write(*align, &mut packed);
    }
    packed.resize(body_start, 0);
    packed.append(&mut body);
    Ok(packed)
}

impl Segment {
    /// Where this segment's bytes end in those of another that holds all of them.
    fn end_inside(&self, other: &Segment) -> Option<u64> {
        let start = self.virtual_address.checked_sub(other.virtual_address)?;
        start.checked_add(self.file_bytes).filter(|end| *end <= other.file_bytes)
    }

    fn write(&self, align: usize, out: &mut Vec<u8>) {
        // Two 32-bit fields first.
        out.extend((self.kind | self.flags << 32).to_le_bytes());
        let rest = [
            self.offset,
            self.virtual_address,
            self.physical_address,
            self.file_bytes,
            self.memory_bytes,
            align as u64,
        ];
        out.extend(rest.iter().flat_map(|value| value.to_le_bytes()));
    }
}

/// The ELF header of the packed file: no section table.
fn header(kernel: &[u8], entry: u64, segments: usize) -> Vec<u8> {
    // Identification, type, machine and version as the linker wrote them.
    let mut header: Vec<u8> = kernel.iter().take(24).copied().collect();
    header.extend(entry.to_le_bytes());
    header.extend((HEADER_BYTES as u64).to_le_bytes()); // program headers follow right after
    header.extend(0_u64.to_le_bytes()); // no section headers
    header.extend(0_u32.to_le_bytes()); // flags
    let sizes = [HEADER_BYTES, PROGRAM_HEADER_BYTES, segments, 0, 0, 0];
    header.extend(sizes.iter().flat_map(|size| (*size as u64).to_le_bytes().into_iter().take(2)));
    header
}

/// The program headers, or `None` if the table is cut short or absurd.
fn segments(kernel: &[u8]) -> Option<Vec<Segment>> {
    let (table, size, count) = (number(kernel, 32, 8)?, number(kernel, 54, 2)?, number(kernel, 56, 2)?);
    if size != PROGRAM_HEADER_BYTES as u64 || count > MAX_SEGMENTS {
        return None;
    }
    (0..count)
        .map(|index| {
            let at = usize::try_from(table.checked_add(index * size)?).ok()?;
            let field = |offset: usize, bytes| number(kernel, at.checked_add(offset)?, bytes);
            Some(Segment {
                kind: field(0, 4)?,
                flags: field(4, 4)?,
                offset: field(8, 8)?,
                virtual_address: field(16, 8)?,
                physical_address: field(24, 8)?,
                file_bytes: field(32, 8)?,
                memory_bytes: field(40, 8)?,
            })
        })
        .collect()
}

/// A segment's bytes without the zeros at its end, but not less than `least`.
fn contents<'a>(kernel: &'a [u8], segment: &Segment, least: u64) -> Option<&'a [u8]> {
    let start = usize::try_from(segment.offset).ok()?;
    let data = kernel.get(start..start.checked_add(usize::try_from(segment.file_bytes).ok()?)?)?;
    let used = data.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    data.get(..used.max(usize::try_from(least).ok()?))
}

fn number(bytes: &[u8], at: usize, size: usize) -> Option<u64> {
    let field = bytes.get(at..at.checked_add(size)?)?;
    Some(field.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Code with a note at its end, then data whose file part is mostly zeros.
    fn kernel() -> Vec<u8> {
        let code = Segment {
            kind: PT_LOAD,
            flags: 5,
            offset: 0x20_0000,
            virtual_address: 0xffff_ffff_8100_0000,
            physical_address: 0x100_0000,
            file_bytes: 0x1234,
            memory_bytes: 0x1234,
        };
        let data = Segment {
            flags: 6,
            offset: 0x40_0000,
            virtual_address: 0xffff_ffff_8120_0000,
            physical_address: 0x120_0000,
            file_bytes: 0x8000,
            memory_bytes: 0x10_0000,
            ..code.clone()
        };
        let note = Segment {
            kind: PT_NOTE,
            offset: 0x20_1224,
            virtual_address: 0xffff_ffff_8100_1224,
            physical_address: 0x100_1224,
            file_bytes: 16,
            memory_bytes: 16,
            ..code.clone()
        };
        let mut ident = vec![0; 24];
        ident[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        (ident[16], ident[18], ident[20]) = (2, 62, 1);
        let mut file = header(&ident, 0x100_0040, 3);
        for segment in [&code, &data, &note] {
            segment.write(0x20_0000, &mut file);
        }
        file.resize(0x40_8000, 0);
        file[0x20_0000..0x20_1234].fill(0xcc);
        file[0x20_1224..0x20_1234].copy_from_slice(b"a note ends in\0\0");
        file[0x40_0000..0x40_0100].fill(0xdd);
        file
    }

    #[test]
    fn only_what_is_loaded_stays() {
        let packed = pack(&kernel()).unwrap();
        assert_eq!(packed.len(), PAGE + 2 * PAGE + PAGE);
        let all = segments(&packed).unwrap();
        let facts: Vec<_> = all.iter().map(|s| (s.kind, s.offset, s.file_bytes, s.memory_bytes)).collect();
        assert_eq!(
            facts,
            [
                (PT_LOAD, 0x1000, 0x1234, 0x1234),
                (PT_LOAD, 0x3000, 0x100, 0x10_0000),
                (PT_NOTE, 0x2224, 16, 16)
            ]
        );
        assert_eq!(all[1].physical_address, 0x120_0000);
        assert_eq!(number(&packed, 24, 8), Some(0x100_0040));
        assert_eq!(&packed[0x2224..0x2234], b"a note ends in\0\0");
        assert_eq!(packed[0x3000..0x3100], [0xdd; 0x100]);
        assert_eq!(pack(&packed).unwrap(), packed, "packing what is packed changes nothing");
    }

    #[test]
    fn other_files_are_refused() {
        assert_eq!(pack(b""), Err(PackError::NotElf));
        assert_eq!(pack(b"#!/bin/sh\n"), Err(PackError::NotElf));
        let mut arm = kernel();
        arm[18] = 183;
        assert_eq!(pack(&arm), Err(PackError::NotElf));
    }

    #[test]
    fn entry_must_be_a_physical_address_of_code() {
        for entry in [0xffff_ffff_8100_0040_u64, 0x100_1234, 0x120_0000, 0] {
            let mut kernel = kernel();
            kernel[24..32].copy_from_slice(&entry.to_le_bytes());
            assert_eq!(pack(&kernel), Err(PackError::BadEntry(entry)));
        }
    }

    #[test]
    fn files_cut_short_are_refused_wherever_they_end() {
        let whole = kernel();
        assert_eq!(pack(&whole[..0x40_7fff]), Err(PackError::Truncated(Part::Segment(1))));
        assert_eq!(pack(&whole[..0x20_1000]), Err(PackError::Truncated(Part::Segment(0))));
        for length in 0..300 {
            assert!(pack(&whole[..length]).is_err());
        }
    }

    #[test]
    fn absurd_numbers_are_refused() {
        for (at, value) in [(32, u64::MAX), (32, 1 << 40), (64 + 8, u64::MAX), (64 + 56 + 32, u64::MAX)] {
            let mut kernel = kernel();
            kernel[at..at + 8].copy_from_slice(&value.to_le_bytes());
            assert!(matches!(pack(&kernel), Err(PackError::Truncated(_))), "{at}");
        }
        let mut many = kernel();
        many[56..58].copy_from_slice(&33_u16.to_le_bytes());
        assert_eq!(pack(&many), Err(PackError::Truncated(Part::ProgramHeaders)));
        let mut loose = kernel();
        loose[64 + 2 * 56 + 16..][..8].copy_from_slice(&0_u64.to_le_bytes());
        assert_eq!(pack(&loose), Err(PackError::LooseNotes));
    }
}
