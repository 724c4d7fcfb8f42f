//! `hull-e2e`: the end-to-end suites. Runs inside the test node, as root, beside a running containerd.
//!
//! ```text
//! hull-e2e [--runtime R] [--results FILE] [--list] [FILTER…]     every test whose name contains a FILTER
//! hull-e2e [--runtime R] --one NAME                              one test in this process (used by the former)
//! ```
//!
//! Each test runs in a process of its own, so that its deadline can end it whatever it does. After each test the
//! node is looked through for what it left behind ([`leaks`]); leaving something is a failure. A runtime other
//! than Hull's (`io.containerd.runc.v2`) checks the tests themselves; what only Hull promises is then left out.
//!
//! A new test is a function in the topic's file and a line in its `TESTS`.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the report is this program's output")]

mod bytes;
mod context;
mod ctr;
mod events;
mod leaks;
mod pod;
mod runner;
mod shim;
mod terminal;
mod topics;

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

use context::Context;

/// What the command line asks for.
#[derive(Debug, Default)]
struct Options {
    runtime: String,
    results: Option<String>,
    one: Option<String>,
    list: bool,
    filters: Vec<String>,
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::FAILURE
        }
    }
}

/// Gives whether everything that ran passed.
fn run() -> Result<bool> {
    let options = options(std::env::args().skip(1))?;
    let tests = topics::all();
    if options.list {
        tests.iter().for_each(|test| println!("{}", test.name));
        return Ok(true);
    }
    if let Some(name) = &options.one {
        let test = tests.iter().find(|test| test.name == name).with_context(|| format!("No test {name}"))?;
        let context = Context::new(&options.runtime, test.name)?;
        return (test.run)(&context).map(|()| true);
    }
    runner::run(&tests, &options.runtime, &options.filters, options.results.as_deref())
}

fn options(mut words: impl Iterator<Item = String>) -> Result<Options> {
    let mut options = Options { runtime: context::HULL.to_owned(), ..Options::default() };
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} needs a value"));
        match word.as_str() {
            "--runtime" => options.runtime = value()?,
            "--results" => options.results = Some(value()?),
            "--one" => options.one = Some(value()?),
            "--list" => options.list = true,
            option if option.starts_with("--") => bail!("Unknown option {option}"),
            _ => options.filters.push(word),
        }
    }
    Ok(options)
}
