//! `cargo xtask prepush`: what a reviewer should not have to look for.
//!
//! Formatting and clippy with warnings denied; imports that point up; paths in ARCHITECTURE.md that don't exist;
//! `unsafe` outside its rooms. All checks run, then all complaints are shown. The longest files are printed for
//! information.

mod imports;
mod text;

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::progress::{output, run, say};

pub(crate) fn run_all(top: &Path) -> Result<()> {
    format(top)?;
    clippy(top)?;
    checks(top)
}

pub(crate) fn format(top: &Path) -> Result<()> {
    say("formatting");
    run(Command::new("cargo").current_dir(top).args(["fmt", "--all", "--check"]))
}

pub(crate) fn clippy(top: &Path) -> Result<()> {
    say("clippy, warnings denied");
    let mut cargo = Command::new("cargo");
    cargo.current_dir(top).args(["clippy", "-q", "--workspace", "--all-targets", "--", "-D", "warnings"]);
    run(&mut cargo)
}

/// The checks that need no compiler.
pub(crate) fn checks(top: &Path) -> Result<()> {
    say("imports, paths in ARCHITECTURE.md, unsafe code");
    let files = tracked(top)?;
    let mut complaints = imports::check(top)?;
    complaints.extend(text::architecture_paths(top)?);
    complaints.extend(text::unsafe_outside_rooms(top, &files)?);
    for (lines, file) in text::longest(top, &files)? {
        println!("{lines:6} {file}");
    }
    if complaints.is_empty() { Ok(()) } else { bail!("\n{}", complaints.join("\n")) }
}

fn tracked(top: &Path) -> Result<Vec<String>> {
    let list = output(Command::new("git").current_dir(top).args(["ls-files", "*.rs"]))?;
    Ok(list.lines().filter(|file| top.join(file).exists()).map(str::to_owned).collect())
}
