//! What the shim asks of the guest, and the one place where its deadlines are applied.
//!
//! [`AgentPort`] belongs to its consumer, the pod's actor; [`TtrpcAgent`] speaks the protocol over the
//! control connection that the agent has dialled. When the machine dies the connection closes, and
//! every call that is under way fails at once.

use std::os::unix::net::UnixStream as StdUnixStream;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use hull_protocol::agent::{
    ContainerRequest, CreateContainerRequest, CreateProcessRequest, Empty, HelloRequest, HelloResponse,
    ProcessRequest, ResizePtyRequest, SignalProcessRequest, StatsContainerResponse, UpdateContainerRequest,
    event,
};
use hull_protocol::agent_ttrpc::AgentClient;
use hull_protocol::limits::{LIGHT_DEADLINE, MAX_MESSAGE_BYTES};
use ttrpc::Code;
use ttrpc::r#async::Client;
use ttrpc::r#async::transport::Socket;

use crate::process::Exited;

/// Why the guest did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The agent answered with an error; its text is for the user.
    #[error("{message}")]
    Refused {
        /// gRPC code.
        code: Code,
        /// What the agent says.
        message: String,
    },
    /// No answer in time.
    #[error("The guest did not answer {request} within {} s", after.as_secs_f32())]
    Late {
        /// Name of the request.
        request: &'static str,
        /// The deadline.
        after: Duration,
    },
    /// The connection is gone, and most likely the machine with it.
    #[error("The connection to the guest ended during {request}: {reason}")]
    Closed {
        /// Name of the request.
        request: &'static str,
        /// What the transport says.
        reason: String,
    },
    /// Agent and shim are of different releases.
    #[error(
        "The guest image speaks version {guest} of the protocol and this shim version {shim}: install both from one release"
    )]
    Version {
        /// The agent's.
        guest: u32,
        /// Ours.
        shim: u32,
    },
    /// A request that the transport would not take.
    #[error("{request} would need a message of {length} bytes; at most {MAX_MESSAGE_BYTES} are possible")]
    TooLong {
        /// Name of the request.
        request: &'static str,
        /// Its size.
        length: usize,
    },
}

impl AgentError {
    /// The gRPC code that this error travels on with. UNIMPLEMENTED becomes INTERNAL: to containerd it
    /// would mean that the shim's API is an older one.
    pub fn code(&self) -> Code {
        match self {
            AgentError::Refused { code: Code::UNIMPLEMENTED | Code::OK, .. } => Code::INTERNAL,
            AgentError::Refused { code, .. } => *code,
            AgentError::Late { .. } => Code::DEADLINE_EXCEEDED,
            AgentError::Closed { .. } => Code::UNAVAILABLE,
            AgentError::Version { .. } => Code::FAILED_PRECONDITION,
            AgentError::TooLong { .. } => Code::INVALID_ARGUMENT,
        }
    }

    /// Whether the agent says that there is nothing by that name (any more).
    pub fn is_not_found(&self) -> bool {
        matches!(self, AgentError::Refused { code: Code::NOT_FOUND, .. })
    }
}

/// What the guest reports by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentEvent {
    /// A process ended.
    Exit {
        /// Its container.
        container: String,
        /// Empty: init.
        process: String,
        /// How.
        exit: Exited,
    },
    /// The kernel killed a process for want of memory.
    Oom {
        /// The container.
        container: String,
    },
}

/// Result with [`AgentError`].
pub type Result<T> = std::result::Result<T, AgentError>;

/// The guest agent as the actor uses it. Every method returns within its deadline; when the machine
/// dies they fail with [`AgentError::Closed`]. Methods may be called at the same time.
#[async_trait]
pub trait AgentPort: Send + Sync + 'static {
    /// Mounts and prepares a container, short of its user code. Opens its streams.
    async fn create_container(&self, request: CreateContainerRequest) -> Result<()>;
    /// Registers a further process and opens its streams.
    async fn create_process(&self, request: CreateProcessRequest) -> Result<()>;
    /// Runs init (empty process id) or a further process.
    async fn start(&self, container: &str, process: &str) -> Result<()>;
    /// Sends a signal.
    async fn signal(&self, container: &str, process: &str, signal: u32, all: bool) -> Result<()>;
    /// Sets a terminal's size.
    async fn resize(&self, container: &str, process: &str, width: u32, height: u32) -> Result<()>;
    /// Freezes a container.
    async fn pause(&self, container: &str) -> Result<()>;
    /// Thaws it.
    async fn resume(&self, container: &str) -> Result<()>;
    /// Changes its limits; `resources` is the OCI JSON.
    async fn update(&self, container: &str, resources: Vec<u8>) -> Result<()>;
    /// Reads its cgroup.
    async fn stats(&self, container: &str) -> Result<StatsContainerResponse>;
    /// Forgets a process, or a container with all that it holds.
    async fn delete(&self, container: &str, process: &str) -> Result<()>;
    /// The next thing that happened. Waits without limit; one call at a time.
    async fn next_event(&self) -> Result<AgentEvent>;
}

/// The agent behind its control connection.
pub struct TtrpcAgent {
    client: AgentClient,
    heavy: Duration,
}

impl std::fmt::Debug for TtrpcAgent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TtrpcAgent").field("heavy", &self.heavy).finish_non_exhaustive()
    }
}

impl TtrpcAgent {
    /// Takes over the connection that the agent has dialled. `heavy` is the deadline of requests that
    /// make or run something.
    ///
    /// # Errors
    /// What the kernel says about the socket.
    pub fn new(control: StdUnixStream, heavy: Duration) -> std::io::Result<Self> {
        control.set_nonblocking(true)?;
        let socket = Socket::new(tokio::net::UnixStream::from_std(control)?);
        Ok(TtrpcAgent { client: AgentClient::new(Client::new(socket)), heavy })
    }

    /// The first request of every session.
    ///
    /// # Errors
    /// [`AgentError::Version`], or as for every request.
    pub async fn hello(&self, mut request: HelloRequest) -> Result<HelloResponse> {
        request.version = hull_protocol::VERSION;
        let response = within("Hello", self.heavy, |context| self.client.hello(context, &request)).await?;
        if response.version != hull_protocol::VERSION {
            return Err(AgentError::Version { guest: response.version, shim: hull_protocol::VERSION });
        }
        Ok(response)
    }
}

/// Makes one call with one deadline and sorts its errors.
async fn within<'a, T, F>(
    request: &'static str,
    deadline: Duration,
    call: impl FnOnce(ttrpc::context::Context) -> F + 'a,
) -> Result<T>
where
    F: Future<Output = ttrpc::Result<T>> + 'a,
{
    // The transport's own timer is a little slower, so that there is one kind of lateness.
    let call = call(ttrpc::context::with_duration(deadline + Duration::from_secs(1)));
    match tokio::time::timeout(deadline, call).await {
        Err(_) => Err(AgentError::Late { request, after: deadline }),
        Ok(Ok(response)) => Ok(response),
        Ok(Err(ttrpc::Error::RpcStatus(status))) => {
            Err(AgentError::Refused { code: status.code(), message: status.message().to_owned() })
        }
        Ok(Err(error)) => Err(AgentError::Closed { request, reason: error.to_string() }),
    }
}

fn checked_size(request: &'static str, message: &impl protobuf::Message) -> Result<()> {
    let length = usize::try_from(message.compute_size()).unwrap_or(usize::MAX);
    // The envelope around the message takes a few hundred bytes more.
    if length > MAX_MESSAGE_BYTES - 4096 {
        return Err(AgentError::TooLong { request, length });
    }
    Ok(())
}

fn container_request(id: &str) -> ContainerRequest {
    ContainerRequest { container_id: id.to_owned(), ..Default::default() }
}

fn process_request(container: &str, process: &str) -> ProcessRequest {
    ProcessRequest {
        container_id: container.to_owned(),
        process_id: process.to_owned(),
        ..Default::default()
    }
}

#[async_trait]
impl AgentPort for TtrpcAgent {
    async fn create_container(&self, request: CreateContainerRequest) -> Result<()> {
        checked_size("CreateContainer", &request)?;
        within("CreateContainer", self.heavy, |context| self.client.create_container(context, &request))
            .await
            .map(drop)
    }

    async fn create_process(&self, request: CreateProcessRequest) -> Result<()> {
        checked_size("CreateProcess", &request)?;
        within("CreateProcess", self.heavy, |context| self.client.create_process(context, &request))
            .await
            .map(drop)
    }

    async fn start(&self, container: &str, process: &str) -> Result<()> {
        let request = process_request(container, process);
        within("StartProcess", self.heavy, |context| self.client.start_process(context, &request))
            .await
            .map(drop)
    }

    async fn signal(&self, container: &str, process: &str, signal: u32, all: bool) -> Result<()> {
        let request = SignalProcessRequest {
            container_id: container.to_owned(),
            process_id: process.to_owned(),
            signal,
            all,
            ..Default::default()
        };
        within("SignalProcess", LIGHT_DEADLINE, |context| self.client.signal_process(context, &request))
            .await
            .map(drop)
    }

    async fn resize(&self, container: &str, process: &str, width: u32, height: u32) -> Result<()> {
        let request = ResizePtyRequest {
            container_id: container.to_owned(),
            process_id: process.to_owned(),
            width,
            height,
            ..Default::default()
        };
        within("ResizePty", LIGHT_DEADLINE, |context| self.client.resize_pty(context, &request))
            .await
            .map(drop)
    }

    async fn pause(&self, container: &str) -> Result<()> {
        let request = container_request(container);
        within("PauseContainer", self.heavy, |context| self.client.pause_container(context, &request))
            .await
            .map(drop)
    }

    async fn resume(&self, container: &str) -> Result<()> {
        let request = container_request(container);
        within("ResumeContainer", self.heavy, |context| self.client.resume_container(context, &request))
            .await
            .map(drop)
    }

    async fn update(&self, container: &str, resources: Vec<u8>) -> Result<()> {
        let request =
            UpdateContainerRequest { container_id: container.to_owned(), resources, ..Default::default() };
        checked_size("UpdateContainer", &request)?;
        within("UpdateContainer", self.heavy, |context| self.client.update_container(context, &request))
            .await
            .map(drop)
    }

    async fn stats(&self, container: &str) -> Result<StatsContainerResponse> {
        let request = container_request(container);
        within("StatsContainer", LIGHT_DEADLINE, |context| self.client.stats_container(context, &request))
            .await
    }

    async fn delete(&self, container: &str, process: &str) -> Result<()> {
        let request = process_request(container, process);
        within("DeleteProcess", self.heavy, |context| self.client.delete_process(context, &request))
            .await
            .map(drop)
    }

    async fn next_event(&self) -> Result<AgentEvent> {
        let request = Empty::new();
        // Its owner is the machine: the connection ends with it, and with it this call.
        let call = self.client.next_event(ttrpc::context::with_timeout(0), &request).await;
        let event = match call {
            Ok(event) => event,
            Err(ttrpc::Error::RpcStatus(status)) => {
                return Err(AgentError::Refused {
                    code: status.code(),
                    message: status.message().to_owned(),
                });
            }
            Err(error) => {
                return Err(AgentError::Closed { request: "NextEvent", reason: error.to_string() });
            }
        };
        match event.event {
            Some(event::Event::Exit(exit)) => Ok(AgentEvent::Exit {
                exit: Exited { status: exit.status, at: guest_time(exit.unix_time_ns) },
                container: exit.container_id,
                process: exit.process_id,
            }),
            Some(event::Event::Oom(oom)) => Ok(AgentEvent::Oom { container: oom.container_id }),
            _ => Err(AgentError::Refused {
                code: Code::INTERNAL,
                message: "the guest sent an event of an unknown kind".to_owned(),
            }),
        }
    }
}

/// The guest's clock, unless it is far from ours: kubelet orders containers by these times.
fn guest_time(unix_ns: i64) -> SystemTime {
    const TOLERANCE: Duration = Duration::from_secs(60);
    let now = SystemTime::now();
    let Ok(ns) = u64::try_from(unix_ns) else { return now };
    let at = UNIX_EPOCH + Duration::from_nanos(ns);
    let distance = now.duration_since(at).unwrap_or_else(|error| error.duration());
    // An exit in the future would be before its own deletion.
    if distance > TOLERANCE || at > now { now } else { at }
}

#[cfg(test)]
pub mod fake;
#[cfg(test)]
mod tests;
