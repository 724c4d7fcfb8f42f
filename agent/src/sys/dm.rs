//! Device-mapper by raw ioctls on `/dev/mapper/control` (`linux/dm-ioctl.h`).
//!
//! Only the linear target, read-only. Every ioctl is synchronous: when [`Control::create_linear`]
//! returns, the block device answers reads and devtmpfs has its node.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

/// Unit of device-mapper tables.
pub const SECTOR_BYTES: u64 = 512;

const VERSION: [u32; 3] = [4, 0, 0];
const READONLY: u32 = 1 << 0;
/// Removal waits, in the kernel, for the last user instead of failing.
const DEFERRED_REMOVE: u32 = 1 << 17;

const DEV_CREATE: libc::c_ulong = request(3);
const DEV_REMOVE: libc::c_ulong = request(4);
/// Without the suspend flag this resumes: it makes the loaded table the live one.
const DEV_SUSPEND: libc::c_ulong = request(6);
const TABLE_LOAD: libc::c_ulong = request(9);

/// `_IOWR(0xfd, number, struct dm_ioctl)`
const fn request(number: libc::c_ulong) -> libc::c_ulong {
    (3 << 30) | ((size_of::<Header>() as libc::c_ulong) << 16) | (0xfd << 8) | number
}

/// `struct dm_ioctl`
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Header {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    target_count: u32,
    open_count: i32,
    flags: u32,
    event_nr: u32,
    padding: u32,
    dev: u64,
    name: [u8; 128],
    uuid: [u8; 129],
    data: [u8; 7],
}
const _: () = assert!(size_of::<Header>() == 312);
const _: () = assert!(std::mem::offset_of!(Header, dev) == 40);
const _: () = assert!(std::mem::offset_of!(Header, name) == 48);

/// `struct dm_target_spec`
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Target {
    sector_start: u64,
    length: u64,
    status: i32,
    next: u32,
    target_type: [u8; 16],
}
const _: () = assert!(size_of::<Target>() == 40);

/// Longest `<device> <sector>` parameter that a table carries here: two 20-digit numbers fit twice.
const MAX_PARAMETERS: usize = 88;

/// A header, one target and its parameters: what `TABLE_LOAD` reads.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Table {
    header: Header,
    target: Target,
    parameters: [u8; MAX_PARAMETERS],
}
const _: () = assert!(std::mem::offset_of!(Table, target) == 312);
const _: () = assert!(std::mem::offset_of!(Table, parameters) == 352);

/// A stretch of a block device, in bytes; multiples of [`SECTOR_BYTES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// Device number of the underlying device.
    pub device: (u32, u32),
    /// Where it begins.
    pub offset_bytes: u64,
    /// How long it is.
    pub length_bytes: u64,
}

/// The open control device.
#[derive(Debug)]
pub struct Control(File);

impl Control {
    /// Opens `/dev/mapper/control`.
    ///
    /// # Errors
    /// The kernel's; `ENOENT` in a kernel without device-mapper.
    pub fn open() -> io::Result<Self> {
        OpenOptions::new().read(true).write(true).open("/dev/mapper/control").map(Self)
    }

    /// Makes the read-only device `name` over `stretch` and returns its minor number: its node is
    /// `/dev/dm-<minor>`.
    ///
    /// # Errors
    /// The kernel's. Nothing is left behind.
    pub fn create_linear(&self, name: &str, stretch: Stretch) -> io::Result<u32> {
        let mut table = Table::new(name, stretch)?;
        let mut created = table.header;
        self.call(DEV_CREATE, &mut created)?;
        let loaded = self.call_table(&mut table).and_then(|()| {
            let mut resumed = header(name)?;
            self.call(DEV_SUSPEND, &mut resumed)
        });
        if let Err(error) = loaded {
            // The first error is the one worth telling.
            let _ = self.remove(name);
            return Err(error);
        }
        Ok(minor(created.dev))
    }

    /// Removes the device `name`; if it is in use, the kernel does it when the last user closes it.
    ///
    /// # Errors
    /// The kernel's; `ENXIO` if there is no such device.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        let mut removed = header(name)?;
        removed.flags |= DEFERRED_REMOVE;
        self.call(DEV_REMOVE, &mut removed)
    }

    fn call(&self, request: libc::c_ulong, header: &mut Header) -> io::Result<()> {
        header.data_size = size_of::<Header>() as u32;
        // SAFETY: data_size says that the kernel may read and write exactly this Header, which is
        // borrowed mutably for the call.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), request, header) })
    }

    fn call_table(&self, table: &mut Table) -> io::Result<()> {
        table.header.data_size = size_of::<Table>() as u32;
        // SAFETY: data_size says that the kernel may read and write exactly this Table, which is
        // borrowed mutably for the call; the parameters end with a zero (Table::new).
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), TABLE_LOAD, table) })
    }
}

impl Table {
    fn new(name: &str, stretch: Stretch) -> io::Result<Self> {
        let (major, minor) = stretch.device;
        let text = format!("{major}:{minor} {}", stretch.offset_bytes / SECTOR_BYTES);
        let mut header = header(name)?;
        header.flags |= READONLY;
        header.target_count = 1;
        header.data_start = size_of::<Header>() as u32;
        let target = Target {
            sector_start: 0,
            length: stretch.length_bytes / SECTOR_BYTES,
            status: 0,
            next: (size_of::<Target>() + MAX_PARAMETERS) as u32,
            target_type: bytes("linear")?,
        };
        Ok(Self { header, target, parameters: bytes(&text)? })
    }
}

fn header(name: &str) -> io::Result<Header> {
    Ok(Header {
        version: VERSION,
        data_size: 0,
        data_start: 0,
        target_count: 0,
        open_count: 0,
        flags: 0,
        event_nr: 0,
        padding: 0,
        dev: 0,
        name: bytes(name)?,
        uuid: [0; 129],
        data: [0; 7],
    })
}

/// `text` in a field of `N` bytes, ended by a zero.
fn bytes<const N: usize>(text: &str) -> io::Result<[u8; N]> {
    if text.len() >= N || text.contains('\0') {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    let mut field = [0; N];
    for (to, from) in field.iter_mut().zip(text.bytes()) {
        *to = from;
    }
    Ok(field)
}

/// The minor number in the kernel's `huge_encode_dev` form.
fn minor(dev: u64) -> u32 {
    ((dev & 0xff) | ((dev >> 12) & 0xf_ff00)) as u32
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_numbers_equal_the_kernel_headers() {
        assert_eq!(DEV_CREATE, 0xc138_fd03);
        assert_eq!(DEV_REMOVE, 0xc138_fd04);
        assert_eq!(DEV_SUSPEND, 0xc138_fd06);
        assert_eq!(TABLE_LOAD, 0xc138_fd09);
    }

    #[test]
    fn table_counts_in_sectors_and_ends_with_zero() {
        let stretch = Stretch { device: (254, 16), offset_bytes: 1 << 40, length_bytes: 8192 };
        let table = Table::new("hull-1", stretch).unwrap();
        assert_eq!(table.target.length, 16);
        assert!(table.parameters.starts_with(b"254:16 2147483648\0"));
        assert_eq!(table.header.flags, READONLY);
    }

    #[test]
    fn longest_parameters_fit() {
        let stretch = Stretch { device: (u32::MAX, u32::MAX), offset_bytes: u64::MAX, length_bytes: 0 };
        assert!(Table::new("hull-1", stretch).is_ok());
    }

    #[test]
    fn names_of_more_than_127_bytes_are_refused() {
        assert!(header(&"x".repeat(127)).is_ok());
        assert!(header(&"x".repeat(128)).is_err());
    }

    #[test]
    fn minor_numbers_above_255_are_decoded() {
        assert_eq!(minor(0x0000_fe07), 7);
        assert_eq!(minor((300 & 0xff) | (254 << 8) | ((300 & !0xff) << 12)), 300);
    }
}
