//! Builds what the guest is made of: the kernel (`vmlinux`) and the root image (`rootfs.erofs`).
//!
//! Called by the `hull-guest-image` program, which `cargo xtask build` runs. The files beside this crate's sources
//! say what goes in; the code here only carries that out:
//!
//! - `inputs.lock` ([`inputs`]): version and hash of the kernel's source archive;
//! - `kernel/config` ([`fragment`]): the kernel's options, each with its reason;
//! - `rootfs.toml` ([`list`]): the root image, file by file;
//! - `manifest.json` ([`manifest`]): what the last recorded build gave, with hashes.
//!
//! ```text
//! inputs.lock ─> archive (hash checked) ─┐
//! kernel/config ─> options ──────────────┼─> kernel ─> cache/kernel/<hash of inputs>/ ─┐
//! compiler, linker ──────────────────────┘                                             ├─> out/ + manifest.json
//! rootfs.toml, agent ─> stage ─> mkfs.erofs ───────────────────────────────────────────┘
//! ```
//!
//! The same inputs give the same bytes. What may fail: a missing tool, an archive that is not the pinned one, an
//! option that the kernel's configuration did not keep, the compiler itself, a full disk. Each module has its own
//! error type; nothing is left half-written under its final name.

pub mod cache;
pub mod command;
pub mod digest;
pub mod fragment;
pub mod inputs;
pub mod kernel;
pub mod list;
pub mod manifest;
pub mod pack;
pub mod progress;
pub mod rootfs;
pub mod toolchain;

#[cfg(test)]
mod testing;
