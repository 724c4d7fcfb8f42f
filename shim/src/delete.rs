//! `delete`: cleans up what a container, or a whole dead pod, has left.
//!
//! containerd runs it whenever a shim's connection closes, in the normal course of things too, so it
//! must do nothing twice, never fail for what is missing already, and be done within 5 s.
//!
//! ```text
//! daemon gone                                 -> replay its journal
//! daemon alive, other containers journalled   -> leave it alone, unless `id` is the pod itself and
//!                                                was never deleted: then the whole pod was given up
//! daemon alive, nothing else in it            -> tell it to end, then replay (which kills it)
//! ```

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use containerd_shim_protos::api::DeleteResponse;
use protobuf::{Message, MessageField};
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::args::Args;
use crate::journal::{self, Entry};
use crate::process::timestamp;
use crate::spec;

/// A daemon that was told to shut down ends within this; containerd gives all of `delete` 5 s.
const GRACE: Duration = Duration::from_millis(1500);
/// Exit status of a task whose shim is gone: as if killed.
const KILLED: u32 = 137;

/// Why there was no reply.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    /// containerd always passes these.
    #[error("The flag -{0} is missing")]
    MissingFlag(&'static str),
    /// stdout is closed.
    #[error("The reply cannot be printed")]
    Reply(#[from] io::Error),
}

/// Runs the verb.
///
/// # Errors
/// [`DeleteError`].
pub fn run(args: &Args) -> Result<(), DeleteError> {
    for (name, value) in [("id", &args.id), ("namespace", &args.namespace)] {
        if value.is_empty() {
            return Err(DeleteError::MissingFlag(name));
        }
    }
    let bundle = if args.bundle.is_empty() { Path::new(".") } else { Path::new(&args.bundle) };
    let group = spec::group_of_bundle(bundle).filter(|group| spec::is_id(group));
    let owner = group.as_deref().is_none_or(|group| group == args.id);
    let group = group.unwrap_or_else(|| args.id.clone());
    let pid = clean(Path::new(journal::ROOT), &args.namespace, &group, &args.id, owner);

    let response = DeleteResponse {
        pid: u32::try_from(pid).unwrap_or_default(),
        exit_status: KILLED,
        exited_at: MessageField::some(timestamp(std::time::SystemTime::now())),
        ..Default::default()
    };
    let bytes = response.write_to_bytes().map_err(io::Error::from)?;
    let mut stdout = io::stdout();
    stdout.write_all(&bytes)?;
    stdout.flush()?;
    Ok(())
}

/// Returns the daemon's process id, 0 if there was none.
fn clean(root: &Path, namespace: &str, group: &str, id: &str, owner: bool) -> i32 {
    let dir = journal::directory(root, namespace, group);
    let entries = journal::read(&dir);
    let daemon = entries.iter().find_map(|entry| match entry {
        Entry::Daemon { pid, start } => Some((*pid, *start)),
        _ => None,
    });
    if let Some((pid, start)) = daemon
        && journal::is_alive(pid, start)
    {
        let containers = journal::containers(&entries);
        let others = containers.iter().any(|other| other != id);
        // containerd gave up the pod's own sandbox: its members go with it.
        let pod_given_up = owner && containers.iter().any(|other| other == id);
        if others && !pod_given_up {
            return pid;
        }
        ask_to_end(pid, GRACE);
    }
    journal::replay_backwards(&dir, &entries);
    daemon.map_or(0, |(pid, _)| pid)
}

/// Tells the daemon to end in good order, in case nobody has yet.
fn ask_to_end(pid: i32, limit: Duration) {
    let Some(pid) = Pid::from_raw(pid) else { return };
    if let Ok(handle) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        let _ = rustix::process::pidfd_send_signal(&handle, Signal::TERM);
        journal::wait_gone(&handle, limit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::Journal;

    /// A pod with a live "daemon" and these containers; returns whether `delete` of `id` ended it.
    fn ended(test: &str, containers: &[&str], id: &str, owner: bool) -> bool {
        let root = std::env::temp_dir().join(format!("hull-delete-{}-{test}", std::process::id()));
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let start = journal::start_time(pid).unwrap();
        let mut journal = Journal::open(journal::directory(&root, "ns", "g")).unwrap();
        journal.write(&Entry::Daemon { pid, start }).unwrap();
        for id in containers {
            journal.write(&Entry::Container { id: (*id).to_owned() }).unwrap();
        }
        assert_eq!(clean(&root, "ns", "g", id, owner), pid);
        let ended = !journal::is_alive(pid, start);
        let _ = child.kill();
        child.wait().unwrap();
        assert_eq!(root.join("ns/g").exists(), !ended, "the journal goes with the daemon");
        let _ = std::fs::remove_dir_all(&root);
        ended
    }

    #[test]
    fn the_last_container_takes_the_daemon_with_it() {
        assert!(ended("last", &["a"], "a", false));
        assert!(ended("none", &[], "g", true));
    }

    #[test]
    fn members_leave_the_daemon_alone() {
        assert!(!ended("member", &["g", "a"], "a", false));
        assert!(!ended("first-deleted", &["a"], "g", true));
    }

    #[test]
    fn a_pod_given_up_goes_with_its_members() {
        assert!(ended("pod", &["g", "a"], "g", true));
    }

    #[test]
    fn nothing_there_is_no_error() {
        assert_eq!(clean(Path::new("/nonexistent"), "ns", "g", "g", true), 0);
    }
}
