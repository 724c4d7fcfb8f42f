//! The record of one container: its init, its further processes, and what it holds in the machine.

use std::collections::BTreeMap;

use containerd_shim_protos::api::Mount;

use crate::error::{Error, Result};
use crate::io::StdioPaths;
use crate::process::{Process, State};
use crate::sandbox::guest::ImageSlot;

/// One container of the pod. Owned by the actor.
#[derive(Debug)]
pub struct Container {
    /// Its bundle directory.
    pub bundle: String,
    /// The mounts as containerd sent them, repeated in the Create event.
    pub rootfs: Vec<Mount>,
    /// Its first process.
    pub init: Process,
    /// Further processes by their ids.
    pub execs: BTreeMap<String, Process>,
    /// Its image on the layer disk.
    pub image: Option<ImageSlot>,
    /// Somebody asked to delete it while it was still being created.
    pub abandoned: bool,
    /// containerd has been told that it is deleted; the guest is still cleaning up.
    pub deleted: bool,
}

impl Container {
    /// A record whose init is being created.
    pub fn new(bundle: String, rootfs: Vec<Mount>, stdio: StdioPaths) -> Self {
        Container {
            bundle,
            rootfs,
            init: Process::new(stdio),
            execs: BTreeMap::new(),
            image: None,
            abandoned: false,
            deleted: false,
        }
    }

    /// The process that a request means: init if the exec id is empty.
    ///
    /// # Errors
    /// [`Error::NoSuchProcess`].
    pub fn process(&mut self, id: &str, exec_id: &str) -> Result<&mut Process> {
        if exec_id.is_empty() {
            return Ok(&mut self.init);
        }
        self.execs
            .get_mut(exec_id)
            .ok_or_else(|| Error::NoSuchProcess { id: id.to_owned(), exec_id: exec_id.to_owned() })
    }

    /// Ids of the further processes that have not ended but were started.
    pub fn running_execs(&self) -> Vec<String> {
        let runs = |process: &Process| matches!(process.state, State::Starting | State::Running);
        self.execs.iter().filter(|(_, process)| runs(process)).map(|(id, _)| id.clone()).collect()
    }
}
