//! `hull-bench`: Hull against its peers. Runs inside a test node whose clock counts instructions.
//!
//! ```text
//! hull-bench --boot PROGRAM --init PROGRAM --kernel VMLINUX --results FILE [SECTION…]
//! ```
//! Sections: `pods` (containers through containerd, Hull and runc in turn), `memory` (of an idle pod), `boot`
//! (a bare machine, Hull's VMM and QEMU in turn, the same kernel), `disk` (reads, likewise).
//!
//! Everything is measured interleaved (A B A B) after one warm-up each, and reported as minimum, median and
//! maximum; what is compared is the ratio of medians. One nanosecond of the node's clock is one executed
//! instruction, of node kernel, VMM and guest together; what a VM exit costs on silicon is not in it, so exits
//! are reported beside the times.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the report is this program's output")]

mod boot;
mod kvm;
mod memory;
mod pods;
mod report;
mod sample;
mod shell;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

use report::Report;

/// Where the programs and files under test are.
#[derive(Debug, Default)]
pub(crate) struct Setup {
    /// Hull's VMM with the console on standard output.
    pub(crate) boot: PathBuf,
    /// The guest's first program.
    pub(crate) init: PathBuf,
    /// The guest's kernel.
    pub(crate) kernel: PathBuf,
    results: PathBuf,
    sections: Vec<String>,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let setup = setup(std::env::args().skip(1))?;
    let mut report = Report::default();
    let wants =
        |section: &str| setup.sections.is_empty() || setup.sections.iter().any(|name| name == section);
    if wants("pods") {
        pods::measure(&mut report).context("Measuring containers")?;
    }
    if wants("memory") {
        memory::measure(&mut report).context("Measuring memory")?;
    }
    if wants("boot") || wants("disk") {
        let bench = boot::Bench::new(&setup)?;
        if wants("boot") {
            bench.boot(&mut report).context("Measuring the boot")?;
        }
        if wants("disk") {
            bench.disk(&mut report).context("Measuring the disk")?;
        }
    }
    report.write(&setup.results)
}

fn setup(mut words: impl Iterator<Item = String>) -> Result<Setup> {
    let mut setup = Setup::default();
    while let Some(word) = words.next() {
        let mut path = || words.next().map(PathBuf::from).with_context(|| format!("{word} needs a path"));
        match word.as_str() {
            "--boot" => setup.boot = path()?,
            "--init" => setup.init = path()?,
            "--kernel" => setup.kernel = path()?,
            "--results" => setup.results = path()?,
            "pods" | "memory" | "boot" | "disk" => setup.sections.push(word),
            other => bail!("Unknown argument {other:?}"),
        }
    }
    Ok(setup)
}
