//! `cargo xtask VERB`: the one way to set up, build, try and check Hull. Run it without a verb for the list.
//!
//! Each verb is a module with a `run`. Verbs that take long say what they do with the time since their start
//! ([`progress`]). A failure ends with code 1 and the chain of causes on stderr; `node` ends with the code of the
//! command that ran in the node.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line's output is its purpose")]

mod arguments;
mod bench;
mod build;
mod containerd;
mod demo;
mod e2e;
mod node;
mod prepush;
mod progress;
mod setup;
mod suites;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};

use arguments::Arguments;

const USAGE: &str = "\
cargo xtask VERB [OPTION…]

  setup                                  install packages, make test images and node disks (root)
  build                                  static release binaries of shim and agent
  image                                  guest kernel and root image, around the built agent
  node [--cmd COMMAND]                   run a shell command in a fresh test node
       [--containerd 1.6|2.3|none] [--memory MIB] [--deadline SECONDS] [--icount]
  e2e [--containerd 1.6|2.3] [--runtime R] [FILTER…]
                                         end-to-end suites in a node, under Hull or another runtime
  test [FILTER…]                         every suite, or those whose name contains a FILTER
  demo                                   a container in its own machine, shown
  bench [pods|memory|boot|disk …]        measurements against runc and QEMU, instruction-counted
  prepush                                format, clippy, imports, paths, unsafe code";

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
        "node" => return node::run(&top, arguments),
        "e2e" => return e2e::run(&top, arguments),
        "test" => return suites::run_all(&top, arguments),
        "bench" => return bench::run_all(&top, arguments),
        _ => arguments.none_left()?,
    }
    match verb.as_str() {
        "setup" => setup::run_all(&top)?,
        "build" => build::binaries(&top)?,
        "image" => build::guest_image(&top)?,
        "demo" => return demo::run(&top),
        "prepush" => prepush::run_all(&top)?,
        other => anyhow::bail!("Unknown verb {other:?}\n{USAGE}"),
    }
    Ok(ExitCode::SUCCESS)
}

/// The checkout, found from this crate's place in it.
fn top() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(here.parent().context("xtask has no parent directory")?.to_path_buf())
}
