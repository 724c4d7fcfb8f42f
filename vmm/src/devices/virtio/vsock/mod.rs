//! The vsock device: streams between the guest and this process, without a socket file.
//!
//! ```text
//!   guest            hull-vsock thread (one epoll)                      this process
//!   socket <-rings-> worker -> mux -> connection + host end <-socket pair-> UnixStream
//! ```
//! - [`Vsock`] is what the rest of the process holds: [`Vsock::listen`] takes the guest's
//!   connections to a port, [`Vsock::connect`] opens one to a port of the guest.
//! - `device` is the virtio side: configuration, activation, the thread's life.
//! - `worker` is the thread: rings, wake-ups, interrupts. `mux` finds the connection for a packet
//!   and whose turn it is. `connection` (states drawn there) and `credit` are the protocol, pure.
//!   `host_end` is our end of a pair, `chain` and `packet` read what the guest wrote, `table` holds
//!   the connections, `limits` every cap with its reason.
//!
//! # What holds
//! - Nothing is dropped between accept and close: what the host's reader does not take waits in
//!   the socket pair, then in at most one window of memory, then the guest gets no more credit and
//!   its writer waits. In the other direction the bytes stay in the socket pair.
//! - Each direction ends on its own, after its last byte.
//! - The guest trusts us with nothing and we trust it with nothing: lengths are capped, chains
//!   checked, states and credit enforced; a guest that breaks its rings has no vsock until it
//!   resets the device. All memory that it can make the device hold is promised beforehand.
//! - When the guest resets the device or the machine stops, the host's ends read EOF.

mod chain;
mod connection;
mod credit;
mod device;
mod host_end;
mod limits;
mod metrics;
mod mux;
mod packet;
mod shared;
mod table;
mod worker;

pub use device::VsockDevice;
pub use shared::{Vsock, VsockError};

/// The guest's context id, the same in every machine (virtio 1.2 reserves 0 to 2).
pub const GUEST_CID: u64 = 3;
/// The host's context id.
pub const HOST_CID: u64 = 2;

#[cfg(test)]
mod tests;
