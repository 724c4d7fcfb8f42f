//! The shim's only unsafe room: system calls whose safe wrapper does not exist.
#![allow(unsafe_code)] // unshare(2): see the one call below

use rustix::thread::UnshareFlags;

/// Gives the calling process a mount namespace of its own.
///
/// # Errors
/// What unshare(2) says; it needs CAP_SYS_ADMIN.
pub fn unshare_mounts() -> rustix::io::Result<()> {
    // SAFETY: unshare is unsafe because CLONE_FILES can invalidate descriptors that other threads
    // believe to own; the only flag here is CLONE_NEWNS, which touches no descriptor.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }
}
