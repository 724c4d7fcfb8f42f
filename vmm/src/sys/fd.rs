//! Flags of file descriptors.

use std::io;
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
