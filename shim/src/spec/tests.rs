//! Specifications that are taken and refused.

use serde_json::{Value, json};

use super::*;

fn ctr_spec() -> Value {
    json!({
        "ociVersion": "1.1.0",
        "process": {"args": ["/bin/true"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755", "size=65536k"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue"},
        ],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}],
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
        },
    })
}

fn parsed(spec: &Value) -> Result<ContainerSpec, String> {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let dir = std::env::temp_dir().join(format!("hull-spec-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("config.json"), spec.to_string()).unwrap();
    let result = read(&dir).map_err(|error| crate::error::chain(&error));
    std::fs::remove_dir_all(&dir).unwrap();
    result
}

fn refused(change: impl FnOnce(&mut Value)) -> String {
    let mut spec = ctr_spec();
    change(&mut spec);
    parsed(&spec).unwrap_err()
}

#[test]
fn what_ctr_writes_is_taken() {
    let spec = parsed(&ctr_spec()).unwrap();
    assert_eq!((spec.root_path.as_path(), spec.readonly), (Path::new("rootfs"), false));
    assert_eq!(spec.shm_bytes, 64 << 20);
    assert_eq!(spec.limits, Limits::default());
}

#[test]
fn no_process() {
    let text = refused(|spec| spec["process"] = Value::Null);
    assert!(text.contains("no process"), "{text}");
    let text = refused(|spec| spec["process"]["args"] = json!([]));
    assert!(text.contains("args"), "{text}");
    let text = refused(|spec| spec["process"]["cwd"] = json!("relative"));
    assert!(text.contains("cwd") && text.contains("relative"), "{text}");
}

#[test]
fn host_namespaces() {
    for kind in ["network", "pid", "ipc"] {
        let text = refused(|spec| {
            spec["linux"]["namespaces"].as_array_mut().unwrap().retain(|entry| entry["type"] != kind);
        });
        assert!(text.contains(&format!("host's {kind} namespace")), "{text}");
    }
    let text = refused(|spec| {
        spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    });
    assert!(text.contains("user namespace"), "{text}");
    let text = refused(|spec| spec["linux"]["namespaces"][0]["path"] = json!("/proc/1/ns/pid"));
    assert!(text.contains("/proc/1/ns/pid"), "{text}");
}

#[test]
fn mounts_are_named() {
    let text = refused(|spec| {
        spec["mounts"].as_array_mut().unwrap().push(
            json!({"destination": "/data", "type": "bind", "source": "/srv", "options": ["rbind", "rw"]}),
        );
    });
    assert!(text.contains("/data") && text.contains("bind") && text.contains("/srv"), "{text}");
    let text = refused(|spec| {
        spec["mounts"]
            .as_array_mut()
            .unwrap()
            .push(json!({"destination": "/n", "type": "nfs4", "source": "h:/"}));
    });
    assert!(text.contains("/n") && text.contains("nfs4"), "{text}");
}

#[test]
fn hooks_are_refused_unless_empty() {
    let text = refused(|spec| spec["hooks"] = json!({"prestart": [{"path": "/bin/x"}]}));
    assert!(text.contains("prestart"), "{text}");
    let mut spec = ctr_spec();
    spec["hooks"] = json!({"prestart": []});
    parsed(&spec).unwrap();
}

#[test]
fn limits_come_from_the_pod_or_the_container() {
    let mut spec = ctr_spec();
    spec["linux"]["resources"] =
        json!({"cpu": {"quota": 150000, "period": 100000}, "memory": {"limit": 1 << 20}});
    let limits = parsed(&spec).unwrap().limits;
    assert_eq!(limits, Limits { cpu_milli: Some(1500), memory_bytes: Some(1 << 20) });
    spec["annotations"] = json!({
        "io.kubernetes.cri.container-type": "sandbox",
        "io.kubernetes.cri.sandbox-cpu-quota": "50000",
        "io.kubernetes.cri.sandbox-cpu-period": "100000",
        "io.kubernetes.cri.sandbox-memory": "0",
    });
    let limits = parsed(&spec).unwrap().limits;
    assert_eq!(limits, Limits { cpu_milli: Some(500), memory_bytes: None });
    spec["annotations"]["io.kubernetes.cri.sandbox-memory"] = json!("much");
    assert!(parsed(&spec).unwrap_err().contains("sandbox-memory"));
}

#[test]
fn bundles_without_a_specification() {
    let text = crate::error::chain(&read(Path::new("/nonexistent")).unwrap_err());
    assert!(text.contains("/nonexistent/config.json"), "{text}");
    assert_eq!(group_of_bundle(Path::new("/nonexistent")), None);
    assert!(refused(|spec| *spec = json!([1])).contains("is not one"));
}

#[test]
fn ids_are_one_plain_path_component() {
    for id in ["a", "redis-1.2_x", &"x".repeat(MAX_ID_BYTES)] {
        assert!(is_id(id), "{id}");
    }
    for id in ["", ".", "..", "a/b", "a b", "ü", &"x".repeat(MAX_ID_BYTES + 1)] {
        assert!(!is_id(id), "{id}");
    }
}

#[test]
fn sizes_of_tmpfs() {
    for (text, size) in [
        ("65536k", Some(64 << 20)),
        ("1m", Some(1 << 20)),
        ("2G", Some(2 << 30)),
        ("7", Some(7)),
        ("x", None),
        ("", None),
    ] {
        assert_eq!(parse_size(text), size, "{text}");
    }
}
