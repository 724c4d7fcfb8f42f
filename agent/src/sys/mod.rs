//! The agent's own system calls: what no safe crate offers.
//!
//! This is the only room of the agent with `unsafe` code. Every function here is safe to call,
//! takes owned or borrowed types, and reports the kernel's errno as [`std::io::Error`].
#![allow(unsafe_code)] // raw ioctls, bpf(2), clone(2), kill(2) by number, poll registration

pub mod bpf;
pub mod dm;
pub mod link;
pub mod process;
pub mod ready;
