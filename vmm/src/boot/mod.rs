//! What the guest finds when it starts: the inputs of the launch plan.
//!
//! Pure functions from a machine's shape to bytes; only [`kernel`] reads a file.

pub mod acpi;
pub mod cmdline;
pub mod kernel;
pub mod params;
