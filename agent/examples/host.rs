//! Plays the shim for an agent in any machine whose vsock ends here, and checks what it does.
//!
//! `host <offset> <length>`: waits for an agent on the contract's ports, then runs every scenario
//! against the EROFS image of a busybox root at that place of the machine's layer disk. For work on
//! the agent alone; the end-to-end suite runs the whole stack.
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used
)] // a check that fails ends the program

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hull_protocol::agent::event::Event as EventKind;
use hull_protocol::agent::*;
use hull_protocol::agent_ttrpc::AgentClient;
use hull_protocol::{VERSION, ports};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::Notify;
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener, VsockStream};
use ttrpc::Code;
use ttrpc::asynchronous::{Client, transport::Socket};

#[derive(Clone)]
struct Host {
    agent: AgentClient,
    streams: Arc<(Mutex<HashMap<u64, VsockStream>>, Notify)>,
    next_id: Arc<Mutex<u64>>,
    layer: Layer,
}

#[derive(Debug, Default)]
struct Ended {
    status: u32,
    stdout: String,
    stderr: String,
    oom: bool,
}

fn context() -> ttrpc::context::Context {
    ttrpc::context::with_duration(Duration::from_secs(60))
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<u64>().expect("a number"));
    let (offset_bytes, length_bytes) = (args.next().unwrap(), args.next().unwrap());
    let layer = Layer { offset_bytes, length_bytes, fs_type: "erofs".into(), ..Default::default() };
    let host = Host::accept(layer).await;
    let begun = Instant::now();
    host.hello().await;
    host.simple().await;
    host.streams().await;
    host.identity().await;
    host.refusals().await;
    host.execs().await;
    host.terminals().await;
    host.signals().await;
    host.freezing().await;
    host.memory().await;
    host.pods().await;
    host.numbers().await;
    host.throughput().await;
    host.cycles().await;
    println!("all scenarios passed in {:.1} s", begun.elapsed().as_secs_f64());
}

impl Host {
    async fn accept(layer: Layer) -> Self {
        let listen = |port| VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port)).unwrap();
        let (control, stream, log) = (listen(ports::CONTROL), listen(ports::STREAM), listen(ports::LOG));
        println!("waiting for an agent");
        tokio::spawn(async move {
            let (connection, _) = log.accept().await.unwrap();
            let mut lines = BufReader::new(connection).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                println!("    agent: {line}");
            }
        });
        let streams = Arc::new((Mutex::new(HashMap::new()), Notify::new()));
        let arrived = Arc::clone(&streams);
        tokio::spawn(async move {
            loop {
                let (mut connection, _) = stream.accept().await.unwrap();
                let mut id = [0; 8];
                connection.read_exact(&mut id).await.unwrap();
                arrived.0.lock().unwrap().insert(u64::from_le_bytes(id), connection);
                arrived.1.notify_waiters();
            }
        });
        let (connection, _) = control.accept().await.unwrap();
        let agent = AgentClient::new(Client::new(Socket::new(connection)));
        Self { agent, streams, next_id: Arc::new(Mutex::new(1)), layer }
    }

    fn new_id(&self) -> u64 {
        let mut next = self.next_id.lock().unwrap();
        *next += 1;
        *next
    }

    async fn stream(&self, id: u64) -> VsockStream {
        loop {
            let arrived = self.streams.1.notified();
            if let Some(stream) = self.streams.0.lock().unwrap().remove(&id) {
                return stream;
            }
            arrived.await;
        }
    }

    async fn event(&self) -> EventKind {
        let event = self.agent.next_event(context(), &Empty::new()).await.expect("NextEvent");
        event.event.expect("an event")
    }

    async fn hello(&self) {
        let early = self.agent.next_event(context(), &Empty::new()).await;
        assert_code(early, Code::FAILED_PRECONDITION, "Hello");
        let mut request = HelloRequest { version: VERSION + 1, pod_id: "pod".into(), ..Default::default() };
        assert_code(self.agent.hello(context(), &request).await, Code::FAILED_PRECONDITION, "version");
        request.version = VERSION;
        request.unix_time_ns = 1_750_000_000_000_000_000;
        let hello = self.agent.hello(context(), &request).await.unwrap();
        println!("ok hello: {hello}");
    }

    fn spec(&self, args: &[&str]) -> Value {
        let caps = json!(["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_SYS_CHROOT"]);
        json!({
            "ociVersion": "1.1.0",
            "process": {
                "user": {"uid": 0, "gid": 0}, "args": args, "cwd": "/",
                "env": ["PATH=/bin", "GREETING=hi there"],
                "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
                "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 512, "soft": 256}],
                "noNewPrivileges": true
            },
            "root": {"path": "rootfs"},
            "hostname": "box",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
                {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
                {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
                {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
                {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "ro"]},
                {"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}
            ],
            "linux": {
                "cgroupsPath": "/default/x",
                "resources": {"devices": [{"allow": false, "access": "rwm"}]},
                "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                               {"type": "network"}, {"type": "cgroup"}],
                "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/sys/firmware"],
                "readonlyPaths": ["/proc/bus", "/proc/sys", "/proc/sysrq-trigger"],
                "seccomp": {
                    "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
                    "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]
                }
            }
        })
    }

    fn request(&self, id: &str, spec: &Value) -> CreateContainerRequest {
        CreateContainerRequest {
            container_id: id.into(),
            spec: spec.to_string().into_bytes(),
            layers: vec![self.layer.clone()],
            ..Default::default()
        }
    }

    async fn start(&self, id: &str, process_id: &str) -> ttrpc::Result<StartProcessResponse> {
        self.agent.start_process(context(), &ids(id, process_id)).await
    }

    async fn delete(&self, id: &str, process_id: &str) -> ttrpc::Result<Empty> {
        self.agent.delete_process(context(), &ids(id, process_id)).await
    }

    async fn signal(&self, id: &str, process_id: &str, signal: u32, all: bool) -> ttrpc::Result<Empty> {
        let request = SignalProcessRequest {
            container_id: id.into(),
            process_id: process_id.into(),
            signal,
            all,
            ..Default::default()
        };
        self.agent.signal_process(context(), &request).await
    }

    /// Creates and starts a container without streams.
    async fn background(&self, id: &str, spec: &Value) -> u32 {
        let created = self.agent.create_container(context(), &self.request(id, spec)).await.unwrap();
        self.start(id, "").await.unwrap();
        created.pid
    }

    async fn exit_of(&self, id: &str, process_id: &str) -> Ended {
        let mut ended = Ended::default();
        loop {
            match self.event().await {
                EventKind::Oom(oom) if oom.container_id == id => ended.oom = true,
                EventKind::Exit(exit) if exit.container_id == id && exit.process_id == process_id => {
                    assert!(exit.unix_time_ns > 1_750_000_000_000_000_000, "{exit}");
                    ended.status = exit.status;
                    return ended;
                }
                other => panic!("event {other:?} while waiting for {id}/{process_id}"),
            }
        }
    }

    async fn end(&self, id: &str) -> Ended {
        self.signal(id, "", 9, false).await.unwrap();
        let ended = self.exit_of(id, "").await;
        self.delete(id, "").await.unwrap();
        ended
    }

    /// A container's whole life with all streams.
    async fn run(&self, id: &str, spec: &Value, input: &[u8]) -> Ended {
        let stdio = Stdio {
            stdin: self.new_id(),
            stdout: self.new_id(),
            stderr: self.new_id(),
            ..Default::default()
        };
        let mut request = self.request(id, spec);
        request.stdio = Some(stdio.clone()).into();
        self.agent.create_container(context(), &request).await.expect("CreateContainer");
        let streams = tokio::spawn(self.clone().talk(stdio, input.to_vec()));
        self.start(id, "").await.expect("StartProcess");
        let mut ended = self.exit_of(id, "").await;
        (ended.stdout, ended.stderr) = streams.await.unwrap();
        self.delete(id, "").await.expect("DeleteProcess");
        ended
    }

    async fn talk(self, stdio: Stdio, input: Vec<u8>) -> (String, String) {
        let mut stdin = self.stream(stdio.stdin).await;
        let (mut stdout, mut stderr) = (self.stream(stdio.stdout).await, self.stream(stdio.stderr).await);
        let feed = tokio::spawn(async move {
            let _ = stdin.write_all(&input).await;
            let _ = stdin.shutdown(std::net::Shutdown::Write);
            stdin
        });
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let (a, b) = tokio::join!(stdout.read_to_end(&mut out), stderr.read_to_end(&mut err));
        a.and(b).unwrap();
        feed.abort();
        (String::from_utf8_lossy(&out).into(), String::from_utf8_lossy(&err).into())
    }

    /// A further process's whole life, without stdin.
    async fn exec(&self, id: &str, process_id: &str, args: &[&str]) -> Ended {
        let stdio = Stdio { stdout: self.new_id(), stderr: self.new_id(), ..Default::default() };
        let process = self.spec(args)["process"].to_string().into_bytes();
        let request = CreateProcessRequest {
            container_id: id.into(),
            process_id: process_id.into(),
            process,
            stdio: Some(stdio.clone()).into(),
            ..Default::default()
        };
        self.agent.create_process(context(), &request).await.expect("CreateProcess");
        let (mut stdout, mut stderr) = (self.stream(stdio.stdout).await, self.stream(stdio.stderr).await);
        self.start(id, process_id).await.expect("StartProcess");
        let mut ended = self.exit_of(id, process_id).await;
        stdout.read_to_string(&mut ended.stdout).await.unwrap();
        stderr.read_to_string(&mut ended.stderr).await.unwrap();
        self.delete(id, process_id).await.expect("DeleteProcess");
        ended
    }

    async fn simple(&self) {
        for (script, status) in [("exit 0", 0), ("exit 42", 42), ("kill -9 $$", 137), ("exit 255", 255)] {
            // The shell is PID 1 of its namespace, where kill -9 of itself does nothing.
            let script = if script.starts_with("kill") { "sh -c 'kill -9 $$'; exit $?" } else { script };
            let begun = Instant::now();
            let ended = self.run("simple", &self.spec(&["sh", "-c", script]), b"").await;
            assert_eq!(ended.status, status, "{script}: {ended:?}");
            println!("ok {script:?} gives {status} in {} ms", begun.elapsed().as_millis());
        }
    }

    async fn streams(&self) {
        let ended = self.run("io", &self.spec(&["sh", "-c", "cat; echo err >&2"]), b"to the end").await;
        assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("to the end", "err\n"));
        let ended = self
            .run("io", &self.spec(&["sh", "-c", "echo over > /dev/stdout; echo x >/dev/stderr"]), b"")
            .await;
        assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("over\n", "x\n"), "{ended:?}");
        let big = vec![b'x'; 3 << 20];
        let ended = self.run("io", &self.spec(&["wc", "-c"]), &big).await;
        assert_eq!(ended.stdout.trim(), big.len().to_string());
        println!("ok streams");
    }

    async fn identity(&self) {
        let mut spec = self.spec(&["sh", "-c", "id; pwd; echo $GREETING; hostname; ulimit -n; echo $HOME; grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status; mkdir /x; touch /y && echo wrote; cat /proc/1/cgroup; ls /dev; grep -c . /proc/kcore; echo 1 > /proc/sys/kernel/panic"]);
        spec["process"]["cwd"] = json!("/tmp");
        let ended = self.run("id", &spec, b"").await;
        println!("{}{}", ended.stdout, ended.stderr);
        for part in [
            "uid=0(root)",
            "/tmp\n",
            "hi there\n",
            "box\n",
            "256\n",
            "/root\n",
            "NoNewPrivs:\t1",
            "Seccomp:\t2",
            "wrote",
            "0::/\n",
            "ptmx",
            "CapEff:\t00000000000400e1",
        ] {
            assert!(ended.stdout.contains(part), "{part}");
        }
        assert!(ended.stderr.contains("mkdir: can't create directory '/x': Operation not permitted"));
        assert!(ended.stderr.contains("Read-only file system") || ended.stderr.contains("read-only"));
        let mut spec = self.spec(&["sh", "-c", "id; touch /y; echo $HOME; echo out >/dev/stdout"]);
        spec["process"]["user"] = json!({"uid": 1000, "gid": 100, "additionalGids": [5, 6]});
        spec["process"].as_object_mut().unwrap().remove("noNewPrivileges");
        spec["root"]["readonly"] = json!(true);
        let ended = self.run("id", &spec, b"").await;
        assert!(
            ended.stdout.contains("uid=1000 gid=100 groups=100,5,6") || ended.stdout.contains("groups=5,6"),
            "{ended:?}"
        );
        assert!(ended.stdout.contains("/\nout\n"), "{ended:?}");
        assert!(ended.stderr.contains("Read-only file system"), "{ended:?}");
        let mut spec = self.spec(&["sh", "-c", "mknod /layers b 254 16 && head -c 4096 /layers | wc -c; head -c 3 /dev/zero | wc -c; echo x > /dev/full"]);
        spec["process"]["capabilities"]["bounding"].as_array_mut().unwrap().push(json!("CAP_MKNOD"));
        spec["process"]["capabilities"]["effective"].as_array_mut().unwrap().push(json!("CAP_MKNOD"));
        spec["process"]["capabilities"]["permitted"].as_array_mut().unwrap().push(json!("CAP_MKNOD"));
        let ended = self.run("id", &spec, b"").await;
        assert!(ended.stderr.contains("/layers: Operation not permitted"), "{ended:?}");
        assert!(ended.stdout == "0\n3\n" && ended.stderr.contains("No space left"), "{ended:?}");
        println!("ok identity");
    }

    async fn refusals(&self) {
        let good = self.spec(&["true"]);
        let bind =
            json!([{"destination": "/etc/hosts", "type": "bind", "source": "/x", "options": ["rbind"]}]);
        for (pointer, value, code, text) in [
            (
                "/process/args",
                json!(["/no/such"]),
                Code::INVALID_ARGUMENT,
                "stat /no/such: no such file or directory",
            ),
            (
                "/process/args",
                json!(["nosuch"]),
                Code::INVALID_ARGUMENT,
                "executable file not found in $PATH",
            ),
            ("/process/args", json!(["/etc"]), Code::INVALID_ARGUMENT, "permission denied"),
            (
                "/process/cwd",
                json!("/no/such"),
                Code::INVALID_ARGUMENT,
                "chdir to cwd (\"/no/such\") set in config.json failed: no such file or directory",
            ),
            ("/mounts", bind, Code::INVALID_ARGUMENT, "/etc/hosts"),
            ("/mounts/0/options", json!(["nosuchoption"]), Code::INTERNAL, ""),
            ("/linux/namespaces/0/type", json!("user"), Code::UNIMPLEMENTED, "user"),
            ("/ociVersion", json!("3.0"), Code::INTERNAL, ""),
        ] {
            let mut spec = good.clone();
            *spec.pointer_mut(pointer).unwrap() = value;
            let result = self.agent.create_container(context(), &self.request("bad", &spec)).await;
            assert_code(result, code, text);
        }
        let mut request = self.request("bad", &good);
        request.layers[0].offset_bytes = 0;
        assert_code(self.agent.create_container(context(), &request).await, Code::INVALID_ARGUMENT, "erofs");
        request.layers[0].offset_bytes = 1 << 50;
        assert_code(self.agent.create_container(context(), &request).await, Code::INTERNAL, "mapped");
        request.layers.clear();
        assert_code(
            self.agent.create_container(context(), &request).await,
            Code::INVALID_ARGUMENT,
            "0 layers",
        );
        assert_eq!(self.run("bad", &good, b"").await.status, 0, "nothing was left behind");
        println!("ok refusals");
    }

    async fn execs(&self) {
        self.background("e", &self.spec(&["sleep", "1000"])).await;
        let begun = Instant::now();
        let ended = self.exec("e", "one", &["sh", "-c", "echo out; echo err >&2; mkdir /x; grep Seccomp: /proc/self/status; id -u; cat /proc/self/cgroup; exit 7"]).await;
        println!("ok exec in {} ms", begun.elapsed().as_millis());
        assert_eq!(ended.status, 7, "{ended:?}");
        assert_eq!(ended.stdout, "out\nSeccomp:\t2\n0\n0::/\n");
        assert!(ended.stderr.contains("err\nmkdir: can't create"), "{ended:?}");
        let mut request = CreateProcessRequest {
            container_id: "e".into(),
            process_id: "bad".into(),
            process: self.spec(&["/no/such"])["process"].to_string().into_bytes(),
            ..Default::default()
        };
        self.agent.create_process(context(), &request).await.unwrap();
        assert_code(self.agent.create_process(context(), &request).await, Code::ALREADY_EXISTS, "bad");
        assert_code(self.signal("e", "bad", 9, false).await, Code::FAILED_PRECONDITION, "created");
        assert_code(self.start("e", "bad").await, Code::INVALID_ARGUMENT, "no such file or directory");
        assert_code(self.signal("e", "bad", 9, false).await, Code::NOT_FOUND, "finished");
        self.delete("e", "bad").await.unwrap();
        assert_code(self.delete("e", "bad").await, Code::NOT_FOUND, "unknown");
        let mut process = self.spec(&["true"])["process"].clone();
        process["cwd"] = json!("/no/such");
        request.process = process.to_string().into_bytes();
        self.agent.create_process(context(), &request).await.unwrap();
        assert_code(self.start("e", "bad").await, Code::INVALID_ARGUMENT, "chdir to cwd (\"/no/such\")");
        self.delete("e", "bad").await.unwrap();
        let begun = Instant::now();
        for number in 0..20 {
            request.process_id = format!("p{number}");
            request.process =
                self.spec(&["sh", "-c", &format!("exit {number}")])["process"].to_string().into_bytes();
            self.agent.create_process(context(), &request).await.unwrap();
        }
        let starts = (0..20).map(|number| {
            let host = self.clone();
            async move { host.start("e", &format!("p{number}")).await.unwrap() }
        });
        futures::future::join_all(starts).await;
        for _ in 0..20 {
            let EventKind::Exit(exit) = self.event().await else { panic!() };
            assert_eq!(exit.process_id, format!("p{}", exit.status));
        }
        println!("ok 20 parallel execs in {} ms", begun.elapsed().as_millis());
        // The init's death ends a further process, whose exit comes first.
        request.process_id = "last".into();
        request.process = self.spec(&["sleep", "1000"])["process"].to_string().into_bytes();
        self.agent.create_process(context(), &request).await.unwrap();
        self.start("e", "last").await.unwrap();
        self.signal("e", "", 9, false).await.unwrap();
        assert_eq!(self.exit_of("e", "last").await.status, 137);
        assert_eq!(self.exit_of("e", "").await.status, 137);
        assert_code(self.signal("e", "", 9, false).await, Code::NOT_FOUND, "finished");
        assert_code(
            self.agent.create_process(context(), &request).await,
            Code::FAILED_PRECONDITION,
            "stopped",
        );
        self.delete("e", "").await.unwrap();
        println!("ok execs");
    }

    async fn terminals(&self) {
        let stdio = Stdio {
            stdin: self.new_id(),
            stdout: self.new_id(),
            terminal: true,
            width: 80,
            height: 24,
            ..Default::default()
        };
        let mut spec = self.spec(&[
            "sh",
            "-c",
            "tty; stty size; read line; echo got $line; stty size; ls -l /dev/console; id -u > /dev/tty",
        ]);
        spec["process"]["terminal"] = json!(true);
        spec["process"]["user"] = json!({"uid": 1000, "gid": 100});
        let mut request = self.request("t", &spec);
        request.stdio = Some(stdio.clone()).into();
        self.agent.create_container(context(), &request).await.expect("CreateContainer");
        let (mut stdin, mut stdout) = (self.stream(stdio.stdin).await, self.stream(stdio.stdout).await);
        self.start("t", "").await.unwrap();
        let mut output = vec![0; 1024];
        let mut text = String::new();
        while !text.contains("24 80") {
            let length = stdout.read(&mut output).await.unwrap();
            assert!(length > 0, "{text}");
            text.push_str(&String::from_utf8_lossy(&output[..length]));
        }
        let resize =
            ResizePtyRequest { container_id: "t".into(), width: 132, height: 43, ..Default::default() };
        self.agent.resize_pty(context(), &resize).await.unwrap();
        stdin.write_all(b"me\n").await.unwrap();
        stdout.read_to_string(&mut text).await.unwrap();
        let ended = self.exit_of("t", "").await;
        assert_eq!(ended.status, 0, "{text}");
        for part in ["/dev/pts/0", "got me", "43 132", "1000\r\n"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert_code(self.agent.resize_pty(context(), &resize).await, Code::NOT_FOUND, "finished");
        self.delete("t", "").await.unwrap();

        self.background("t", &self.spec(&["sleep", "1000"])).await;
        let stdio =
            Stdio { stdin: self.new_id(), stdout: self.new_id(), terminal: true, ..Default::default() };
        let request = CreateProcessRequest {
            container_id: "t".into(),
            process_id: "x".into(),
            process: self.spec(&["sh", "-c", "stty size; tty; cat"])["process"].to_string().into_bytes(),
            stdio: Some(stdio.clone()).into(),
            ..Default::default()
        };
        self.agent.create_process(context(), &request).await.unwrap();
        let resize = ResizePtyRequest { process_id: "x".into(), ..resize };
        self.agent.resize_pty(context(), &resize).await.unwrap();
        let (mut stdin, mut stdout) = (self.stream(stdio.stdin).await, self.stream(stdio.stdout).await);
        self.start("t", "x").await.unwrap();
        stdin.write_all(b"hello\n\x04").await.unwrap();
        let mut text = String::new();
        stdout.read_to_string(&mut text).await.unwrap();
        assert!(text.contains("43 132\r\n/dev/pts/0\r\n") && text.ends_with("hello\r\n"), "{text}");
        self.exit_of("t", "x").await;
        self.end("t").await;
        println!("ok terminals");
    }

    async fn signals(&self) {
        let trap = self.spec(&[
            "sh",
            "-c",
            "trap 'exit 9' TERM; touch /dev/shm/ready; while :; do sleep 0.05; done",
        ]);
        self.background("s", &trap).await;
        self.exec(
            "s",
            "w",
            &["sh", "-c", "while ! test -e /dev/shm/ready; do sleep 0.05; done; rm /dev/shm/ready"],
        )
        .await;
        assert_code(self.delete("s", "").await, Code::FAILED_PRECONDITION, "cannot delete a running process");
        self.signal("s", "", 15, false).await.unwrap();
        assert_eq!(self.exit_of("s", "").await.status, 9);
        self.delete("s", "").await.unwrap();
        self.background("s", &self.spec(&["sh", "-c", "sleep 1000 & sleep 1000 & wait"])).await;
        self.signal("s", "", 9, true).await.unwrap();
        assert_eq!(self.exit_of("s", "").await.status, 137);
        self.delete("s", "").await.unwrap();
        for signal in [9, 15] {
            self.agent.create_container(context(), &self.request("s", &trap)).await.unwrap();
            self.signal("s", "", signal, false).await.unwrap();
            assert_eq!(self.exit_of("s", "").await.status, 137, "a created container is killed");
            assert_code(self.start("s", "").await, Code::FAILED_PRECONDITION, "stopped");
            self.delete("s", "").await.unwrap();
        }
        self.agent.create_container(context(), &self.request("s", &trap)).await.unwrap();
        self.delete("s", "").await.unwrap();
        assert_eq!(self.exit_of("s", "").await.status, 137, "deleted while created");
        println!("ok signals");
    }

    async fn freezing(&self) {
        let request = ContainerRequest { container_id: "f".into(), ..Default::default() };
        self.background(
            "f",
            &self.spec(&["sh", "-c", "while :; do echo x >> /dev/shm/ticks; sleep 0.02; done"]),
        )
        .await;
        self.background("g", &self.spec(&["sleep", "1000"])).await;
        self.agent.pause_container(context(), &request).await.unwrap();
        let ticks = self.exec("g", "a", &["wc", "-l", "/dev/shm/ticks"]).await.stdout;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(self.exec("g", "a", &["wc", "-l", "/dev/shm/ticks"]).await.stdout, ticks);
        assert_code(
            self.agent.pause_container(context(), &request).await,
            Code::FAILED_PRECONDITION,
            "paused",
        );
        self.agent.resume_container(context(), &request).await.unwrap();
        assert_code(
            self.agent.resume_container(context(), &request).await,
            Code::FAILED_PRECONDITION,
            "running",
        );
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_ne!(self.exec("g", "a", &["wc", "-l", "/dev/shm/ticks"]).await.stdout, ticks);
        self.agent.pause_container(context(), &request).await.unwrap();
        assert_eq!(self.end("f").await.status, 137, "SIGKILL reaches a paused container");
        self.exec("g", "a", &["rm", "/dev/shm/ticks"]).await;
        self.end("g").await;
        println!("ok freezing");
    }

    async fn memory(&self) {
        let mut spec = self.spec(&["sh", "-c", "tail /dev/zero"]);
        spec["linux"]["resources"] =
            json!({"memory": {"limit": 16 << 20, "swap": 16 << 20}, "unified": {"memory.oom.group": "1"}});
        let ended = self.run("m", &spec, b"").await;
        assert!(ended.oom && ended.status == 137, "{ended:?}");
        spec["linux"]["resources"] = json!({});
        spec["process"]["args"] = json!(["sleep", "1000"]);
        self.background("m", &spec).await;
        let update = UpdateContainerRequest {
            container_id: "m".into(),
            resources: json!({"memory": {"limit": 32 << 20}, "cpu": {"quota": 20000, "period": 100_000, "shares": 512}, "pids": {"limit": 20}}).to_string().into(),
            ..Default::default()
        };
        self.agent.update_container(context(), &update).await.unwrap();
        let request = ContainerRequest { container_id: "m".into(), ..Default::default() };
        let stats = self.agent.stats_container(context(), &request).await.unwrap();
        assert_eq!((stats.memory.usage_limit, stats.pids_limit), (32 << 20, 20));
        let bad = UpdateContainerRequest { resources: b"{\"cpu\":3}".to_vec(), ..update };
        assert_code(self.agent.update_container(context(), &bad).await, Code::INVALID_ARGUMENT, "resources");
        self.end("m").await;
        println!("ok memory");
    }

    async fn pods(&self) {
        self.background("a", &self.spec(&["sleep", "1000"])).await;
        let mut spec = self.spec(&["sleep", "1000"]);
        spec["hostname"] = json!("other");
        self.background("b", &spec).await;
        assert_eq!(self.exec("a", "x", &["hostname"]).await.stdout, "box\n");
        assert_eq!(self.exec("b", "x", &["hostname"]).await.stdout, "other\n");
        self.exec("a", "x", &["sh", "-c", "echo shared > /dev/shm/s; echo private > /private"]).await;
        let ended = self.exec("b", "x", &["sh", "-c", "cat /dev/shm/s; rm /dev/shm/s; ls /private"]).await;
        assert_eq!(ended.stdout, "shared\n");
        let net = ["readlink", "/proc/self/ns/net"];
        assert_eq!(self.exec("a", "x", &net).await.stdout, self.exec("b", "x", &net).await.stdout);
        let mut spec = self.spec(&["sleep", "1000"]);
        spec["linux"]["namespaces"][0]["path"] = json!("/proc/4242/ns/pid");
        self.background("c", &spec).await;
        let seen = self.exec("a", "x", &["ps", "-o", "args"]).await.stdout;
        assert_eq!(seen.matches("sleep 1000").count(), 2, "c shares the process namespace of a: {seen}");
        assert!(self.exec("a", "x", &["ip", "addr", "show", "lo"]).await.stdout.contains("UP"));
        for id in ["c", "b", "a"] {
            self.end(id).await;
        }
        println!("ok pods");
    }

    async fn numbers(&self) {
        let request = ContainerRequest { container_id: "n".into(), ..Default::default() };
        let pid = self.background("n", &self.spec(&["sh", "-c", "sleep 1000 & sleep 1001 & wait"])).await;
        while self.agent.list_pids(context(), &request).await.unwrap().pids.len() < 3 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(self.agent.list_pids(context(), &request).await.unwrap().pids.contains(&pid));
        let stats = self.agent.stats_container(context(), &request).await.unwrap();
        assert!(stats.pids_current == 3 && stats.memory.usage > 0 && stats.cpu.usage_usec > 0, "{stats}");
        assert!(stats.memory.stat.contains_key("inactive_file"));
        self.end("n").await;
        assert_code(self.agent.stats_container(context(), &request).await, Code::NOT_FOUND, "unknown");
        println!("ok numbers");
    }

    async fn throughput(&self) {
        let mib = 256;
        let stdio = Stdio { stdout: self.new_id(), ..Default::default() };
        let spec = self.spec(&["dd", "if=/dev/zero", "bs=1M", &format!("count={mib}")]);
        let mut request = self.request("d", &spec);
        request.stdio = Some(stdio.clone()).into();
        self.agent.create_container(context(), &request).await.unwrap();
        let mut stdout = self.stream(stdio.stdout).await;
        let begun = Instant::now();
        self.start("d", "").await.unwrap();
        let mut buffer = vec![0; 1 << 20];
        let mut total = 0;
        loop {
            match stdout.read(&mut buffer).await.unwrap() {
                0 => break,
                length => total += length,
            }
        }
        assert_eq!(total, mib << 20);
        println!("ok {mib} MiB of output in {:.2} s", begun.elapsed().as_secs_f64());
        assert_eq!(self.exit_of("d", "").await.status, 0);
        self.delete("d", "").await.unwrap();
    }

    async fn cycles(&self) {
        let begun = Instant::now();
        for _ in 0..30 {
            assert_eq!(self.run("cycle", &self.spec(&["true"]), b"").await.status, 0);
        }
        println!("ok 30 cycles in {} ms each", begun.elapsed().as_millis() / 30);
        let ended = self
            .run("cycle", &self.spec(&["sh", "-c", "ls /sys/block; cat /proc/meminfo | head -3"]), b"")
            .await;
        assert_eq!(ended.stdout.matches("dm-").count(), 1, "{ended:?}");
        println!("{}", ended.stdout);
    }
}

fn ids(container_id: &str, process_id: &str) -> ProcessRequest {
    ProcessRequest { container_id: container_id.into(), process_id: process_id.into(), ..Default::default() }
}

fn assert_code<T: std::fmt::Debug>(result: ttrpc::Result<T>, code: Code, text: &str) {
    match result {
        Err(ttrpc::Error::RpcStatus(status)) => {
            assert_eq!(status.code(), code, "{status}");
            assert!(status.message().contains(text), "{text:?} in {status}");
        }
        other => panic!("{other:?} instead of {code:?}"),
    }
}
