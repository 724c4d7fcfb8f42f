//! `cargo xtask VERB`: the one way to set up, build, try and check Hull. Run it without a verb for the list.
//!
//! Each verb is a module with a `run`. Verbs that take long say what they do with the time since their start
//! ([`progress`]). A failure ends with code 1 and the chain of causes on stderr; `node` ends with the code of the
//! command that ran in the node.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line's output is its purpose")]

mod arguments;
mod containerd;
mod e2e;
mod node;
mod progress;
mod setup;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};

use arguments::Arguments;

const USAGE: &str = "\
cargo xtask VERB [OPTION…]

  setup                                  install packages, make test images and node disks (root)

  node [--cmd COMMAND]                   run a shell command in a fresh test node
       [--containerd 1.6|2.3|none] [--memory MIB] [--deadline SECONDS] [--icount]
  e2e [--containerd 1.6|2.3] [--runtime R] [FILTER…]
                                         end-to-end suites in a node, under Hull or another runtime";

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode> {
    let top = top()?;
    let mut arguments = Arguments::new(std::env::args().skip(1));
    let Some(verb) = arguments.verb() else {
        println!("{USAGE}");
        return Ok(ExitCode::FAILURE);
    };
    match verb.as_str() {
        "e2e" => e2e::run(&top, arguments),
        "node" => node::run(&top, arguments),
        "setup" => arguments.none_left().and_then(|()| setup::run_all(&top)).map(|()| ExitCode::SUCCESS),
        other => anyhow::bail!("Unknown verb {other:?}\n{USAGE}"),
    }
}

/// The checkout, found from this crate's place in it.
fn top() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(here.parent().context("xtask has no parent directory")?.to_path_buf())
}
