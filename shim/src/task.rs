//! containerd's task service, v2 and v3: parse, ask the pod, answer. No state and no decisions here.

use async_trait::async_trait;
use containerd_shim_protos::api;
use containerd_shim_protos::api::Empty;
use containerd_shim_protos::shim_async::Task;
use hull_protocol::limits::MAX_SPEC_BYTES;
use protobuf::MessageField;
use protobuf::well_known_types::any::Any;
use ttrpc::r#async::TtrpcContext;

use crate::error::Error;
use crate::io::StdioPaths;
use crate::process::{State, timestamp};
use crate::sandbox::{Command, CreateTask, ExecTask, Pod, Target};

/// Every task is reported with the shim's own process id: a guest's ids mean nothing on the host, and
/// containerd wants one that lives.
#[derive(Debug)]
pub struct TaskService {
    pod: Pod,
}

impl TaskService {
    /// A service in front of a pod.
    pub fn new(pod: Pod) -> Self {
        TaskService { pod }
    }
}

fn target(id: String, exec_id: String) -> Target {
    Target { id, exec_id }
}

/// JSON inside an `Any`; what type it says it has is not looked at, as containerd's own shim does.
fn payload(any: MessageField<Any>, what: &str) -> Result<Vec<u8>, Error> {
    let value = any.into_option().unwrap_or_default().value;
    if value.is_empty() || value.len() > MAX_SPEC_BYTES {
        let length = value.len();
        return Err(Error::Invalid(format!("{what} has {length} bytes; 1 to {MAX_SPEC_BYTES} are possible")));
    }
    Ok(value)
}

fn status(state: State) -> api::Status {
    match state {
        State::Creating | State::Created | State::Starting => api::Status::CREATED,
        State::Running => api::Status::RUNNING,
        State::Paused => api::Status::PAUSED,
        State::Stopped | State::Deleting => api::Status::STOPPED,
    }
}

#[async_trait]
impl Task for TaskService {
    async fn state(&self, _: &TtrpcContext, request: api::StateRequest) -> ttrpc::Result<api::StateResponse> {
        let target = target(request.id, request.exec_id);
        let known = self.pod.ask(|reply| Command::State(target.clone(), reply)).await?;
        Ok(api::StateResponse {
            id: target.id,
            exec_id: target.exec_id,
            bundle: known.bundle,
            pid: self.pod.shim_pid,
            status: status(known.state).into(),
            stdin: known.stdio.stdin,
            stdout: known.stdio.stdout,
            stderr: known.stdio.stderr,
            terminal: known.stdio.terminal,
            exit_status: known.exit.map_or(0, |exit| exit.status),
            exited_at: known.exit.map(|exit| timestamp(exit.at)).into(),
            ..Default::default()
        })
    }

    async fn create(
        &self,
        _: &TtrpcContext,
        request: api::CreateTaskRequest,
    ) -> ttrpc::Result<api::CreateTaskResponse> {
        if !request.checkpoint.is_empty() {
            return Err(Error::Invalid("a checkpoint cannot be restored".to_owned()).into());
        }
        let stdio = StdioPaths {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        let task = CreateTask { id: request.id, bundle: request.bundle, rootfs: request.rootfs, stdio };
        self.pod.ask(|reply| Command::Create(task, reply)).await?;
        Ok(api::CreateTaskResponse { pid: self.pod.shim_pid, ..Default::default() })
    }

    async fn start(&self, _: &TtrpcContext, request: api::StartRequest) -> ttrpc::Result<api::StartResponse> {
        let target = target(request.id, request.exec_id);
        self.pod.ask(|reply| Command::Start(target, reply)).await?;
        Ok(api::StartResponse { pid: self.pod.shim_pid, ..Default::default() })
    }

    async fn delete(
        &self,
        _: &TtrpcContext,
        request: api::DeleteRequest,
    ) -> ttrpc::Result<api::DeleteResponse> {
        let target = target(request.id, request.exec_id);
        let exit = self.pod.ask(|reply| Command::Delete(target, reply)).await?;
        Ok(api::DeleteResponse {
            pid: self.pod.shim_pid,
            exit_status: exit.status,
            exited_at: MessageField::some(timestamp(exit.at)),
            ..Default::default()
        })
    }

    async fn pids(&self, _: &TtrpcContext, request: api::PidsRequest) -> ttrpc::Result<api::PidsResponse> {
        self.pod.ask(|reply| Command::Exists(request.id, reply)).await?;
        let process = api::ProcessInfo { pid: self.pod.shim_pid, ..Default::default() };
        Ok(api::PidsResponse { processes: vec![process], ..Default::default() })
    }

    async fn pause(&self, _: &TtrpcContext, request: api::PauseRequest) -> ttrpc::Result<Empty> {
        self.pod.ask(|reply| Command::Pause(request.id, reply)).await?;
        Ok(Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, request: api::ResumeRequest) -> ttrpc::Result<Empty> {
        self.pod.ask(|reply| Command::Resume(request.id, reply)).await?;
        Ok(Empty::new())
    }

    async fn checkpoint(
        &self,
        _: &TtrpcContext,
        request: api::CheckpointTaskRequest,
    ) -> ttrpc::Result<Empty> {
        self.pod.ask(|reply| Command::Exists(request.id, reply)).await?;
        Err(Error::Unsupported("Checkpoint").into())
    }

    async fn kill(&self, _: &TtrpcContext, request: api::KillRequest) -> ttrpc::Result<Empty> {
        let target = target(request.id, request.exec_id);
        self.pod.ask(|reply| Command::Kill(target, request.signal, request.all, reply)).await?;
        Ok(Empty::new())
    }

    async fn exec(&self, _: &TtrpcContext, request: api::ExecProcessRequest) -> ttrpc::Result<Empty> {
        let stdio = StdioPaths {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        let target = target(request.id, request.exec_id);
        // Whether there is such a task is the first thing that a caller wants to know.
        let id = target.id.clone();
        self.pod.ask(|reply| Command::Exists(id, reply)).await?;
        let process = payload(request.spec, "The process's specification")?;
        let task = ExecTask { target, stdio, process };
        self.pod.ask(|reply| Command::Exec(task, reply)).await?;
        Ok(Empty::new())
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: api::ResizePtyRequest) -> ttrpc::Result<Empty> {
        let target = target(request.id, request.exec_id);
        self.pod.ask(|reply| Command::Resize(target, request.width, request.height, reply)).await?;
        Ok(Empty::new())
    }

    async fn close_io(&self, _: &TtrpcContext, request: api::CloseIORequest) -> ttrpc::Result<Empty> {
        let target = target(request.id, request.exec_id);
        if request.stdin {
            self.pod.ask(|reply| Command::CloseStdin(target, reply)).await?;
        } else {
            self.pod.ask(|reply| Command::State(target, reply)).await?;
        }
        Ok(Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, request: api::UpdateTaskRequest) -> ttrpc::Result<Empty> {
        let id = request.id.clone();
        self.pod.ask(|reply| Command::Exists(id, reply)).await?;
        let resources = payload(request.resources, "The resources")?;
        self.pod.ask(|reply| Command::Update(request.id, resources, reply)).await?;
        Ok(Empty::new())
    }

    async fn wait(&self, _: &TtrpcContext, request: api::WaitRequest) -> ttrpc::Result<api::WaitResponse> {
        let target = target(request.id, request.exec_id);
        let exit = self.pod.ask(|reply| Command::Wait(target, reply)).await?;
        Ok(api::WaitResponse {
            exit_status: exit.status,
            exited_at: MessageField::some(timestamp(exit.at)),
            ..Default::default()
        })
    }

    async fn stats(&self, _: &TtrpcContext, request: api::StatsRequest) -> ttrpc::Result<api::StatsResponse> {
        let stats = self.pod.ask(|reply| Command::Stats(request.id, reply)).await?;
        Ok(api::StatsResponse { stats: MessageField::some(stats), ..Default::default() })
    }

    async fn connect(
        &self,
        _: &TtrpcContext,
        request: api::ConnectRequest,
    ) -> ttrpc::Result<api::ConnectResponse> {
        // Never an error for a task that is there: containerd takes one for a dead shim and cleans a living
        // pod away. For one that is not there that is right: containerd asks after its restart, when a
        // task whose creation it did not live to ask for will never come.
        self.pod.ask(|reply| Command::Exists(request.id, reply)).await?;
        Ok(api::ConnectResponse {
            shim_pid: self.pod.shim_pid,
            task_pid: self.pod.shim_pid,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, request: api::ShutdownRequest) -> ttrpc::Result<Empty> {
        self.pod.ask(|reply| Command::Shutdown(request.now, reply)).await?;
        Ok(Empty::new())
    }
}
