//! An agent for tests: records what it is asked and answers as it is told.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::sync::{Semaphore, mpsc};

use super::*;

/// The recording agent.
#[derive(Debug)]
pub struct FakeAgent {
    /// Every request so far: its name and its target.
    pub calls: Mutex<Vec<String>>,
    /// Requests that are refused, by name.
    pub refusals: Mutex<HashMap<&'static str, (Code, String)>>,
    /// A request named here waits for a permit.
    pub gates: Mutex<HashMap<&'static str, Arc<Semaphore>>>,
    events: tokio::sync::Mutex<mpsc::Receiver<AgentEvent>>,
    /// Ids of the streams that the last created process has.
    pub stdio: Mutex<Option<hull_protocol::agent::Stdio>>,
}

impl FakeAgent {
    /// An agent that agrees to everything, and the end by which a test makes events.
    pub fn new() -> (Arc<Self>, mpsc::Sender<AgentEvent>) {
        let (sender, events) = mpsc::channel(64);
        let agent = FakeAgent {
            calls: Mutex::default(),
            refusals: Mutex::default(),
            gates: Mutex::default(),
            events: tokio::sync::Mutex::new(events),
            stdio: Mutex::default(),
        };
        (Arc::new(agent), sender)
    }

    /// Makes a request wait until the test adds a permit.
    pub fn gate(&self, name: &'static str) -> Arc<Semaphore> {
        let gate = Arc::new(Semaphore::new(0));
        self.gates.lock().unwrap().insert(name, gate.clone());
        gate
    }

    /// Makes a request fail.
    pub fn refuse(&self, name: &'static str, code: Code, message: &str) {
        self.refusals.lock().unwrap().insert(name, (code, message.to_owned()));
    }

    /// The requests so far.
    pub fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    async fn asked(&self, name: &'static str, target: &str) -> Result<()> {
        self.calls.lock().unwrap().push(format!("{name} {target}"));
        let gate = self.gates.lock().unwrap().get(name).cloned();
        if let Some(gate) = gate {
            gate.acquire().await.unwrap().forget();
        }
        match self.refusals.lock().unwrap().get(name).cloned() {
            Some((code, message)) => Err(AgentError::Refused { code, message }),
            None => Ok(()),
        }
    }
}

#[async_trait]
impl AgentPort for FakeAgent {
    async fn create_container(&self, request: CreateContainerRequest) -> Result<()> {
        *self.stdio.lock().unwrap() = request.stdio.into_option();
        self.asked("create", &request.container_id).await
    }
    async fn create_process(&self, request: CreateProcessRequest) -> Result<()> {
        *self.stdio.lock().unwrap() = request.stdio.into_option();
        self.asked("exec", &format!("{}/{}", request.container_id, request.process_id)).await
    }
    async fn start(&self, container: &str, process: &str) -> Result<()> {
        self.asked("start", &format!("{container}/{process}")).await
    }
    async fn signal(&self, container: &str, process: &str, signal: u32, all: bool) -> Result<()> {
        self.asked("signal", &format!("{container}/{process} {signal} {all}")).await
    }
    async fn resize(&self, container: &str, process: &str, width: u32, height: u32) -> Result<()> {
        self.asked("resize", &format!("{container}/{process} {width}x{height}")).await
    }
    async fn pause(&self, container: &str) -> Result<()> {
        self.asked("pause", container).await
    }
    async fn resume(&self, container: &str) -> Result<()> {
        self.asked("resume", container).await
    }
    async fn update(&self, container: &str, _: Vec<u8>) -> Result<()> {
        self.asked("update", container).await
    }
    async fn stats(&self, container: &str) -> Result<StatsContainerResponse> {
        self.asked("stats", container).await?;
        Ok(StatsContainerResponse::new())
    }
    async fn delete(&self, container: &str, process: &str) -> Result<()> {
        self.asked("delete", &format!("{container}/{process}")).await
    }
    async fn next_event(&self) -> Result<AgentEvent> {
        match self.events.lock().await.recv().await {
            Some(event) => Ok(event),
            None => std::future::pending().await,
        }
    }
}
