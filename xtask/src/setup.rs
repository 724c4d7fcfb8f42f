//! `cargo xtask setup`: everything that building and testing Hull needs, on a fresh Debian 12, as root.
//!
//! Each step looks first whether it is done, so that a second run ends at once. Programs that could disturb the
//! machine (containerd) go to the cache instead of being installed.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use hull_tests::images::Image;
use hull_tests::node::state;

use crate::containerd;
use crate::progress::{run, say};

/// Debian packages, by what needs them.
const PACKAGES: [&str; 27] = [
    // guest kernel
    "bc",
    "bison",
    "cpio",
    "dwarves",
    "flex",
    "kmod",
    "libelf-dev",
    "libssl-dev",
    "linux-source-6.12",
    "lz4",
    "make",
    "xz-utils",
    "zstd",
    // root image and Rust binaries
    "erofs-utils",
    "gcc",
    "libseccomp-dev",
    "pkg-config",
    // the node
    "busybox-static",
    "e2fsprogs",
    "linux-image-amd64",
    "qemu-system-x86",
    "util-linux",
    "iproute2",
    "python3",
    // test images
    "attr",
    "debootstrap",
    "ca-certificates",
];

pub(crate) fn run_all(top: &Path) -> Result<()> {
    packages()?;
    for image in Image::ALL {
        say(&format!("test image {image:?} (made once, cached)"));
        image.archive(top)?;
    }
    for version in containerd::versions() {
        let containerd = containerd::get(top, Some(version))?;
        say(&format!("containerd {version} with the test images (imported once, cached)"));
        state::disk(top, &containerd)?;
    }
    say("set up");
    Ok(())
}

fn packages() -> Result<()> {
    let missing: Vec<&str> = PACKAGES.into_iter().filter(|name| !is_installed(name)).collect();
    if missing.is_empty() {
        say("Debian packages are installed");
        return Ok(());
    }
    say(&format!("installing {} Debian packages: {}", missing.len(), missing.join(" ")));
    if !is_root()? {
        bail!("Installing packages needs root: run this as root or with sudo");
    }
    run(apt().args(["update", "-qq"]))?;
    run(apt().args(["install", "-qq", "--yes", "--no-install-recommends"]).args(&missing))
}

fn apt() -> Command {
    let mut apt = Command::new("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null()).stdout(Stdio::null());
    apt
}

fn is_installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}", package])
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|output| output.stdout == b"installed")
}

fn is_root() -> Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    Ok(std::fs::metadata("/proc/self").context("Looking at /proc/self")?.uid() == 0)
}
