//! The actor: the one owner of the pod's records. Nothing in here waits for anything but the mailbox.
//!
//! A request is answered from the records, or it moves a record into a transitional state and spawns an
//! operation whose [`Done`] moves it on. Order of effects at an exit: the record is Stopped, waiters wake,
//! the event is queued. An init's exit comes after those of its container's other processes; no exit
//! comes before its process's start.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use super::guest::{BootPlan, Booter, Guest, ImageSource, died};
use super::ops::{self, Created, GuestStatus};
use super::state::{self, Phase};
use super::{Command, CreateTask, Status, Target};
use crate::agent::{AgentEvent, AgentPort};
use crate::config::Config;
use crate::container::Container;
use crate::error::{Error, Result, chain};
use crate::events::{EventQueue, TaskEvent};
use crate::io::ProcessIo;
use crate::journal::{Entry, Journal};
use crate::process::{Exited, MACHINE_DIED, NEVER_RAN, Process, Reply, State, Step};
use crate::sandbox::vm::BootError;
use crate::spec::{self, ContainerSpec};

mod processes;
mod requests;

/// How long an empty pod waits for somebody to connect: containerd dials as soon as it has the address,
/// and finds a pod again after its restart only if there is something in it.
const UNREACHED: Duration = Duration::from_secs(5);

/// Who the pod is.
#[derive(Debug, Clone)]
pub struct PodIdentity {
    /// Grouping id.
    pub group: String,
    /// containerd's namespace.
    pub namespace: String,
    /// Our process id, which every task is reported with.
    pub shim_pid: u32,
}

/// By what means the pod gets what it needs.
#[derive(Clone)]
pub struct Means {
    /// Machines.
    pub booter: Arc<dyn Booter>,
    /// Images.
    pub images: Arc<dyn ImageSource>,
}

/// What arrives in the mailbox.
#[derive(Debug)]
pub enum Message {
    /// From containerd.
    Command(Command),
    /// From an operation.
    Done(Done),
    /// From the guest.
    News(News),
}

/// How an operation ended, with the reply that its caller waits for.
#[derive(Debug)]
pub enum Done {
    /// The machine.
    Booted(std::result::Result<Guest, Arc<BootError>>),
    /// A container.
    ContainerCreated(String, Result<Created>, Reply<()>),
    /// A further process.
    ProcessCreated(Target, Result<ProcessIo>, Reply<()>),
    /// A start.
    Started(Target, Result<()>, Reply<()>),
    /// A deletion, as far as containerd is concerned; it cannot fail.
    Deleted(Target, Reply<Exited>),
    /// The guest's part of a container's deletion, which nobody waits for.
    Swept(String),
    /// Frozen.
    Paused(String, Result<()>, Reply<()>),
    /// Thawed.
    Resumed(String, Result<()>, Reply<()>),
}

impl Done {
    /// Name for the log.
    fn name(&self) -> &'static str {
        match self {
            Done::Booted(..) => "boot",
            Done::ContainerCreated(..) => "Create",
            Done::ProcessCreated(..) => "Exec",
            Done::Started(..) => "Start",
            Done::Deleted(..) => "Delete",
            Done::Swept(..) => "sweep",
            Done::Paused(..) => "Pause",
            Done::Resumed(..) => "Resume",
        }
    }
}

/// What happens by itself.
#[derive(Debug)]
pub enum News {
    /// The agent reports.
    Agent(AgentEvent),
    /// The machine is dead.
    MachineDied(String),
}

/// The records and what is needed to act on them.
pub struct Actor {
    identity: PodIdentity,
    config: Arc<Config>,
    means: Means,
    events: EventQueue,
    journal: Journal,
    /// Operations report here. Weak: when every handle is gone, the pod is over.
    mailbox: mpsc::WeakSender<Message>,
    phase: Phase,
    guest: watch::Sender<GuestStatus>,
    containers: BTreeMap<String, Container>,
    /// When to end if nothing happens; set while there is no container.
    deadline: Option<Instant>,
}

impl Actor {
    /// An empty pod.
    pub fn new(
        identity: PodIdentity,
        config: Arc<Config>,
        means: Means,
        events: EventQueue,
        journal: Journal,
        mailbox: mpsc::WeakSender<Message>,
    ) -> Self {
        let deadline = Some(Instant::now() + config.timeouts.unused());
        let guest = watch::Sender::new(GuestStatus::Booting);
        let containers = BTreeMap::new();
        let phase = Phase::New;
        Actor { identity, config, means, events, journal, mailbox, phase, guest, containers, deadline }
    }

    /// Serves until the pod is over.
    pub async fn run(
        mut self,
        mut receiver: mpsc::Receiver<Message>,
        mut connections: watch::Receiver<usize>,
    ) -> Remains {
        let mut unreached = Some(Instant::now() + UNREACHED);
        while self.phase != Phase::Ending {
            tokio::select! {
                message = receiver.recv() => match message {
                    Some(message) => self.handle(message),
                    None => self.end("nobody can reach it any more"),
                },
                Ok(()) = connections.changed() => {
                    let nobody = *connections.borrow_and_update() == 0;
                    unreached = nobody.then(|| Instant::now() + UNREACHED);
                }
                () = until(self.deadline) => self.end("nobody needs it"),
                () = until(unreached), if self.is_empty() => self.end("nobody is connected"),
            }
        }
        self.remains()
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Command(command) => {
                debug!(request = command.name(), "asked");
                self.request(command);
            }
            Message::Done(done) => {
                debug!(operation = done.name(), "done");
                self.done(done);
            }
            Message::News(News::Agent(event)) => {
                debug!(?event, "the guest reports");
                self.agent_event(event);
            }
            Message::News(News::MachineDied(reason)) => self.machine_died(&reason),
        }
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Booted(booted) => self.booted(booted),
            Done::ContainerCreated(id, result, reply) => self.container_created(id, result, reply),
            Done::ProcessCreated(target, result, reply) => self.process_created(target, result, reply),
            Done::Started(target, result, reply) => self.started(target, result, reply),
            Done::Deleted(target, reply) => self.deleted(&target, reply),
            Done::Swept(id) => self.swept(&id),
            Done::Paused(id, result, reply) => {
                self.frozen(&id, Step::Paused, result, reply);
            }
            Done::Resumed(id, result, reply) => {
                self.frozen(&id, Step::Resumed, result, reply);
            }
        }
    }

    /// Runs an operation and posts what it makes of its outcome.
    fn spawn<T: Send + 'static>(
        &self,
        operation: impl Future<Output = T> + Send + 'static,
        done: impl FnOnce(T) -> Done + Send + 'static,
    ) {
        let mailbox = self.mailbox.clone();
        tokio::spawn(async move {
            let outcome = operation.await;
            if let Some(mailbox) = mailbox.upgrade() {
                // A closed mailbox: the pod is over, and its records with it.
                let _ = mailbox.send(Message::Done(done(outcome))).await;
            }
        });
    }

    /// The running guest, if there is one.
    fn guest(&self) -> Option<Guest> {
        match (&*self.guest.borrow(), self.phase) {
            (GuestStatus::Ready(guest), Phase::Ready | Phase::Dead) => Some(guest.clone()),
            _ => None,
        }
    }

    /// The guest for a request that needs it alive.
    fn live_guest(&self) -> Result<Guest> {
        let guest = self.guest().ok_or_else(|| Error::MachineGone("it is not running".to_owned()))?;
        let death = guest.death.borrow().clone();
        death.map_or(Ok(guest), |reason| Err(Error::MachineGone(reason)))
    }

    fn step(&mut self, event: state::Event) {
        match self.phase.next(event) {
            Ok(phase) => self.phase = phase,
            Err(state::Illegal) => error!(phase = ?self.phase, ?event, "a step that cannot happen"),
        }
    }

    /// Begins to start the machine unless there is one.
    fn boot(&mut self, spec: &ContainerSpec) {
        if self.phase != Phase::New {
            return;
        }
        self.step(state::Event::BootBegun);
        self.guest.send_replace(GuestStatus::Booting);
        let size = super::size::machine_size(spec.limits, &self.config);
        info!(vcpus = size.vcpus, memory_mib = size.memory_mib, limits = ?spec.limits, "machine size");
        let hello = hello(&self.identity.group, spec);
        let booter = self.means.booter.clone();
        let boot = async move { booter.boot(BootPlan { size, hello }).await.map_err(Arc::new) };
        self.spawn(boot, Done::Booted);
    }

    fn booted(&mut self, booted: std::result::Result<Guest, Arc<BootError>>) {
        match booted {
            Ok(guest) => {
                self.step(state::Event::Booted);
                self.watch(&guest);
                self.guest.send_replace(GuestStatus::Ready(guest));
            }
            Err(error) => {
                error!(error = chain(&error), "the machine did not start");
                self.step(state::Event::BootFailed);
                self.guest.send_replace(GuestStatus::Failed(error));
            }
        }
    }

    /// Brings the guest's news into the mailbox. The machine's death is told last.
    fn watch(&self, guest: &Guest) {
        let (mailbox, guest) = (self.mailbox.clone(), guest.clone());
        tokio::spawn(async move {
            let mut death = guest.death.clone();
            let reason = tokio::select! {
                reason = died(&mut death) => reason,
                reason = follow(&*guest.agent, &mailbox) => {
                    // The agent is the guest's first process: without it there is no pod. The kernel
                    // powers off by itself; a guest that does not is stopped.
                    let limit = Duration::from_millis(500);
                    match tokio::time::timeout(limit, died(&mut death)).await {
                        Ok(better) => better,
                        Err(_) => { guest.machine.stop().await; reason }
                    }
                }
            };
            if let Some(mailbox) = mailbox.upgrade() {
                let _ = mailbox.send(Message::News(News::MachineDied(reason))).await;
            }
        });
    }

    fn end(&mut self, why: &'static str) {
        info!(why, "the pod ends");
        self.step(state::Event::End);
    }

    /// Whether a Shutdown may end the pod: containers that containerd has given up or deleted do not
    /// count.
    fn is_empty(&self) -> bool {
        self.containers.values().all(|container| container.abandoned || container.deleted)
    }

    /// What is still there has exited with the machine; containerd learns of it. The machine itself is
    /// handed on: stopping it takes time that nobody should wait for.
    fn remains(mut self) -> Remains {
        self.all_exited();
        let guest = match &*self.guest.borrow() {
            GuestStatus::Ready(guest) => Some(guest.clone()),
            _ => None,
        };
        Remains { journal: self.journal, guest }
    }
}

/// What a pod that is over leaves to the daemon.
#[derive(Debug)]
pub struct Remains {
    /// To be closed.
    pub journal: Journal,
    /// To be stopped.
    pub guest: Option<Guest>,
}

/// Waits until then; for ever without a time.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Hands the agent's events on until the connection ends; says why it did.
async fn follow(agent: &dyn AgentPort, mailbox: &mpsc::WeakSender<Message>) -> String {
    loop {
        match agent.next_event().await {
            Ok(event) => {
                let Some(mailbox) = mailbox.upgrade() else { return "the pod is over".to_owned() };
                let _ = mailbox.send(Message::News(News::Agent(event))).await;
            }
            Err(error) => return chain(&error),
        }
    }
}

fn hello(group: &str, spec: &ContainerSpec) -> hull_protocol::agent::HelloRequest {
    let sysctls = spec.sysctls.iter().map(|(name, value)| hull_protocol::agent::Sysctl {
        name: name.clone(),
        value: value.clone(),
        ..Default::default()
    });
    hull_protocol::agent::HelloRequest {
        pod_id: group.to_owned(),
        hostname: spec.hostname.clone(),
        sysctls: sysctls.collect(),
        shm_bytes: spec.shm_bytes,
        ..Default::default()
    }
}
