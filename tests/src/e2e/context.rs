//! What a test is given: the runtime, names of its own, a directory of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::ctr::Run;

/// Hull's runtime name, as containerd's clients write it.
pub(crate) const HULL: &str = "io.containerd.hull.v2";

/// The two test images.
pub(crate) const BUSYBOX: &str = "hull.test/busybox:latest";
pub(crate) const DEBIAN: &str = "hull.test/debian:latest";

/// A test, as its topic lists it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Test {
    /// `topic::name`.
    pub(crate) name: &'static str,
    pub(crate) run: fn(&Context) -> Result<()>,
    /// After this long the test's process is killed.
    pub(crate) deadline: Duration,
    pub(crate) needs: Needs,
}

/// Where a test makes sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Every runtime and every containerd.
    Nothing,
    /// Something that only Hull does.
    Hull,
    /// A `ctr` of containerd 2.
    Ctr2,
}

impl Test {
    pub(crate) const fn new(name: &'static str, run: fn(&Context) -> Result<()>) -> Self {
        Self { name, run, deadline: Duration::from_secs(90), needs: Needs::Nothing }
    }

    pub(crate) const fn needs(self, needs: Needs) -> Self {
        Self { needs, ..self }
    }

    pub(crate) const fn seconds(self, seconds: u64) -> Self {
        Self { deadline: Duration::from_secs(seconds), ..self }
    }
}

/// Given to every test.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) runtime: String,
    stem: String,
    scratch: PathBuf,
}

impl Context {
    pub(crate) fn new(runtime: &str, test: &str) -> Result<Self> {
        let stem = test.replace("::", "-").replace('_', "-");
        let scratch = std::env::temp_dir().join(format!("e2e-{stem}"));
        fs::create_dir_all(&scratch).with_context(|| format!("Making {}", scratch.display()))?;
        Ok(Self { runtime: runtime.to_owned(), stem, scratch })
    }

    /// A container id that no other test uses.
    pub(crate) fn id(&self, suffix: &str) -> String {
        format!("{}-{suffix}", self.stem)
    }

    /// A directory for the test's files, gone after it.
    pub(crate) fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// A container of `image` under the tested runtime, to be configured and run.
    pub(crate) fn run(&self, image: &str, suffix: &str) -> Run {
        Run::new(&self.runtime, image, &self.id(suffix))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // It lies in the node's RAM and the node goes away; a test that failed to remove it has said so already.
        let _ = fs::remove_dir_all(&self.scratch);
    }
}

/// Waits until `ready` gives something, at most `limit`.
pub(crate) fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut ready: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = ready()? {
            return Ok(value);
        }
        if start.elapsed() > limit {
            bail!("Waited {:.1} s for {what}", limit.as_secs_f64());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Fails with both values shown, cut to a readable length.
pub(crate) fn expect<T: PartialEq + std::fmt::Debug + ?Sized>(what: &str, got: &T, wanted: &T) -> Result<()> {
    if got == wanted {
        return Ok(());
    }
    let show = |value: &T| -> String { format!("{value:?}").chars().take(600).collect() };
    bail!("{what}: got {}, wanted {}", show(got), show(wanted))
}

/// Fails unless `text` contains `part`.
pub(crate) fn expect_part(what: &str, text: &str, part: &str) -> Result<()> {
    if text.contains(part) { Ok(()) } else { bail!("{what}: {part:?} is not in {text:?}") }
}
