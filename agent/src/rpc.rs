//! The wire: ttrpc requests in, parsed, handed to the pod, answered.
//!
//! No logic: every method parses its request into the pod's types, calls the pod, and makes the
//! answer. Failures become gRPC codes by the pod's own table (`container::error`).

use std::error::Error;
use std::sync::Arc;

use async_trait::async_trait;
use hull_protocol::agent::{
    ContainerRequest, CpuStats, CreateContainerRequest, CreateContainerResponse, CreateProcessRequest, Empty,
    Event, Exit, HelloRequest, HelloResponse, IoStats, ListPidsResponse, MemoryStats, Oom, ProcessRequest,
    ResizePtyRequest, SignalProcessRequest, StartProcessResponse, StatsContainerResponse, Stdio,
    UpdateContainerRequest,
};
use hull_protocol::agent_ttrpc::Agent;
use rustix::process::Pid;
use ttrpc::r#async::TtrpcContext;

use crate::container::cgroup::Stats;
use crate::container::error::PodError;
use crate::container::io::{Size, Wanted};
use crate::container::{CreateContainer, CreateProcess, Id, Pod, ProcessId, Signal, spec};
use crate::events;
use crate::init;
use crate::log::{info, warning};
use crate::storage::Layer;

/// The service.
#[derive(Debug)]
pub struct Service {
    pod: Arc<Pod>,
    started_ns: u64,
}

impl Service {
    /// Serves `pod`; `started_ns` is when the agent began, since boot.
    pub fn new(pod: Arc<Pod>, started_ns: u64) -> Self {
        Self { pod, started_ns }
    }

    fn greet(&self, request: &HelloRequest) -> Result<HelloResponse, PodError> {
        let now_ns = init::since_boot_ns();
        let ours = hull_protocol::VERSION;
        if request.version != ours {
            return Err(PodError::Version { theirs: request.version, ours });
        }
        self.pod.greet(&request.hostname, request.unix_time_ns, request.shm_bytes)?;
        for sysctl in &request.sysctls {
            init::set_sysctl(&sysctl.name, &sysctl.value)?;
        }
        info!("pod {:?}: ready after {} ms", request.pod_id, now_ns / 1_000_000);
        Ok(HelloResponse {
            version: ours,
            agent_version: env!("CARGO_PKG_VERSION").into(),
            kernel_release: rustix::system::uname().release().to_string_lossy().into_owned(),
            boot_to_agent_ns: self.started_ns,
            boot_to_hello_ns: now_ns,
            memory_bytes: memory_total(),
            ..Default::default()
        })
    }
}

#[async_trait]
impl Agent for Service {
    async fn hello(&self, _: &TtrpcContext, request: HelloRequest) -> ttrpc::Result<HelloResponse> {
        answer("Hello", self.greet(&request))
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> ttrpc::Result<CreateContainerResponse> {
        let result = async { self.pod.create(create_container(request)?).await }.await;
        let pid = answer("CreateContainer", result)?;
        Ok(CreateContainerResponse { pid: number(pid), ..Default::default() })
    }

    async fn create_process(&self, _: &TtrpcContext, request: CreateProcessRequest) -> ttrpc::Result<Empty> {
        let result = async { self.pod.create_process(create_process(request)?).await }.await;
        empty("CreateProcess", result)
    }

    async fn start_process(
        &self,
        _: &TtrpcContext,
        request: ProcessRequest,
    ) -> ttrpc::Result<StartProcessResponse> {
        let result = async {
            let (id, process_id) = ids(request.container_id, request.process_id)?;
            self.pod.start(&id, &process_id).await
        };
        let pid = answer("StartProcess", result.await)?;
        Ok(StartProcessResponse { pid: number(pid), ..Default::default() })
    }

    async fn signal_process(&self, _: &TtrpcContext, request: SignalProcessRequest) -> ttrpc::Result<Empty> {
        let result = ids(request.container_id, request.process_id).and_then(|(id, process_id)| {
            self.pod.signal(&id, &process_id, Signal::new(request.signal)?, request.all)
        });
        empty("SignalProcess", result)
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> ttrpc::Result<Empty> {
        let size = Size::new(request.width, request.height);
        let result = ids(request.container_id, request.process_id)
            .and_then(|(id, process_id)| self.pod.resize(&id, &process_id, size));
        empty("ResizePty", result)
    }

    async fn pause_container(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<Empty> {
        let result = async { self.pod.pause(&Id::new(request.container_id)?).await };
        empty("PauseContainer", result.await)
    }

    async fn resume_container(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<Empty> {
        let result = Id::new(request.container_id).and_then(|id| self.pod.resume(&id));
        empty("ResumeContainer", result)
    }

    async fn update_container(
        &self,
        _: &TtrpcContext,
        request: UpdateContainerRequest,
    ) -> ttrpc::Result<Empty> {
        let result = Id::new(request.container_id).and_then(|id| {
            let resources = spec::parse(&request.resources, "resources")?;
            self.pod.update(&id, &resources)
        });
        empty("UpdateContainer", result)
    }

    async fn stats_container(
        &self,
        _: &TtrpcContext,
        request: ContainerRequest,
    ) -> ttrpc::Result<StatsContainerResponse> {
        let result = Id::new(request.container_id).and_then(|id| self.pod.stats(&id));
        answer("StatsContainer", result).map(stats)
    }

    async fn list_pids(
        &self,
        _: &TtrpcContext,
        request: ContainerRequest,
    ) -> ttrpc::Result<ListPidsResponse> {
        let result = Id::new(request.container_id).and_then(|id| self.pod.pids(&id));
        let pids = answer("ListPids", result)?.into_iter().filter_map(|pid| u32::try_from(pid).ok());
        Ok(ListPidsResponse { pids: pids.collect(), ..Default::default() })
    }

    async fn delete_process(&self, _: &TtrpcContext, request: ProcessRequest) -> ttrpc::Result<Empty> {
        let result = async {
            let (id, process_id) = ids(request.container_id, request.process_id)?;
            self.pod.delete(&id, &process_id).await
        };
        empty("DeleteProcess", result.await)
    }

    async fn next_event(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Event> {
        answer("NextEvent", self.pod.next_event().await).map(event)
    }
}

fn create_container(request: CreateContainerRequest) -> Result<CreateContainer, PodError> {
    let layers = request
        .layers
        .iter()
        .map(|layer| Layer::new(layer.offset_bytes, layer.length_bytes, &layer.fs_type))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(CreateContainer {
        id: Id::new(request.container_id)?,
        spec: request.spec,
        layers,
        wanted: wanted(request.stdio.as_ref()),
        readonly_rootfs: request.readonly_rootfs,
    })
}

fn create_process(request: CreateProcessRequest) -> Result<CreateProcess, PodError> {
    let wanted = wanted(request.stdio.as_ref());
    let mut process = spec::parse_process(&request.process)?;
    process.set_terminal(Some(wanted.terminal));
    Ok(CreateProcess {
        container_id: Id::new(request.container_id)?,
        id: Id::new(request.process_id)?,
        process,
        wanted,
    })
}

fn wanted(stdio: Option<&Stdio>) -> Wanted {
    let Some(stdio) = stdio else {
        return Wanted { stdin: 0, stdout: 0, stderr: 0, terminal: false, size: None };
    };
    Wanted {
        stdin: stdio.stdin,
        stdout: stdio.stdout,
        stderr: if stdio.terminal { 0 } else { stdio.stderr },
        terminal: stdio.terminal,
        size: Size::new(stdio.width, stdio.height),
    }
}

fn ids(container_id: String, process_id: String) -> Result<(Id, ProcessId), PodError> {
    let process_id = if process_id.is_empty() { None } else { Some(Id::new(process_id)?) };
    Ok((Id::new(container_id)?, process_id))
}

fn event(event: events::Event) -> Event {
    let mut message = Event::new();
    match event {
        events::Event::Exit { container_id, process_id, status, unix_time_ns } => {
            message.set_exit(Exit { container_id, process_id, status, unix_time_ns, ..Default::default() });
        }
        events::Event::Oom { container_id } => {
            message.set_oom(Oom { container_id, ..Default::default() });
        }
    }
    message
}

fn stats(stats: Stats) -> StatsContainerResponse {
    let cpu = |key: &str| stats.cpu.get(key).copied().unwrap_or_default();
    let events = |key: &str| stats.memory_events.get(key).copied().unwrap_or_default();
    let cpu = CpuStats {
        usage_usec: cpu("usage_usec"),
        user_usec: cpu("user_usec"),
        system_usec: cpu("system_usec"),
        nr_periods: cpu("nr_periods"),
        nr_throttled: cpu("nr_throttled"),
        throttled_usec: cpu("throttled_usec"),
        ..Default::default()
    };
    let memory = MemoryStats {
        usage: stats.memory_usage,
        usage_limit: stats.memory_limit,
        swap_usage: stats.swap_usage,
        swap_limit: stats.swap_limit,
        low: events("low"),
        high: events("high"),
        max: events("max"),
        oom: events("oom"),
        oom_kill: events("oom_kill"),
        max_usage: stats.memory_peak,
        stat: stats.memory,
        ..Default::default()
    };
    StatsContainerResponse {
        cpu: Some(cpu).into(),
        memory: Some(memory).into(),
        pids_current: stats.pids,
        pids_limit: stats.pids_limit,
        io: stats.io.iter().map(io_stats).collect(),
        ..Default::default()
    }
}

fn io_stats(stats: &crate::container::cgroup::IoStats) -> IoStats {
    let counter = |key: &str| stats.counters.get(key).copied().unwrap_or_default();
    IoStats {
        major: stats.device.0,
        minor: stats.device.1,
        rbytes: counter("rbytes"),
        wbytes: counter("wbytes"),
        rios: counter("rios"),
        wios: counter("wios"),
        ..Default::default()
    }
}

fn number(pid: Pid) -> u32 {
    pid.as_raw_nonzero().get().unsigned_abs()
}

fn empty(method: &str, result: Result<(), PodError>) -> ttrpc::Result<Empty> {
    answer(method, result).map(|()| Empty::new())
}

fn answer<T>(method: &str, result: Result<T, PodError>) -> ttrpc::Result<T> {
    result.map_err(|error| {
        let text = chain(&error);
        warning!("{method} failed: {text}");
        ttrpc::Error::RpcStatus(ttrpc::get_status(error.code(), text))
    })
}

/// An error and what caused it, in one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let words = error.to_string();
        // Transparent variants repeat what is said already.
        if !text.ends_with(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = error.source();
    }
    text
}

fn memory_total() -> u64 {
    let info = rustix::system::sysinfo();
    #[allow(clippy::unnecessary_cast)] // the field's width is the target's
    let total = info.totalram as u64;
    total.saturating_mul(u64::from(info.mem_unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_checked_on_the_way_in() {
        for (id, good) in [
            ("a", true),
            ("A-z_0.9", true),
            ("", false),
            ("a/b", false),
            ("..%", false),
            ("a b", false),
            ("ä", false),
        ] {
            assert_eq!(Id::new(id.into()).is_ok(), good, "{id:?}");
        }
        let longest = "x".repeat(hull_protocol::limits::MAX_ID_BYTES);
        assert!(Id::new(longest.clone()).is_ok());
        assert!(Id::new(longest + "x").is_err());
        assert_eq!(ids("c".into(), String::new()).unwrap().1, None);
    }

    #[test]
    fn a_terminal_has_no_stderr() {
        let mut stdio = Stdio { stdin: 1, stdout: 2, stderr: 3, terminal: true, ..Default::default() };
        assert_eq!(wanted(Some(&stdio)).stderr, 0);
        stdio.terminal = false;
        assert_eq!(wanted(Some(&stdio)).stderr, 3);
        assert_eq!(wanted(None).stdin, 0);
    }

    #[test]
    fn chains_name_every_cause_once() {
        let source = std::io::Error::from_raw_os_error(libc::ENOENT);
        let error = PodError::from(crate::storage::StorageError::Image { offset_bytes: 4096, source });
        assert_eq!(
            chain(&error),
            "Layer at byte 4096 is no readable erofs image: No such file or directory (os error 2)"
        );
    }
}
