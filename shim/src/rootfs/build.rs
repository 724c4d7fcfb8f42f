//! Making an image: mkfs.erofs in a child with a mount namespace of its own, into a file without a name.

use std::ffi::{CString, OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::process::Signal;
use tokio::io::AsyncReadExt;

use super::{Layers, Result, RootfsError, cache_error};

/// Verb by which this binary runs itself to make an image.
pub const BUILD_VERB: &str = "build-image";
/// mount(2) takes one page of options.
pub const MAX_MOUNT_OPTIONS: usize = 4095;
/// What of mkfs.erofs's complaints is kept.
const MAX_COMPLAINT_BYTES: u64 = 2048;
/// Build time in the superblock, and the latest time that a file keeps: the end of the 32-bit age.
const SUPERBLOCK_TIME: &str = "4294967295";

/// Runs mkfs.erofs in a child of its own, into a file without a name.
pub async fn build(layers: &Layers, mount_point: &Path, cache: &Path, limit: Duration) -> Result<File> {
    let flags = i32::try_from(OFlags::TMPFILE.bits()).unwrap_or_default();
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600).custom_flags(flags);
    let file = options.open(cache).map_err(cache_error("make an unnamed file in", cache))?;
    let exe = std::env::current_exe().map_err(cache_error("find the shim for", cache))?;
    let stdin = file.try_clone().map_err(cache_error("make an unnamed file in", cache))?;
    let mut child = tokio::process::Command::new(exe)
        .arg(BUILD_VERB)
        .args(build_arguments(layers, mount_point)?)
        .env_remove(crate::daemon::Handoff::VARIABLE)
        .stdin(Stdio::from(stdin))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(cache_error("start the builder for", cache))?;
    let mut complaint = Vec::new();
    let finished = async {
        if let Some(stderr) = child.stderr.take() {
            let mut stderr = stderr.take(MAX_COMPLAINT_BYTES);
            let _ = stderr.read_to_end(&mut complaint).await;
            // The rest is read away, or the child would block on it.
            let _ = tokio::io::copy(&mut stderr.into_inner(), &mut tokio::io::sink()).await;
        }
        child.wait().await
    };
    let status = tokio::time::timeout(limit, finished).await.map_err(|_| RootfsError::Late(limit))?;
    let status = status.map_err(cache_error("wait for the builder of", cache))?;
    if !status.success() {
        let text = String::from_utf8_lossy(&complaint);
        let lines: Vec<_> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        return Err(RootfsError::Build { complaint: format!("{} ({status})", lines.join("; ")) });
    }
    Ok(file)
}

/// Words of the builder's command line: directory to go to, mount point, overlay options; without
/// options the directory itself is the source.
pub fn build_arguments(layers: &Layers, mount_point: &Path) -> Result<Vec<OsString>> {
    if let [dir] = layers.dirs.as_slice() {
        return Ok(vec![dir.into()]);
    }
    // Relative names, so that a page of options holds many layers.
    let base = common_parent(&layers.dirs);
    let mut options = String::from("lowerdir=");
    for (index, dir) in layers.dirs.iter().enumerate() {
        let relative = dir.strip_prefix(&base).unwrap_or(dir).to_string_lossy();
        let separator = if index == 0 { "" } else { ":" };
        let escaped = relative.replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,");
        options.push_str(separator);
        options.push_str(&escaped);
    }
    if layers.userxattr {
        options.push_str(",userxattr");
    }
    if options.len() > MAX_MOUNT_OPTIONS {
        return Err(RootfsError::TooManyLayers { length: options.len() });
    }
    Ok(vec![base.into(), mount_point.into(), options.into()])
}

pub fn common_parent(dirs: &[PathBuf]) -> PathBuf {
    let mut base = dirs.first().and_then(|dir| dir.parent()).unwrap_or(Path::new("/")).to_owned();
    while !dirs.iter().all(|dir| dir.starts_with(&base) && *dir != base) {
        if !base.pop() {
            break;
        }
    }
    base
}

/// The builder: becomes mkfs.erofs, writing into stdin, reading the directory or the overlay that the
/// words name. Runs in a process of its own because of the mount namespace.
///
/// # Errors
/// Returns only if it fails.
#[must_use]
pub fn build_in_namespace(words: &[String]) -> io::Error {
    match become_mkfs(words) {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

fn become_mkfs(words: &[String]) -> io::Result<std::convert::Infallible> {
    // If the shim is killed, so is the builder: its file has no name and goes with it.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let source = match words {
        [dir] => OsStr::new(dir),
        [base, mount_point, options] => {
            std::env::set_current_dir(base)?;
            crate::sys::unshare_mounts()?;
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            rustix::mount::mount_change("/", private)?;
            let options = CString::new(options.as_str())?;
            rustix::mount::mount("overlay", mount_point, "overlay", MountFlags::RDONLY, options.as_c_str())?;
            OsStr::new(mount_point)
        }
        _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "the builder wants 1 or 3 words")),
    };
    Err(Command::new("mkfs.erofs")
        // Same layers, same bytes: no random UUID, no time of day; files keep their own times.
        .env("SOURCE_DATE_EPOCH", SUPERBLOCK_TIME)
        .args(["--quiet", "-U", "00000000-0000-0000-0000-000000000000", "/proc/self/fd/0"])
        .arg(source)
        .exec())
}
