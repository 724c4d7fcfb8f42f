//! The binary itself, as containerd runs it: bytes on stdin, reply, files, joining, clean-up. Needs root
//! (the journal is below /run) but no KVM: nothing is created in the pods.
#![allow(clippy::unwrap_used)] // helpers of tests; clippy sees only the test functions as tests

use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use containerd_shim_protos::api::{ConnectRequest, DeleteResponse, ShutdownRequest};
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult};
use containerd_shim_protos::shim_async::{Client, TaskClient};
use containerd_shim_protos::types::introspection::RuntimeInfo;
use protobuf::Message;

const SHIM: &str = env!("CARGO_BIN_EXE_containerd-shim-hull-v2");

/// A bundle, a socket directory and a configuration of one test's own.
struct Place {
    dir: PathBuf,
    namespace: String,
}

impl Place {
    fn new(test: &str, config: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("hull-start-{}-{test}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(dir.join("bundle")).unwrap();
        std::fs::write(dir.join("config.toml"), config).unwrap();
        Place { dir, namespace: format!("hull-test-{}-{test}", std::process::id()) }
    }

    fn bundle(&self) -> PathBuf {
        self.dir.join("bundle")
    }

    fn grpc(&self) -> String {
        self.dir.join("containerd.sock").display().to_string()
    }

    fn run(&self, id: &str, verb: &str, stdin: &[u8]) -> Output {
        let mut child = Command::new(SHIM)
            .args(["-namespace", &self.namespace, "-address", &self.grpc(), "-id", id, "-bundle"])
            .arg(self.bundle())
            .arg(verb)
            .current_dir(self.bundle())
            .env("HULL_CONFIG", self.dir.join("config.toml"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A shim that refuses early may not read it all.
        let _ = child.stdin.take().unwrap().write_all(stdin);
        child.wait_with_output().unwrap()
    }

    fn start(&self, id: &str) -> PathBuf {
        let output = self.run(id, "start", b"");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stderr.is_empty());
        let address = String::from_utf8(output.stdout).unwrap();
        assert_eq!(std::fs::read_to_string(self.bundle().join("address")).unwrap(), address);
        PathBuf::from(address.strip_prefix("unix://").unwrap())
    }

    fn refused(&self, id: &str, verb: &str) -> String {
        let output = self.run(id, verb, b"");
        assert!(!output.status.success() && output.stdout.is_empty());
        String::from_utf8(output.stderr).unwrap()
    }

    fn delete(&self, id: &str) -> DeleteResponse {
        let begun = Instant::now();
        let output = self.run(id, "delete", b"");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(begun.elapsed() < Duration::from_secs(5));
        DeleteResponse::parse_from_bytes(&output.stdout).unwrap()
    }

    fn journal(&self) -> PathBuf {
        Path::new("/run/hull").join(&self.namespace)
    }

    fn daemons(&self) -> Vec<u32> {
        let marker = format!("-namespace\0{}\0", self.namespace);
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|pid| {
            std::fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&marker))
        })
        .collect()
    }

    /// The one daemon. For a moment after exec the kernel shows no command line.
    fn running(&self) -> Vec<u32> {
        let begun = Instant::now();
        while self.daemons().is_empty() && begun.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let daemons = self.daemons();
        assert_eq!(daemons.len(), 1);
        daemons
    }

    fn assert_clean(&self, socket: &Path) {
        let begun = Instant::now();
        // The socket, too: a daemon that has just been started shows no command line for a moment.
        while (socket.exists() || !self.daemons().is_empty()) && begun.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(self.daemons(), [0u32; 0]);
        assert!(!socket.exists(), "the socket is left");
        assert!(!self.journal().exists(), "the journal is left");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

#[test]
fn start_join_and_delete() {
    let place = Place::new("join", "");
    let socket = place.start("pod");
    let metadata = std::fs::metadata(&socket).unwrap();
    assert!(metadata.file_type().is_socket() && metadata.mode() & 0o777 == 0o600);
    let daemons = place.running();
    assert_eq!(place.start("pod"), socket);
    // Another container of the same pod finds it by its annotation.
    let spec = r#"{"annotations": {"io.kubernetes.cri.sandbox-id": "pod"}}"#;
    std::fs::write(place.bundle().join("config.json"), spec).unwrap();
    assert_eq!(place.start("member"), socket);
    assert_eq!(place.daemons(), daemons);
    let response = place.delete("pod");
    assert_eq!((response.pid, response.exit_status), (daemons[0], 137));
    assert!(response.exited_at.seconds > 0);
    place.assert_clean(&socket);
    assert_eq!(place.delete("pod").pid, 0);
}

#[test]
fn bootstrap_params_are_answered_in_kind() {
    let place = Place::new("params", "");
    let socket_dir = std::env::temp_dir().join(format!("hs{}", std::process::id()));
    let params = BootstrapParams {
        instance_id: "pod".to_owned(),
        namespace: place.namespace.clone(),
        containerd_grpc_address: place.grpc(),
        socket_dir: Some(socket_dir.display().to_string()),
        ..Default::default()
    };
    let output = place.run("pod", "start", &params.write_to_bytes().unwrap());
    let result = BootstrapResult::parse_from_bytes(&output.stdout).unwrap();
    assert_eq!((result.version, result.protocol.as_str()), (3, "ttrpc"));
    let socket = PathBuf::from(result.address.strip_prefix("unix://").unwrap());
    assert!(socket.starts_with(&socket_dir));
    assert_eq!(std::fs::read_to_string(place.bundle().join("address")).unwrap(), result.address);
    place.delete("pod");
    place.assert_clean(&socket);
    std::fs::remove_dir_all(socket_dir).unwrap();
}

#[test]
fn a_killed_daemon_is_replaced_and_cleaned() {
    let place = Place::new("killed", "");
    let socket = place.start("pod");
    let kill = |place: &Place| {
        for pid in place.running() {
            Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
        }
        while !place.daemons().is_empty() {
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    kill(&place);
    assert!(socket.exists());
    assert_eq!(place.start("pod"), socket);
    place.running();
    kill(&place);
    place.delete("pod");
    place.assert_clean(&socket);
}

#[test]
fn an_unused_daemon_ends_by_itself() {
    let place = Place::new("unused", "[timeouts]\nunused_s = 0\n");
    let socket = place.start("pod");
    place.assert_clean(&socket);
}

#[test]
fn both_services_answer_and_shutdown_ends() {
    let place = Place::new("serve", "");
    let socket = place.start("pod");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = Client::connect(&format!("unix://{}", socket.display())).await.unwrap();
        let task = TaskClient::new(client.clone());
        let context = || ttrpc::context::with_duration(Duration::from_secs(5));
        let request = ConnectRequest { id: "pod".to_owned(), ..Default::default() };
        let unknown = |error| match error {
            ttrpc::Error::RpcStatus(status) => status.code() == ttrpc::Code::NOT_FOUND,
            _ => false,
        };
        assert!(unknown(task.connect(context(), &request).await.unwrap_err()));
        // The client above speaks v3; v2 has the same messages.
        let v2 = ttrpc::Request {
            service: "containerd.task.v2.Task".to_owned(),
            method: "Connect".to_owned(),
            payload: request.write_to_bytes().unwrap(),
            ..Default::default()
        };
        assert!(unknown(client.request(v2).await.unwrap_err()));
        let shutdown = ShutdownRequest { id: "pod".to_owned(), ..Default::default() };
        task.shutdown(context(), &shutdown).await.unwrap();
    });
    place.assert_clean(&socket);
}

#[test]
fn bad_configurations_are_refused_and_leave_nothing() {
    for (config, words) in [
        ("vcpu = 1\n", vec!["line 1", "`vcpu`"]),
        ("\n\nmemory_mib = \"much\"\n", vec!["line 3"]),
        ("vcpus = 0\n", vec!["vcpus"]),
    ] {
        let place = Place::new("config", config);
        let text = place.refused("pod", "start");
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
        assert!(place.daemons().is_empty() && !place.journal().exists());
    }
    let place = Place::new("config", "");
    std::fs::remove_file(place.dir.join("config.toml")).unwrap();
    let text = place.refused("pod", "start");
    assert!(text.contains("config.toml") && text.contains("No such file"), "{text}");
    let spec = r#"{"annotations": {"io.containerd.runc.v2.group": "../../etc"}}"#;
    std::fs::write(place.dir.join("config.toml"), "").unwrap();
    std::fs::write(place.bundle().join("config.json"), spec).unwrap();
    assert!(place.refused("pod", "start").contains("no valid id"));
}

#[test]
fn the_daemon_keeps_no_output_of_start_open() {
    // `run` reads stdout and stderr to their ends: it would hang if the daemon held them.
    let place = Place::new("outputs", "");
    let begun = Instant::now();
    place.start("pod");
    assert!(begun.elapsed() < Duration::from_secs(5));
    place.delete("pod");
}

#[test]
fn version_info_and_wrong_verbs() {
    let output = Command::new(SHIM).arg("-v").output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains(env!("CARGO_PKG_VERSION")));
    let output = Command::new(SHIM).arg("-info").stdin(Stdio::null()).output().unwrap();
    let info = RuntimeInfo::parse_from_bytes(&output.stdout).unwrap();
    assert_eq!(info.name, "io.containerd.hull.v2");
    assert!(info.features.type_url.ends_with("features/Features"));
    let place = Place::new("verbs", "");
    assert!(place.refused("pod", "stop").contains("\"stop\""));
    assert!(place.refused("", "start").contains("-id"));
}

/// The logging program's contract: its streams on 3 and 4, its readiness on 5.
#[test]
fn logging_programs_get_their_descriptors() {
    let place = Place::new("logger", "");
    let log = place.dir.join("log");
    let (stdout, mut stdout_writer) = std::io::pipe().unwrap();
    let (stderr, mut stderr_writer) = std::io::pipe().unwrap();
    let (mut ready, ready_writer) = std::io::pipe().unwrap();
    let script = r#"exec 5>&-; cat <&3 >"$1"; cat <&4 >>"$1"; echo "$0 $CONTAINER_ID" >>"$1""#;
    let mut child = Command::new(SHIM)
        .args(["exec-logger", "/bin/sh", "-c", script, "name"])
        .arg(&log)
        .env("CONTAINER_ID", "c")
        .stdin(stdout)
        .stdout(stderr)
        .stderr(ready_writer)
        .spawn()
        .unwrap();
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut ready, &mut bytes).unwrap();
    assert!(bytes.is_empty(), "{}", String::from_utf8_lossy(&bytes));
    stdout_writer.write_all(b"out\n").unwrap();
    stderr_writer.write_all(b"err\n").unwrap();
    drop((stdout_writer, stderr_writer));
    assert!(child.wait().unwrap().success());
    assert_eq!(std::fs::read_to_string(&log).unwrap(), "out\nerr\nname c\n");
}

/// The builder of images writes into its stdin: the same bytes for the same tree.
#[test]
fn images_are_deterministic_and_their_failures_told() {
    let place = Place::new("image", "");
    let tree = place.dir.join("tree");
    std::fs::create_dir_all(tree.join("sub")).unwrap();
    std::fs::write(tree.join("sub/file"), vec![7; 10_000]).unwrap();
    let build = |source: &Path| {
        let path = place.dir.join("image");
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .unwrap();
        let output = Command::new(SHIM).arg("build-image").arg(source).stdin(file).output().unwrap();
        (output, std::fs::read(&path).unwrap())
    };
    let (output, first) = build(&tree);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(first[1024..1028], [0xe2, 0xe1, 0xf5, 0xe0]);
    std::thread::sleep(Duration::from_millis(1100));
    assert!(build(&tree).1 == first, "two images of one tree differ");
    let (output, _) = build(&place.dir.join("missing"));
    assert!(!output.status.success() && !output.stderr.is_empty());
}
