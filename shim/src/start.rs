//! `start`: finds or makes the daemon of a pod and prints its address.
//!
//! ```text
//! stdin -> options -> configuration -> group -> lock -> a daemon answers? -> print its address
//!                                                        else bind, spawn daemon, print
//! ```
//! Everything that can fail early fails here, where containerd shows the text to the user. The listener
//! is bound here and inherited by the daemon, so the address can be dialled before the daemon runs.
//! Nothing but the reply may be printed, and no child may inherit stdout or stderr: containerd reads
//! both until they close.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::fs::{FlockOperation, Mode};

use crate::address;
use crate::args::Args;
use crate::bootstrap::{self, Request};
use crate::config::{self, ConfigError};
use crate::daemon::Handoff;
use crate::journal::{self, Entry, Journal};
use crate::spec;

/// Why there is no daemon.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// containerd always passes these.
    #[error("The flag -{0} is missing")]
    MissingFlag(&'static str),
    /// The configuration is missing or wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The group annotation would not make a file name.
    #[error("The pod's group {0:?} is no valid id: letters, digits, '-', '_' and '.', at most 128")]
    Group(String),
    /// A step of the set-up.
    #[error("The shim cannot {step}")]
    Step {
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

fn step<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> StartError {
    move |source| StartError::Step { step, source: source.into() }
}

/// Runs the verb; the current directory is the bundle.
///
/// # Errors
/// [`StartError`]; nothing is left behind then.
pub fn run(args: &Args) -> Result<(), StartError> {
    for (name, value) in [("id", &args.id), ("namespace", &args.namespace)] {
        if value.is_empty() {
            return Err(StartError::MissingFlag(name));
        }
    }
    let request = bootstrap::parse(&read_stdin()?, &args.id, &args.namespace);
    let config = config::parse(&config::load(request.options.as_ref())?)?;
    let group = spec::group_of_bundle(Path::new(".")).unwrap_or_else(|| args.id.clone());
    if !spec::is_id(&group) {
        return Err(StartError::Group(group));
    }
    let grpc = if request.grpc_address.is_empty() { &args.address } else { &request.grpc_address };
    let socket = address::socket_path(&request.socket_dir, grpc, &args.namespace, &group);

    let lock = lock_directory(&socket)?;
    if UnixStream::connect(&socket).is_err() {
        let handoff = Handoff {
            group,
            socket: socket.clone(),
            ttrpc_address: ttrpc_address(&request),
            debug: args.debug || request.debug,
            config,
        };
        launch(args, grpc, &handoff)?;
    }
    drop(lock);

    let address = address::url(&socket);
    write_address(&address).map_err(step("write the bundle's address file"))?;
    let mut stdout = io::stdout();
    stdout.write_all(&bootstrap::reply(&request, &address)).map_err(step("print its address"))?;
    stdout.flush().map_err(step("print its address"))
}

/// containerd closes stdin after the request; a person at a terminal would not.
fn read_stdin() -> Result<Vec<u8>, StartError> {
    let mut bytes = Vec::new();
    if !rustix::termios::isatty(io::stdin()) {
        let mut stdin = io::stdin().take(bootstrap::MAX_REQUEST_BYTES);
        stdin.read_to_end(&mut bytes).map_err(step("read its request from stdin"))?;
    }
    Ok(bytes)
}

fn ttrpc_address(request: &Request) -> String {
    if request.ttrpc_address.is_empty() {
        std::env::var("TTRPC_ADDRESS").unwrap_or_default()
    } else {
        request.ttrpc_address.clone()
    }
}

/// Two `start`s of one group must not both find a dead socket. The directory itself is the lock, so
/// that no lock file stays behind.
fn lock_directory(socket: &Path) -> Result<File, StartError> {
    let dir = socket.parent().unwrap_or(Path::new("/"));
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(dir).map_err(step("make the socket directory"))?;
    let lock = File::open(dir).map_err(step("open the socket directory"))?;
    rustix::fs::flock(&lock, FlockOperation::LockExclusive).map_err(step("lock the socket directory"))?;
    Ok(lock)
}

/// Binds the socket and spawns the daemon on it.
fn launch(args: &Args, grpc: &str, handoff: &Handoff) -> Result<(), StartError> {
    let dir = journal::directory(Path::new(journal::ROOT), &args.namespace, &handoff.group);
    // What a dead daemon of the same group left; there is none alive, or connect would have worked.
    journal::replay_backwards(&dir, &journal::read(&dir));
    let _ = std::fs::remove_file(&handoff.socket);
    let mut journal = Journal::open(dir).map_err(step("open its journal"))?;
    journal.write(&Entry::Socket { path: handoff.socket.clone() }).map_err(step("write its journal"))?;
    let launched = bind(&handoff.socket)
        .and_then(|listener| spawn(args, grpc, handoff, listener))
        .and_then(|child| settle(child, &mut journal));
    if launched.is_err() {
        let _ = std::fs::remove_file(&handoff.socket);
        journal.close();
    }
    launched
}

/// What must be so before containerd learns of the daemon; without it the daemon goes again.
fn settle(mut child: Child, journal: &mut Journal) -> Result<(), StartError> {
    let pid = i32::try_from(child.id()).unwrap_or_default();
    let daemon = Entry::Daemon { pid, start: journal::start_time(pid).unwrap_or_default() };
    let settled = journal
        .write(&daemon)
        .map_err(step("write its journal"))
        .and_then(|()| adjust_oom_score(child.id()).map_err(step("set the daemon's OOM score")));
    if settled.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    settled
}

fn bind(socket: &PathBuf) -> Result<UnixListener, StartError> {
    let old = rustix::process::umask(Mode::from_raw_mode(0o177));
    let bound = UnixListener::bind(socket);
    rustix::process::umask(old);
    bound.map_err(step("bind its socket"))
}

fn spawn(args: &Args, grpc: &str, handoff: &Handoff, listener: UnixListener) -> Result<Child, StartError> {
    let exe = std::env::current_exe().map_err(step("find its own binary"))?;
    let mut command = Command::new(exe);
    command.args(["-namespace", &args.namespace, "-id", &args.id, "-address", grpc]);
    if handoff.debug {
        command.arg("-debug");
    }
    command
        .env(Handoff::VARIABLE, handoff.encode().map_err(step("hand over to the daemon"))?)
        // The listener travels as stdin: the one descriptor number that needs no unsafe code.
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(step("start the daemon"))
}

/// One above containerd's own score: under pressure the kernel should take a pod before containerd.
fn adjust_oom_score(child: u32) -> io::Result<()> {
    let parent = rustix::process::getppid().map_or(1, |pid| pid.as_raw_nonzero().get());
    let text = std::fs::read_to_string(format!("/proc/{parent}/oom_score_adj"))?;
    let score: i32 = text.trim().parse().map_err(io::Error::other)?;
    std::fs::write(format!("/proc/{child}/oom_score_adj"), (score + 1).min(1000).to_string())
}

/// containerd 1.x finds a running shim after its restart by this file only.
fn write_address(address: &str) -> io::Result<()> {
    std::fs::write(".address", address)?;
    std::fs::rename(".address", "address")
}
