//! A running container with commands executed in it.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Result;

use crate::context::wait_for;
use crate::ctr::{Output, command, ctr, finish, spawn};

/// How long a task may take to change its state after it was asked to.
const STATE_LIMIT: Duration = Duration::from_secs(20);

/// A container that was started detached. Dropping it kills and removes it.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) id: String,
    execs: AtomicU32,
    removed: bool,
}

impl Pod {
    pub(crate) fn new(id: &str) -> Self {
        Self { id: id.to_owned(), execs: AtomicU32::new(0), removed: false }
    }

    /// `ctr task exec FLAGS ID WORDS` as a command.
    pub(crate) fn exec_command(&self, flags: &[&str], words: &[&str]) -> Command {
        let number = self.execs.fetch_add(1, Ordering::Relaxed);
        let exec_id = format!("exec{number}-{}", std::process::id());
        let mut all = vec!["task", "exec", "--exec-id", &exec_id];
        all.extend(flags);
        all.push(&self.id);
        all.extend(words);
        command(&all)
    }

    /// Runs a command in the container.
    pub(crate) fn exec(&self, words: &[&str]) -> Result<Output> {
        finish(spawn(&mut self.exec_command(&[], words))?)
    }

    /// Runs a shell script in the container.
    pub(crate) fn sh(&self, script: &str) -> Result<Output> {
        self.exec(&["sh", "-c", script])
    }

    /// Runs a shell script that has to succeed; gives what it printed.
    pub(crate) fn says(&self, script: &str) -> Result<String> {
        Ok(self.sh(script)?.ok()?.text())
    }

    /// How many processes the container has, not counting the one that counts. No other process is started for it.
    pub(crate) fn processes(&self) -> Result<u32> {
        Ok(self.says("set -- /proc/[0-9]*; echo $(($# - 1))")?.parse()?)
    }

    pub(crate) fn kill(&self, signal: &str, flags: &[&str]) -> Result<Output> {
        let mut words = vec!["task", "kill", "--signal", signal];
        words.extend(flags);
        words.push(&self.id);
        ctr(&words)
    }

    /// The task's process id and state as containerd lists them; none if there is no task.
    pub(crate) fn status(&self) -> Result<Option<(u32, String)>> {
        let list = ctr(&["task", "list"])?.ok()?.text();
        Ok(list.lines().find_map(|line| {
            let mut columns = line.split_whitespace();
            (columns.next()? == self.id).then_some(())?;
            Some((columns.next()?.parse().ok()?, columns.next()?.to_owned()))
        }))
    }

    /// Waits until the task's state is `wanted` (RUNNING, STOPPED, PAUSED).
    pub(crate) fn wait_status(&self, wanted: &str) -> Result<()> {
        wait_for(&format!("{} to be {wanted}", self.id), STATE_LIMIT, || {
            Ok(self.status()?.filter(|(_, state)| state == wanted).map(drop))
        })
    }

    /// Kills what runs, removes task and container; fails if that fails.
    pub(crate) fn remove(mut self) -> Result<()> {
        self.removed = true;
        ctr(&["task", "delete", "--force", &self.id])?;
        ctr(&["container", "delete", &self.id])?.ok().map(drop)
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if !self.removed {
            // Best effort on the way out of a failed or finished test; the leak check judges the result.
            let _ = ctr(&["task", "delete", "--force", &self.id]);
            let _ = ctr(&["container", "delete", &self.id]);
        }
    }
}
