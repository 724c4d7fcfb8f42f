//! A KVM machine as a library. It knows no containerd, no OCI and no agent message; only
//! `shim/src/sandbox/vm.rs` calls it.
//!
//! Modules import downwards only: `builder -> devices -> bus -> memory -> kvm`.

pub mod devices;
pub mod memory;
pub mod seccomp;
mod sys;
pub mod thread;
