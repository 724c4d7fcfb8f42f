//! The device's end of a connection's socket pair, and the bytes that wait for room in it.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use vm_memory::VolatileSlice;

use super::chain::total;
use super::limits::HOST_BUFFER_BYTES;
use crate::sys::volatile_socket::{self, MAX_SLICES};

/// Makes the two ends of a connection, both non-blocking.
///
/// # Errors
/// When the process or the host is out of descriptors.
pub fn pair() -> io::Result<(UnixStream, UnixStream)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::sockopt::set_socket_send_buffer_size(&theirs, HOST_BUFFER_BYTES)?;
    Ok((ours.into(), theirs.into()))
}

/// Nobody will read what is written to this end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deaf;

/// What reading this end gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// So many bytes, at least one.
    Bytes(usize),
    /// Nothing now.
    Dry,
    /// Nothing ever again.
    End,
}

/// The device's end. Dropping it gives the other end everything that was forwarded, then EOF.
#[derive(Debug)]
pub struct HostEnd {
    socket: UnixStream,
    parked: Parked,
    /// There may be something to read: set by the descriptor's edge, cleared when it runs dry.
    readable: bool,
    /// The other end has ended its stream, so running dry means the end.
    ended: bool,
    /// Our stream towards the other end is ended.
    finished: bool,
    /// The other end's writes fail.
    refusing: bool,
}

impl HostEnd {
    /// Takes the device's end of a pair; at most `window` bytes will be parked at one time.
    ///
    /// # Errors
    /// When the socket cannot be sized, which is no socket's normal state.
    pub fn new(socket: UnixStream, window: u32) -> io::Result<Self> {
        rustix::net::sockopt::set_socket_send_buffer_size(&socket, window as usize)?;
        let parked = Parked::new(window as usize);
        Ok(Self { socket, parked, readable: false, ended: false, finished: false, refusing: false })
    }

    /// For epoll.
    pub fn descriptor(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Bytes that wait for room in the socket. Never more than the connection's window, because
    /// the connection admits no more, so `u32` holds it.
    pub fn parked(&self) -> u32 {
        u32::try_from(self.parked.len()).unwrap_or(u32::MAX)
    }

    /// Whether reading may give something.
    pub fn is_readable(&self) -> bool {
        self.readable
    }

    /// The descriptor says that there is something to read; `ended`: and nothing after it.
    pub fn mark_readable(&mut self, ended: bool) {
        self.readable = true;
        self.ended |= ended;
    }

    /// Gives `payload` to the reader: to the socket what it takes, the rest is parked. Returns how
    /// many bytes the socket took.
    ///
    /// # Errors
    /// When nobody will read it.
    pub fn deliver(&mut self, payload: &[VolatileSlice<'_>]) -> Result<usize, Deaf> {
        let mut skip = if self.parked.is_empty() { self.send(payload)? } else { 0 };
        let sent = skip;
        for segment in payload {
            if skip >= segment.len() {
                skip -= segment.len(); // sent as a whole, which is the rule
            } else if let Ok(rest) = segment.offset(std::mem::take(&mut skip)) {
                self.parked.push(&rest);
            }
        }
        Ok(sent)
    }

    /// Gives the socket as many of the parked bytes as it takes.
    ///
    /// # Errors
    /// When nobody will read them; then none is parked any more.
    pub fn flush(&mut self) -> Result<(), Deaf> {
        while !self.parked.is_empty() {
            let sent = rustix::net::send(
                &self.socket,
                self.parked.front(),
                rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL,
            );
            match sent {
                Ok(sent) => self.parked.consume(sent),
                Err(rustix::io::Errno::AGAIN) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => {
                    self.discard();
                    return Err(Deaf);
                }
            }
        }
        Ok(())
    }

    /// Drops what is parked.
    pub fn discard(&mut self) {
        self.parked.clear();
    }

    /// Reads into `space`.
    pub fn fill(&mut self, space: &[VolatileSlice<'_>]) -> Filled {
        let space = space.get(..MAX_SLICES).unwrap_or(space);
        if total(space) == 0 {
            return Filled::Dry; // the system's answer could not be told from the end
        }
        match volatile_socket::receive(self.socket.as_fd(), space) {
            Ok(0) => self.end(),
            Ok(count) => {
                // A stream gives less than asked only when it has no more. The next byte comes
                // with an edge of its own; an end that has come already does not.
                self.readable = count == total(space) || self.ended;
                Filled::Bytes(count)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.readable = false;
                Filled::Dry
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Filled::Dry,
            Err(_) => self.end(),
        }
    }

    fn end(&mut self) -> Filled {
        self.readable = false;
        Filled::End
    }

    /// Ends our stream: the reader sees EOF behind what it was given. Call it with nothing parked.
    pub fn finish(&mut self) {
        if !self.finished {
            self.finished = true;
            self.shut(Shutdown::Write);
        }
    }

    /// Makes the other end's writes fail from now on.
    pub fn refuse_writes(&mut self) {
        self.readable = false;
        if !self.refusing {
            self.refusing = true;
            self.shut(Shutdown::Read);
        }
    }

    fn shut(&self, how: Shutdown) {
        // It fails only when the other end is gone, and then there is nobody to tell.
        let _ = self.socket.shutdown(how);
    }

    fn send(&self, payload: &[VolatileSlice<'_>]) -> Result<usize, Deaf> {
        loop {
            match volatile_socket::send(self.socket.as_fd(), payload) {
                Ok(sent) => return Ok(sent),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Deaf),
            }
        }
    }
}

impl Drop for HostEnd {
    /// Closing a Unix socket that holds unread bytes shows the other end ECONNRESET. Its reader is
    /// owed EOF, so the bytes are taken out first; after `shutdown` no more can come, and the
    /// socket's buffer bounds how many there are.
    fn drop(&mut self) {
        self.shut(Shutdown::Both);
        let mut scratch = [0; 8192];
        while matches!(self.socket.read(&mut scratch), Ok(1..)) {}
    }
}

/// Bytes in order, in one ring that never grows beyond the connection's window: what the window
/// promises is all that the guest can make the device allocate, however small its packets are.
/// The ring is given back when the last byte leaves.
#[derive(Debug)]
struct Parked {
    bytes: VecDeque<u8>,
    window: usize,
}

impl Parked {
    fn new(window: usize) -> Self {
        Self { bytes: VecDeque::new(), window }
    }

    fn len(&self) -> usize {
        self.bytes.len()
    }

    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The first bytes; not all of them where the ring wraps.
    fn front(&self) -> &[u8] {
        self.bytes.as_slices().0
    }

    fn push(&mut self, segment: &VolatileSlice<'_>) {
        let needed = self.len().saturating_add(segment.len());
        if needed > self.bytes.capacity() {
            let doubled = self.bytes.capacity().saturating_mul(2).min(self.window);
            self.bytes.reserve_exact(needed.max(doubled).saturating_sub(self.len()));
        }
        let mut scratch = [0; 4096];
        let mut offset = 0;
        while let Ok(rest) = segment.offset(offset)
            && !rest.is_empty()
        {
            let count = rest.copy_to(&mut scratch);
            self.bytes.extend(scratch.get(..count).unwrap_or_default());
            offset += count;
        }
    }

    fn consume(&mut self, count: usize) {
        self.bytes.drain(..count.min(self.len()));
        if self.is_empty() {
            self.clear();
        }
    }

    fn clear(&mut self) {
        self.bytes = VecDeque::new();
    }
}

#[cfg(test)]
#[path = "tests/host_end.rs"]
mod tests;
