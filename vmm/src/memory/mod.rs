//! Guest memory: where it is ([`layout`]) and who owns it ([`ram`]).
//!
//! Unsafe room: mapping memory and telling KVM about it. See the law in [`ram`].
#![allow(unsafe_code)]

pub mod layout;
pub mod ram;

pub use ram::{GuestRam, MemoryError};
