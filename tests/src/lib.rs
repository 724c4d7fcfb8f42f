//! Where Hull is tried out: the node, the images that run in it, and what is shared by both.
//!
//! - [`node`] starts a virtual machine with KVM and containerd inside and runs one command in it.
//! - [`images`] makes the container images that the suites run.
//! - [`cache`] keeps what is slow to make, keyed by its inputs.
//!
//! `cargo xtask` is the only caller. The end-to-end suites are the binary `hull-e2e` (`src/e2e`), which runs
//! inside the node and uses nothing of this library.

pub mod cache;
pub mod images;
pub mod node;
