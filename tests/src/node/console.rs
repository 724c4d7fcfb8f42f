//! Following a node from outside: the command's output while it grows, the console's end when something broke.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Lines of each log that an error shows.
const LAST_LINES: usize = 25;

/// Bytes of a log's end that are looked at for them.
const LAST_BYTES: u64 = 16 * 1024;

/// Copies what the node's command writes to this process's stdout and stderr, stream by stream.
#[derive(Debug)]
pub(super) struct Follower {
    streams: Option<[(PathBuf, u64); 2]>,
}

impl Follower {
    pub(super) fn new(run: &Path, echo: bool) -> Self {
        Self { streams: echo.then(|| [(run.join("stdout"), 0), (run.join("stderr"), 0)]) }
    }

    /// Copies what came since the last call.
    pub(super) fn copy(&mut self) -> Result<()> {
        let Some([out, err]) = &mut self.streams else { return Ok(()) };
        pass_on(out, &mut io::stdout().lock())?;
        pass_on(err, &mut io::stderr().lock())
    }
}

fn pass_on(stream: &mut (PathBuf, u64), to: &mut impl io::Write) -> Result<()> {
    let (path, seen) = stream;
    let mut file = File::open(&*path).with_context(|| format!("Opening {}", path.display()))?;
    file.seek(SeekFrom::Start(*seen)).with_context(|| format!("Reading {}", path.display()))?;
    *seen += io::copy(&mut file, to).with_context(|| format!("Copying {}", path.display()))?;
    to.flush().context("Writing the node's output")
}

/// The ends of the logs that tell why a node died.
pub(super) fn last_words(run: &Path) -> String {
    let mut text = String::new();
    for name in ["console.log", "qemu.log"] {
        let path = run.join(name);
        let end = tail(&path).unwrap_or_else(|error| format!("(not readable: {error})"));
        text.push_str(&format!("--- the end of {}:\n{end}\n", path.display()));
    }
    text
}

fn tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LAST_BYTES)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().filter(|line| !line.contains("TCG doesn't support")).collect();
    Ok(lines.get(lines.len().saturating_sub(LAST_LINES)..).unwrap_or_default().join("\n"))
}
