use std::fs::File;
use std::io::Write;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use virtio_queue::Queue;
use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, VolatileSlice};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::extents::{ALIGNMENT, LAYER_DISK_BYTES, MAX_EXTENTS};
use super::request::{Command, MAX_BYTES, Malformed, Request, parse};
use super::*;
use crate::devices::virtio::{ActiveQueue, Interrupt};
use crate::memory::GuestRam;
use crate::thread::Workers;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
/// Where the tests' requests are; the rings start at 0.
const HEADER: u64 = 0x10_0000;
const STATUS: u64 = 0x10_0100;
const DATA: u64 = 0x20_0000;
const READ: u32 = 0;
const GET_ID: u32 = 8;

/// A file of `length` bytes; each byte is `seed` plus the number of its 4 KiB page.
fn file(seed: u8, length: usize) -> File {
    let name = format!("hull-block-{}-{seed}-{length}-{:?}", std::process::id(), std::thread::current().id());
    let path = std::env::temp_dir().join(name);
    let bytes: Vec<u8> = (0..length).map(|index| seed.wrapping_add((index / 4096) as u8)).collect();
    File::create(&path).unwrap().write_all(&bytes).unwrap();
    let file = File::open(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    file
}

fn disk() -> (LayerDisk, Arc<Extents>) {
    let extents = Arc::new(Extents::for_layers());
    (LayerDisk::new(Arc::clone(&extents)), extents)
}

/// Reads as the worker does, into two buffers.
fn read(extents: &Extents, offset: u64, length: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0xee; length];
    let (first, second) = bytes.split_at_mut(length / 3);
    let buffers = vec![VolatileSlice::from(first), VolatileSlice::from(second)];
    let result = extents.read(offset, buffers);
    result.ok().map(|_| bytes)
}

#[test]
fn layers_are_mapped_apart_and_read_back() {
    let (disk, extents) = disk();
    let first = disk.map(file(1, 10_000), 10_000).unwrap();
    let second = disk.map(file(100, 4096), 4096).unwrap();
    assert_eq!((first.length_bytes, second.length_bytes), (12288, 4096));
    assert!(second.offset_bytes >= first.offset_bytes + first.length_bytes + ALIGNMENT);
    let bytes = read(&extents, first.offset_bytes, 12288).unwrap();
    assert_eq!((bytes[0], bytes[4096], bytes[9999]), (1, 2, 3));
    assert!(bytes[10_000..].iter().all(|byte| *byte == 0), "the rest of the page is zeros");
    assert_eq!(read(&extents, second.offset_bytes + 512, 512).unwrap(), vec![100; 512]);
    assert!(read(&extents, 0, 1 << 20).unwrap().iter().all(|byte| *byte == 0), "the label");
}

#[test]
fn nothing_is_read_outside_a_mapping() {
    let (disk, extents) = disk();
    let extent = disk.map(file(1, 8192), 8192).unwrap();
    let end = extent.offset_bytes + extent.length_bytes;
    for (offset, length) in [
        (end, 512),
        (end - 512, 1024),
        (extent.offset_bytes - 512, 512),
        (extent.offset_bytes - 512, 1024),
        ((1 << 20) - 512, 1024),
        (LAYER_DISK_BYTES - 512, 512),
        (LAYER_DISK_BYTES, 512),
        (u64::MAX - 100, 512),
    ] {
        assert!(read(&extents, offset, length).is_none(), "{offset:#x} {length}");
    }
    disk.unmap(extent.id).unwrap();
    assert!(read(&extents, extent.offset_bytes, 512).is_none());
    assert!(matches!(disk.unmap(extent.id), Err(LayerError::NotMapped(_))));
}

#[test]
fn an_unmapped_address_is_not_given_out_again_soon() {
    let (disk, _) = disk();
    let mut last = 0;
    for _ in 0..100 {
        let extent = disk.map(file(1, 100), 100).unwrap();
        assert!(extent.offset_bytes > last && extent.offset_bytes.is_multiple_of(ALIGNMENT));
        last = extent.offset_bytes;
        disk.unmap(extent.id).unwrap();
    }
}

#[test]
fn bad_layers_are_refused_with_numbers() {
    let (disk, _) = disk();
    assert!(matches!(disk.map(file(1, 10), 0), Err(LayerError::Length(0))));
    assert!(matches!(disk.map(file(1, 10), u64::MAX), Err(LayerError::Length(u64::MAX))));
    let short = disk.map(file(1, 10), 11).unwrap_err();
    assert_eq!(short.to_string(), "The layer file has 10 bytes, 11 were to be mapped");
    let one = file(1, 10);
    let mut mapped = 0;
    while disk.map(one.try_clone().unwrap(), 10).is_ok() {
        mapped += 1;
    }
    assert_eq!(mapped, MAX_EXTENTS - 1, "the label is an extent, too");
    assert!(matches!(disk.map(one, 10), Err(LayerError::TooMany)));
}

#[test]
fn a_file_that_shrank_is_an_error_not_zeros() {
    let path = std::env::temp_dir().join(format!("hull-shrink-{}", std::process::id()));
    std::fs::write(&path, [7; 8192]).unwrap();
    let (disk, extents) = disk();
    let extent = disk.map(File::open(&path).unwrap(), 8192).unwrap();
    File::options().write(true).open(&path).unwrap().set_len(100).unwrap();
    std::fs::remove_file(path).unwrap();
    assert!(read(&extents, extent.offset_bytes, 8192).is_none());
}

/// Against a plain model: whatever is mapped and unmapped, extents never overlap or touch, and a
/// read succeeds exactly where one extent covers it.
#[test]
fn mapping_follows_a_model() {
    let (disk, extents) = disk();
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    let mut model: Vec<Extent> = Vec::new();
    let source = file(9, 40_000);
    for _ in 0..2000 {
        if model.len() > 40 || !model.is_empty() && random(3) == 0 {
            let gone = model.swap_remove(random(model.len() as u64) as usize);
            disk.unmap(gone.id).unwrap();
        } else {
            model.push(disk.map(source.try_clone().unwrap(), 1 + random(40_000)).unwrap());
        }
        for pair in model.windows(2) {
            let (a, b) = (pair[0].min_by_offset(pair[1]), pair[0].max_by_offset(pair[1]));
            assert!(a.offset_bytes + a.length_bytes < b.offset_bytes);
        }
        let Some(probe) = model.get(random(1 + model.len() as u64) as usize) else { continue };
        let offset = probe.offset_bytes + random(20) * 512;
        let length = 512 * (1 + random(20));
        let covered = model.iter().any(|extent| {
            extent.offset_bytes <= offset && offset + length <= extent.offset_bytes + extent.length_bytes
        });
        assert_eq!(read(&extents, offset, length as usize).is_some(), covered);
    }
}

impl Extent {
    fn min_by_offset(self, other: Self) -> Self {
        if self.offset_bytes < other.offset_bytes { self } else { other }
    }
    fn max_by_offset(self, other: Self) -> Self {
        if self.offset_bytes < other.offset_bytes { other } else { self }
    }
}

fn header(memory: &GuestMemoryMmap, kind: u32, sector: u64) {
    memory.write_obj(kind, GuestAddress(HEADER)).unwrap();
    memory.write_obj(sector, GuestAddress(HEADER + 8)).unwrap();
}

fn parts(pieces: &[(u64, u32, u16)]) -> Vec<RawDescriptor> {
    let last = pieces.len() - 1;
    let link = |index: usize| if index == last { 0 } else { NEXT };
    let descriptor = |(index, &(address, length, flags)): (usize, &(u64, u32, u16))| {
        RawDescriptor::from(Descriptor::new(address, length, flags | link(index), (index + 1) as u16))
    };
    pieces.iter().enumerate().map(descriptor).collect()
}

fn parse_pieces(ram: &GuestRam, pieces: &[(u64, u32, u16)]) -> Result<Request, Malformed> {
    let queue = MockSplitQueue::new(ram.view(), 256);
    let chain = queue.build_desc_chain(&parts(pieces)).unwrap();
    parse(ram.view(), chain)
}

#[test]
fn a_good_request_is_understood() {
    let ram = GuestRam::allocate(64).unwrap();
    header(ram.view(), READ, 3);
    let pieces = [(HEADER, 16, 0), (DATA, 4096, WRITE), (DATA + 8192, 512, WRITE), (STATUS, 1, WRITE)];
    let request = parse_pieces(&ram, &pieces).unwrap();
    assert_eq!(request.command, Command::Read(1536));
    assert_eq!(request.data, [(GuestAddress(DATA), 4096), (GuestAddress(DATA + 8192), 512)]);
    assert_eq!(request.status, GuestAddress(STATUS));
}

#[test]
fn hostile_requests_are_refused() {
    let ram = GuestRam::allocate(64).unwrap();
    header(ram.view(), READ, 0);
    let here = Err(Malformed::At(GuestAddress(STATUS)));
    let (head, data, status) = ((HEADER, 16, 0), (DATA, 512, WRITE), (STATUS, 1, WRITE));
    assert_eq!(parse_pieces(&ram, &[(STATUS, 1, 0)]), Err(Malformed::Mute));
    assert_eq!(parse_pieces(&ram, &[head, data, (STATUS, 0, WRITE)]), Err(Malformed::Mute));
    assert_eq!(parse_pieces(&ram, &[status]), here);
    assert_eq!(parse_pieces(&ram, &[(HEADER, 15, 0), data, status]), here);
    assert_eq!(parse_pieces(&ram, &[(HEADER, 16, WRITE), data, status]), here);
    assert_eq!(parse_pieces(&ram, &[(u64::MAX - 8, 16, 0), data, status]), here);
    assert_eq!(parse_pieces(&ram, &[(64 << 20, 16, 0), data, status]), here);
    assert_eq!(parse_pieces(&ram, &[head, (DATA, 512, 0), status]), here);
    assert_eq!(parse_pieces(&ram, &[head, (DATA, 513, WRITE), status]), here);
    assert_eq!(parse_pieces(&ram, &[head, status]), here, "a read of nothing");
    let half = (MAX_BYTES / 2) as u32;
    assert!(parse_pieces(&ram, &[head, (DATA, half, WRITE), (DATA, half, WRITE), status]).is_ok());
    assert_eq!(parse_pieces(&ram, &[head, (DATA, half, WRITE), (DATA, half + 512, WRITE), status]), here);
    let endless = [head, (DATA, u32::MAX, WRITE), status];
    assert_eq!(parse_pieces(&ram, &endless), Err(Malformed::Mute), "the chain ends where it overflows");
    for (count, good) in [(MAX_SEGMENTS, true), (MAX_SEGMENTS + 1, false)] {
        let mut pieces = vec![head];
        pieces.extend(vec![data; count]);
        pieces.push(status);
        assert_eq!(parse_pieces(&ram, &pieces).is_ok(), good, "{count}");
    }
    header(ram.view(), READ, u64::MAX / 512 + 1);
    assert_eq!(parse_pieces(&ram, &[head, data, status]), here);
}

#[test]
fn random_chains_never_panic() {
    let ram = GuestRam::allocate(64).unwrap();
    let mut seed = 88_172_645_463_325_252_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for _ in 0..5000 {
        header(ram.view(), (random() % 12) as u32, random());
        let addresses = [HEADER, DATA, STATUS, (64 << 20) - 8, u64::MAX - 4, 0];
        let lengths = [0, 1, 15, 16, 512, 4096, 1 << 22, u32::MAX];
        let pieces: Vec<_> = (0..1 + random() % 6)
            .map(|_| {
                let address = addresses[(random() % 6) as usize];
                (address, lengths[(random() % 8) as usize], (random() % 2) as u16 * WRITE)
            })
            .collect();
        let _ = parse_pieces(&ram, &pieces);
    }
}

/// A device with one queue, driven by hand.
struct Rig {
    block: Block,
    ram: GuestRam,
    kick: EventFd,
    line: Arc<EventFd>,
    used_index: GuestAddress,
}

impl Rig {
    /// Activates a device over `extents` whose queue already holds these requests.
    fn new(extents: Arc<Extents>, requests: &[&[(u64, u32, u16)]]) -> Self {
        let ram = GuestRam::allocate(64).unwrap();
        let mock = MockSplitQueue::new(ram.view(), 16);
        let mut descriptors = Vec::new();
        for request in requests {
            let base = descriptors.len() as u16;
            descriptors.extend(parts(request).into_iter().map(|raw| {
                let split = Descriptor::from(raw);
                RawDescriptor::from(Descriptor::new(
                    split.addr().0,
                    split.len(),
                    split.flags(),
                    split.next() + base,
                ))
            }));
        }
        mock.build_multiple_desc_chains(&descriptors).unwrap();
        let queue: Queue = mock.create_queue().unwrap();
        let used_index = GuestAddress(mock.used_addr().0 + 2);
        let kick = EventFd::new(EFD_NONBLOCK).unwrap();
        let line = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let mut block = Block::new("test", extents);
        let activation = Activation {
            memory: ram.clone(),
            features: 0,
            queues: vec![ActiveQueue { queue, kick: kick.try_clone().unwrap() }],
            interrupt: Interrupt::new(Arc::new(AtomicU32::new(0)), Arc::clone(&line)),
            workers: Workers::default(),
        };
        block.activate(activation).unwrap();
        Self { block, ram, kick, line, used_index }
    }

    /// Kicks and waits until `count` requests have been used.
    fn serve(&self, count: u16) {
        self.kick.write(1).unwrap();
        let begin = Instant::now();
        while self.ram.view().read_obj::<u16>(self.used_index).unwrap() != count {
            assert!(begin.elapsed() < Duration::from_secs(20), "the device does not answer");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn byte(&self, address: u64) -> u8 {
        self.ram.view().read_obj(GuestAddress(address)).unwrap()
    }
}

#[test]
fn the_device_answers_reads_ids_and_refuses_writes() {
    let (disk, extents) = disk();
    let extent = disk.map(file(5, 8192), 8192).unwrap();
    // Three headers of three requests; the chains name them before they are written.
    let read = [(HEADER, 16, 0), (DATA, 4096, WRITE), (DATA + 0x5000, 512, WRITE), (STATUS, 1, WRITE)];
    let id = [(HEADER + 16, 16, 0), (DATA + 0x8000, 20, WRITE), (STATUS + 1, 1, WRITE)];
    let write = [(HEADER + 32, 16, 0), (DATA, 512, 0), (STATUS + 2, 1, WRITE)];
    let beyond = [(HEADER + 48, 16, 0), (DATA, 512, WRITE), (STATUS + 3, 1, WRITE)];
    let rig = Rig::new(extents, &[&read, &id, &write, &beyond]);
    let headers = [(READ, extent.offset_bytes / 512 + 8), (GET_ID, 0), (1, 0), (READ, u64::MAX / 1024)];
    for ((kind, sector), address) in headers.into_iter().zip((HEADER..).step_by(16)) {
        rig.ram.view().write_obj(kind, GuestAddress(address)).unwrap();
        rig.ram.view().write_obj(sector, GuestAddress(address + 8)).unwrap();
    }
    for address in STATUS..STATUS + 4 {
        rig.ram.view().write_obj(0xff_u8, GuestAddress(address)).unwrap();
    }
    rig.serve(4);
    // The read begins in the last page of the layer and ends behind it: refused as a whole.
    assert_eq!(rig.byte(STATUS), 1);
    assert_eq!((rig.byte(STATUS + 1), rig.byte(STATUS + 2), rig.byte(STATUS + 3)), (0, 2, 1));
    assert_eq!((rig.byte(DATA + 0x8000), rig.byte(DATA + 0x8004)), (b't', 0));
    assert!(rig.line.read().is_ok(), "the driver was interrupted");
    let failed = rig.block.counters().into_iter().find(|counter| counter.name == "requests_failed");
    assert_eq!(failed.unwrap().value, 2);
}

#[test]
fn data_goes_straight_to_the_guests_pages() {
    let extents = Arc::new(Extents::of_file(file(40, 20_000)).unwrap());
    assert_eq!(extents.capacity_bytes(), 20_480);
    let rig = Rig::new(
        extents,
        &[&[(HEADER, 16, 0), (DATA + 4096, 4096, WRITE), (DATA, 4096, WRITE), (STATUS, 1, WRITE)]],
    );
    rig.ram.view().write_obj(0xff_u8, GuestAddress(STATUS)).unwrap();
    header(rig.ram.view(), READ, 24);
    rig.serve(1);
    assert_eq!((rig.byte(STATUS), rig.byte(DATA + 4096), rig.byte(DATA)), (0, 43, 44));
    assert_eq!((rig.byte(DATA + 20_000 - 16_384 - 1), rig.byte(DATA + 20_000 - 16_384)), (44, 0));
}

#[test]
fn a_reset_ends_the_thread_and_may_come_twice() {
    let (_, extents) = disk();
    let mut rig = Rig::new(extents, &[&[(HEADER, 16, 0), (DATA, 512, WRITE), (STATUS, 1, WRITE)]]);
    let begin = Instant::now();
    rig.block.reset();
    rig.block.reset();
    assert!(begin.elapsed() < Duration::from_secs(10));
}

#[test]
fn the_configuration_ends_where_it_ends() {
    let (_, extents) = disk();
    let block = Block::new("test", extents);
    let mut config = [0xff; 32];
    block.read_config(0, &mut config);
    assert_eq!(u64::from_le_bytes(config[..8].try_into().unwrap()), LAYER_DISK_BYTES / 512);
    assert_eq!((config[12], config[21], config[24]), (126, 2, 0));
    block.read_config(u64::MAX, &mut config);
    assert_eq!(config, [0; 32]);
}
