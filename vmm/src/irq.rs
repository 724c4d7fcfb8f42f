//! Interrupt lines: an eventfd whose every write is an edge on a pin of the in-kernel I/O APIC.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::kvm::{KvmError, Vm};

/// A line cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum IrqError {
    /// No eventfd.
    #[error("Cannot make the eventfd of interrupt line {gsi}")]
    EventFd {
        /// The line.
        gsi: u32,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// KVM does not take the eventfd.
    #[error("Cannot connect interrupt line {gsi}")]
    Connect {
        /// The line.
        gsi: u32,
        /// KVM's answer.
        #[source]
        source: KvmError,
    },
}

/// Makes the line `gsi` of `vm`.
///
/// # Errors
/// When descriptors or KVM's lines are exhausted.
pub fn line(vm: &Vm, gsi: u32) -> Result<Arc<EventFd>, IrqError> {
    let event = EventFd::new(EFD_NONBLOCK).map_err(|source| IrqError::EventFd { gsi, source })?;
    vm.connect_interrupt(&event, gsi).map_err(|source| IrqError::Connect { gsi, source })?;
    Ok(Arc::new(event))
}
