//! The root image: stages what the list names and packs it with mkfs.erofs.
//!
//! ```text
//! list + inputs ─> staging directory (only the listed entries) ─> mkfs.erofs ─> temporary file ─rename─> image
//! ```
//!
//! UUID and times are fixed, everything belongs to root, extended attributes of the building machine stay out, nothing
//! is compressed: the guest maps and reads the pages as they are.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::cache::{self, CacheError, WorkDir};
use crate::command::{self, CommandError};
use crate::list::{Content, ListError, RootList};

/// The image's name where it is installed.
pub const ROOTFS: &str = "rootfs.erofs";

/// The image is a few megabytes.
const DEADLINE: Duration = Duration::from_secs(120);

/// The root image could not be built.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// The list is missing or malformed.
    #[error("The root image's file list is not usable")]
    List(#[from] ListError),
    /// The list names an input that was not given.
    #[error("The file list wants an input named {0:?}, which was not given")]
    UnknownInput(String),
    /// The agent (or another program) would not start in the image.
    #[error("{} is not a static x86-64 program: the root image has no loader", path.display())]
    NotStatic {
        /// The file that was given.
        path: PathBuf,
    },
    /// An entry cannot be staged.
    #[error("Cannot stage {}", path.display())]
    Stage {
        /// The entry or its source.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// mkfs.erofs failed or is missing.
    #[error("Packing the root image failed")]
    Command(#[from] CommandError),
    /// The image cannot be put into place.
    #[error("The root image cannot be put into place")]
    Place(#[from] CacheError),
}

/// Builds the image at `out` from a list and its named inputs (`agent` and its path).
///
/// # Errors
/// When an input is missing or not static, and when packing fails.
pub fn build(list: &RootList, inputs: &BTreeMap<&str, &Path>, out: &Path) -> Result<(), RootfsError> {
    let work = WorkDir::new(&out.with_extension(format!("work-{}", std::process::id())))?;
    let stage = work.path().join("stage");
    let create = |path: &Path| fs::create_dir(path).map_err(staging(path));
    create(&stage)?;
    for entry in &list.entries {
        let path = stage.join(&entry.path);
        match &entry.content {
            Content::Directory => create(&path)?,
            Content::File { input } => {
                let from =
                    *inputs.get(input.as_str()).ok_or_else(|| RootfsError::UnknownInput(input.clone()))?;
                check_static(from)?;
                fs::copy(from, &path).map_err(staging(from))?;
            }
        }
    }
    // Last, and children first: a mode may forbid writing into a directory. The root directory's own is not listed.
    for entry in list.entries.iter().rev() {
        let path = stage.join(&entry.path);
        fs::set_permissions(&path, Permissions::from_mode(entry.mode)).map_err(staging(&path))?;
    }
    fs::set_permissions(&stage, Permissions::from_mode(0o755)).map_err(staging(&stage))?;

    let image = work.path().join(ROOTFS);
    let mut mkfs = Command::new("mkfs.erofs");
    mkfs.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    mkfs.args(["--quiet", "--all-root", "-T0", "-x-1", "-U", &list.uuid]).arg(&image).arg(&stage);
    command::run(&mut mkfs, &work.path().join("log"), DEADLINE, DEADLINE, |_| {})?;
    cache::install(&image, out)?;
    Ok(())
}

/// Refuses a program that asks for a loader (PT_INTERP): the guest would die with a bare "no working init found".
fn check_static(path: &Path) -> Result<(), RootfsError> {
    const PT_INTERP: u32 = 3;
    let bytes = fs::read(path).map_err(staging(path))?;
    let number = |at: usize, size: usize| -> Option<u64> {
        let field = bytes.get(at..at.checked_add(size)?)?;
        Some(field.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    // ELF64: machine at 18, program headers' offset, size and number at 32, 54 and 56.
    let interpreted = || -> Option<bool> {
        let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        let at = |index: u64| usize::try_from(table.checked_add(index * size)?).ok();
        let kinds = (0..count).map(|index| number(at(index)?, 4)).collect::<Option<Vec<_>>>()?;
        Some(kinds.contains(&u64::from(PT_INTERP)))
    };
    let elf64 = bytes.starts_with(b"\x7fELF\x02\x01") && number(18, 2) == Some(62);
    if elf64 && interpreted() == Some(false) {
        Ok(())
    } else {
        Err(RootfsError::NotStatic { path: path.to_path_buf() })
    }
}

fn staging<'a>(path: &'a Path) -> impl FnOnce(io::Error) -> RootfsError + 'a {
    move |source| RootfsError::Stage { path: path.to_path_buf(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest;
    use crate::testing::Scratch;

    /// Any static program will do for the agent.
    const STATIC: &str = "/bin/busybox";

    fn list() -> RootList {
        RootList::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("rootfs.toml")).unwrap()
    }

    fn build_with(agent: &Path, out: &Path) -> Result<(), RootfsError> {
        build(&list(), &BTreeMap::from([("agent", agent)]), out)
    }

    #[test]
    fn two_builds_give_the_same_bytes() {
        let scratch = Scratch::new("rootfs");
        // A copy has another inode, other times and another mode than the original.
        let copy = scratch.path().join("copy");
        fs::copy(STATIC, &copy).unwrap();
        fs::set_permissions(&copy, Permissions::from_mode(0o600)).unwrap();
        let (first, second) = (scratch.path().join("1/a.erofs"), scratch.path().join("2/deeper/b.erofs"));
        fs::create_dir_all(second.parent().unwrap()).unwrap();
        build_with(Path::new(STATIC), &first).unwrap();
        build_with(&copy, &second).unwrap();
        assert_eq!(digest::of_file(&first).unwrap(), digest::of_file(&second).unwrap());
    }

    #[test]
    fn the_image_holds_the_list_and_nothing_else() {
        let scratch = Scratch::new("rootfs");
        let image = scratch.path().join("rootfs.erofs");
        build_with(Path::new(STATIC), &image).unwrap();
        let unpacked = scratch.path().join("unpacked");
        let fsck =
            Command::new("fsck.erofs").arg(format!("--extract={}", unpacked.display())).arg(&image).output();
        let fsck = fsck.unwrap();
        assert!(fsck.status.success(), "{fsck:?}");
        let mut found: Vec<String> = fs::read_dir(&unpacked)
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let mode = entry.metadata().unwrap().permissions().mode() & 0o7777;
                format!("{} {mode:o}", entry.file_name().into_string().unwrap())
            })
            .collect();
        found.sort();
        assert_eq!(found, ["agent 755", "dev 755", "proc 555", "run 755", "sys 555", "tmp 1777"]);
        assert_eq!(
            digest::of_file(&unpacked.join("agent")).unwrap(),
            digest::of_file(Path::new(STATIC)).unwrap()
        );
        // Only the image is left beside what the test made.
        let left = fs::read_dir(scratch.path()).unwrap().count();
        assert_eq!(left, 2);
    }

    #[test]
    fn what_is_not_static_is_refused() {
        let scratch = Scratch::new("rootfs");
        let out = scratch.path().join("rootfs.erofs");
        let script = scratch.path().join("script");
        fs::write(&script, "#!/bin/sh\n").unwrap();
        let cut = scratch.path().join("cut");
        fs::write(&cut, &fs::read(STATIC).unwrap()[..60]).unwrap();
        for bad in [&script, &cut, &std::env::current_exe().unwrap()] {
            let error = build_with(bad, &out).unwrap_err();
            assert!(matches!(error, RootfsError::NotStatic { .. }), "{}: {error}", bad.display());
        }
        assert!(!out.exists());
    }

    #[test]
    fn missing_inputs_are_named() {
        let scratch = Scratch::new("rootfs");
        let out = scratch.path().join("rootfs.erofs");
        let error = build(&list(), &BTreeMap::new(), &out).unwrap_err();
        assert_eq!(error.to_string(), "The file list wants an input named \"agent\", which was not given");
        let error = build_with(Path::new("/nowhere/agent"), &out).unwrap_err();
        assert_eq!(error.to_string(), "Cannot stage /nowhere/agent");
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
    }
}
