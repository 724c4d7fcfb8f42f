//! The contract between Hull's shim and its guest agent: messages, ports, limits.
//!
//! A leaf: it imports nothing of ours, and host and guest meet nowhere else. The schema is
//! `proto/agent.proto`; a change that an older peer would misread raises [`VERSION`].

pub mod limits;
pub mod ports;

/// Generated from `proto/agent.proto`.
#[allow(missing_docs, missing_debug_implementations, clippy::all, clippy::restriction)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/hull_protocol.rs"));
}

pub use generated::{agent, agent_ttrpc};

/// Version of this contract; both ends must have the same.
pub const VERSION: u32 = 1;
