//! The long-lived process of a pod: serves containerd on the inherited socket until the pod is gone.
//!
//! ```text
//! take over listener -> own session -> log fifo -> journal -> serve --+-> the pod is over
//!                                                                      +-> SIGTERM, SIGINT
//! then: socket and journal removed -> machine stopped, events flushed -> exit
//! ```
//! One thread runs everything but the machine's own threads and short-lived blocking work.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::shim_async::create_task;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{debug, info, warn};
use ttrpc::r#async::Server;
use ttrpc::r#async::transport::Listener;

use crate::args::Args;
use crate::config::{Config, LogLevel};
use crate::connections;
use crate::events::EventQueue;
use crate::journal::{self, Journal};
use crate::rootfs::{self, ImageCache};
use crate::sandbox::vm::KvmBooter;
use crate::sandbox::{Means, Pod, PodIdentity, Remains};
use crate::task::TaskService;

/// Threads for work that blocks: making images, starting and stopping the machine.
const MAX_BLOCKING_THREADS: usize = 4;
/// How long an idle one of them stays; they cost a stack each.
const BLOCKING_THREAD_KEEP_ALIVE: Duration = Duration::from_secs(1);
/// How long the last events may take to reach containerd; it may be gone itself.
const FLUSH_DEADLINE: Duration = Duration::from_secs(2);

/// How long the machine may take to stop in good order.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// Turns of the scheduler that a reply needs from its handler to the socket, with room to spare.
const YIELDS_FOR_LAST_REPLY: u32 = 32;

/// Why the daemon could not serve. Seen only by who runs it by hand: its stderr is /dev/null.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Started without `start`.
    #[error("This process serves only when `start` has spawned it")]
    NoHandoff,
    /// A step of the set-up.
    #[error("The daemon cannot {step}")]
    Step {
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The server.
    #[error("The daemon cannot serve")]
    Serve(#[source] ttrpc::Error),
}

fn step<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> DaemonError {
    move |source| DaemonError::Step { step, source: source.into() }
}

/// What `start` tells the daemon, through the environment.
#[derive(Debug, Serialize, Deserialize)]
pub struct Handoff {
    /// Grouping id: the pod.
    pub group: String,
    /// Path of the bound socket.
    pub socket: PathBuf,
    /// Where events go.
    pub ttrpc_address: String,
    /// Log at debug.
    pub debug: bool,
    /// The checked configuration.
    pub config: Config,
}

impl Handoff {
    /// Name of the environment variable.
    pub const VARIABLE: &str = "HULL_DAEMON";

    /// The variable's value.
    ///
    /// # Errors
    /// A path in the configuration that is not UTF-8.
    pub fn encode(&self) -> io::Result<String> {
        Ok(serde_json::to_string(self)?)
    }

    fn from_environment() -> Result<Self, DaemonError> {
        let text = std::env::var(Self::VARIABLE).map_err(|_| DaemonError::NoHandoff)?;
        serde_json::from_str(&text).map_err(|_| DaemonError::NoHandoff)
    }
}

/// Serves until the pod is over.
///
/// # Errors
/// [`DaemonError`] if serving never began.
pub fn run(args: &Args) -> Result<(), DaemonError> {
    let handoff = Handoff::from_environment()?;
    let listener = take_listener().map_err(step("take over its socket"))?;
    rustix::process::setsid().map_err(step("make a session of its own"))?;
    let level = if handoff.debug { LogLevel::Debug } else { handoff.config.log_level };
    crate::log::install(Path::new("log"), level);
    // The bundle goes away with its container, which need not be the pod's last.
    std::env::set_current_dir("/").map_err(step("leave the bundle"))?;

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(MAX_BLOCKING_THREADS)
        .thread_keep_alive(BLOCKING_THREAD_KEEP_ALIVE)
        .thread_name("hull-blocking")
        .build()
        .map_err(step("start its runtime"))?;
    runtime.block_on(serve(args, handoff, listener))
}

fn take_listener() -> io::Result<UnixListener> {
    let listener = io::stdin().as_fd().try_clone_to_owned()?;
    let null = OpenOptions::new().read(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    let listener = UnixListener::from(listener);
    listener.set_nonblocking(true)?;
    Ok(listener)
}

async fn serve(args: &Args, handoff: Handoff, listener: UnixListener) -> Result<(), DaemonError> {
    let pid = std::process::id();
    // `start` has written our process id and the socket into it.
    let dir = journal::directory(Path::new(journal::ROOT), &args.namespace, &handoff.group);
    let journal = Journal::open(dir).map_err(step("open its journal"))?;

    let (events, publisher) = EventQueue::start(&handoff.ttrpc_address, &args.namespace);
    let identity =
        PodIdentity { group: handoff.group.clone(), namespace: args.namespace.clone(), shim_pid: pid };
    let config = Arc::new(handoff.config);
    let means = Means {
        booter: Arc::new(KvmBooter::new(config.clone())),
        images: Arc::new(ImageCache::new(rootfs::CACHE_DIR.into(), config.timeouts.image())),
    };
    let listener = tokio::net::UnixListener::from_std(listener).map_err(step("use its socket"))?;
    let (connections, open) = connections::counted(listener);
    let (pod, over) = Pod::start(identity, config, means, events, journal, open);

    let service = Arc::new(TaskService::new(pod.clone()));
    let mut server = Server::new().add_listener(Listener::new(connections));
    for (name, methods) in services(&service) {
        server = server.register_service(HashMap::from([(name, methods)]));
    }
    server.start().await.map_err(DaemonError::Serve)?;
    info!(group = handoff.group.as_str(), pid, "serving");

    let mut remains = wait(pod, over).await;
    // From here on a new `start` of this group makes a new daemon, and `delete` has nothing to do.
    let _ = std::fs::remove_file(&handoff.socket);
    remains.journal.close();
    server.stop_listen().await;
    // The answer to Shutdown is still on its way through the server's tasks.
    for _ in 0..YIELDS_FOR_LAST_REPLY {
        tokio::task::yield_now().await;
    }
    let stop = async {
        if let Some(guest) = remains.guest {
            guest.machine.stop().await;
        }
    };
    // Whatever is left after the deadlines ends with the process.
    let (stopped, ()) =
        tokio::join!(tokio::time::timeout(STOP_DEADLINE, stop), publisher.flush(FLUSH_DEADLINE));
    debug!(machine_stopped = stopped.is_ok(), "the daemon ends");
    Ok(())
}

/// One implementation under both names: the messages of v2 and v3 are the same.
fn services(service: &Arc<TaskService>) -> Vec<(String, ttrpc::r#async::Service)> {
    let v3 = create_task(service.clone());
    let v2 = create_task(service.clone()).into_values();
    v3.into_iter().chain(v2.map(|methods| ("containerd.task.v2.Task".to_owned(), methods))).collect()
}

/// Until the pod is over, by itself or because we are told to end.
async fn wait(pod: Pod, mut over: tokio::sync::oneshot::Receiver<Remains>) -> Remains {
    let mut terminate = signal(SignalKind::terminate()).ok();
    let mut interrupt = signal(SignalKind::interrupt()).ok();
    let mut user = signal(SignalKind::user_defined1()).ok();
    loop {
        tokio::select! {
            remains = &mut over => return remains.unwrap_or_else(|_| {
                warn!("the pod's owner ended without handing over what remains");
                Remains { journal: Journal::closed(), guest: None }
            }),
            () = received(&mut terminate) => { info!("SIGTERM: ending the pod"); pod.end().await; }
            () = received(&mut interrupt) => { info!("SIGINT: ending the pod"); pod.end().await; }
            () = received(&mut user) => pod.log_summary().await,
        }
    }
}

async fn received(signal: &mut Option<tokio::signal::unix::Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}
