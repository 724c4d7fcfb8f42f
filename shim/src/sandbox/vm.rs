//! The only file that calls the VMM: starts machines, hands their connections on, watches for their
//! end. So the VMM could move into a jailed child without a change elsewhere.

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use hull_protocol::agent::HelloResponse;
use hull_protocol::ports;
use hull_vmm::{ExtentId, Machine, MachineConfig, MachineError, MachineExit, MachineKind};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, info};

use super::guest::{BootPlan, Booter, Guest, ImageSlot, MachinePort};
use crate::agent::{AgentError, TtrpcAgent};
use crate::config::{Config, MachineChoice};
use crate::streams::StreamBroker;

mod guest_log;

use guest_log::LastWords;

/// How long the last words of a dying guest may be on their way behind the news of its end.
const LAST_WORDS_GRACE: Duration = Duration::from_millis(100);

/// Why there is no machine.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The VMM says which step failed.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// A set-up step around it.
    #[error("The shim cannot {step}: {reason}")]
    Step {
        /// What was tried.
        step: &'static str,
        /// What went wrong.
        reason: String,
    },
    /// The VMM itself took too long.
    #[error("The VMM did not start the machine within {seconds} s")]
    Slow {
        /// The deadline.
        seconds: u64,
    },
    /// The guest ended before its agent called.
    #[error("The guest ended before its agent called: {reason}")]
    Died {
        /// Why, as far as known.
        reason: String,
    },
    /// The guest runs, but its agent did not call.
    #[error("The guest's agent did not call within {seconds} s")]
    Silent {
        /// The deadline.
        seconds: u64,
    },
    /// The agent called but did not say hello.
    #[error("The guest's agent is not usable")]
    Agent(#[from] AgentError),
}

fn step<E: ToString>(step: &'static str) -> impl FnOnce(E) -> BootError {
    move |error| BootError::Step { step, reason: error.to_string() }
}

/// Makes machines of the configured kind.
#[derive(Debug)]
pub struct KvmBooter {
    config: Arc<Config>,
}

impl KvmBooter {
    /// A booter for this configuration.
    pub fn new(config: Arc<Config>) -> Self {
        KvmBooter { config }
    }

    fn machine_config(&self, plan: &BootPlan, console: Option<std::os::fd::OwnedFd>) -> MachineConfig {
        let config = &self.config;
        MachineConfig {
            vcpus: plan.size.vcpus,
            memory_mib: plan.size.memory_mib,
            kernel: config.kernel.clone(),
            kernel_sha256: config.kernel_sha256.map(|digest| digest.0),
            root_image: config.image.clone(),
            root_image_sha256: config.image_sha256.map(|digest| digest.0),
            console,
            kind: match config.machine {
                MachineChoice::Kvm => MachineKind::Kvm,
            },
        }
    }
}

#[async_trait]
impl Booter for KvmBooter {
    async fn boot(&self, plan: BootPlan) -> Result<Guest, BootError> {
        let begun = Instant::now();
        let words = LastWords::default();
        let console = if self.config.debug_console {
            Some(guest_log::console().map_err(step("make the console's pipe"))?)
        } else {
            None
        };
        let config = self.machine_config(&plan, console);
        let limit = self.config.timeouts.boot();
        let start = tokio::task::spawn_blocking(move || Machine::start(config));
        // A machine that comes later is dropped by its thread, which stops it.
        let machine = tokio::time::timeout(limit, start).await;
        let machine = machine.map_err(|_| BootError::Slow { seconds: limit.as_secs() })?;
        let machine = Arc::new(machine.map_err(step("run the VMM"))??);
        let started = begun.elapsed();
        let brought_up = self.bring_up(&machine, plan, words, begun, started).await;
        if brought_up.is_err() {
            stop(machine).await;
        }
        brought_up
    }
}

impl KvmBooter {
    async fn bring_up(
        &self,
        machine: &Arc<Machine>,
        plan: BootPlan,
        words: LastWords,
        begun: Instant,
        started: Duration,
    ) -> Result<Guest, BootError> {
        let listen = |port| machine.vsock().listen(port).map_err(step("listen for the guest"));
        let mut control = listen(ports::CONTROL)?;
        let streams = Arc::new(StreamBroker::default());
        tokio::spawn(streams.clone().serve(listen(ports::STREAM)?));
        tokio::spawn(guest_log::serve(listen(ports::LOG)?, words.clone()));
        let (death, announced) = watch::channel(None);
        let mut dying = announced.clone();
        tokio::spawn(watch_exit(Arc::downgrade(machine), machine.exited(), death, words));

        let limit = self.config.timeouts.boot();
        let connection = tokio::select! {
            connection = control.recv() => connection.ok_or(BootError::Died { reason: "it stopped".to_owned() })?,
            reason = super::guest::died(&mut dying) => return Err(BootError::Died { reason }),
            () = tokio::time::sleep(limit) => return Err(BootError::Silent { seconds: limit.as_secs() }),
        };
        // A second control connection would be another agent: refuse it.
        drop(control);
        let called = begun.elapsed();
        let agent = TtrpcAgent::new(connection, self.config.timeouts.request())
            .map_err(step("use the control connection"))?;
        let mut hello = plan.hello;
        hello.unix_time_ns = unix_time_ns();
        let facts = tokio::select! {
            facts = agent.hello(hello) => facts?,
            reason = super::guest::died(&mut dying) => return Err(BootError::Died { reason }),
        };
        report(machine, &facts, started, called, begun.elapsed());
        let machine = Arc::new(KvmMachine { machine: machine.clone(), extents: Mutex::default() });
        Ok(Guest { agent: Arc::new(agent), machine, streams, death: announced })
    }
}

fn unix_time_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}

/// One line with the boot's phases: what an operator compares.
fn report(machine: &Machine, facts: &HelloResponse, started: Duration, called: Duration, total: Duration) {
    info!(
        machine_start_ms = millis(started),
        agent_called_ms = millis(called),
        hello_ms = millis(total),
        guest_boot_to_agent_ms = millis(Duration::from_nanos(facts.boot_to_agent_ns)),
        guest_kernel = facts.kernel_release.as_str(),
        guest_memory_mib = facts.memory_bytes >> 20,
        agent_version = facts.agent_version.as_str(),
        "machine booted"
    );
    if tracing::enabled!(tracing::Level::DEBUG) {
        debug!(metrics = ?machine.metrics(), "machine booted");
    }
}

/// Turns the machine's end into a sentence for the log and for error messages, and lets go of what is left of the
/// machine: its memory, and its ends of the streams, which are drained once they are closed.
async fn watch_exit(
    machine: Weak<Machine>,
    mut exited: watch::Receiver<Option<MachineExit>>,
    death: watch::Sender<Option<String>>,
    words: LastWords,
) {
    let exit = match exited.wait_for(Option::is_some).await {
        Ok(exit) => exit.clone(),
        Err(_) => None,
    };
    let reason = match exit {
        Some(MachineExit::PoweredOff) => "the guest powered off".to_owned(),
        Some(MachineExit::Reset) => "the guest reset itself".to_owned(),
        Some(MachineExit::Panicked) => "the guest's kernel panicked".to_owned(),
        Some(MachineExit::Failed(text)) => text,
        Some(MachineExit::Stopped) | None => "it was stopped".to_owned(),
    };
    let last = words.wait(LAST_WORDS_GRACE).await;
    death.send_replace(Some(last.map_or(reason.clone(), |last| format!("{reason}: {last}"))));
    if let Some(machine) = machine.upgrade() {
        stop(machine).await;
    }
}

/// A machine of ours as the actor uses it.
struct KvmMachine {
    machine: Arc<Machine>,
    extents: Mutex<HashMap<u64, ExtentId>>,
}

#[async_trait]
impl MachinePort for KvmMachine {
    fn map_image(&self, file: File, length_bytes: u64) -> Result<ImageSlot, String> {
        let extent = self.machine.layers().map(file, length_bytes).map_err(|error| error.to_string())?;
        let mut extents = self.extents.lock().unwrap_or_else(PoisonError::into_inner);
        extents.insert(extent.offset_bytes, extent.id);
        Ok(ImageSlot { offset_bytes: extent.offset_bytes, length_bytes: extent.length_bytes })
    }

    fn unmap_image(&self, slot: ImageSlot) {
        let mut extents = self.extents.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(id) = extents.remove(&slot.offset_bytes)
            && let Err(error) = self.machine.layers().unmap(id)
        {
            debug!(%error, "an image was not on the layer disk");
        }
    }

    async fn stop(&self) {
        stop(self.machine.clone()).await;
    }
}

async fn stop(machine: Arc<Machine>) {
    let (done, stopped) = oneshot::channel::<()>();
    tokio::task::spawn_blocking(move || {
        machine.stop();
        drop(done);
    });
    // Machine::stop bounds its own time.
    let _ = stopped.await;
}

/// Where a connection of the guest's arrives.
type Connections = mpsc::Receiver<std::os::unix::net::UnixStream>;
