//! Running the tools that do the work: tar, make, mkfs.erofs.
//!
//! Output goes to a log file, which an error quotes the end of. Every run has a deadline; at its end the tool gets
//! SIGTERM (make passes it on to its children), then SIGKILL.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How often a running tool is looked at.
const POLL: Duration = Duration::from_millis(50);
/// From SIGTERM to SIGKILL: make waits for its compilers to go.
const GRACE: Duration = Duration::from_secs(10);
/// How much of a log an error quotes: enough for a compiler's message, little enough for a terminal.
const QUOTED_BYTES: u64 = 2000;

/// A tool could not be run, or failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It is not installed, or not executable.
    #[error("Cannot start {program}")]
    Start {
        /// The tool.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// Its log cannot be written, or its state not be read.
    #[error("Cannot follow {program}")]
    Follow {
        /// The tool.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// It ended with an error.
    #[error("{program} failed ({status}); its last words:\n{tail}")]
    Failed {
        /// The tool.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of its output.
        tail: String,
    },
    /// It ran for too long.
    #[error("{program} was stopped after {} s; its last words:\n{tail}", deadline.as_secs())]
    TooSlow {
        /// The tool.
        program: String,
        /// What it was given.
        deadline: Duration,
        /// The end of its output.
        tail: String,
    },
}

/// Runs a tool to its end with its output in `log`. `watch` is called about every `every` with the log's path.
///
/// # Errors
/// When the tool cannot be started, fails, or does not end in time.
pub fn run(
    command: &mut Command,
    log: &Path,
    deadline: Duration,
    every: Duration,
    mut watch: impl FnMut(&Path),
) -> Result<(), CommandError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let follow = |source| CommandError::Follow { program: program.clone(), source };
    let file = File::create(log).map_err(follow)?;
    let both = file.try_clone().map_err(follow)?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(both)
        .spawn()
        .map_err(|source| CommandError::Start { program: program.clone(), source })?;
    let start = Instant::now();
    let mut next = every;
    loop {
        if let Some(status) = child.try_wait().map_err(follow)? {
            if status.success() {
                return Ok(());
            }
            return Err(CommandError::Failed { program, status, tail: tail(log) });
        }
        let elapsed = start.elapsed();
        if elapsed >= deadline {
            stop(&mut child);
            return Err(CommandError::TooSlow { program, deadline, tail: tail(log) });
        }
        if elapsed >= next {
            watch(log);
            next = elapsed + every;
        }
        std::thread::sleep(POLL);
    }
}

/// First line that a tool prints on its standard output, for versions.
///
/// # Errors
/// When the tool cannot be started, or prints nothing.
pub fn first_line(command: &mut Command) -> Result<String, CommandError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|source| CommandError::Start { program: program.clone(), source })?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match text.lines().next().map(str::trim).filter(|line| !line.is_empty()) {
        Some(line) => Ok(line.to_owned()),
        None => Err(CommandError::Failed {
            program,
            status: output.status,
            tail: String::from_utf8_lossy(&output.stderr).into_owned(),
        }),
    }
}

fn stop(child: &mut Child) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // The child is ours and not reaped yet, so the pid is its own.
        let _ = kill_process(pid, Signal::TERM);
    }
    let start = Instant::now();
    while start.elapsed() < GRACE {
        if matches!(child.try_wait(), Ok(Some(_))) {
            return;
        }
        std::thread::sleep(POLL);
    }
    let _ = child.kill();
    let _ = child.wait();
}

fn tail(log: &Path) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let length = fs::metadata(log)?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(QUOTED_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(QUOTED_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => String::from_utf8_lossy(&bytes).trim().to_owned(),
        Err(error) => format!("(its log {} cannot be read: {error})", log.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scratch;

    fn sh(script: &str, deadline: Duration) -> Result<(), CommandError> {
        let scratch = Scratch::new("command");
        let log = scratch.path().join("log");
        run(Command::new("sh").args(["-c", script]), &log, deadline, Duration::from_secs(3600), |_| {})
    }

    #[test]
    fn success_and_failure() {
        let long = Duration::from_secs(60);
        sh("exit 0", long).unwrap();
        let text = sh("echo out; echo err >&2; exit 3", long).unwrap_err().to_string();
        assert_eq!(text, "sh failed (exit status: 3); its last words:\nout\nerr");
    }

    #[test]
    fn only_the_end_of_a_long_log_is_quoted() {
        let error =
            sh("yes 0123456789 | head -n 10000; echo END; exit 1", Duration::from_secs(60)).unwrap_err();
        let CommandError::Failed { tail, .. } = error else { panic!("{error}") };
        assert!(tail.ends_with("END"));
        assert!(tail.len() as u64 <= QUOTED_BYTES);
    }

    #[test]
    fn a_deadline_stops_the_tool() {
        let start = Instant::now();
        let error = sh("exec sleep 600", Duration::from_millis(200)).unwrap_err();
        assert!(matches!(error, CommandError::TooSlow { .. }), "{error}");
        assert!(start.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_missing_tool_is_named() {
        let error = first_line(&mut Command::new("hull-no-such-tool")).unwrap_err();
        assert_eq!(error.to_string(), "Cannot start hull-no-such-tool");
    }
}
