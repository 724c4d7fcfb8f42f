//! Vsock addresses: who dials whom, and for what.
//!
//! The guest only dials. Nothing in the guest listens on vsock, so a host can open no channel
//! that the agent did not ask for.

/// The guest's context id, the same in every machine.
pub const GUEST_CID: u32 = 3;
/// The host's context id (`VMADDR_CID_HOST`).
pub const HOST_CID: u32 = 2;

/// Agent to shim, once: the ttrpc session. Its arrival tells the shim that the agent can serve.
pub const CONTROL: u32 = 1024;
/// Agent to shim, one connection for each stream of a process: 8 bytes of stream id, then data.
pub const STREAM: u32 = 1025;
/// Agent to shim: UTF-8 log lines, each after its level (`info` or `warning`) and a space. A line that begins with [`LAST_WORDS`] is the reason of the
/// power-off that follows.
pub const LOG: u32 = 1026;

/// Prefix of the agent's last log line when it gives up.
pub const LAST_WORDS: &str = "PANIC ";
