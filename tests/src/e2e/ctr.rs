//! `ctr`, containerd's own client, as the tests use it.
//!
//! Its stdin is never inherited: a background process that reads the terminal is stopped, and a test would hang.

use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::pod::Pod;

/// What a finished command left.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    pub(crate) code: i32,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Output {
    /// Standard output as text without the last newline.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end_matches('\n').to_owned()
    }

    /// Fails unless the command ended with 0.
    pub(crate) fn ok(self) -> Result<Self> {
        self.ended(0)
    }

    /// Fails unless the command ended with `code`.
    pub(crate) fn ended(self, code: i32) -> Result<Self> {
        if self.code == code {
            return Ok(self);
        }
        let text: String = self.text().chars().take(300).collect();
        bail!("Ended with {} instead of {code}; stderr: {:?}; stdout: {text:?}", self.code, self.stderr)
    }

    /// Fails unless the command failed and its stderr names `part`.
    pub(crate) fn refused(self, part: &str) -> Result<Self> {
        if self.code == 0 {
            bail!("Succeeded, though {part:?} should have been wrong");
        }
        if !self.stderr.to_lowercase().contains(&part.to_lowercase()) {
            bail!("The error does not name {part:?}: {:?}", self.stderr);
        }
        Ok(self)
    }
}

/// `ctr` with these arguments, not yet started.
pub(crate) fn command<S: AsRef<str>>(arguments: &[S]) -> Command {
    let mut ctr = Command::new("ctr");
    ctr.args(arguments.iter().map(AsRef::as_ref));
    ctr.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    ctr
}

/// Runs `ctr` to its end.
pub(crate) fn ctr<S: AsRef<str>>(arguments: &[S]) -> Result<Output> {
    finish(spawn(&mut command(arguments))?)
}

/// Starts a prepared command.
pub(crate) fn spawn(command: &mut Command) -> Result<Child> {
    command.spawn().with_context(|| format!("Starting {command:?}"))
}

/// Waits for a started command.
pub(crate) fn finish(child: Child) -> Result<Output> {
    let output = child.wait_with_output().context("Waiting for a command")?;
    Ok(Output {
        // A command killed by a signal has no code; -1 equals no code that a test expects.
        code: output.status.code().unwrap_or(-1),
        stdout: output.stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// What a container prints first when its standard input is to be fed.
pub(crate) const READY: &str = "ready\n";

/// Runs a command with `input` as its whole standard input; its first line of output has to be [`READY`] and is
/// taken off. Nothing is fed before: `ctr` forgets an end of input that comes before it has created the process.
pub(crate) fn with_input(mut command: Command, input: &[u8]) -> Result<Output> {
    let mut child = spawn(command.stdin(Stdio::piped()))?;
    let mut stdin = child.stdin.take().context("No pipe to the command")?;
    let mut stdout = child.stdout.take().context("No pipe from the command")?;
    let mut ready = vec![0; READY.len()];
    if stdout.read_exact(&mut ready).is_err() || ready != READY.as_bytes() {
        drop(stdin);
        bail!("The process did not say that it is ready: {ready:?}, {:?}", finish(child)?);
    }
    let mut rest = Vec::new();
    std::thread::scope(|scope| {
        // A command that stops reading early is judged by its output.
        scope.spawn(move || stdin.write_all(input));
        stdout.read_to_end(&mut rest).context("Reading a command's output")
    })?;
    Ok(Output { stdout: rest, ..finish(child)? })
}

/// `ctr run`, being configured.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    flags: Vec<String>,
    image: String,
    id: String,
    words: Vec<String>,
}

impl Run {
    pub(crate) fn new(runtime: &str, image: &str, id: &str) -> Self {
        let flags = vec!["--runtime".to_owned(), runtime.to_owned()];
        Self { flags, image: image.to_owned(), id: id.to_owned(), words: Vec::new() }
    }

    /// Adds flags of `ctr run`.
    pub(crate) fn flags(mut self, flags: &[&str]) -> Self {
        self.flags.extend(flags.iter().map(|flag| (*flag).to_owned()));
        self
    }

    /// The container's command.
    pub(crate) fn words(mut self, words: &[&str]) -> Self {
        self.words = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// The container's command as a shell script.
    pub(crate) fn sh(self, script: &str) -> Self {
        self.words(&["sh", "-c", script])
    }

    /// Another id than the test's own.
    pub(crate) fn id(mut self, id: &str) -> Self {
        self.id = id.to_owned();
        self
    }

    /// `ctr run …` with one more flag, as a command.
    fn command(&self, how: &str) -> Command {
        let mut words = vec!["run".to_owned(), how.to_owned()];
        words.extend(self.flags.iter().cloned());
        words.push(self.image.clone());
        words.push(self.id.clone());
        words.extend(self.words.iter().cloned());
        command(&words)
    }

    /// `ctr run --rm …` as a command, for tests that bring their own streams.
    pub(crate) fn attached(&self) -> Command {
        self.command("--rm")
    }

    /// Runs the container to its end and removes it.
    pub(crate) fn output(&self) -> Result<Output> {
        finish(spawn(&mut self.attached())?)
    }

    /// Leaves the container running.
    pub(crate) fn detach(&self) -> Result<Pod> {
        // `ctr run -d` passes its own streams on to nobody: the shim keeps the fifos open.
        let pod = Pod::new(&self.id);
        finish(spawn(&mut self.command("-d"))?)?.ok().with_context(|| format!("Starting {}", self.id))?;
        Ok(pod)
    }
}
