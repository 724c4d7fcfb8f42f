//! The one signal of the machine's threads: the kick that gets a vCPU out of the guest.
//!
//! All other signals are blocked in these threads. A handler of the embedding process would run
//! under a filter that was not made for it; such signals go to the process's own threads.

use std::ffi::{c_int, c_void};
use std::io;
use std::mem;
use std::ptr;
use std::sync::OnceLock;
use std::thread::JoinHandle;

use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

/// The kick's number; real-time, so that it has no meaning to anybody else.
fn kick_signal() -> c_int {
    SIGRTMIN() + 3
}

/// Nothing to do: the signal's arrival alone ends `KVM_RUN` with `EINTR`.
extern "C" fn on_kick(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {}

/// Installs the handler, once in the process.
///
/// # Errors
/// When the system refuses, then and at each later call.
pub fn prepare_kicks() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    INSTALLED
        .get_or_init(|| register_signal_handler(kick_signal(), on_kick).map_err(|error| error.errno()))
        .map_err(io::Error::from_raw_os_error)
}

/// Makes a thread that is in the guest come back. A kick that arrives just before the thread enters
/// the guest is lost: whoever needs the thread to come back repeats it.
pub fn kick(thread: &JoinHandle<()>) {
    // The only error is a thread that is gone, and then there is nothing to kick.
    let _ = thread.kill(kick_signal());
}

/// Blocks all signals in the calling thread but the kick.
///
/// # Errors
/// Never with the valid arguments that it uses; reported all the same.
pub fn block_others() -> io::Result<()> {
    // SAFETY: an all-zero sigset_t is valid memory for sigfillset to overwrite; the pointers are to
    // a local that outlives the calls; changing the own thread's mask affects no memory.
    let result = unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigfillset(&mut set);
        libc::sigdelset(&mut set, kick_signal());
        libc::pthread_sigmask(libc::SIG_SETMASK, &set, ptr::null_mut())
    };
    match result {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}
