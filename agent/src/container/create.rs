//! `agent container-create <dir>`: makes a container with libcontainer and leaves its init waiting.
//!
//! A process of its own, single-threaded, because libcontainer forks: that must not happen in a
//! process with a runtime. The init it leaves is the agent's child (`as_sibling`). `<dir>` holds
//! `config.json`, already fitted to this guest; libcontainer keeps its state in `<dir>/state`.
//!
//! libcontainer's errors come without their causes out of the process that failed. It logs the
//! cause, though: [`Causes`] collects those lines through a pipe that all its processes share.

use std::fmt::{self, Write as _};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::syscall::syscall::SyscallType;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use super::channel::{self, Channel, Report};
use super::program::{Program, reason};

/// The name of every container to libcontainer: it is alone in its state directory.
const NAME: &str = "c";
/// The socket on which libcontainer's init waits for its start, below the container's directory.
pub const START_SOCKET: &str = "state/c/notify.sock";

/// Runs the verb: reports to the agent and ends.
pub fn main(dir: &Path, channel: &Channel) {
    let report = match create(dir, channel) {
        Ok(pid) => Report::Ready(pid),
        Err(text) => Report::Failed(text),
    };
    // If the agent is gone, so is the machine.
    let _ = channel.report(&report);
}

fn create(dir: &Path, channel: &Channel) -> Result<Pid, String> {
    let mut descriptors = channel.wait_for_go().map_err(|error| error.to_string())?.into_iter();
    let mut causes = Causes::collect().map_err(|error| error.to_string())?;
    let state = dir.join("state");
    let mut builder = ContainerBuilder::new(NAME.into(), SyscallType::default())
        .with_executor(Program)
        .with_root_path(&state)
        .map_err(|error| error.to_string())?;
    let mut console = None;
    match (descriptors.next(), descriptors.next(), descriptors.next()) {
        (Some(stdin), Some(stdout), Some(stderr)) => {
            builder = builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr);
        }
        _ => {
            let socket = dir.join("console.sock");
            console = Some(UnixListener::bind(&socket).map_err(|error| error.to_string())?);
            builder = builder.with_console_socket(Some(socket));
        }
    }
    let built = builder.as_init(dir).with_systemd(false).with_detach(true).as_sibling(true).build();
    let container = built.map_err(|error| explain(&error, &causes.take(), dir))?;
    if let Some(listener) = console {
        let (connection, _) = listener.accept().map_err(|error| error.to_string())?;
        let master = take_master(connection.into()).map_err(|error| error.to_string())?;
        channel.report(&Report::Console(master)).map_err(|error| error.to_string())?;
    }
    let pid = container.pid().and_then(|pid| Pid::from_raw(pid.as_raw()));
    pid.ok_or_else(|| "the container's init ended at once".to_owned())
}

/// libcontainer sends the terminal's master with a word of text.
fn take_master(connection: OwnedFd) -> io::Result<OwnedFd> {
    let (_, descriptors) = channel::receive(&connection)?;
    descriptors.into_iter().next().ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// One sentence from an error, its sources and the causes that were logged.
fn explain(error: &dyn std::error::Error, causes: &[String], dir: &Path) -> String {
    let mut root = error;
    while let Some(source) = root.source() {
        root = source;
    }
    let text = root.to_string();
    if let Some(program) = text.find("exec: ").and_then(|at| text.get(at..)) {
        return program.into(); // of `program`, complete
    }
    match causes.first() {
        Some(cause) if cause.starts_with("failed to chdir") => explain_cwd(cause, dir),
        Some(cause) if !text.contains(cause.as_str()) => format!("{text}: {cause}"),
        _ => text,
    }
}

fn explain_cwd(cause: &str, dir: &Path) -> String {
    let errnos = [(libc::ENOENT, "ENOENT"), (libc::ENOTDIR, "ENOTDIR"), (libc::EACCES, "EACCES")];
    let errno = errnos.into_iter().find(|(_, name)| cause.contains(name));
    let why = errno.map_or_else(|| cause.into(), |(errno, _)| reason(&io::Error::from_raw_os_error(errno)));
    let spec = Spec::load(dir.join("config.json")).ok();
    let cwd = spec.as_ref().and_then(|spec| spec.process().as_ref()).map(|process| process.cwd().display());
    let cwd = cwd.map_or_else(String::new, |cwd| cwd.to_string());
    format!("chdir to cwd ({cwd:?}) set in config.json failed: {why}")
}

/// What libcontainer's processes log as errors, in order; the first is the nearest to the fault.
struct Causes(File);

impl Causes {
    fn collect() -> io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // Only a second subscriber in one process could be refused.
        let _ = tracing::subscriber::set_global_default(Collector(write.into()));
        Ok(Self(read.into()))
    }

    fn take(&mut self) -> Vec<String> {
        let mut text = Vec::new();
        // The pipe is never closed on the writing side: WouldBlock ends it, with all that was read.
        let _ = self.0.read_to_end(&mut text);
        String::from_utf8_lossy(&text).lines().map(str::to_owned).collect()
    }
}

struct Collector(File);

impl Subscriber for Collector {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR && metadata.is_event()
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        // A full pipe only costs words of an explanation.
        let _ = writeln!(&self.0, "{}", line.0.replace('\n', " "));
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a String cannot fail.
        let _ = if field.name() == "message" {
            self.0.insert_str(0, &format!("{value:?} "));
            Ok(())
        } else {
            write!(self.0, "{}={value:?} ", field.name())
        };
    }
}

/// Writes `config.json` and makes what [`main`] expects below `dir`.
///
/// # Errors
/// The kernel's.
pub fn prepare(dir: &Path, spec: &Spec) -> io::Result<()> {
    fs::create_dir(dir.join("state"))?;
    fs::write(dir.join("config.json"), serde_json::to_vec(spec)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Failure {
        text: String,
        source: Option<Box<Failure>>,
    }

    fn failure(text: &str, source: Option<Failure>) -> Failure {
        Failure { text: text.into(), source: source.map(Box::new) }
    }

    #[test]
    fn explanations_carry_the_root_and_the_first_cause() {
        let program = "exec: \"/x\": stat /x: no such file or directory";
        let inner = failure(&format!("error in executing process : {program}"), None);
        let error = failure("failed to create container", Some(inner));
        assert_eq!(explain(&error, &["noise".into()], Path::new("/")), program);

        let error = failure("failed to create", Some(failure("failed to unix syscall", None)));
        let causes = ["failed to bind mount path=\"/x\" ".to_owned(), "failed to run".to_owned()];
        let text = explain(&error, &causes, Path::new("/"));
        assert_eq!(text, "failed to unix syscall: failed to bind mount path=\"/x\" ");
        assert_eq!(explain(&error, &[], Path::new("/")), "failed to unix syscall");
    }

    #[test]
    fn a_missing_working_directory_is_named() {
        let dir = std::env::temp_dir().join(format!("hull-create-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        fs::write(
            dir.join("config.json"),
            r#"{"ociVersion":"1.0.0","process":{"cwd":"/no/such","user":{"uid":0,"gid":0}}}"#,
        )
        .unwrap();
        let error = failure("failed to unix syscall", None);
        let text = explain(&error, &["failed to chdir e=ENOENT ".into()], &dir);
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(text, "chdir to cwd (\"/no/such\") set in config.json failed: no such file or directory");
    }
}
