//! From the OCI spec that containerd wrote for a host to the one that runs in this guest.
//!
//! The pod is the machine. So network and IPC namespaces, and with them their sysctls, are the
//! guest's own; a control group path, an LSM label or a namespace path of the host means nothing
//! here and goes. What cannot be had in this guest is refused by name, never dropped silently.
//!
//! | namespace | without a path              | with a path                       | not listed |
//! |-----------|-----------------------------|-----------------------------------|------------|
//! | mount     | private                     | private                           | refused    |
//! | pid       | private                     | that of the pod's first container | refused    |
//! | uts       | private; first: the guest's | the guest's                       | the guest's|
//! | cgroup    | private                     | private                           | none       |
//! | net, ipc  | the guest's                 | the guest's                       | the guest's|
//! | user, time| unimplemented               | unimplemented                     | none       |

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use hull_protocol::limits::MAX_SPEC_BYTES;
use libcontainer::oci_spec::runtime::{
    Linux, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, Mount, Process, Spec,
};

use crate::init;

/// What can be wrong with a spec.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Longer than the contract allows.
    #[error("Spec of {length} bytes is longer than {MAX_SPEC_BYTES}")]
    TooLong {
        /// As it came.
        length: usize,
    },
    /// No JSON, or not of this shape.
    #[error("Spec is no OCI {what}: {source}")]
    Malformed {
        /// "runtime spec", "process" or "resources".
        what: &'static str,
        /// The parser's words: line and column.
        source: serde_json::Error,
    },
    /// A part that every container needs.
    #[error("Spec has no {part}")]
    Missing {
        /// Its name in the JSON.
        part: &'static str,
    },
    /// A hook would run on the host's behalf in the guest.
    #[error("Spec asks for {kind} hooks: a container in its own machine has no host to run them on")]
    Hooks {
        /// Its name in the JSON.
        kind: &'static str,
    },
    /// A namespace that would have to be the host's.
    #[error("Spec has no private {kind} namespace: sharing the host's is impossible in a machine")]
    HostNamespace {
        /// Its name in the JSON.
        kind: &'static str,
    },
    /// A namespace this agent does not make.
    #[error("Spec asks for a {kind} namespace, which is not implemented")]
    UnknownNamespace {
        /// Its name in the JSON.
        kind: LinuxNamespaceType,
    },
    /// The pod's first container, whose process namespace was asked for, is gone.
    #[error("Spec asks to share the pod's process namespace, but the pod's first container has ended")]
    NoPodProcessNamespace,
    /// A mount that needs the host's files, or is unknown.
    #[error("Mount {destination:?} of type {kind:?} is not possible in the guest")]
    Mount {
        /// Where in the container.
        destination: PathBuf,
        /// Its type.
        kind: String,
    },
    /// A sysctl outside the namespaces that a pod owns.
    #[error("Spec sets sysctl {name:?}: only net.*, fs.mqueue.* and System V IPC's can be set in a pod")]
    Sysctl {
        /// As it came.
        name: String,
    },
    /// An empty command, or a relative working directory.
    #[error("Process has {fault}")]
    Process {
        /// What is wrong.
        fault: &'static str,
    },
}

/// What the guest knows and the host does not.
#[derive(Debug)]
pub struct Surroundings<'a> {
    /// Where the root file system is mounted.
    pub rootfs: &'a Path,
    /// The container's control group, from the root of the hierarchy.
    pub cgroup: &'a Path,
    /// Does the host ask for a read-only root, whatever the spec says?
    pub readonly_rootfs: bool,
    /// Is it the pod's first container?
    pub is_first: bool,
    /// The process namespace of the pod's first container.
    pub pod_pid_namespace: Option<&'a Path>,
}

/// A spec for this guest and what the pod has to do for it.
#[derive(Debug)]
pub struct GuestSpec {
    /// For libcontainer.
    pub spec: Spec,
    /// To be set in the guest as a whole.
    pub sysctls: BTreeMap<String, String>,
    /// To become the pod's, if the pod has none.
    pub hostname: Option<String>,
    /// User and group of the init.
    pub owner: (u32, u32),
}

/// Parses `json` and fits it to this guest.
///
/// # Errors
/// The first thing that cannot be had.
pub fn adapt(json: &[u8], around: &Surroundings<'_>) -> Result<GuestSpec, SpecError> {
    let mut spec: Spec = parse(json, "runtime spec")?;
    refuse_hooks(&spec)?;
    let mut linux = spec.linux().clone().ok_or(SpecError::Missing { part: "linux" })?;
    let mut process = spec.process().clone().ok_or(SpecError::Missing { part: "process" })?;
    let mut root = spec.root().clone().ok_or(SpecError::Missing { part: "root" })?;

    adapt_process(&mut process)?;
    let has_own_uts = adapt_namespaces(&mut linux, around)?;
    let sysctls = take_sysctls(&mut linux)?;
    forget_the_host(&mut linux, around);
    let mounts = spec.mounts().as_deref().unwrap_or_default().iter().map(adapt_mount);
    let mounts = mounts.collect::<Result<Vec<_>, _>>()?;
    root.set_path(around.rootfs.into());
    root.set_readonly(Some(around.readonly_rootfs || root.readonly().unwrap_or(false)));

    let owner = (process.user().uid(), process.user().gid());
    let hostname = spec.hostname().clone().filter(|name| !name.is_empty());
    if !has_own_uts {
        spec.set_hostname(None).set_domainname(None);
    }
    spec.set_hooks(None).set_annotations(None);
    spec.set_linux(Some(linux)).set_process(Some(process)).set_root(Some(root)).set_mounts(Some(mounts));
    Ok(GuestSpec { spec, sysctls, hostname, owner })
}

/// Parses the JSON of a further process.
///
/// # Errors
/// [`SpecError::TooLong`], [`SpecError::Malformed`] or [`SpecError::Process`].
pub fn parse_process(json: &[u8]) -> Result<Process, SpecError> {
    let mut process = parse(json, "process")?;
    adapt_process(&mut process)?;
    Ok(process)
}

/// Parses JSON of the contract: capped, and with the part of the message that says where it broke.
///
/// # Errors
/// [`SpecError::TooLong`] or [`SpecError::Malformed`].
pub fn parse<T: serde::de::DeserializeOwned>(json: &[u8], what: &'static str) -> Result<T, SpecError> {
    if json.len() > MAX_SPEC_BYTES {
        return Err(SpecError::TooLong { length: json.len() });
    }
    serde_json::from_slice(json).map_err(|source| SpecError::Malformed { what, source })
}

fn refuse_hooks(spec: &Spec) -> Result<(), SpecError> {
    let Some(hooks) = spec.hooks() else { return Ok(()) };
    #[allow(deprecated)] // runtimes still get it
    let kinds = [
        ("prestart", hooks.prestart()),
        ("createRuntime", hooks.create_runtime()),
        ("createContainer", hooks.create_container()),
        ("startContainer", hooks.start_container()),
        ("poststart", hooks.poststart()),
        ("poststop", hooks.poststop()),
    ];
    match kinds.into_iter().find(|(_, hooks)| hooks.as_ref().is_some_and(|list| !list.is_empty())) {
        Some((kind, _)) => Err(SpecError::Hooks { kind }),
        None => Ok(()),
    }
}

fn adapt_process(process: &mut Process) -> Result<(), SpecError> {
    if process.args().as_ref().and_then(|args| args.first()).is_none_or(String::is_empty) {
        return Err(SpecError::Process { fault: "no command" });
    }
    if !process.cwd().is_absolute() {
        return Err(SpecError::Process { fault: "a working directory that is not absolute" });
    }
    // The labels are of the host's security modules.
    process.set_apparmor_profile(None).set_selinux_label(None);
    // libcontainer takes `false` as a wish to load seccomp after the capabilities are gone.
    if process.no_new_privileges() == Some(false) {
        process.set_no_new_privileges(None);
    }
    Ok(())
}

/// Returns whether the container has a host name of its own.
fn adapt_namespaces(linux: &mut Linux, around: &Surroundings<'_>) -> Result<bool, SpecError> {
    let asked: HashMap<LinuxNamespaceType, bool> = linux
        .namespaces()
        .as_deref()
        .unwrap_or_default()
        .iter()
        .map(|ns| (ns.typ(), ns.path().as_ref().is_some_and(|path| !path.as_os_str().is_empty())))
        .collect();
    for kind in [LinuxNamespaceType::User, LinuxNamespaceType::Time] {
        if asked.contains_key(&kind) {
            return Err(SpecError::UnknownNamespace { kind });
        }
    }
    if !asked.contains_key(&LinuxNamespaceType::Mount) {
        return Err(SpecError::HostNamespace { kind: "mount" });
    }
    let mut namespaces = vec![namespace(LinuxNamespaceType::Mount)];
    let mut pid = namespace(LinuxNamespaceType::Pid);
    match asked.get(&LinuxNamespaceType::Pid) {
        None => return Err(SpecError::HostNamespace { kind: "pid" }),
        Some(true) => {
            let path = around.pod_pid_namespace.ok_or(SpecError::NoPodProcessNamespace)?;
            pid.set_path(Some(path.into()));
        }
        Some(false) => {}
    }
    namespaces.push(pid);
    if asked.contains_key(&LinuxNamespaceType::Cgroup) {
        namespaces.push(namespace(LinuxNamespaceType::Cgroup));
    }
    let has_own_uts = asked.get(&LinuxNamespaceType::Uts) == Some(&false) && !around.is_first;
    if has_own_uts {
        namespaces.push(namespace(LinuxNamespaceType::Uts));
    }
    linux.set_namespaces(Some(namespaces));
    Ok(has_own_uts)
}

fn namespace(kind: LinuxNamespaceType) -> LinuxNamespace {
    // The builder fails for no input; its default is a namespace of the right kind in any case.
    LinuxNamespaceBuilder::default().typ(kind).build().unwrap_or_default()
}

fn take_sysctls(linux: &mut Linux) -> Result<BTreeMap<String, String>, SpecError> {
    let sysctls: BTreeMap<String, String> = linux.sysctl().clone().unwrap_or_default().into_iter().collect();
    if let Some(name) = sysctls.keys().find(|name| !init::is_pod_sysctl(name)) {
        return Err(SpecError::Sysctl { name: name.clone() });
    }
    linux.set_sysctl(None);
    Ok(sysctls)
}

fn forget_the_host(linux: &mut Linux, around: &Surroundings<'_>) {
    linux
        .set_cgroups_path(Some(around.cgroup.into()))
        .set_mount_label(None)
        .set_intel_rdt(None)
        .set_net_devices(None)
        .set_uid_mappings(None)
        .set_gid_mappings(None)
        .set_time_offsets(None);
}

fn adapt_mount(mount: &Mount) -> Result<Mount, SpecError> {
    let mut mount = mount.clone();
    let kind = mount.typ().clone().unwrap_or_default();
    let options = mount.options().as_deref().unwrap_or_default();
    if mount.destination() == Path::new("/dev/shm") {
        let access = if options.iter().any(|option| option == "ro") { "ro" } else { "rw" };
        let options = ["rbind", access, "nosuid", "nodev", "noexec"].map(String::from).to_vec();
        mount.set_typ(Some("bind".into())).set_source(Some(init::SHM.into())).set_options(Some(options));
        return Ok(mount);
    }
    let is_bind = options.iter().any(|option| option == "bind" || option == "rbind");
    match kind.as_str() {
        "proc" | "sysfs" | "tmpfs" | "devpts" | "mqueue" | "cgroup" if !is_bind => Ok(mount),
        "cgroup2" if !is_bind => {
            mount.set_typ(Some("cgroup".into()));
            Ok(mount)
        }
        _ if is_bind => Err(refused(&mount, "bind".into())),
        _ => Err(refused(&mount, kind)),
    }
}

fn refused(mount: &Mount, kind: String) -> SpecError {
    SpecError::Mount { destination: mount.destination().clone(), kind }
}

#[cfg(test)]
mod tests;
