//! Reading a file straight into guest memory: one system call, no buffer between.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use vm_memory::VolatileSlice;

/// Most buffers of one call (`UIO_MAXIOV` of the kernel).
pub const MAX_BUFFERS: usize = 1024;

/// Reads from `offset` on into the buffers, in order, as `preadv(2)` does: possibly less than they
/// hold, 0 at the end of the file. The file's position is not used, so the descriptor may be shared.
///
/// # Errors
/// The system's; `InvalidInput` for an offset beyond `i64` or more than [`MAX_BUFFERS`] buffers.
pub fn read_at(file: &File, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let offset = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    if buffers.len() > MAX_BUFFERS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let guards: Vec<_> = buffers.iter().map(VolatileSlice::ptr_guard_mut).collect();
    let vectors: Vec<libc::iovec> = guards
        .iter()
        .map(|guard| libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() })
        .collect();
    loop {
        // SAFETY: each vector is the range of a `VolatileSlice`, alive for this call through
        // `guards`, and the count is the vector's own, at most 1024.
        let read =
            unsafe { libc::preadv(file.as_raw_fd(), vectors.as_ptr(), vectors.len() as libc::c_int, offset) };
        match usize::try_from(read) {
            Ok(read) => return Ok(read),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

/// Fills `buffer` from `offset` on.
///
/// # Errors
/// The system's; `UnexpectedEof` when the file ends before.
pub fn read_exact_at(file: &File, offset: u64, buffer: VolatileSlice<'_>) -> io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        let rest = buffer.offset(done).map_err(io::Error::other)?;
        match read_at(file, offset + done as u64, &[rest])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => done += read,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn reads_scatter_and_end_with_the_file() {
        let path = std::env::temp_dir().join(format!("hull-pread-{}", std::process::id()));
        File::create(&path).unwrap().write_all(b"0123456789").unwrap();
        let file = File::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let (mut first, mut second) = ([0_u8; 3], [0_u8; 4]);
        {
            let buffers = [VolatileSlice::from(&mut first[..]), VolatileSlice::from(&mut second[..])];
            assert_eq!(read_at(&file, 4, &buffers).unwrap(), 6);
        }
        assert_eq!((&first, &second), (b"456", b"789\0"));
        let mut all = [0_u8; 11];
        let error = read_exact_at(&file, 0, VolatileSlice::from(&mut all[..])).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert!(read_at(&file, u64::MAX, &[]).is_err());
    }
}
