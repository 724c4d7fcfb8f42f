//! Finding and running the user's program, the same way for inits and further processes.
//!
//! Used in the helper processes only, when they are inside the container. The words of the errors
//! are those that users of `ctr` and `docker` know from runc, because scripts match on them.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use libcontainer::oci_spec::runtime::{Process, Spec};
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};

/// What a process without a PATH of its own gets, as with runc.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Largest /etc/passwd that is searched for a home directory.
const MAX_PASSWD_BYTES: u64 = 1 << 20;

/// Why a program cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// A name without a slash that no directory of PATH has.
    #[error("exec: {name:?}: executable file not found in $PATH")]
    NotFound {
        /// As it came.
        name: String,
    },
    /// A path at which there is nothing.
    #[error("exec: {name:?}: stat {name}: {reason}")]
    Stat {
        /// As it came.
        name: String,
        /// The kernel's answer.
        reason: String,
    },
    /// A directory, or a file without the execute bit.
    #[error("exec: {name:?}: permission denied")]
    Permission {
        /// As it came.
        name: String,
    },
    /// The kernel did not take it as a program.
    #[error("exec {name}: {reason}")]
    Exec {
        /// As it came.
        name: String,
        /// The kernel's answer.
        reason: String,
    },
    /// The process has no command.
    #[error("exec: no command")]
    Empty,
}

/// libcontainer's way to the user's program: checks it before the container counts as created.
#[derive(Clone, Debug)]
pub struct Program;

impl Executor for Program {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let found = spec.process().as_ref().ok_or(ProgramError::Empty).and_then(find);
        found.map(drop).map_err(|error| ExecutorValidationError::ArgValidationError(error.to_string()))
    }

    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(()) // `run` hands the environment over
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let error = match spec.process() {
            Some(process) => run(process),
            None => ProgramError::Empty,
        };
        // The container is started: its own stderr is the place where its user looks.
        let _ = writeln!(io::stderr(), "{error}");
        Err(ExecutorError::Other(error.to_string()))
    }
}

/// Replaces this process by the user's program; returns only if that failed.
pub fn run(process: &Process) -> ProgramError {
    let path = match find(process) {
        Ok(path) => path,
        Err(error) => return error,
    };
    let mut args = process.args().as_deref().unwrap_or_default().iter();
    let Some(name) = args.next() else { return ProgramError::Empty };
    let error = Command::new(path).arg0(name).args(args).env_clear().envs(environment(process)).exec();
    ProgramError::Exec { name: name.clone(), reason: reason(&error) }
}

/// An I/O error in the words of Go programs: "no such file or directory".
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_lowercase().chain(letters).collect())
}

/// The home directory of `uid` in `passwd`; the root directory if it has none there.
pub fn home(passwd: io::Result<File>, uid: u32) -> String {
    let mut text = Vec::new();
    let read = passwd.and_then(|file| file.take(MAX_PASSWD_BYTES).read_to_end(&mut text));
    // Images without users are common; they get the root directory.
    let text = read.map(|_| String::from_utf8_lossy(&text)).unwrap_or_default();
    let fields = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let uid = uid.to_string();
    fields
        .filter_map(|fields| match fields.as_slice() {
            [_, _, id, _, _, home, ..] if *id == uid && !home.is_empty() => Some((*home).to_owned()),
            _ => None,
        })
        .next()
        .unwrap_or_else(|| "/".into())
}

/// Does the process come without a HOME?
pub fn lacks_home(process: &Process) -> bool {
    !environment(process).any(|(key, _)| key == "HOME")
}

fn environment(process: &Process) -> impl Iterator<Item = (&str, &str)> {
    process.env().as_deref().unwrap_or_default().iter().filter_map(|entry| entry.split_once('='))
}

fn find(process: &Process) -> Result<PathBuf, ProgramError> {
    let args = process.args().as_deref().unwrap_or_default();
    let name = args.first().ok_or(ProgramError::Empty)?;
    if name.contains('/') {
        let path = Path::new(name);
        return match is_program(path) {
            Ok(true) => Ok(path.into()),
            Ok(false) => Err(ProgramError::Permission { name: name.clone() }),
            Err(error) => Err(ProgramError::Stat { name: name.clone(), reason: reason(&error) }),
        };
    }
    let path = environment(process).filter(|(key, _)| *key == "PATH").last();
    let path = path.map_or(DEFAULT_PATH, |(_, value)| value);
    std::env::split_paths(OsStr::new(path))
        .map(|dir| dir.join(name))
        .find(|candidate| matches!(is_program(candidate), Ok(true)))
        .ok_or_else(|| ProgramError::NotFound { name: name.clone() })
}

fn is_program(path: &Path) -> io::Result<bool> {
    let metadata = fs::metadata(path)?;
    Ok(metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(args: &[&str], env: &[&str]) -> Process {
        let mut process = Process::default();
        process.set_args(Some(args.iter().map(|arg| (*arg).into()).collect()));
        process.set_env(Some(env.iter().map(|entry| (*entry).into()).collect()));
        process
    }

    #[test]
    fn programs_are_found_by_path_and_by_name() {
        assert_eq!(find(&process(&["/bin/sh"], &[])).unwrap(), Path::new("/bin/sh"));
        assert_eq!(find(&process(&["sh"], &["PATH=/nonexistent:/bin"])).unwrap(), Path::new("/bin/sh"));
        assert!(find(&process(&["sh"], &[])).is_ok(), "without PATH the default one is searched");
    }

    #[test]
    fn errors_are_worded_as_users_know_them() {
        for (args, expected) in [
            (&["/no/such"][..], "exec: \"/no/such\": stat /no/such: no such file or directory"),
            (&["nosuchprogram"], "exec: \"nosuchprogram\": executable file not found in $PATH"),
            (&["/etc"], "exec: \"/etc\": permission denied"),
            (&["/etc/passwd"], "exec: \"/etc/passwd\": permission denied"),
            (&[], "exec: no command"),
        ] {
            assert_eq!(find(&process(args, &["PATH=/bin"])).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn home_comes_from_passwd_or_is_the_root() {
        assert_eq!(home(File::open("/etc/passwd"), 0), "/root");
        assert_eq!(home(File::open("/etc/passwd"), 4_000_000_000), "/");
        assert_eq!(home(File::open("/nonexistent"), 0), "/");
        assert!(lacks_home(&process(&["x"], &["PATH=/bin"])));
        assert!(!lacks_home(&process(&["x"], &["HOME=/home"])));
    }
}
