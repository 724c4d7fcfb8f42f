//! Which tools build the artefacts: their versions decide the bytes.

use std::process::Command;

use crate::command::{self, CommandError};

/// The tools that the kernel's bytes depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toolchain {
    /// First line of `gcc --version`; the kernel's banner repeats it.
    pub compiler: String,
    /// First line of `ld --version`; the assembler is of the same package.
    pub linker: String,
}

impl Toolchain {
    /// Asks the installed tools.
    ///
    /// # Errors
    /// When one is missing.
    pub fn installed() -> Result<Self, CommandError> {
        Ok(Toolchain {
            compiler: command::first_line(Command::new("gcc").arg("--version"))?,
            linker: command::first_line(Command::new("ld").arg("--version"))?,
        })
    }
}

/// The installed mkfs.erofs, as it names itself.
///
/// # Errors
/// When it is missing.
pub fn mkfs_erofs() -> Result<String, CommandError> {
    command::first_line(Command::new("mkfs.erofs").arg("-V"))
}
