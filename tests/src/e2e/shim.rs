//! A shim spoken to directly, as containerd does it: for what `ctr` can't ask, and for hundreds of calls in the time
//! that one `ctr` takes.
//!
//! Two ways to one: [`Shim::of_task`] joins the shim of a task that containerd runs; [`Bundle`] makes a bundle by
//! hand and starts a shim of its own in it, so that the bundle can be wrong.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use containerd_shim_protos::api::{
    CreateTaskRequest, DeleteRequest, DeleteResponse, ExecProcessRequest, KillRequest, Mount, StartRequest,
    StateRequest, StateResponse, UpdateTaskRequest, WaitRequest,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::{Client, TaskClient};
use serde_json::{Value, json};

use crate::ctr::{Output, ctr, finish};

/// Bundles of containerd's own tasks in the default namespace.
const TASKS: &str = "/run/containerd/io.containerd.runtime.v2.task/default";

/// How long a call may take.
const CALL_LIMIT: Duration = Duration::from_secs(60);

/// An answer of the shim: the message, or the status that it refused with.
pub(crate) type Answer<T> = std::result::Result<T, ttrpc::Status>;

/// A connection to a running shim.
pub(crate) struct Shim {
    task: TaskClient,
}

impl Shim {
    /// The shim of a task in containerd's default namespace.
    pub(crate) fn of_task(id: &str) -> Result<Self> {
        let bundle = Path::new(TASKS).join(id);
        // containerd 2 writes the shim's whole answer, older ones and Hull the address alone.
        let address = match fs::read_to_string(bundle.join("bootstrap.json")) {
            Ok(text) => {
                let json: Value = serde_json::from_str(&text).context("bootstrap.json is not JSON")?;
                json.get("address")
                    .and_then(Value::as_str)
                    .context("bootstrap.json has no address")?
                    .to_owned()
            }
            Err(_) => fs::read_to_string(bundle.join("address")).context("The bundle names no address")?,
        };
        Self::connect(address.trim())
    }

    pub(crate) fn connect(address: &str) -> Result<Self> {
        let client = Client::connect(address).with_context(|| format!("Connecting to {address}"))?;
        Ok(Self { task: TaskClient::new(client) })
    }

    pub(crate) fn create(&self, bundle: &Bundle) -> Result<Answer<u32>> {
        let mut request = CreateTaskRequest::new();
        request.id.clone_from(&bundle.id);
        request.bundle = bundle.path.to_string_lossy().into_owned();
        request.stdout.clone_from(&bundle.stdout);
        request.rootfs.extend(bundle.rootfs.clone());
        Ok(answer(self.task.create(context(), &request))?.map(|response| response.pid))
    }

    pub(crate) fn start(&self, id: &str, exec_id: &str) -> Result<Answer<u32>> {
        let mut request = StartRequest::new();
        request.id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        Ok(answer(self.task.start(context(), &request))?.map(|response| response.pid))
    }

    /// Registers a shell script as a further process.
    pub(crate) fn exec(&self, id: &str, exec_id: &str, script: &str) -> Result<Answer<()>> {
        let process = json!({
            "user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["sh", "-c", script],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        });
        let mut request = ExecProcessRequest::new();
        request.id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        request.spec =
            Some(any("types.containerd.io/opencontainers/runtime-spec/1/Process", &process)).into();
        Ok(answer(self.task.exec(context(), &request))?.map(drop))
    }

    pub(crate) fn wait(&self, id: &str, exec_id: &str) -> Result<Answer<u32>> {
        let mut request = WaitRequest::new();
        request.id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        Ok(answer(self.task.wait(context(), &request))?.map(|response| response.exit_status))
    }

    pub(crate) fn kill(&self, id: &str, signal: u32) -> Result<Answer<()>> {
        let mut request = KillRequest::new();
        request.id = id.to_owned();
        request.signal = signal;
        Ok(answer(self.task.kill(context(), &request))?.map(drop))
    }

    pub(crate) fn delete(&self, id: &str, exec_id: &str) -> Result<Answer<DeleteResponse>> {
        let mut request = DeleteRequest::new();
        request.id = id.to_owned();
        request.exec_id = exec_id.to_owned();
        answer(self.task.delete(context(), &request))
    }

    pub(crate) fn state(&self, id: &str) -> Result<Answer<StateResponse>> {
        let mut request = StateRequest::new();
        request.id = id.to_owned();
        answer(self.task.state(context(), &request))
    }

    /// Changes the limits of a container; `resources` is the specification's LinuxResources.
    pub(crate) fn update(&self, id: &str, resources: &Value) -> Result<Answer<()>> {
        let mut request = UpdateTaskRequest::new();
        request.id = id.to_owned();
        request.resources =
            Some(any("types.containerd.io/opencontainers/runtime-spec/1/LinuxResources", resources)).into();
        Ok(answer(self.task.update(context(), &request))?.map(drop))
    }

    /// Runs a script as a further process to its end; gives its exit code.
    pub(crate) fn exec_code(&self, id: &str, exec_id: &str, script: &str) -> Result<u32> {
        accepted("Exec", self.exec(id, exec_id, script)?)?;
        accepted("Start", self.start(id, exec_id)?)?;
        let code = accepted("Wait", self.wait(id, exec_id)?)?;
        accepted("Delete", self.delete(id, exec_id)?)?;
        Ok(code)
    }
}

/// A bundle made by hand, and the shim that is started in it.
#[derive(Debug)]
pub(crate) struct Bundle {
    pub(crate) id: String,
    pub(crate) path: PathBuf,
    pub(crate) stdout: String,
    pub(crate) rootfs: Vec<Mount>,
    shim: String,
}

impl Bundle {
    /// A bundle with `config.json` and the busybox image's files as its root.
    pub(crate) fn new(runtime: &str, directory: &Path, id: &str, spec: &Value) -> Result<Self> {
        let path = directory.join(id);
        fs::create_dir_all(path.join("rootfs")).with_context(|| format!("Making {}", path.display()))?;
        fs::write(path.join("config.json"), spec.to_string()).context("Writing config.json")?;
        let mut mount = Mount::new();
        mount.type_ = "bind".to_owned();
        mount.source = busybox_files()?.to_string_lossy().into_owned();
        mount.options = vec!["ro".to_owned(), "rbind".to_owned()];
        let shim = program(runtime)?;
        Ok(Self { id: id.to_owned(), path, stdout: String::new(), rootfs: vec![mount], shim })
    }

    /// Runs the shim with a verb, as containerd does, in the bundle.
    pub(crate) fn call(&self, verb: &str) -> Result<Output> {
        let mut shim = Command::new(&self.shim);
        shim.args(["-namespace", "e2e", "-address", "/run/containerd/containerd.sock"]);
        shim.args(["-publish-binary", "/bin/true", "-id", &self.id, "-bundle"]).arg(&self.path).arg(verb);
        shim.env("TTRPC_ADDRESS", "/run/containerd/containerd.sock.ttrpc").env("MAX_SHIM_VERSION", "2");
        shim.current_dir(&self.path).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        finish(shim.spawn().with_context(|| format!("Starting {}", self.shim))?)
    }

    /// `start`, and a connection to the address that it prints: plain, or in JSON.
    pub(crate) fn start_shim(&self) -> Result<Shim> {
        Shim::connect(&address_in(&self.call("start")?.ok()?.text())?)
    }

    /// Ends the shim whatever state it is in and removes the bundle.
    pub(crate) fn clean_up(self) -> Result<()> {
        self.call("delete")?.ok()?;
        fs::remove_dir_all(&self.path).context("Removing a bundle")
    }
}

/// The address in what `start` prints.
pub(crate) fn address_in(printed: &str) -> Result<String> {
    if printed.starts_with("unix://") {
        return Ok(printed.to_owned());
    }
    let json: Value = serde_json::from_str(printed).with_context(|| format!("start printed {printed:?}"))?;
    Ok(json.get("address").and_then(Value::as_str).context("start printed no address")?.to_owned())
}

/// containerd's default specification with other words to run.
pub(crate) fn spec(words: &[&str]) -> Result<Value> {
    let text = ctr(&["oci", "spec"])?.ok()?.text();
    let mut spec: Value = serde_json::from_str(&text).context("ctr oci spec is not JSON")?;
    let process =
        spec.get_mut("process").and_then(Value::as_object_mut).context("The spec has no process")?;
    process.insert("args".to_owned(), json!(words));
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    process.insert("env".to_owned(), json!([path]));
    Ok(spec)
}

/// Turns a refusal into an error.
pub(crate) fn accepted<T>(what: &str, answer: Answer<T>) -> Result<T> {
    match answer {
        Ok(value) => Ok(value),
        Err(status) => bail!("{what} was refused: {:?}: {}", status.code(), status.message),
    }
}

/// Fails unless the shim refused with this code and a message that names `part`.
pub(crate) fn refused<T>(what: &str, answer: Answer<T>, code: ttrpc::Code, part: &str) -> Result<()> {
    let Err(status) = answer else { bail!("{what} was not refused") };
    if status.code() != code {
        bail!("{what} was refused with {:?} instead of {code:?}: {}", status.code(), status.message);
    }
    if !status.message.to_lowercase().contains(&part.to_lowercase()) {
        bail!("{what} was refused with a message that does not name {part:?}: {}", status.message);
    }
    Ok(())
}

fn answer<T>(result: ttrpc::Result<T>) -> Result<Answer<T>> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(ttrpc::Error::RpcStatus(status)) => Ok(Err(status)),
        Err(error) => Err(error).context("Calling the shim"),
    }
}

fn context() -> ttrpc::context::Context {
    ttrpc::context::with_duration(CALL_LIMIT)
}

fn any(type_url: &str, value: &Value) -> Any {
    Any { type_url: type_url.to_owned(), value: value.to_string().into_bytes(), ..Any::default() }
}

/// `io.containerd.NAME.VERSION` is served by `containerd-shim-NAME-VERSION`.
fn program(runtime: &str) -> Result<String> {
    let mut parts = runtime.rsplit('.');
    match (parts.next(), parts.next()) {
        (Some(version), Some(name)) => Ok(format!("containerd-shim-{name}-{version}")),
        _ => bail!("{runtime:?} is not a runtime's name"),
    }
}

/// The unpacked files of the busybox image in containerd's store.
fn busybox_files() -> Result<PathBuf> {
    let snapshots = Path::new("/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots");
    let mut found = fs::read_dir(snapshots)
        .with_context(|| format!("Listing {}", snapshots.display()))?
        .filter_map(|entry| Some(entry.ok()?.path().join("fs")))
        .filter(|files| files.join("bin/busybox").exists() && files.join("etc/group").exists());
    found.next().context("The busybox image is not unpacked in containerd's store")
}
