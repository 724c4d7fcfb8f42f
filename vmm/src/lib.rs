//! A KVM machine as a library. It knows no containerd, no OCI and no agent message; only
//! `shim/src/sandbox/vm.rs` calls it.
//!
//! # From configuration to running
//! ```text
//! MachineConfig -> builder: Configured -> Loaded -> Wired -> Machine (running)
//!                            |             |         |
//!                            |             |         devices on their buses, interrupts, vCPUs
//!                            |             boot::{kernel, params, acpi} -> plan::LaunchPlan -> memory
//!                            files, sizes, hashes
//! ```
//! # Threads of a machine
//! | thread | does | ends |
//! |---|---|---|
//! | `hull-spawn` | starts the others, so that none inherits another's filter | last |
//! | `hull-load` | fills guest memory while the VM is made | before the guest runs |
//! | `hull-vcpuN` | runs the guest; register accesses of devices | when the machine ends |
//! | `hull-<slot>` | one device's I/O | device reset, or the machine is stopped |
//!
//! Each is named, has its own seccomp filter (but `hull-spawn` and `hull-load`, which meet nothing from the guest), and is joined by [`Machine::stop`].
//! Modules import downwards only: `builder -> devices -> bus -> memory -> kvm`.

pub mod boot;
mod builder;
pub mod bus;
pub mod config;
pub mod control;
mod cpuid;
pub mod devices;
mod error;
pub mod irq;
pub mod kvm;
mod machine;
pub mod memory;
pub mod metrics;
pub mod plan;
pub mod seccomp;
mod sys;
pub mod thread;
mod vcpu;

pub use config::{MachineConfig, MachineKind};
pub use control::MachineExit;
pub use devices::virtio::block::{Extent, ExtentId, LayerDisk, LayerError};
pub use devices::virtio::vsock::{Vsock, VsockError};
pub use error::MachineError;
pub use machine::Machine;
pub use metrics::MachineMetrics;
