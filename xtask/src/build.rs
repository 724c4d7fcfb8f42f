//! `cargo xtask build` and `cargo xtask image`: the static release binaries, and the guest image around the agent.
//!
//! Static without another target: glibc with `crt-static`, in a target directory of its own so that neither these
//! flags nor the release profile disturb everyday builds. `--target` is given although it is the host's, so that
//! build scripts and proc-macros are built without the flags.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::progress::{run, say};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Where `cargo xtask build` leaves the binaries.
pub(crate) fn release_dir(top: &Path) -> PathBuf {
    top.join("target/static").join(TARGET).join("release")
}

/// The shim and the agent.
pub(crate) fn binaries(top: &Path) -> Result<()> {
    say("release binaries of shim and agent (about 6 minutes when nothing is built yet)");
    run(cargo_static(top).args(["-p", "hull-agent", "-p", "containerd-shim-hull-v2"]))
}

/// The VMM's test program, which is also the first program of its guests; gives its path.
pub(crate) fn kvm_boot(top: &Path) -> Result<PathBuf> {
    run(cargo_static(top).args(["-q", "-p", "hull-vmm", "--example", "kvm_boot"]))?;
    Ok(release_dir(top).join("examples/kvm_boot"))
}

/// `cargo build --release` for static programs.
pub(crate) fn cargo_static(top: &Path) -> Command {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(top).args(["build", "--release", "--target", TARGET, "--target-dir"]);
    cargo.arg(top.join("target/static"));
    cargo.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", flags(top));
    cargo.env("LIBSECCOMP_LINK_TYPE", "static").env("LIBSECCOMP_LIB_PATH", "/usr/lib/x86_64-linux-gnu");
    cargo
}

/// Static, and the same bytes wherever the checkout and cargo's sources lie.
fn flags(top: &Path) -> String {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let cargo =
        cargo.map(|path| format!(" --remap-path-prefix={}=/cargo", path.display())).unwrap_or_default();
    format!("-C target-feature=+crt-static --remap-path-prefix={}=/hull{cargo}", top.display())
}

/// The kernel (from the cache once it was built) and the root image, in `target/guest`.
pub(crate) fn guest_image(top: &Path) -> Result<()> {
    let agent = release_dir(top).join("hull-agent");
    if !agent.exists() {
        bail!("There is no {}: run `cargo xtask build` first", agent.display());
    }
    say("guest image (the kernel takes about 6 minutes when it is not in the cache)");
    let mut build = Command::new("cargo");
    build.current_dir(top).args(["run", "-q", "-p", "hull-guest-image", "--", "build", "--agent"]);
    build.arg(agent).arg("--out").arg(top.join("target/guest"));
    run(&mut build)
}

/// Everything that a node installs.
pub(crate) fn all(top: &Path) -> Result<()> {
    binaries(top)?;
    guest_image(top)
}
