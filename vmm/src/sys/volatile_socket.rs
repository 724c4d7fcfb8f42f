//! Vectored, non-blocking socket I/O straight from and to guest memory.
//!
//! `vm-memory` moves one slice per system call, needs the descriptor to be non-blocking and lets a
//! closed peer raise `SIGPIPE`. A vsock device wants many slices per call, and a closed peer is an
//! everyday answer to it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::VolatileSlice;

/// Most slices that one call moves: 64 KiB in the guest's 4 KiB buffers, and room to spare. What
/// is beyond is left for the next call, like any other partial transfer.
pub const MAX_SLICES: usize = 32;

/// Sends as much of `slices` as the socket takes now; less than all is normal.
///
/// # Errors
/// `WouldBlock` when it takes nothing now, `BrokenPipe` when nobody will ever read.
pub fn send(socket: BorrowedFd<'_>, slices: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let (mut iovecs, count) = iovecs(slices);
    let message = message(&mut iovecs, count);
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: `message` points to `iovecs`, which outlives the call and whose entries describe
    // mapped memory (see `iovecs`); the kernel only reads all of it, and holds no Rust reference.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Fills `slices` in order with what the socket has now. 0 means that the peer has ended its
/// stream (or that `slices` is empty).
///
/// # Errors
/// `WouldBlock` when there is nothing now.
pub fn receive(socket: BorrowedFd<'_>, slices: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let (mut iovecs, count) = iovecs(slices);
    let mut message = message(&mut iovecs, count);
    // SAFETY: as in `send`. The kernel writes into the described memory, which is guest memory and
    // so never behind a Rust reference (the law of guest memory, `memory::ram`).
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    usize::try_from(received).map_err(|_| io::Error::last_os_error())
}

/// The first [`MAX_SLICES`] slices as the kernel wants them, and how many. A `VolatileSlice` exists
/// only for memory that stays mapped, readable and writable for its lifetime, and the callers'
/// borrows outlive their system call.
fn iovecs(slices: &[VolatileSlice<'_>]) -> ([libc::iovec; MAX_SLICES], usize) {
    let mut iovecs = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; MAX_SLICES];
    for (iovec, slice) in iovecs.iter_mut().zip(slices) {
        iovec.iov_base = slice.ptr_guard_mut().as_ptr().cast();
        iovec.iov_len = slice.len();
    }
    (iovecs, slices.len().min(MAX_SLICES))
}

fn message(iovecs: &mut [libc::iovec; MAX_SLICES], count: usize) -> libc::msghdr {
    // SAFETY: a msghdr is plain data for which all zeroes is valid: no name, no control message.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = iovecs.as_mut_ptr();
    message.msg_iovlen = count;
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

    fn slices<'m>(memory: &'m GuestMemoryMmap, ranges: &[(u64, usize)]) -> Vec<VolatileSlice<'m>> {
        let mut all = Vec::new();
        for &(address, length) in ranges {
            let found = memory.get_slices(GuestAddress(address), length, Permissions::ReadWrite);
            all.extend(found.unwrap().map(Result::unwrap));
        }
        all
    }

    #[test]
    fn scattered_memory_goes_out_and_comes_in_order() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x2000)]).unwrap();
        memory.write_slice(b"world", GuestAddress(0x100)).unwrap();
        memory.write_slice(b"hello ", GuestAddress(0x1800)).unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();

        let sent = send(ours.as_fd(), &slices(&memory, &[(0x1800, 6), (0x100, 5)])).unwrap();
        let mut text = [0; 11];
        theirs.read_exact(&mut text).unwrap();
        assert_eq!((sent, &text), (11, b"hello world"));

        theirs.write_all(b"abcdef").unwrap();
        let received = receive(ours.as_fd(), &slices(&memory, &[(0x40, 2), (0x1000, 100)])).unwrap();
        let mut ends = [0; 6];
        memory.read_slice(&mut ends[..2], GuestAddress(0x40)).unwrap();
        memory.read_slice(&mut ends[2..], GuestAddress(0x1000)).unwrap();
        assert_eq!((received, &ends), (6, b"abcdef"));
    }

    #[test]
    fn neither_call_blocks_and_a_closed_peer_is_an_error_not_a_signal() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let page = slices(&memory, &[(0, 0x1000)]);
        let (ours, theirs) = UnixStream::pair().unwrap();

        assert_eq!(receive(ours.as_fd(), &page).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        while send(ours.as_fd(), &page).is_ok() {}
        assert_eq!(send(ours.as_fd(), &page).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(theirs);
        assert_eq!(send(ours.as_fd(), &page).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
