//! `hull-guest-image VERB`: builds the guest kernel, the root image, or both. `cargo xtask build` calls it.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line's output is its purpose")]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

use hull_guest_image::cache::{self, Cache};
use hull_guest_image::digest;
use hull_guest_image::kernel::{self, Kernel, Recipe, SYSTEM_MAP, VMLINUX};
use hull_guest_image::list::RootList;
use hull_guest_image::manifest::{Comparison, KernelInputs, MANIFEST, Manifest, RootImageInputs};
use hull_guest_image::progress::say;
use hull_guest_image::rootfs::{self, ROOTFS};
use hull_guest_image::toolchain;

const USAGE: &str = "\
hull-guest-image VERB [OPTION…]

  kernel [--out DIR]              build the kernel, or take it from the cache
         [--source ARCHIVE]       take the source from here (its hash must be in inputs.lock)
         [--rebuild]              build it a second time and compare the bytes
  rootfs --agent PATH --out DIR   build the root image
  build  --agent PATH --out DIR   both, and manifest.json; compares with the recorded manifest
         [--source ARCHIVE]
         [--record]               makes this build the recorded one

Built kernels are kept under ${HULL_CACHE:-/var/cache/hull}.";

/// What the command line asked for.
#[derive(Debug, Default)]
struct Options {
    agent: Option<PathBuf>,
    out: Option<PathBuf>,
    source: Option<PathBuf>,
    rebuild: bool,
    record: bool,
}

fn main() -> ExitCode {
    match run(std::env::args_os().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hull-guest-image: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Vec<OsString>) -> Result<()> {
    let mut arguments = arguments.into_iter();
    let Some(verb) = arguments.next() else { bail!("No verb\n{USAGE}") };
    match verb.to_str() {
        Some("kernel") => kernel_verb(&options(arguments, &["--out", "--source", "--rebuild"])?),
        Some("rootfs") => rootfs_verb(&options(arguments, &["--agent", "--out"])?),
        Some("build") => build_verb(&options(arguments, &["--agent", "--out", "--source", "--record"])?),
        Some("--help" | "-h" | "help") => {
            println!("{USAGE}");
            Ok(())
        }
        _ => bail!("Unknown verb {verb:?}\n{USAGE}"),
    }
}

fn options(mut arguments: impl Iterator<Item = OsString>, allowed: &[&str]) -> Result<Options> {
    let mut options = Options::default();
    while let Some(argument) = arguments.next() {
        let name = argument.to_str().filter(|name| allowed.contains(name));
        let Some(name) = name else { bail!("Unknown option {argument:?}\n{USAGE}") };
        let mut value =
            || arguments.next().map(PathBuf::from).with_context(|| format!("{name} wants a value"));
        match name {
            "--agent" => options.agent = Some(value()?),
            "--out" => options.out = Some(value()?),
            "--source" => options.source = Some(value()?),
            "--rebuild" => options.rebuild = true,
            _ => options.record = true,
        }
    }
    Ok(options)
}

fn kernel_verb(options: &Options) -> Result<()> {
    let kernel = kernel(options)?;
    if options.rebuild {
        kernel::rebuild(&kernel, &Cache::from_environment())?;
    }
    if let Some(out) = &options.out {
        install_kernel(&kernel, out)?;
    }
    Ok(())
}

fn rootfs_verb(options: &Options) -> Result<()> {
    let agent = options.agent.as_deref().context("rootfs wants --agent PATH")?;
    let out = options.out.as_deref().context("rootfs wants --out DIR")?;
    rootfs(agent, out).map(drop)
}

fn build_verb(options: &Options) -> Result<()> {
    let agent = options.agent.as_deref().context("build wants --agent PATH")?;
    let out = options.out.as_deref().context("build wants --out DIR")?;
    // First what takes seconds: a missing agent should not be found after minutes of compiling.
    let root_image = rootfs(agent, out)?;
    let kernel = kernel(options)?;
    install_kernel(&kernel, out)?;

    let names = [ROOTFS, SYSTEM_MAP, VMLINUX];
    let manifest = Manifest::describe(out, &names, KernelInputs::from(&kernel), Some(root_image))?;
    manifest.write(&out.join(MANIFEST))?;
    for artefact in &manifest.artefacts {
        say(&format!("{}: {} bytes, SHA-256 {}", artefact.name, artefact.bytes, artefact.sha256));
    }
    let recorded = room().join(MANIFEST);
    if options.record {
        manifest.write(&recorded)?;
        say(&format!("recorded in {}", recorded.display()));
        return Ok(());
    }
    match Manifest::read(&recorded)? {
        Some(recorded) => report(&manifest, &recorded),
        None => say("no build is recorded to compare with (build --record makes one)"),
    }
    Ok(())
}

/// Says how this build's files compare with the recorded ones. A difference is news, not a failure: compilers differ
/// between machines, and the agent changes with every commit.
fn report(manifest: &Manifest, recorded: &Manifest) {
    for name in [VMLINUX, ROOTFS] {
        match manifest.compare(recorded, name) {
            Comparison::Same => say(&format!("{name}: the same bytes as recorded")),
            Comparison::NotRecorded => say(&format!("{name}: not in the recorded manifest")),
            Comparison::OtherInputs(changes) => {
                say(&format!(
                    "{name}: differs from the recorded one, as its inputs do: {}",
                    changes.join("; ")
                ));
            }
            Comparison::NotReproduced => {
                say(&format!(
                    "WARNING: {name} differs from the recorded one although its inputs are the same"
                ));
            }
        }
    }
}

fn kernel(options: &Options) -> Result<Kernel> {
    let recipe = Recipe::collect(&room(), options.source.as_deref())?;
    Ok(kernel::build(recipe, &Cache::from_environment())?)
}

fn install_kernel(kernel: &Kernel, out: &Path) -> Result<()> {
    for name in [VMLINUX, SYSTEM_MAP] {
        cache::install(&kernel.directory.join(name), &out.join(name))?;
    }
    Ok(())
}

fn rootfs(agent: &Path, out: &Path) -> Result<RootImageInputs> {
    let list = room().join("rootfs.toml");
    std::fs::create_dir_all(out).with_context(|| format!("Creating {}", out.display()))?;
    let packer = toolchain::mkfs_erofs()?;
    rootfs::build(&RootList::read(&list)?, &BTreeMap::from([("agent", agent)]), &out.join(ROOTFS))?;
    say(&format!("root image: {}", out.join(ROOTFS).display()));
    let (_, agent_sha256) = digest::of_file(agent)?;
    let (_, list_sha256) = digest::of_file(&list)?;
    Ok(RootImageInputs { agent_sha256, list_sha256, packer })
}

/// This crate's directory in the checkout: the lists of inputs lie there.
fn room() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}
