//! File descriptors: their flags, and where a file's data is.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};

/// Makes reads and writes of the descriptor return instead of wait.
///
/// # Errors
/// The system's.
pub fn set_nonblocking(fd: &impl AsFd) -> io::Result<()> {
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: F_GETFL and F_SETFL take no pointers; the descriptor is borrowed for the calls.
    let result = unsafe {
        let flags = libc::fcntl(fd, libc::F_GETFL);
        if flags < 0 { flags } else { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) }
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The next stretch of a file, from `offset` on, that holds data; `None` if only a hole is left.
/// File systems that know no holes call everything data.
///
/// # Errors
/// The system's.
pub fn next_data(file: &File, offset: u64) -> io::Result<Option<Range<u64>>> {
    let start = match seek(file, offset, libc::SEEK_DATA) {
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return Ok(None),
        start => start?,
    };
    Ok(Some(start..seek(file, start, libc::SEEK_HOLE)?))
}

fn seek(file: &File, offset: u64, whence: i32) -> io::Result<u64> {
    let offset = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: lseek takes no pointers; the descriptor is borrowed for the call.
    let found = unsafe { libc::lseek(file.as_raw_fd(), offset, whence) };
    u64::try_from(found).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn data_is_found_behind_holes_and_ends_with_the_file() {
        let path = std::env::temp_dir().join(format!("hull-holes-{}", std::process::id()));
        let file = File::create(&path).unwrap();
        file.write_at(b"x", 1 << 20).unwrap();
        file.set_len(3 << 20).unwrap();
        let file = File::open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        let data = next_data(&file, 0).unwrap().unwrap();
        assert!(data.contains(&(1 << 20)) && data.end <= 3 << 20, "{data:?}");
        if data.start > 0 {
            assert_eq!(next_data(&file, data.end).unwrap(), None);
        }
        assert_eq!(next_data(&file, 3 << 20).unwrap(), None);
    }
}
