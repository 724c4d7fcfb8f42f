//! The kernel file: an ELF `vmlinux` whose loadable segments become items of the launch plan.
//!
//! The segments are copied, not mapped: file pages would be mapped 4 KiB at a time and cost a nested
//! page fault each, and the kernel patches most pages of its text at boot, which would copy them
//! after all. Copied ones share the 2 MiB pages of the guest's RAM. Holes of the file are left out:
//! Linux has its zeroed data in the last segment, half of the file, and fresh memory is zero.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;

use linux_loader::elf::{EM_X86_64, ET_EXEC, Elf64_Ehdr, Elf64_Phdr, PT_LOAD};
use vm_memory::ByteValued;

use crate::memory::layout::{ACPI_LENGTH, ACPI_TABLES, DEVICE_HOLE, MIB, PAGE};
use crate::plan::{Contents, Item, PageType};
use crate::sys::fd;

/// Most program headers; Linux has five.
const MAX_SEGMENTS: u16 = 32;
/// Magic, 64-bit class, little endian, version 1.
const IDENT: [u8; 7] = [0x7f, b'E', b'L', b'F', 2, 1, 1];
/// Holes below this are copied like data: a kernel has hundreds of single zero pages.
const MIN_HOLE: u64 = 64 * 1024;
/// First address that a kernel may occupy: behind the ACPI tables.
const LOWEST: u64 = ACPI_TABLES + ACPI_LENGTH;

/// A kernel ready to be placed.
#[derive(Debug)]
pub struct Kernel {
    file: Arc<File>,
    entry: u64,
    segments: Vec<Segment>,
    pieces: Vec<Piece>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    address: u64,
    offset: u64,
    file_length: u64,
    memory_length: u64,
}

/// A part of a segment that holds data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    address: u64,
    offset: u64,
    length: u64,
}

/// A file that is no kernel for this machine.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The entry point is in no loaded segment.
    #[error("Its entry point {0:#x} is outside its segments")]
    Entry(u64),
    /// Not an ELF file of the right kind.
    #[error("It is not an uncompressed x86-64 ELF kernel (vmlinux)")]
    NotElf,
    /// The kernel does not fit between the tables and the end of low memory.
    #[error("It needs memory up to {end:#x} and the machine's ends at {limit:#x}")]
    Memory {
        /// End of the kernel, with its zeroed part.
        end: u64,
        /// End of RAM below 3 GiB.
        limit: u64,
    },
    /// The file cannot be read.
    #[error("It cannot be read")]
    Read(#[source] io::Error),
    /// A segment lies where it must not.
    #[error("Its segment at {address:#x} with {length} bytes is outside the memory that kernels may use")]
    Segment {
        /// Physical address.
        address: u64,
        /// Bytes in memory.
        length: u64,
    },
    /// More program headers than any kernel has.
    #[error("It has {0} program headers, at most {MAX_SEGMENTS} are expected")]
    Segments(u16),
}

impl Kernel {
    /// Reads the headers of a kernel for a machine of `memory_mib`.
    ///
    /// # Errors
    /// When the file is no kernel, or one that does not fit.
    pub fn read(mut file: File, memory_mib: u32) -> Result<Self, KernelError> {
        let mut header = Elf64_Ehdr::default();
        read_header(&mut file, 0, header.as_mut_slice())?;
        let known = header.e_ident.starts_with(&IDENT)
            && header.e_type == ET_EXEC
            && header.e_machine == EM_X86_64
            && usize::from(header.e_phentsize) == size_of::<Elf64_Phdr>();
        if !known {
            return Err(KernelError::NotElf);
        }
        if header.e_phnum > MAX_SEGMENTS {
            return Err(KernelError::Segments(header.e_phnum));
        }
        let mut segments = Vec::with_capacity(header.e_phnum.into());
        for index in 0..u64::from(header.e_phnum) {
            let at = header.e_phoff.checked_add(index * size_of::<Elf64_Phdr>() as u64);
            let mut program = Elf64_Phdr::default();
            read_header(&mut file, at.ok_or(KernelError::NotElf)?, program.as_mut_slice())?;
            segments.extend(Segment::parse(&program)?);
        }
        let mut pieces = Vec::new();
        for segment in &segments {
            segment.find_data(&file, &mut pieces).map_err(KernelError::Read)?;
        }
        let kernel = Self { file: Arc::new(file), entry: header.e_entry, segments, pieces };
        kernel.check(memory_mib)?;
        Ok(kernel)
    }

    /// Where the boot vCPU starts.
    #[must_use]
    pub fn entry(&self) -> u64 {
        self.entry
    }

    /// What is to be copied, as items of the plan. All else of a kernel is zero, as fresh memory is.
    pub fn items(&self) -> impl Iterator<Item = Item> {
        self.pieces.iter().map(|piece| Item {
            name: "kernel segment",
            address: piece.address,
            contents: Contents::File {
                file: Arc::clone(&self.file),
                offset: piece.offset,
                length: piece.length,
            },
            page_type: PageType::Staged,
        })
    }

    fn check(&self, memory_mib: u32) -> Result<(), KernelError> {
        let entry = self.entry;
        if !self.segments.iter().any(|segment| (segment.address..segment.end()).contains(&entry)) {
            return Err(KernelError::Entry(entry));
        }
        let end = self.segments.iter().map(|segment| segment.end()).max().unwrap_or(0);
        let limit = (u64::from(memory_mib) * MIB).min(DEVICE_HOLE);
        if end > limit { Err(KernelError::Memory { end, limit }) } else { Ok(()) }
    }
}

impl Segment {
    /// A loadable segment; `None` for the headers of other kinds.
    fn parse(program: &Elf64_Phdr) -> Result<Option<Self>, KernelError> {
        if program.p_type != PT_LOAD || program.p_memsz == 0 {
            return Ok(None);
        }
        let (address, length) = (program.p_paddr, program.p_memsz);
        let end = address.checked_add(length).filter(|end| *end <= DEVICE_HOLE);
        if address < LOWEST || end.is_none() || program.p_filesz > length {
            return Err(KernelError::Segment { address, length });
        }
        Ok(Some(Self {
            address,
            offset: program.p_offset,
            file_length: program.p_filesz,
            memory_length: length,
        }))
    }

    /// The parts of the file without its holes, in whole pages: two in one page would overlap.
    fn find_data(&self, file: &File, pieces: &mut Vec<Piece>) -> io::Result<()> {
        let end = self.offset.saturating_add(self.file_length);
        let mut at = self.offset;
        let own = pieces.len();
        while at < end {
            let Some(data) = fd::next_data(file, at)? else { break };
            let start = (data.start - data.start % PAGE).max(at);
            let stop = data.end.checked_next_multiple_of(PAGE).unwrap_or(end).min(end);
            at = stop.max(data.end);
            if start >= stop {
                break;
            }
            let address = self.address + (start - self.offset);
            match pieces.get_mut(own..).and_then(<[Piece]>::last_mut) {
                Some(last) if last.joins(address, start) => last.length = stop - last.offset,
                _ => pieces.push(Piece { address, offset: start, length: stop - start }),
            }
        }
        Ok(())
    }

    /// `parse` has checked that it does not overflow.
    fn end(&self) -> u64 {
        self.address + self.memory_length
    }
}

impl Piece {
    /// Whether what follows at `address` and `offset` is the same stretch behind a small hole.
    fn joins(&self, address: u64, offset: u64) -> bool {
        let gap = offset.checked_sub(self.offset + self.length).filter(|gap| *gap < MIN_HOLE);
        gap.is_some_and(|gap| self.address + self.length + gap == address)
    }
}

fn read_header(file: &mut File, offset: u64, into: &mut [u8]) -> Result<(), KernelError> {
    let read = file.seek(SeekFrom::Start(offset)).and_then(|_| file.read_exact(into));
    read.map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => KernelError::NotElf,
        _ => KernelError::Read(error),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    use super::*;

    /// A kernel of one segment, changed by `edit`.
    fn image(edit: impl FnOnce(&mut Elf64_Ehdr, &mut Elf64_Phdr)) -> File {
        let mut header = Elf64_Ehdr {
            e_type: ET_EXEC,
            e_machine: EM_X86_64,
            e_phentsize: size_of::<Elf64_Phdr>() as u16,
            e_phnum: 1,
            e_phoff: size_of::<Elf64_Ehdr>() as u64,
            e_entry: 0x100_0000,
            ..Default::default()
        };
        header.e_ident[..7].copy_from_slice(&IDENT);
        let mut program = Elf64_Phdr {
            p_type: PT_LOAD,
            p_paddr: 0x100_0000,
            p_filesz: 16,
            p_memsz: 0x2000,
            p_offset: 0x800,
            ..Default::default()
        };
        edit(&mut header, &mut program);
        let path = std::env::temp_dir().join(format!(
            "hull-kernel-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        let mut file = File::create(&path).unwrap();
        file.write_all(header.as_slice()).unwrap();
        file.write_all(program.as_slice()).unwrap();
        file.set_len(0x3000).unwrap();
        file.write_all_at(&[1; 0x100], 0x800).unwrap();
        let file = File::open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        file
    }

    #[test]
    fn a_good_kernel_becomes_an_item() {
        let kernel = Kernel::read(image(|_, _| {}), 64).unwrap();
        assert_eq!(kernel.entry(), 0x100_0000);
        let items: Vec<_> = kernel.items().collect();
        assert_eq!(items.len(), 1);
        assert_eq!(items[0].address, 0x100_0000);
        assert!(matches!(items[0].contents, Contents::File { offset: 0x800, length: 16, .. }));
    }

    #[test]
    fn holes_of_the_file_are_not_copied() {
        let file = image(|_, program| (program.p_offset, program.p_filesz) = (0, 0x2000));
        let items: Vec<_> = Kernel::read(file, 64).unwrap().items().collect();
        let copied: u64 = items.iter().map(|item| item.contents.length()).sum();
        assert!(copied == 0x1000 || copied == 0x2000, "one page of data, or no holes here: {copied:#x}");
        assert_eq!(items[0].address, 0x100_0000);
    }

    #[test]
    fn bad_kernels_are_told_apart() {
        let read = |file| Kernel::read(file, 64).unwrap_err();
        assert!(matches!(read(image(|header, _| header.e_ident[1] = b'X')), KernelError::NotElf));
        assert!(matches!(read(image(|header, _| header.e_machine = 183)), KernelError::NotElf));
        assert!(matches!(
            read(image(|header, _| header.e_phoff = u64::MAX - 8)),
            KernelError::Read(_) | KernelError::NotElf
        ));
        assert!(matches!(read(image(|header, _| header.e_phnum = 33)), KernelError::Segments(33)));
        assert!(matches!(
            read(image(|header, _| header.e_entry = 0x100_2000)),
            KernelError::Entry(0x100_2000)
        ));
        assert!(matches!(read(image(|_, program| program.p_memsz = 1)), KernelError::Segment { .. }));
        assert!(matches!(read(image(|_, program| program.p_paddr = 0x7000)), KernelError::Segment { .. }));
        assert!(matches!(read(image(|_, program| program.p_memsz = u64::MAX)), KernelError::Segment { .. }));
        let large = image(|_, program| program.p_memsz = 64 << 20);
        assert!(matches!(read(large), KernelError::Memory { end: 0x500_0000, limit: 0x400_0000 }));
        let empty = File::open("/dev/null").unwrap();
        assert!(matches!(read(empty), KernelError::NotElf));
    }
}
