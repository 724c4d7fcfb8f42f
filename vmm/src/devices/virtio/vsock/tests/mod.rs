//! The whole device, thread included, under a fake driver.

mod close;
mod driver;
mod flow;
mod hostile;
mod life;
mod ring;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use tokio::sync::mpsc::Receiver;

use driver::{Guest, PATIENCE, Setup};

/// The port that most tests listen on.
const PORT: u32 = 1025;

/// Bytes that differ wherever they are shifted to: a block of a prime length, repeated.
fn pattern(length: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_u32;
    let block: Vec<u8> = (0..65521)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as u8
        })
        .collect();
    block.iter().copied().cycle().take(length).collect()
}

/// The host's end for a test's thread: blocking, with a deadline.
fn blocking(stream: UnixStream) -> UnixStream {
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// A guest with one connection from its port 5000 to [`PORT`], and the host's end of it.
fn connected(setup: Setup) -> (Guest, UnixStream, Receiver<UnixStream>) {
    let mut guest = Guest::new(setup);
    let mut listener = guest.vsock.listen(PORT).unwrap();
    assert!(guest.connect(5000, PORT));
    let stream = blocking(listener.try_recv().unwrap());
    (guest, stream, listener)
}

/// Whether the stream has neither bytes nor an end now.
fn is_quiet(stream: &UnixStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let quiet = matches!((&*stream).read(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock);
    stream.set_nonblocking(false).unwrap();
    quiet
}
