//! Why a machine cannot start: one variant for each step, so that the text says which.

use std::io;
use std::path::PathBuf;

use crate::boot::kernel::KernelError;
use crate::bus::Overlap;
use crate::config::ConfigError;
use crate::devices::virtio::block::LayerError;
use crate::irq::IrqError;
use crate::kvm::KvmError;
use crate::memory::MemoryError;
use crate::plan::PlanError;

/// A machine cannot start. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// Two devices at one address (never with the layout of this crate).
    #[error("The machine's device map is wrong")]
    Bus(#[from] Overlap),
    /// The sizes are out of range.
    #[error("The machine's configuration is wrong")]
    Config(#[from] ConfigError),
    /// The console sink cannot be used.
    #[error("The debug console's output cannot be made non-blocking")]
    Console(#[source] io::Error),
    /// A descriptor or thread cannot be had.
    #[error("Cannot make the {what}")]
    Host {
        /// What.
        what: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A file is not the expected one.
    #[error("The {what} {} has SHA-256 {found}, expected is {expected}", path.display())]
    Hash {
        /// Kernel or root image.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// Hash of the file.
        found: String,
        /// Hash of the configuration.
        expected: String,
    },
    /// The root image is empty or unreadable.
    #[error("The root image {} cannot be a disk", path.display())]
    RootImage {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: LayerError,
    },
    /// An interrupt line cannot be made.
    #[error("The machine's interrupts cannot be set up")]
    Interrupts(#[from] IrqError),
    /// The kernel cannot be booted.
    #[error("The kernel {} cannot be booted", path.display())]
    Kernel {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: KernelError,
    },
    /// KVM is unusable or refuses something.
    #[error("KVM cannot be used")]
    Kvm(#[from] KvmError),
    /// The guest's memory cannot be had.
    #[error("The guest's memory cannot be set up")]
    Memory(#[from] MemoryError),
    /// A file cannot be opened.
    #[error("Cannot read the {what} {}", path.display())]
    Open {
        /// Kernel or root image.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The guest's memory cannot be filled.
    #[error("The guest's memory cannot be filled")]
    Plan(#[from] PlanError),
}
