//! PID 1 of a Hull pod's machine, and the helper processes that PID 1 runs of itself.
//!
//! As PID 1: mount what user space needs, dial the host, serve the one session on that connection.
//! When it is lost, or the agent panics, the machine ends: nothing outlives its pod. As a helper
//! (`container-create`, `container-exec`): one container step in a process without threads, because
//! it forks; the agent's end of the channel is descriptor 0.

mod container;
mod events;
mod init;
mod log;
mod net;
mod reaper;
mod rpc;
mod storage;
mod sys;
mod vsock;

use std::convert::Infallible;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use hull_protocol::agent_ttrpc::create_agent;
use hull_protocol::ports;
use ttrpc::asynchronous::Server;

use crate::container::channel::Channel;
use crate::container::{Pod, create, exec, helper};
use crate::rpc::Service;
use crate::vsock::VsockHost;

/// What ends the machine.
#[derive(Debug, thiserror::Error)]
enum AgentError {
    #[error("The machine cannot be set up")]
    Init(#[from] init::InitError),
    #[error("Cannot {step}")]
    Io {
        step: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("The session with the host cannot be served")]
    Serve(#[source] ttrpc::Error),
    #[error("The host has closed the session")]
    ConnectionLost,
}

fn main() -> ExitCode {
    let started_ns = init::since_boot_ns();
    if std::process::id() == 1 {
        std::panic::set_hook(Box::new(|panic| init::power_off(&panic.to_string())));
        let Err(error) = run(started_ns);
        init::power_off(&rpc::chain(&error));
    }
    let mut arguments = std::env::args_os().skip(1);
    let verb = arguments.next().unwrap_or_default();
    let rest: Vec<PathBuf> = arguments.map(PathBuf::from).collect();
    match (verb.to_str(), rest.as_slice()) {
        (Some(helper::CREATE), [dir]) => with_channel(|channel| create::main(Path::new(dir), channel)),
        (Some(helper::EXEC), [dir, process, cgroup, init]) => {
            let arguments = exec::Arguments {
                dir: dir.clone(),
                process: process.clone(),
                cgroup: cgroup.clone(),
                init: init.to_string_lossy().into_owned(),
            };
            with_channel(|channel| exec::main(&arguments, channel))
        }
        _ => {
            // Without a terminal there is nobody to tell.
            let _ = writeln!(std::io::stderr(), "hull-agent runs as PID 1 of a Hull machine");
            ExitCode::from(2)
        }
    }
}

fn with_channel(verb: impl FnOnce(&Channel)) -> ExitCode {
    match rustix::io::fcntl_dupfd_cloexec(std::io::stdin().as_fd(), 3) {
        Ok(descriptor) => {
            verb(&Channel::from_inherited(descriptor));
            ExitCode::SUCCESS
        }
        Err(_) => ExitCode::FAILURE,
    }
}

fn run(started_ns: u64) -> Result<Infallible, AgentError> {
    init::set_up()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| AgentError::Io { step: "start the runtime", source })?;
    runtime.block_on(serve(started_ns))
}

async fn serve(started_ns: u64) -> Result<Infallible, AgentError> {
    let step = |step| move |source| AgentError::Io { step, source };
    let host = VsockHost;
    let pod = Arc::new(Pod::new(Box::new(host)).map_err(step("watch memory"))?);
    let (connection, lost) = host.control().await.map_err(step("dial the host"))?;
    let service = Service::new(Arc::clone(&pod), started_ns);
    let mut server = Server::new()
        .add_listener(vsock::listener_of(connection))
        .register_service(create_agent(Arc::new(service)));
    server.start().await.map_err(AgentError::Serve)?;
    tokio::select! {
        ended = reaper::run(Arc::clone(&pod)) => ended.map_err(step("wait for processes"))?,
        ended = Arc::clone(&pod).watch_memory() => ended.map_err(step("watch memory"))?,
        ended = forward_log(host) => ended.map_err(step("write the host's log"))?,
        _ = lost => {}
    }
    Err(AgentError::ConnectionLost)
}

async fn forward_log(host: VsockHost) -> std::io::Result<()> {
    let connection = host.dial(ports::LOG).await?;
    log::keep_way_out(connection.as_fd().try_clone_to_owned()?);
    log::forward(connection).await
}
