//! What each kind of thread may ask of the host's kernel.
//!
//! Every device folder has its own list beside its code; this module adds the list that every
//! thread needs and compiles both into a filter. A call outside the list kills the process: the
//! machine has then been broken into, and a pod is worth less than its host.

/// One permitted system call, and why.
#[derive(Clone, Copy, Debug)]
pub struct Allowed {
    /// The number, `libc::SYS_*`.
    pub number: i64,
    /// What the thread needs it for.
    pub reason: &'static str,
}

/// Short form for lists: `allow(libc::SYS_read, "drains the kick eventfd")`.
#[must_use]
pub const fn allow(number: i64, reason: &'static str) -> Allowed {
    Allowed { number, reason }
}
