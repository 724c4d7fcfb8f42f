//! Waiting for descriptors in the runtime.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers `descriptor`, which must be non-blocking, with the runtime of the caller.
///
/// # Errors
/// The kernel's; `EPERM` for a descriptor that cannot be polled.
pub fn register(descriptor: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd gives the same open descriptor for as long as it lives, and the AsyncFd
    // owns it until it has deregistered.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, interest) }?)
}
