//! The system calls that neither KVM's file descriptors nor guest memory's owner make.
//!
//! Unsafe room: system calls that take raw pointers into guest memory or change signal state.
#![allow(unsafe_code)]

pub mod fd;
pub mod pread;
pub mod signal;
pub mod volatile_socket;
