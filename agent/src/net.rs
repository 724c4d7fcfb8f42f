//! The pod's network as far as the agent owns it today: the loopback interface.
//!
//! Called once by `init`, before the agent serves.

use std::io;

use crate::sys::link;

/// Brings the loopback interface up, as every container expects it to be.
///
/// # Errors
/// The kernel's.
pub fn loopback_up() -> io::Result<()> {
    link::set_up("lo")
}
