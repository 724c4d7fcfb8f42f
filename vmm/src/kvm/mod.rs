//! KVM: one file for each kind of file descriptor, a thin safe layer over `kvm-ioctls`.
//!
//! Who calls it: `memory` (to register RAM), `irq`, `vcpu` and `builder`. Nothing here knows a
//! device, a layout or a configuration.
//!
//! Unsafe room: KVM is told about host memory and its run page is a C union; both need `unsafe`.
#![allow(unsafe_code)]

mod stats;
mod system;
mod vcpu_fd;
mod vm_fd;

pub use stats::Stats;
pub use system::System;
pub use vcpu_fd::{Registers, Vcpu};
pub use vm_fd::{HostRegion, Vm};

/// A request to KVM failed.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The running kernel's KVM speaks another interface version.
    #[error("KVM's interface has version {found}, version 12 is needed")]
    ApiVersion {
        /// What KVM_GET_API_VERSION returned.
        found: i32,
    },
    /// KVM cannot do something that every machine needs.
    #[error("KVM on this host lacks {0}")]
    Capability(&'static str),
    /// /dev/kvm is there but this process may not open it.
    #[error("No permission to open /dev/kvm: run as root or as a member of the group that owns it")]
    Denied,
    /// An ioctl was refused.
    #[error("KVM refused {call}")]
    Ioctl {
        /// The request, and for whom.
        call: String,
        /// Its errno.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// There is no /dev/kvm.
    #[error(
        "There is no /dev/kvm: the kvm-amd or kvm-intel module is not loaded, or virtualisation is off in the \
         firmware or not nested into this machine"
    )]
    Missing,
    /// /dev/kvm cannot be opened for another reason.
    #[error("Cannot open /dev/kvm")]
    Open(#[source] kvm_ioctls::Error),
}

/// Turns the errno of one call into an error that names the call.
fn refused(call: impl Into<String>) -> impl FnOnce(kvm_ioctls::Error) -> KvmError {
    move |source| KvmError::Ioctl { call: call.into(), source }
}
