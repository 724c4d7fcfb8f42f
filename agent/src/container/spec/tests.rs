use serde_json::{Value, json};

use super::*;

/// As `ctr run` writes it, cut to what matters here.
fn ctr() -> Value {
    json!({
        "ociVersion": "1.1.0",
        "process": {
            "user": {"uid": 1000, "gid": 100, "additionalGids": [5]},
            "args": ["/bin/true"],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "apparmorProfile": "cri-containerd.apparmor.d",
            "noNewPrivileges": false
        },
        "root": {"path": "rootfs"},
        "hostname": "box",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts"},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue"},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
            {"destination": "/run", "type": "tmpfs", "source": "tmpfs"}
        ],
        "linux": {
            "cgroupsPath": "/default/box",
            "resources": {"memory": {"limit": 1 << 20}},
            "namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}
            ],
            "maskedPaths": ["/proc/kcore"]
        }
    })
}

fn around() -> Surroundings<'static> {
    Surroundings {
        rootfs: Path::new("/run/hull/c/0/rootfs"),
        cgroup: Path::new("/hull/0"),
        readonly_rootfs: false,
        is_first: false,
        pod_pid_namespace: Some(Path::new("/proc/77/ns/pid")),
    }
}

fn adapted(json: &Value, around: &Surroundings<'_>) -> Result<GuestSpec, SpecError> {
    adapt(json.to_string().as_bytes(), around)
}

fn namespaces(guest: &GuestSpec) -> Vec<(LinuxNamespaceType, Option<PathBuf>)> {
    let linux = guest.spec.linux().as_ref().unwrap();
    linux.namespaces().as_ref().unwrap().iter().map(|ns| (ns.typ(), ns.path().clone())).collect()
}

#[test]
fn spec_of_ctr_is_fitted_to_the_guest() {
    let guest = adapted(&ctr(), &around()).unwrap();
    let linux = guest.spec.linux().as_ref().unwrap();
    assert_eq!(linux.cgroups_path().as_deref(), Some(Path::new("/hull/0")));
    assert_eq!(guest.spec.root().as_ref().unwrap().path(), Path::new("/run/hull/c/0/rootfs"));
    assert_eq!(guest.owner, (1000, 100));
    assert_eq!(guest.hostname.as_deref(), Some("box"));
    let process = guest.spec.process().as_ref().unwrap();
    assert!(process.apparmor_profile().is_none() && process.no_new_privileges().is_none());
    assert_eq!(
        namespaces(&guest),
        [(LinuxNamespaceType::Mount, None), (LinuxNamespaceType::Pid, None), (LinuxNamespaceType::Uts, None)]
    );
    let shm = &guest.spec.mounts().as_ref().unwrap()[3];
    assert_eq!(shm.typ().as_deref(), Some("bind"));
    assert_eq!(shm.source().as_deref(), Some(Path::new("/run/hull/shm")));
}

#[test]
fn first_container_uses_the_pods_host_name() {
    let guest = adapted(&ctr(), &Surroundings { is_first: true, ..around() }).unwrap();
    assert!(!namespaces(&guest).iter().any(|(kind, _)| *kind == LinuxNamespaceType::Uts));
    assert_eq!(guest.hostname.as_deref(), Some("box"));
    assert!(guest.spec.hostname().is_none());
}

#[test]
fn paths_of_the_host_are_not_followed() {
    let mut spec = ctr();
    spec["linux"]["namespaces"] = json!([
        {"type": "ipc", "path": "/proc/4242/ns/ipc"}, {"type": "uts", "path": "/proc/4242/ns/uts"},
        {"type": "mount"}, {"type": "network", "path": "/proc/4242/ns/net"}, {"type": "cgroup"},
        {"type": "pid", "path": "/proc/4242/ns/pid"}
    ]);
    assert_eq!(
        namespaces(&adapted(&spec, &around()).unwrap()),
        [
            (LinuxNamespaceType::Mount, None),
            (LinuxNamespaceType::Pid, Some("/proc/77/ns/pid".into())),
            (LinuxNamespaceType::Cgroup, None)
        ]
    );
    let gone = adapted(&spec, &Surroundings { pod_pid_namespace: None, ..around() });
    assert!(matches!(gone, Err(SpecError::NoPodProcessNamespace)));
}

#[test]
fn read_only_root_is_the_hosts_or_the_specs_wish() {
    for (host, spec, expected) in
        [(false, false, false), (true, false, true), (false, true, true), (true, true, true)]
    {
        let mut json = ctr();
        json["root"]["readonly"] = spec.into();
        let guest = adapted(&json, &Surroundings { readonly_rootfs: host, ..around() }).unwrap();
        assert_eq!(guest.spec.root().as_ref().unwrap().readonly(), Some(expected));
    }
}

#[test]
fn pod_sysctls_are_taken_out_of_the_spec() {
    let mut spec = ctr();
    spec["linux"]["sysctl"] = json!({"net.core.somaxconn": "1024"});
    let guest = adapted(&spec, &around()).unwrap();
    assert_eq!(guest.sysctls.get("net.core.somaxconn").map(String::as_str), Some("1024"));
    assert!(guest.spec.linux().as_ref().unwrap().sysctl().is_none());
}

#[test]
fn what_cannot_be_had_is_refused_by_name() {
    let bind = json!({"destination": "/etc/hosts", "type": "bind", "source": "/x", "options": ["rbind"]});
    let hidden = json!({"destination": "/a", "type": "tmpfs", "source": "/x", "options": ["bind"]});
    let nfs = json!({"destination": "/nfs", "type": "nfs", "source": "a:/x"});
    let untyped = json!({"destination": "/u", "source": "/x"});
    for (pointer, value, expected) in [
        ("/hooks", json!({"poststop": [{"path": "/bin/x"}]}), "poststop hooks"),
        ("/mounts/0", bind, "Mount \"/etc/hosts\" of type \"bind\""),
        ("/mounts/0", hidden, "Mount \"/a\" of type \"bind\""),
        ("/mounts/0", nfs, "Mount \"/nfs\" of type \"nfs\""),
        ("/mounts/0", untyped, "Mount \"/u\" of type \"\""),
        ("/linux/namespaces/0", json!({"type": "user"}), "user namespace"),
        ("/linux/namespaces/0", json!({"type": "uts"}), "no private pid namespace"),
        ("/linux/namespaces/3", json!({"type": "uts"}), "no private mount namespace"),
        ("/linux/sysctl", json!({"vm.swappiness": "1"}), "vm.swappiness"),
        ("/process/args", json!([]), "no command"),
        ("/process/cwd", json!("tmp"), "not absolute"),
        ("/process", Value::Null, "no process"),
        ("/root", Value::Null, "no root"),
        ("/linux", Value::Null, "no linux"),
        ("/mounts", json!(3), "no OCI runtime spec"),
    ] {
        let mut spec = ctr();
        spec["hooks"] = Value::Null;
        spec["linux"]["sysctl"] = Value::Null;
        *spec.pointer_mut(pointer).unwrap() = value;
        let error = adapted(&spec, &around()).unwrap_err().to_string();
        assert!(error.contains(expected), "{pointer}: {error}");
    }
}

#[test]
fn specs_are_capped() {
    let long = vec![b' '; MAX_SPEC_BYTES + 1];
    assert!(matches!(adapt(&long, &around()), Err(SpecError::TooLong { .. })));
    assert!(matches!(parse_process(&long), Err(SpecError::TooLong { .. })));
}
