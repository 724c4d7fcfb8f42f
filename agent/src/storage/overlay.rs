//! A container's root: read-only layers below, a tmpfs of its own above.
//!
//! ```text
//! <dir>/rw/upper, <dir>/rw/work   on a tmpfs: dies with the container
//! <dir>/rootfs                    the overlay
//! ```
//! Layers are handed over one by one (`lowerdir+`), so their number is not bounded by the page that
//! mount(2) takes options in.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen, move_mount,
};

use super::StorageError;
use super::erofs::detach;

/// Mounts the overlay of `lower` (uppermost first) below `dir`, which must exist.
///
/// # Errors
/// The step that failed. What came before it is left for [`unmount`].
pub fn mount(dir: &Path, lower: &[&Path]) -> Result<(), StorageError> {
    let (rw, rootfs) = (dir.join("rw"), dir.join("rootfs"));
    make_dir(&rw)?;
    make_dir(&rootfs)?;
    attach("tmpfs", &[("mode", "755".as_ref())], &rw)
        .map_err(|source| failed("mount a tmpfs", &rw, source))?;
    let (upper, work) = (rw.join("upper"), rw.join("work"));
    make_dir(&upper)?;
    make_dir(&work)?;
    if let Some(top) = lower.first() {
        copy_attributes(top, &upper)
            .map_err(|source| failed("copy the root's owner and mode", &upper, source))?;
    }
    let mut options: Vec<(&str, &Path)> = lower.iter().map(|path| ("lowerdir+", *path)).collect();
    options.push(("upperdir", &upper));
    options.push(("workdir", &work));
    attach("overlay", &options, &rootfs).map_err(|source| failed("mount an overlay", &rootfs, source))
}

/// Undoes [`mount`], whole or in part. Calling it again is harmless.
///
/// # Errors
/// The step that failed.
pub fn unmount(dir: &Path) -> Result<(), StorageError> {
    for path in [dir.join("rootfs"), dir.join("rw")] {
        detach(&path).map_err(|source| failed("unmount", &path, source))?;
        match fs::remove_dir(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove the mount point", &path, source));
            }
            _ => {}
        }
    }
    Ok(())
}

fn attach(fs_type: &str, options: &[(&str, &Path)], target: &Path) -> io::Result<()> {
    let context = fsopen(fs_type, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        fsconfig_set_string(&context, *key, *value)?;
    }
    fsconfig_create(&context)?;
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    move_mount(mount, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}

/// The root directory of an overlay looks like its upper directory; it should look like the image's.
fn copy_attributes(from: &Path, to: &Path) -> io::Result<()> {
    let from = fs::metadata(from)?;
    std::os::unix::fs::chown(to, Some(from.uid()), Some(from.gid()))?;
    fs::set_permissions(to, from.permissions())
}

fn make_dir(path: &Path) -> Result<(), StorageError> {
    fs::create_dir(path).map_err(|source| failed("create a directory", path, source))
}

fn failed(step: &'static str, path: &Path, source: io::Error) -> StorageError {
    StorageError::Overlay { step, path: path.into(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unmounting_what_is_not_there_is_harmless() {
        unmount(Path::new("/nonexistent")).unwrap();
    }
}
