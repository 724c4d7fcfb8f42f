//! The state disk.
