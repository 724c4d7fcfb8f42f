//! `-v` for people and `-info` for containerd. Neither needs root, KVM or a bundle.

use std::collections::HashMap;
use std::io::{self, Write};

use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};

/// Type of the features that the OCI runtime specification defines, as containerd names it.
const FEATURES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// What a pod can use; nothing is claimed that the guest lacks (no user namespaces, no recursive
/// read-only mounts, no AppArmor, no SELinux).
const FEATURES: &str = concat!(
    r#"{"ociVersionMin":"1.0.0","ociVersionMax":"1.2.1","hooks":[],"#,
    r#""mountOptions":["defaults","exec","gid","mode","noatime","nodev","nodiratime","noexec","nosuid","#,
    r#""ptmxmode","relatime","ro","rw","size","strictatime","suid"],"#,
    r#""linux":{"namespaces":["cgroup","ipc","mount","network","pid","uts"],"#,
    r#""cgroup":{"v1":false,"v2":true,"systemd":false,"systemdUser":false,"rdma":false},"#,
    r#""seccomp":{"enabled":true},"apparmor":{"enabled":false},"selinux":{"enabled":false}}}"#
);

/// Prints name and version.
///
/// # Errors
/// A closed stdout.
pub fn print_version() -> io::Result<()> {
    writeln!(
        io::stdout(),
        "containerd-shim-hull-v2:\n  Version:  {}\n  Runtime:  {}",
        env!("CARGO_PKG_VERSION"),
        crate::RUNTIME_NAME
    )
}

/// Prints the serialised RuntimeInfo. What stdin carries (options) changes nothing in it.
///
/// # Errors
/// A closed stdout.
pub fn print_info() -> io::Result<()> {
    let bytes = runtime_info().write_to_bytes()?;
    let mut stdout = io::stdout();
    stdout.write_all(&bytes)?;
    stdout.flush()
}

fn runtime_info() -> RuntimeInfo {
    RuntimeInfo {
        name: crate::RUNTIME_NAME.to_owned(),
        version: MessageField::some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        }),
        features: MessageField::some(Any {
            type_url: FEATURES_TYPE.to_owned(),
            value: FEATURES.into(),
            ..Any::new()
        }),
        annotations: HashMap::new(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_json_without_user_namespaces() {
        let features: serde_json::Value = serde_json::from_str(FEATURES).unwrap();
        let namespaces = features["linux"]["namespaces"].as_array().unwrap();
        assert!(!namespaces.iter().any(|name| name == "user"));
        assert!(!features["mountOptions"].as_array().unwrap().iter().any(|option| option == "rro"));
    }

    #[test]
    fn info_names_the_runtime() {
        assert_eq!(runtime_info().name, "io.containerd.hull.v2");
    }
}
