//! Mounts of EROFS images.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{self, MountFlags, UnmountFlags};

/// Mounts `device` read-only on `path`, which is made.
///
/// # Errors
/// The kernel's: `EINVAL` or `EUCLEAN` if the device holds no EROFS image. Nothing is left behind.
pub fn mount(device: &Path, path: &Path) -> io::Result<()> {
    fs::create_dir(path)?;
    let device = CString::new(device.as_os_str().as_bytes())?;
    let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOATIME;
    mount::mount(device.as_c_str(), path, "erofs", flags, None::<&std::ffi::CStr>).map_err(|error| {
        // The mount's error is the one worth telling.
        let _ = fs::remove_dir(path);
        error.into()
    })
}

/// Unmounts `path` and removes the directory. Nothing there is no error.
///
/// # Errors
/// The kernel's.
pub fn unmount(path: &Path) -> io::Result<()> {
    detach(path)?;
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Unmounts `path`, at the latest when its last user is gone. Nothing there is no error.
pub fn detach(path: &Path) -> io::Result<()> {
    match mount::unmount(path, UnmountFlags::empty()) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(Errno::BUSY) => Ok(mount::unmount(path, UnmountFlags::DETACH)?),
        Err(error) => Err(error.into()),
    }
}
