//! Where the shim's socket is: the same formula as containerd's own shim, so that containerd's
//! tests and operators' tools find it.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Directory of shim sockets when containerd names none.
pub const DEFAULT_SOCKET_DIR: &str = "/run/containerd/s";

/// Path of the socket of `group` under containerd `grpc_address` and `namespace`.
pub fn socket_path(socket_dir: &str, grpc_address: &str, namespace: &str, group: &str) -> PathBuf {
    let dir = if socket_dir.is_empty() { DEFAULT_SOCKET_DIR } else { socket_dir };
    let digest = Sha256::digest(clean_join(&[grpc_address, namespace, group]));
    Path::new(dir).join(hex(&digest))
}

/// The address that containerd dials.
pub fn url(path: &Path) -> String {
    format!("unix://{}", path.display())
}

/// Lower-case hexadecimal digits of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Go's `filepath.Join`: joins the elements that are not empty, then removes `//`, `.` and `..`.
fn clean_join(elements: &[&str]) -> String {
    let joined = elements.iter().filter(|element| !element.is_empty()).copied().collect::<Vec<_>>().join("/");
    if joined.is_empty() {
        return String::new();
    }
    let rooted = joined.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in joined.split('/') {
        match part {
            "" | "." => {}
            ".." => match parts.last() {
                Some(&last) if last != ".." => drop(parts.pop()),
                _ if rooted => {}
                _ => parts.push(".."),
            },
            part => parts.push(part),
        }
    }
    match (rooted, parts.is_empty()) {
        (true, _) => format!("/{}", parts.join("/")),
        (false, true) => ".".to_owned(),
        (false, false) => parts.join("/"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joins_as_go_does() {
        for (elements, expected) in [
            (vec!["/run/c.sock", "ns", "id"], "/run/c.sock/ns/id"),
            (vec!["/run//c.sock/", "ns", "id"], "/run/c.sock/ns/id"),
            (vec!["/run/./c.sock", "", "id"], "/run/c.sock/id"),
            (vec!["/run/x/../c.sock", "ns", ".."], "/run/c.sock"),
            (vec!["/..", "a"], "/a"),
            (vec!["a", "..", ".."], ".."),
            (vec![""], ""),
        ] {
            assert_eq!(clean_join(&elements), expected, "{elements:?}");
        }
    }

    #[test]
    fn path_fits_a_socket_address() {
        let path = socket_path("", "/run/containerd/containerd.sock", "default", &"x".repeat(76));
        assert!(path.as_os_str().len() <= 106);
        assert!(path.starts_with(DEFAULT_SOCKET_DIR));
    }
}
