//! The containerd versions that nodes can run, kept in the cache: never installed on this machine.
//!
//! 1.6 is Debian's, unpacked from its package. 2.3 is built from the Go module that `tests/tools/go.mod` pins,
//! where Go is installed. Both directories hold `containerd`, `ctr`, runc's shim and `runc`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use hull_tests::cache::{self, Key};
use hull_tests::node::Containerd;

use crate::progress::{output, run, say};

const GO_PROGRAMS: [&str; 3] = ["containerd", "ctr", "containerd-shim-runc-v2"];

/// Versions that this machine can have, oldest first.
pub(crate) fn versions() -> Vec<&'static str> {
    if go_is_there() { vec!["1.6", "2.3"] } else { vec!["1.6"] }
}

/// The wanted version, or the newest there is; made if it is not in the cache.
pub(crate) fn get(top: &Path, version: Option<&str>) -> Result<Containerd> {
    let version = version.or_else(|| versions().last().copied()).unwrap_or("1.6");
    let bin = match version {
        "1.6" => debian()?,
        "2.3" => built(top)?,
        other => {
            bail!("There is no containerd {other} for the node: choose one of {}", versions().join(", "))
        }
    };
    Ok(Containerd { version: version.to_owned(), bin })
}

fn go_is_there() -> bool {
    Command::new("go").arg("version").output().is_ok_and(|output| output.status.success())
}

fn debian() -> Result<PathBuf> {
    let entry = cache::entry("tools", &Key::new("debian containerd 1"), |work| {
        say("containerd 1.6: fetching Debian's packages");
        output(Command::new("apt-get").args(["download", "-q", "containerd", "runc"]).current_dir(work))?;
        let bin = work.join("bin");
        fs::create_dir(&bin).context("Making the directory for programs")?;
        for file in fs::read_dir(work).context("Listing the packages")? {
            let path = file.context("Listing the packages")?.path();
            if path.extension().is_some_and(|ending| ending == "deb") {
                run(Command::new("dpkg-deb").arg("-x").arg(&path).arg(work.join("root")))?;
                fs::remove_file(&path).context("Removing a package")?;
            }
        }
        for program in
            ["usr/bin/containerd", "usr/bin/ctr", "usr/bin/containerd-shim-runc-v2", "usr/sbin/runc"]
        {
            let name = program.rsplit('/').next().unwrap_or(program);
            fs::rename(work.join("root").join(program), bin.join(name))
                .with_context(|| format!("Debian's packages have no {program}"))?;
        }
        fs::remove_dir_all(work.join("root")).context("Removing the unpacked packages")
    })?;
    Ok(entry.join("bin"))
}

fn built(top: &Path) -> Result<PathBuf> {
    if !go_is_there() {
        bail!("containerd 2.3 is built from source, which needs Go: install it or use containerd 1.6");
    }
    let module = top.join("tests/tools");
    let mut key = Key::new("go tools 1");
    for name in ["go.mod", "go.sum"] {
        key.add(name, &fs::read(module.join(name)).with_context(|| format!("Reading {name}"))?);
    }
    let version = pinned(&fs::read_to_string(module.join("go.mod")).context("Reading go.mod")?)?;
    let entry = cache::entry("tools", &key, |work| {
        say(&format!("containerd {version}: building it from its Go module (about 2 minutes)"));
        let mut go = Command::new("go");
        go.current_dir(&module).env("CGO_ENABLED", "0").env("GOFLAGS", "-mod=readonly");
        go.args(["build", "-trimpath", "-tags", "no_btrfs,no_zfs,no_devmapper", "-ldflags"]);
        go.arg(format!("-s -w -X github.com/containerd/containerd/v2/version.Version={version}"));
        go.arg("-o").arg(format!("{}/bin/", work.display()));
        go.args(GO_PROGRAMS.map(|name| format!("github.com/containerd/containerd/v2/cmd/{name}")));
        run(&mut go)?;
        fs::copy(debian()?.join("runc"), work.join("bin/runc")).map(drop).context("Copying runc")
    })?;
    Ok(entry.join("bin"))
}

/// The version of containerd in a go.mod.
fn pinned(go_mod: &str) -> Result<String> {
    go_mod
        .lines()
        .find_map(|line| line.trim().strip_prefix("github.com/containerd/containerd/v2 "))
        .and_then(|rest| rest.split_whitespace().next())
        .map(str::to_owned)
        .context("tests/tools/go.mod does not pin github.com/containerd/containerd/v2")
}

#[cfg(test)]
mod tests {
    use super::pinned;

    #[test]
    fn the_pin_is_found() {
        let text = "require (\n\tgithub.com/containerd/containerd/v2 v2.3.4 // indirect\n)\n";
        assert_eq!(pinned(text).unwrap(), "v2.3.4");
        assert!(pinned("module x\n").is_err());
    }
}
