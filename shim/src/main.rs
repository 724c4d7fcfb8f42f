//! `containerd-shim-hull-v2`: containerd's runtime-v2 shim that gives each pod a small VM of its own.
//!
//! containerd execs this binary for each pod with the verb `start`, which leaves a daemon behind and
//! prints its address; the daemon serves containerd's task API until the pod is gone; `delete` cleans
//! up after a pod whose daemon died. This file only picks the verb and prints what went wrong.

use std::io::Write;
use std::process::ExitCode;

mod address;
mod agent;
mod args;
mod bootstrap;
mod config;
mod connections;
mod container;
mod daemon;
mod delete;
mod error;
mod events;
mod info;
mod io;
mod journal;
mod log;
mod process;
mod rootfs;
mod sandbox;
mod spec;
mod start;
mod stats;
mod streams;
mod sys;
mod task;

/// Name that containerd knows the runtime by.
const RUNTIME_NAME: &str = "io.containerd.hull.v2";

fn main() -> ExitCode {
    let args = args::parse(std::env::args().skip(1));
    let result = match args.verb.as_str() {
        _ if args.version => info::print_version().map_err(Failure::from),
        _ if args.info => info::print_info().map_err(Failure::from),
        "start" => start::run(&args).map_err(Failure::from),
        "delete" => delete::run(&args).map_err(Failure::from),
        "" => daemon::run(&args).map_err(Failure::from),
        rootfs::BUILD_VERB => Err(Failure::from(rootfs::build_in_namespace(&args.rest))),
        io::LOGGER_VERB => Err(Failure::from(io::run_logger(&args.rest))),
        verb => Err(Failure(format!("{verb:?} is no verb of this shim; there are start and delete"))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(sentence)) => {
            // The only text that may reach stderr: containerd shows it as the cause.
            let _ = writeln!(std::io::stderr(), "{sentence}");
            ExitCode::FAILURE
        }
    }
}

/// The whole chain of an error in one line.
struct Failure(String);

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure(error::chain(&error))
    }
}
