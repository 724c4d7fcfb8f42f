//! `binary://` logging: a program of the operator's gets the streams as descriptors.
//!
//! The program's contract, containerd's: arguments from the URI's query, CONTAINER_ID and
//! CONTAINER_NAMESPACE in its environment, stdout on descriptor 3, stderr on 4, and 5, which it closes
//! (or, with `binary-v2`, writes a byte to) when it is ready. The descriptor numbers are arranged by a
//! second copy of this binary, between fork and exec, where no unsafe code is needed: [`run`].

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::io::FdFlags;
use rustix::pipe::PipeFlags;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tracing::warn;

use super::{IoError, Owner, percent_decode};

/// Verb by which this binary runs itself to become the logging program.
pub const LOGGER_VERB: &str = "exec-logger";
/// How long the program may take to be ready.
const READY_DEADLINE: Duration = Duration::from_secs(10);
/// How long it may take to end after its streams have, as containerd has it.
const END_DEADLINE: Duration = Duration::from_secs(12);

/// Starts the program of a URI; the two pipes are its stdout and stderr.
///
/// # Errors
/// [`IoError::Logger`].
pub async fn start(uri: &str, owner: Owner<'_>) -> Result<(pipe::Sender, pipe::Sender), IoError> {
    let (path, arguments) = parse(uri).ok_or_else(|| IoError::UnknownScheme(uri.to_owned()))?;
    let failed = |source: io::Error| IoError::Logger { path: path.clone(), source };
    let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|error| failed(error.into()));
    let (stdout_reader, stdout) = pipe()?;
    let (stderr_reader, stderr) = pipe()?;
    let (ready, ready_writer) = pipe()?;
    let exe = std::env::current_exe().map_err(failed)?;
    let mut command = tokio::process::Command::new(exe);
    command
        .arg(LOGGER_VERB)
        .arg(&path)
        .args(arguments)
        .env("CONTAINER_ID", owner.container)
        .env("CONTAINER_NAMESPACE", owner.namespace)
        .env_remove(crate::daemon::Handoff::VARIABLE)
        .stdin(Stdio::from(stdout_reader))
        .stdout(Stdio::from(stderr_reader))
        .stderr(Stdio::from(ready_writer));
    let child = command.spawn().map_err(failed)?;
    // It holds our copies of the program's ends, the ready pipe's among them.
    drop(command);
    if let Err(error) = wait_ready(ready).await {
        drop((stdout, stderr));
        reap(child, Duration::ZERO).await;
        return Err(failed(error));
    }
    let sender = |fd: OwnedFd| pipe::Sender::from_owned_fd(fd).map_err(failed);
    let pipes = (sender(stdout)?, sender(stderr)?);
    // Ends when both pipes are closed, which their copy tasks do.
    tokio::spawn(supervise(child));
    Ok(pipes)
}

/// Closed, or a byte: ready. Both are also what a program that dies at once does; then the pipes break.
async fn wait_ready(ready: OwnedFd) -> io::Result<()> {
    let mut ready = pipe::Receiver::from_owned_fd(ready)?;
    let read = ready.read_u8();
    match tokio::time::timeout(READY_DEADLINE, read).await {
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "it was not ready within 10 s")),
        Ok(_) => Ok(()),
    }
}

async fn supervise(mut child: tokio::process::Child) {
    match child.wait().await {
        Ok(status) if !status.success() => warn!(%status, "a logging program failed"),
        _ => {}
    }
}

async fn reap(mut child: tokio::process::Child, grace: Duration) {
    if tokio::time::timeout(grace.min(END_DEADLINE), child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

/// `binary:///path?key=value&...` -> path, [key, value, ...].
fn parse(uri: &str) -> Option<(String, Vec<String>)> {
    let rest = uri.strip_prefix("binary://").or_else(|| uri.strip_prefix("binary-v2://"))?;
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let arguments = pairs.flat_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        // In a query, a plus is a space.
        [key, value].map(|word| percent_decode(&word.replace('+', " ")))
    });
    // Go appends a value only if there is one.
    Some((percent_decode(path), arguments.filter(|word| !word.is_empty()).collect()))
}

/// Becomes the logging program: moves the streams from 0, 1 and 2 to 3, 4 and 5.
///
/// # Errors
/// Returns only if it fails.
#[must_use]
pub fn run(words: &[String]) -> io::Error {
    match become_logger(words) {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

fn become_logger(words: &[String]) -> io::Result<std::convert::Infallible> {
    let [path, arguments @ ..] = words else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no logging program is named"));
    };
    // A fresh process has nothing above 2, so these become 3, 4 and 5.
    let moved = [
        rustix::io::fcntl_dupfd_cloexec(io::stdin().as_fd(), 3)?,
        rustix::io::fcntl_dupfd_cloexec(io::stdout().as_fd(), 4)?,
        rustix::io::fcntl_dupfd_cloexec(io::stderr().as_fd(), 5)?,
    ];
    for fd in &moved {
        rustix::io::fcntl_setfd(fd, FdFlags::empty())?;
    }
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    let error = Command::new(OsString::from(path)).args(arguments).exec();
    drop(moved);
    Err(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_become_words() {
        let (path, words) = parse("binary:///usr/bin/log%20it?id=a%2Fb&-v=&x=1+2").unwrap();
        assert_eq!(path, "/usr/bin/log it");
        assert_eq!(words, ["id", "a/b", "-v", "x", "1 2"]);
        assert_eq!(parse("binary-v2:///l"), Some(("/l".to_owned(), vec![])));
        assert_eq!(parse("file:///l"), None);
    }
}
