//! The room for system calls that have no safe wrapper in the crates that we use.
//!
//! One file per kind of call, each with one small function per call; nothing else of the VMM
//! outside `kvm` and `memory` contains `unsafe`.
#![allow(unsafe_code)] // The reason for the room: raw pointers into guest memory go to the kernel.

pub mod volatile_socket;
