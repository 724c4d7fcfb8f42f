//! The pod with a recording agent and a machine that is not there: methods x states, orders, failures.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot, watch};

use super::guest::{BootPlan, Booter, Guest, ImageSlot, ImageSource, MachinePort};
use super::vm::BootError;
use super::*;
use crate::agent::AgentEvent;
use crate::agent::fake::FakeAgent;
use crate::config::Config;
use crate::events::{EventQueue, TaskEvent};
use crate::rootfs::{Image, RootfsError};
use crate::streams::StreamBroker;

mod lifecycle;
mod table;

/// Everything of a pod that a test looks at or pulls.
struct Bench {
    pod: Pod,
    agent: Arc<FakeAgent>,
    guest_events: mpsc::Sender<AgentEvent>,
    machine: Arc<FakeMachine>,
    events: mpsc::Receiver<TaskEvent>,
    over: oneshot::Receiver<Remains>,
    boots: Arc<FakeBooter>,
    connections: watch::Sender<usize>,
    dir: PathBuf,
}

struct FakeMachine {
    death: watch::Sender<Option<String>>,
    mapped: Mutex<Vec<ImageSlot>>,
}

#[async_trait]
impl MachinePort for FakeMachine {
    fn map_image(&self, _: File, length_bytes: u64) -> std::result::Result<ImageSlot, String> {
        let mut mapped = self.mapped.lock().unwrap();
        let offset_bytes = u64::try_from(mapped.len()).unwrap() << 20;
        let slot = ImageSlot { offset_bytes, length_bytes };
        mapped.push(slot);
        Ok(slot)
    }
    fn unmap_image(&self, slot: ImageSlot) {
        self.mapped.lock().unwrap().retain(|other| *other != slot);
    }
    async fn stop(&self) {
        self.death
            .send_if_modified(|death| death.is_none().then(|| *death = Some("stopped".to_owned())).is_some());
    }
}

struct FakeBooter {
    guest: Guest,
    plans: Mutex<Vec<BootPlan>>,
    failures: AtomicU32,
    gate: Mutex<Option<Arc<tokio::sync::Semaphore>>>,
}

#[async_trait]
impl Booter for FakeBooter {
    async fn boot(&self, plan: BootPlan) -> std::result::Result<Guest, BootError> {
        self.plans.lock().unwrap().push(plan);
        let gate = self.gate.lock().unwrap().clone();
        if let Some(gate) = gate {
            gate.acquire().await.unwrap().forget();
        }
        if self
            .failures
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
            .is_ok()
        {
            return Err(BootError::Silent { seconds: 1 });
        }
        Ok(self.guest.clone())
    }
}

struct FakeImages;

#[async_trait]
impl ImageSource for FakeImages {
    async fn image(&self, mounts: &[Mount], _: &Path, _: &Path) -> std::result::Result<Image, RootfsError> {
        if mounts.is_empty() {
            return Err(RootfsError::NoRoot);
        }
        Ok(Image { file: File::open("/dev/null").unwrap(), length_bytes: 4096, cached: true })
    }
}

const SPEC: &str = r#"{"process": {"args": ["/bin/true"], "cwd": "/"}, "root": {"path": "rootfs"}, "hostname": "h",
    "linux": {"namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "network"}]}}"#;

impl Bench {
    fn new() -> Self {
        // The streams of this guest never come, so nobody waits for them.
        let timeouts = serde_json::from_str(r#"{"drain_s":0}"#).unwrap();
        Self::with(Config { timeouts, ..Config::default() })
    }

    fn with(config: Config) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("hull-pod-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("config.json"), SPEC).unwrap();
        let (agent, guest_events) = FakeAgent::new();
        let (death, announced) = watch::channel(None);
        let machine = Arc::new(FakeMachine { death, mapped: Mutex::default() });
        let guest = Guest {
            agent: agent.clone(),
            machine: machine.clone(),
            streams: Arc::new(StreamBroker::default()),
            death: announced,
        };
        let boots = Arc::new(FakeBooter {
            guest,
            plans: Mutex::default(),
            failures: AtomicU32::new(0),
            gate: Mutex::default(),
        });
        let (queue, events) = EventQueue::captured();
        let identity = PodIdentity { group: "pod".to_owned(), namespace: "ns".to_owned(), shim_pid: 4711 };
        let means = Means { booter: boots.clone(), images: Arc::new(FakeImages) };
        let (connections, open) = watch::channel(1);
        connections.send_replace(1);
        let (pod, over) = Pod::start(identity, Arc::new(config), means, queue, Journal::closed(), open);
        Bench { pod, agent, guest_events, machine, events, over, boots, connections, dir }
    }

    fn task(&self, id: &str) -> CreateTask {
        CreateTask {
            id: id.to_owned(),
            bundle: self.dir.display().to_string(),
            rootfs: vec![Mount::new()],
            stdio: StdioPaths { terminal: true, ..Default::default() },
        }
    }

    async fn create(&self, id: &str) -> Result<()> {
        let task = self.task(id);
        self.pod.ask(|reply| Command::Create(task, reply)).await
    }

    async fn start(&self, id: &str, exec_id: &str) -> Result<()> {
        self.pod.ask(|reply| Command::Start(target(id, exec_id), reply)).await
    }

    async fn exec(&self, id: &str, exec_id: &str) -> Result<()> {
        let task =
            ExecTask { target: target(id, exec_id), stdio: StdioPaths::default(), process: b"{}".to_vec() };
        self.pod.ask(|reply| Command::Exec(task, reply)).await
    }

    async fn delete(&self, id: &str, exec_id: &str) -> Result<Exited> {
        self.pod.ask(|reply| Command::Delete(target(id, exec_id), reply)).await
    }

    async fn wait(&self, id: &str, exec_id: &str) -> Result<Exited> {
        self.pod.ask(|reply| Command::Wait(target(id, exec_id), reply)).await
    }

    async fn kill(&self, id: &str, exec_id: &str) -> Result<()> {
        self.pod.ask(|reply| Command::Kill(target(id, exec_id), 9, false, reply)).await
    }

    async fn state(&self, id: &str, exec_id: &str) -> Result<State> {
        let status = self.pod.ask(|reply| Command::State(target(id, exec_id), reply)).await;
        status.map(|status| status.state)
    }

    /// The guest reports an exit; returns when the pod has stored it.
    async fn exit(&self, id: &str, exec_id: &str, status: u32) {
        self.report_exit(id, exec_id, status).await;
        self.wait(id, exec_id).await.unwrap();
    }

    async fn report_exit(&self, id: &str, exec_id: &str, status: u32) {
        let (container, process) = (id.to_owned(), exec_id.to_owned());
        let event = AgentEvent::Exit { container, process, exit: Exited::now(status) };
        self.guest_events.send(event).await.unwrap();
    }

    fn die(&self) {
        self.machine.death.send_replace(Some("test".to_owned()));
    }

    /// Topics of the events so far.
    async fn topics(&mut self) -> Vec<String> {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let mut topics = Vec::new();
        while let Ok(event) = self.events.try_recv() {
            topics.push(event.topic.trim_start_matches("/tasks/").to_owned());
        }
        topics
    }

    async fn until_called(&self, call: &str) {
        let called = async {
            while !self.agent.calls().iter().any(|other| other == call) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), called).await.expect("the agent was never asked");
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn target(id: &str, exec_id: &str) -> Target {
    Target { id: id.to_owned(), exec_id: exec_id.to_owned() }
}
