//! Caps and deadlines of the contract, each with its reason. Both ends enforce them.

use std::time::Duration;

/// Largest ttrpc message: the ttrpc implementation's own cap, repeated here so that the sender
/// can refuse with a sentence instead of a broken session.
pub const MAX_MESSAGE_BYTES: usize = 4 << 20;
/// Largest OCI spec: a spec with a full seccomp profile and 500 mounts is about 250 KiB.
pub const MAX_SPEC_BYTES: usize = 2 << 20;
/// Containers in one pod: Kubernetes' pods rarely pass 20; each costs the guest a cgroup, mounts
/// and two stream pairs.
pub const MAX_CONTAINERS: usize = 256;
/// Processes that `CreateProcess` may have registered in one container at one time.
pub const MAX_PROCESSES_PER_CONTAINER: usize = 1024;
/// Layers of one container: overlayfs itself ends at 500 lower directories.
pub const MAX_LAYERS: usize = 500;
/// Longest container or process id: containerd's own limit is 76.
pub const MAX_ID_BYTES: usize = 128;
/// Longest log line that the shim takes from the guest; the rest of a longer line is dropped.
pub const MAX_LOG_LINE_BYTES: usize = 4096;

/// From machine start to the agent's connection. A guest boots in 0.2 s; a loaded node under
/// emulation needs a hundred times that.
pub const HELLO_DEADLINE: Duration = Duration::from_secs(60);
/// Requests that make or run something in the guest (create, start, delete).
pub const HEAVY_DEADLINE: Duration = Duration::from_secs(60);
/// Requests that only look or poke (signal, resize, stats): containerd gives `State` and
/// `Stats` 2 s in all.
pub const LIGHT_DEADLINE: Duration = Duration::from_millis(1800);
/// From the agent's dial to the stream id on it.
pub const STREAM_HEADER_DEADLINE: Duration = Duration::from_secs(10);
