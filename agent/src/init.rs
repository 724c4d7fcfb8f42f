//! What PID 1 owes the machine: file systems, control groups, loopback, clock, power-off.
//!
//! `main` calls [`set_up`] once, before anything else; the `Hello` request calls the setters. A
//! failure of `set_up` ends the machine.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::system::{RebootCommand, reboot, sethostname};
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

use crate::{log, net};

/// Where the control groups are.
pub const CGROUP_ROOT: &str = "/sys/fs/cgroup";
/// The group above all containers' groups.
pub const CGROUP_PARENT: &str = "/sys/fs/cgroup/hull";
/// The agent's own files, on a tmpfs.
pub const RUN: &str = "/run/hull";
/// The pod's shared memory: every container's `/dev/shm`.
pub const SHM: &str = "/run/hull/shm";

/// Open files of one process: what containerd gives containers without a limit of their own.
const MAX_OPEN_FILES: u64 = 1 << 20;
/// Longest host name that the kernel takes.
const MAX_HOSTNAME_BYTES: usize = 64;
/// Sysctls that belong to the pod because its network and IPC namespaces are the guest's own.
const POD_SYSCTLS: [&str; 5] = ["fs.mqueue.", "kernel.msg", "kernel.sem", "kernel.shm", "net."];

/// What can go wrong in this room.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// A step of the machine's set-up.
    #[error("Cannot {step} {path}", path = .path.display())]
    SetUp {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A sysctl that does not belong to the pod, or no sysctl's name at all.
    #[error("Sysctl {name:?} cannot be set in a pod: only net.*, fs.mqueue.* and System V IPC's can")]
    ForeignSysctl {
        /// As it came.
        name: String,
    },
    /// The kernel did not take a sysctl.
    #[error("Sysctl {name:?} was refused by the guest's kernel")]
    Sysctl {
        /// Its name.
        name: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel takes at most 64 bytes.
    #[error("Host name of {length} bytes is longer than {MAX_HOSTNAME_BYTES}")]
    HostnameTooLong {
        /// As it came.
        length: usize,
    },
}

/// Mounts what the kernel left to user space and prepares the control groups.
///
/// # Errors
/// The first step that failed.
pub fn set_up() -> Result<(), InitError> {
    let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_at("proc", "/proc", plain, "")?;
    mount_at("sysfs", "/sys", plain, "")?;
    mount_at("cgroup2", CGROUP_ROOT, plain, "nsdelegate,memory_recursiveprot")?;
    make_dir("/dev/pts")?;
    mount_at("devpts", "/dev/pts", MountFlags::NOSUID | MountFlags::NOEXEC, "mode=620,gid=5,ptmxmode=666")?;
    mount_at("tmpfs", "/run", MountFlags::NOSUID | MountFlags::NODEV, "mode=755")?;
    mount_at("tmpfs", "/tmp", MountFlags::NOSUID | MountFlags::NODEV, "mode=1777")?;
    for dir in ["/run/hull", "/run/hull/c", "/run/hull/layers", SHM] {
        make_dir(dir)?;
    }
    set_up_cgroups()?;
    let files = Rlimit { current: Some(MAX_OPEN_FILES), maximum: Some(MAX_OPEN_FILES) };
    setrlimit(Resource::Nofile, files)
        .map_err(|source| failed("raise the limit of", "open files", source))?;
    net::loopback_up().map_err(|source| InitError::SetUp { step: "bring up", path: "lo".into(), source })
}

/// Mounts the pod's shared memory; 0 bytes leaves the size to the kernel. Repeating it is harmless.
///
/// # Errors
/// The kernel's.
pub fn mount_shm(bytes: u64) -> Result<(), InitError> {
    let size = if bytes == 0 { String::new() } else { format!(",size={bytes}") };
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_at("tmpfs", SHM, flags, &format!("mode=1777{size}"))
}

/// Sets the pod's host name.
///
/// # Errors
/// [`InitError::HostnameTooLong`], or the kernel's.
pub fn set_hostname(name: &str) -> Result<(), InitError> {
    if name.len() > MAX_HOSTNAME_BYTES {
        return Err(InitError::HostnameTooLong { length: name.len() });
    }
    sethostname(name.as_bytes()).map_err(|source| failed("set", "host name", source))
}

/// Sets the wall clock, which a guest without an RTC begins at 1970.
///
/// # Errors
/// The kernel's, for times before 1970.
pub fn set_clock(unix_time_ns: i64) -> Result<(), InitError> {
    let time = Timespec {
        tv_sec: unix_time_ns.div_euclid(1_000_000_000),
        tv_nsec: unix_time_ns.rem_euclid(1_000_000_000),
    };
    clock_settime(ClockId::Realtime, time).map_err(|source| failed("set", "clock", source))
}

/// Sets a pod-wide sysctl, its name in either spelling (`net.core.somaxconn`, `net/core/somaxconn`).
///
/// # Errors
/// [`InitError::ForeignSysctl`] or [`InitError::Sysctl`].
pub fn set_sysctl(name: &str, value: &str) -> Result<(), InitError> {
    let path = sysctl_path(name)?;
    fs::write(path, value).map_err(|source| InitError::Sysctl { name: name.into(), source })
}

/// Is this a sysctl of the pod's, and not of one container's?
pub fn is_pod_sysctl(name: &str) -> bool {
    sysctl_path(name).is_ok()
}

/// Time since the machine's start.
pub fn since_boot_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::Boottime)).try_into().unwrap_or_default()
}

/// The wall clock.
pub fn now_unix_ns() -> i64 {
    nanoseconds(clock_gettime(ClockId::Realtime))
}

/// Ends the machine after telling the host why.
pub fn power_off(reason: &str) -> ! {
    log::last_words(reason);
    // Nothing is worth syncing: the machine's disks are read-only or die with it.
    let _ = reboot(RebootCommand::PowerOff);
    // Only a kernel without a way to power off comes here; PID 1's end makes it panic, which the
    // machine reports as well.
    std::process::abort()
}

fn nanoseconds(time: Timespec) -> i64 {
    time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec)
}

fn sysctl_path(name: &str) -> Result<PathBuf, InitError> {
    let foreign = || InitError::ForeignSysctl { name: name.into() };
    let dotted = name.replace('/', ".");
    let is_pods = POD_SYSCTLS.iter().any(|prefix| dotted.starts_with(prefix));
    // Interface names may hold dots, which the slash spelling keeps: so only '/' is taken as given.
    let relative = if name.contains('/') { name.to_owned() } else { name.replace('.', "/") };
    let is_plain = relative.split('/').all(|part| !matches!(part, "" | "." | ".."))
        && relative.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/_-.".contains(&byte));
    if !is_pods || !is_plain {
        return Err(foreign());
    }
    Ok(Path::new("/proc/sys").join(relative))
}

fn set_up_cgroups() -> Result<(), InitError> {
    let list = Path::new(CGROUP_ROOT).join("cgroup.controllers");
    let controllers =
        fs::read_to_string(&list).map_err(|source| InitError::SetUp { step: "read", path: list, source })?;
    let enabled: Vec<String> = controllers.split_whitespace().map(|name| format!("+{name}")).collect();
    make_dir(CGROUP_PARENT)?;
    for group in [CGROUP_ROOT, CGROUP_PARENT] {
        let file = Path::new(group).join("cgroup.subtree_control");
        fs::write(&file, enabled.join(" ")).map_err(|source| InitError::SetUp {
            step: "enable controllers in",
            path: file,
            source,
        })?;
    }
    Ok(())
}

fn make_dir(path: &'static str) -> Result<(), InitError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(InitError::SetUp { step: "create", path: path.into(), source: error })
        }
        _ => Ok(()),
    }
}

fn mount_at(fs_type: &str, target: &'static str, flags: MountFlags, data: &str) -> Result<(), InitError> {
    let data = std::ffi::CString::new(data).unwrap_or_default();
    mount(fs_type, target, fs_type, flags, data.as_c_str()).map_err(|source| failed("mount", target, source))
}

fn failed(step: &'static str, path: &'static str, source: Errno) -> InitError {
    InitError::SetUp { step, path: path.into(), source: source.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pod_sysctls_are_told_from_foreign_ones() {
        for (name, path) in [
            ("net.core.somaxconn", Some("/proc/sys/net/core/somaxconn")),
            ("net/ipv4/conf/eth0.100/rp_filter", Some("/proc/sys/net/ipv4/conf/eth0.100/rp_filter")),
            ("kernel.shmmax", Some("/proc/sys/kernel/shmmax")),
            ("kernel.sem", Some("/proc/sys/kernel/sem")),
            ("fs.mqueue.msg_max", Some("/proc/sys/fs/mqueue/msg_max")),
            ("kernel.panic", None),
            ("vm.overcommit_memory", None),
            ("net/../kernel/panic", None),
            ("net..kernel", None),
            ("", None),
        ] {
            assert_eq!(sysctl_path(name).ok(), path.map(PathBuf::from), "{name}");
        }
    }

    #[test]
    fn host_names_are_capped() {
        let error = set_hostname(&"x".repeat(MAX_HOSTNAME_BYTES + 1)).unwrap_err();
        assert!(matches!(error, InitError::HostnameTooLong { length: 65 }));
    }
}
