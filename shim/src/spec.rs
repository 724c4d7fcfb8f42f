//! The container's config.json: read once, checked against what a pod can have, and taken apart into
//! what the shim itself needs. The agent gets the bytes as containerd wrote them.
//!
//! What cannot be had is refused here, before anything is acquired, with a sentence that names it.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::path::{Path, PathBuf};

use hull_protocol::limits::{MAX_ID_BYTES, MAX_SPEC_BYTES};
use serde::Deserialize;

/// Annotations that name the pod, in their order.
const GROUP_ANNOTATIONS: [&str; 2] = ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];
/// Mount types that exist in a guest without anything from the host.
const GUEST_MOUNTS: [&str; 8] = ["cgroup", "cgroup2", "devpts", "mqueue", "proc", "ramfs", "sysfs", "tmpfs"];

/// Why a specification is refused.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// The file is missing or unreadable.
    #[error("The bundle's specification {path} cannot be read")]
    Unreadable {
        /// The file.
        path: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// More than any real specification has.
    #[error("The bundle's specification {path} has more than {MAX_SPEC_BYTES} bytes")]
    TooLong {
        /// The file.
        path: String,
    },
    /// Not a specification.
    #[error("The bundle's specification {path} is not one")]
    Syntax {
        /// The file.
        path: String,
        /// Where and what.
        source: serde_json::Error,
    },
    /// Nothing to run.
    #[error("The specification has no process to run: process or its args are missing")]
    NoProcess,
    /// A directory that depends on where one is.
    #[error("The process's cwd {0:?} is no absolute path")]
    Cwd(String),
    /// The host's namespace was asked for.
    #[error("The host's {0} namespace is asked for: a pod in a machine of its own cannot have it")]
    HostNamespace(&'static str),
    /// A user namespace was asked for.
    #[error("A user namespace is asked for: it is not supported")]
    UserNamespace,
    /// The pid namespace of another container was asked for.
    #[error("A shared pid namespace ({0}) is asked for: each container has its own")]
    SharedPidNamespace(String),
    /// Something from the host's file system.
    #[error(
        "The mount on {destination} is of type bind, from {from} on the host: mounts from the host are not supported"
    )]
    BindMount {
        /// Where in the container.
        destination: String,
        /// Where on the host.
        from: String,
    },
    /// A mount of a kind that no guest has.
    #[error("The mount on {destination} is of type {kind:?}, which is not supported")]
    MountType {
        /// Where in the container.
        destination: String,
        /// Its type.
        kind: String,
    },
    /// Programs to run on the host.
    #[error("The specification has hooks ({0}): they are not supported")]
    Hooks(String),
    /// An annotation whose value is no number.
    #[error("The annotation {name} is {value:?}, which is no number")]
    Annotation {
        /// Its name.
        name: &'static str,
        /// Its value.
        value: String,
    },
}

/// What the shim keeps of a specification.
#[derive(Debug, Clone)]
pub struct ContainerSpec {
    /// The file as it was, for the agent.
    pub json: Vec<u8>,
    /// Root file system; relative to the bundle or absolute.
    pub root_path: PathBuf,
    /// Whether the container may not write to it.
    pub readonly: bool,
    /// Host name, if set.
    pub hostname: String,
    /// Kernel settings of the pod.
    pub sysctls: BTreeMap<String, String>,
    /// Size of /dev/shm, if the specification has one.
    pub shm_bytes: u64,
    /// What the pod, or without a pod the container, may use.
    pub limits: Limits,
}

/// Limits as the specification states them; `None`: none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// CPU time for each period, in thousandths of a CPU.
    pub cpu_milli: Option<u64>,
    /// Memory.
    pub memory_bytes: Option<u64>,
}

/// Whether `text` is an id as containerd makes them: one path component, plain characters.
pub fn is_id(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    !text.is_empty()
        && text.len() <= MAX_ID_BYTES
        && text.bytes().all(plain)
        && text.bytes().any(|byte| byte != b'.')
}

/// The pod that the bundle's annotations name; `None` without annotations or without a file.
pub fn group_of_bundle(bundle: &Path) -> Option<String> {
    #[derive(Deserialize)]
    struct Annotated {
        #[serde(default)]
        annotations: HashMap<String, String>,
    }
    let bytes = read_file(bundle).ok()?;
    let mut spec: Annotated = serde_json::from_slice(&bytes).ok()?;
    GROUP_ANNOTATIONS.iter().find_map(|name| spec.annotations.remove(*name)).filter(|id| !id.is_empty())
}

/// Reads and checks the specification of a bundle.
///
/// # Errors
/// [`SpecError`].
pub fn read(bundle: &Path) -> Result<ContainerSpec, SpecError> {
    let path = || bundle.join("config.json").display().to_string();
    let json = read_file(bundle)?;
    let spec: Spec =
        serde_json::from_slice(&json).map_err(|source| SpecError::Syntax { path: path(), source })?;
    check(&spec)?;
    let root = spec.root.unwrap_or_default();
    Ok(ContainerSpec {
        root_path: root.path,
        readonly: root.readonly,
        hostname: spec.hostname,
        shm_bytes: shm_bytes(&spec.mounts),
        limits: limits(&spec.annotations, &spec.linux)?,
        sysctls: spec.linux.sysctl,
        json,
    })
}

fn read_file(bundle: &Path) -> Result<Vec<u8>, SpecError> {
    let path = bundle.join("config.json");
    let name = path.display().to_string();
    let read = || {
        let mut bytes = Vec::new();
        let limit = u64::try_from(MAX_SPEC_BYTES).unwrap_or(u64::MAX).saturating_add(1);
        std::fs::File::open(&path)?.take(limit).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) if bytes.len() > MAX_SPEC_BYTES => Err(SpecError::TooLong { path: name }),
        Ok(bytes) => Ok(bytes),
        Err(source) => Err(SpecError::Unreadable { path: name, source }),
    }
}

/// The parts of the OCI specification that are looked at; serde skips the rest.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    process: Option<ProcessSpec>,
    root: Option<Root>,
    hostname: String,
    mounts: Vec<MountSpec>,
    hooks: Option<BTreeMap<String, serde_json::Value>>,
    annotations: HashMap<String, String>,
    linux: Linux,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ProcessSpec {
    args: Option<Vec<String>>,
    cwd: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Root {
    path: PathBuf,
    readonly: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct MountSpec {
    destination: String,
    #[serde(rename = "type")]
    kind: String,
    source: String,
    options: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Linux {
    namespaces: Vec<Namespace>,
    sysctl: BTreeMap<String, String>,
    resources: Resources,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Namespace {
    #[serde(rename = "type")]
    kind: String,
    path: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Resources {
    cpu: Cpu,
    memory: Memory,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Cpu {
    quota: Option<i64>,
    period: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Memory {
    limit: Option<i64>,
}

fn check(spec: &Spec) -> Result<(), SpecError> {
    let process = spec.process.as_ref().filter(|process| process.args.iter().flatten().next().is_some());
    let Some(process) = process else { return Err(SpecError::NoProcess) };
    if !process.cwd.starts_with('/') {
        return Err(SpecError::Cwd(process.cwd.clone()));
    }
    let namespace = |kind: &str| spec.linux.namespaces.iter().find(|entry| entry.kind == kind);
    for kind in ["network", "pid", "ipc"] {
        if namespace(kind).is_none() {
            return Err(SpecError::HostNamespace(kind));
        }
    }
    if namespace("user").is_some() {
        return Err(SpecError::UserNamespace);
    }
    if let Some(shared) = namespace("pid").filter(|entry| !entry.path.is_empty()) {
        return Err(SpecError::SharedPidNamespace(shared.path.clone()));
    }
    let hooks =
        spec.hooks.iter().flatten().filter(|(_, list)| list.as_array().is_none_or(|list| !list.is_empty()));
    let hooks = hooks.map(|(name, _)| name.as_str()).collect::<Vec<_>>();
    if !hooks.is_empty() {
        return Err(SpecError::Hooks(hooks.join(", ")));
    }
    spec.mounts.iter().try_for_each(check_mount)
}

fn check_mount(mount: &MountSpec) -> Result<(), SpecError> {
    let destination = mount.destination.clone();
    // runc takes the option for the type, whatever the type says.
    if mount.kind == "bind" || mount.options.iter().any(|option| option == "bind" || option == "rbind") {
        return Err(SpecError::BindMount { destination, from: mount.source.clone() });
    }
    if !GUEST_MOUNTS.contains(&mount.kind.as_str()) {
        return Err(SpecError::MountType { destination, kind: mount.kind.clone() });
    }
    Ok(())
}

/// Size of the tmpfs on /dev/shm: the pod has one, made to the first container's wish.
fn shm_bytes(mounts: &[MountSpec]) -> u64 {
    let shm = mounts.iter().find(|mount| mount.destination == "/dev/shm" && mount.kind == "tmpfs");
    let size =
        shm.into_iter().flat_map(|mount| &mount.options).find_map(|option| option.strip_prefix("size="));
    size.and_then(parse_size).unwrap_or_default()
}

/// tmpfs sizes: a number with an optional k, m or g.
fn parse_size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'k' | b'K' => (text.get(..text.len() - 1)?, 10),
        b'm' | b'M' => (text.get(..text.len() - 1)?, 20),
        b'g' | b'G' => (text.get(..text.len() - 1)?, 30),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// The pod's limits from CRI's annotations; without CRI the container is the pod.
fn limits(annotations: &HashMap<String, String>, linux: &Linux) -> Result<Limits, SpecError> {
    if annotations.contains_key("io.kubernetes.cri.container-type") {
        let quota = number(annotations, "io.kubernetes.cri.sandbox-cpu-quota")?;
        let period = number(annotations, "io.kubernetes.cri.sandbox-cpu-period")?;
        let memory = number(annotations, "io.kubernetes.cri.sandbox-memory")?;
        return Ok(Limits { cpu_milli: milli(quota, period), memory_bytes: memory });
    }
    let positive = |value: i64| u64::try_from(value).ok().filter(|&value| value > 0);
    Ok(Limits {
        cpu_milli: milli(linux.resources.cpu.quota.and_then(positive), linux.resources.cpu.period),
        memory_bytes: linux.resources.memory.limit.and_then(positive),
    })
}

/// A positive number; 0, negative and absent all mean that there is no limit.
fn number(annotations: &HashMap<String, String>, name: &'static str) -> Result<Option<u64>, SpecError> {
    let Some(value) = annotations.get(name) else { return Ok(None) };
    let parsed: i64 = value.parse().map_err(|_| SpecError::Annotation { name, value: value.clone() })?;
    Ok(u64::try_from(parsed).ok().filter(|&value| value > 0))
}

fn milli(quota: Option<u64>, period: Option<u64>) -> Option<u64> {
    // The kernel's default period.
    let period = period.filter(|&period| period > 0).unwrap_or(100_000);
    quota.map(|quota| quota.saturating_mul(1000).div_ceil(period))
}

#[cfg(test)]
mod tests;
