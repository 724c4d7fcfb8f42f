//! Create and delete, of containers.
//!
//! A create runs in a task of its own: if the host hangs up on the request, the work still
//! ends in a known state and the host can ask for the rest (`DeleteProcess`). What was acquired
//! stands in `Resources` the moment it is, and [`Pod::give_back`] undoes it, in part or in whole,
//! for a failed create as for a delete.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hull_protocol::limits::MAX_CONTAINERS;
use libcontainer::oci_spec::runtime::Process as OciProcess;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::process::Pid;
use tokio::sync::oneshot;

use super::cgroup::Cgroup;
use super::error::PodError;
use super::helper::{self, Helper, HelperError, Made};
use super::io::{Io, Streams, Wanted};
use super::spec::{self, GuestSpec, Surroundings};
use super::state::{Change, State};
use super::{Container, Id, Pod, Process, ProcessId, Resources, create, devices, program};
use crate::init;
use crate::log::{info, warning};
use crate::storage::Layer;

/// How long killed processes may take to be gone.
const END_DEADLINE: Duration = Duration::from_secs(5);

/// The parts of a `CreateContainer` request, checked.
#[derive(Debug)]
pub struct CreateContainer {
    /// Its id.
    pub id: Id,
    /// OCI runtime spec, JSON.
    pub spec: Vec<u8>,
    /// Bottom first.
    pub layers: Vec<Layer>,
    /// Streams of its init.
    pub wanted: Wanted,
    /// Whatever the spec says.
    pub readonly_rootfs: bool,
}

/// What a create has made beside `Resources`.
struct Built {
    made: Made,
    io: Io,
    uid: u32,
}

impl Pod {
    /// Makes a container up to, not including, its user code; returns its init.
    ///
    /// # Errors
    /// What the host asked for cannot be had, or the guest failed. Nothing is left behind.
    pub async fn create(self: &Arc<Self>, request: CreateContainer) -> Result<Pid, PodError> {
        let pod = Arc::clone(self);
        let work = tokio::spawn(async move {
            let (number, is_first) = pod.reserve(&request.id)?;
            let mut resources = Resources::default();
            let naming = Naming::begin(&pod);
            match pod.build(&request, number, is_first, &mut resources).await {
                Ok(built) => {
                    let pid = pod.commit(&request.id, built, resources)?;
                    drop(naming);
                    Ok(pid)
                }
                Err(error) => {
                    drop(naming);
                    if let Err(left) = pod.give_back(&mut resources).await {
                        warning!("container {}: clean-up after a failed create: {left}", request.id);
                    }
                    pod.table().containers.remove(&request.id);
                    Err(error)
                }
            }
        });
        work.await.unwrap_or(Err(PodError::Aborted))
    }

    /// Forgets a process; for an init, the container and all that it has.
    ///
    /// # Errors
    /// It runs, it is unknown, or the guest cannot give everything back: then it can be repeated.
    pub async fn delete(self: &Arc<Self>, id: &Id, process_id: &ProcessId) -> Result<(), PodError> {
        if let Some(process_id) = process_id {
            return self.delete_process(id, process_id);
        }
        let (pod, id) = (Arc::clone(self), id.clone());
        let work = tokio::spawn(async move { pod.delete_container(&id).await });
        work.await.unwrap_or(Err(PodError::Aborted))
    }

    /// Takes the id; returns the container's number and whether it is the pod's first.
    fn reserve(&self, id: &Id) -> Result<(u64, bool), PodError> {
        let mut table = self.table();
        table.check_greeted()?;
        if table.containers.contains_key(id) {
            return Err(PodError::ContainerExists { id: id.to_string() });
        }
        if table.containers.len() >= MAX_CONTAINERS {
            return Err(PodError::TooManyContainers);
        }
        let (number, is_first) = (table.next_number, table.containers.is_empty());
        table.next_number += 1;
        if is_first {
            table.first = Some(id.clone());
        }
        table.containers.insert(id.clone(), Container::new(number));
        Ok((number, is_first))
    }

    async fn build(
        self: &Arc<Self>,
        request: &CreateContainer,
        number: u64,
        is_first: bool,
        resources: &mut Resources,
    ) -> Result<Built, PodError> {
        let dir = PathBuf::from(format!("{}/c/{number}", init::RUN));
        fs::create_dir(&dir).map_err(system("create the container's directory"))?;
        resources.dir = Some(dir.clone());
        let cgroup = Cgroup::create(format!("c{number}"))?;
        resources.cgroup = Some(cgroup.clone());
        let pid_namespace = self.pod_pid_namespace(is_first);
        let around = Surroundings {
            rootfs: &dir.join("rootfs"),
            cgroup: &cgroup.place(),
            readonly_rootfs: request.readonly_rootfs,
            is_first,
            pod_pid_namespace: pid_namespace.as_deref(),
        };
        let guest = spec::adapt(&request.spec, &around)?;
        let rules = guest.spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
        let rules = rules.and_then(|resources| resources.devices().as_deref()).unwrap_or_default();
        devices::restrict(cgroup.path(), rules)?;
        self.acquire(request, &dir, &cgroup, resources)?;
        self.prepare(&dir, guest, request, is_first).await
    }

    /// The process namespace of the pod's first container, while it lives.
    fn pod_pid_namespace(&self, is_first: bool) -> Option<PathBuf> {
        let table = self.table();
        let first = table.first.as_ref().filter(|_| !is_first).and_then(|id| table.containers.get(id))?;
        first.init.pid.map(|pid| PathBuf::from(format!("/proc/{}/ns/pid", pid.as_raw_nonzero())))
    }

    fn acquire(
        &self,
        request: &CreateContainer,
        dir: &Path,
        cgroup: &Cgroup,
        resources: &mut Resources,
    ) -> Result<(), PodError> {
        let mut table = self.table();
        let watch = self.add_watch(&mut table, &request.id, cgroup.path());
        resources.watch = Some(watch.map_err(system("watch the container's memory"))?);
        resources.rootfs = Some(table.storage.mount(dir, &request.layers)?);
        Ok(())
    }

    /// From a mounted root to an init that waits.
    async fn prepare(
        self: &Arc<Self>,
        dir: &Path,
        mut guest: GuestSpec,
        request: &CreateContainer,
        is_first: bool,
    ) -> Result<Built, PodError> {
        self.take_over(&guest, is_first)?;
        let mut process = guest.spec.process().clone().unwrap_or_default();
        add_home(&mut process, &dir.join("rootfs"));
        // The streams are made for what the host will do with them.
        process.set_terminal(Some(request.wanted.terminal));
        guest.spec.set_process(Some(process));
        create::prepare(dir, &guest.spec).map_err(system("write the container's configuration"))?;

        let (uid, _) = guest.owner;
        let streams = Streams::dial(self.host.as_ref(), &request.wanted).await?;
        let (mut io, ends) = open_io(streams, &request.wanted, uid)?;
        let descriptors: Vec<BorrowedFd<'_>> = ends.iter().map(AsFd::as_fd).collect();
        let mut made = match self.run_helper(helper::CREATE, &[dir.as_os_str()], &descriptors).await {
            Ok(made) => made,
            Err(error) => {
                io.close();
                return Err(error.into());
            }
        };
        if let Some(master) = made.console.take() {
            io.attach(master, uid)?;
        }
        Ok(Built { made, io, uid })
    }

    /// What of a spec is the pod's affair.
    fn take_over(&self, guest: &GuestSpec, is_first: bool) -> Result<(), PodError> {
        for (name, value) in &guest.sysctls {
            init::set_sysctl(name, value)?;
        }
        let mut table = self.table();
        if let Some(hostname) = guest.hostname.as_ref().filter(|_| is_first && !table.has_hostname) {
            init::set_hostname(hostname)?;
            table.has_hostname = true;
        }
        Ok(())
    }

    fn commit(self: &Arc<Self>, id: &Id, built: Built, resources: Resources) -> Result<Pid, PodError> {
        let mut table = self.table();
        let pid = built.made.pid;
        let container = table.container(id)?;
        container.resources = resources;
        let state = container.init.state.next(Change::Prepared)?;
        container.init = Process { state, pid: Some(pid), uid: built.uid, io: Some(built.io), plan: None };
        info!("container {id} is created as number {}: process {}", container.number, pid.as_raw_nonzero());
        self.adopt(&mut table, pid, id, &None);
        Ok(pid)
    }

    /// Runs a helper process to its last word.
    pub(super) async fn run_helper(
        &self,
        verb: &str,
        arguments: &[&OsStr],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Made, HelperError> {
        let (sender, reaped) = oneshot::channel();
        let helper = {
            // The reaper cannot come between the two: it needs the lock.
            let mut table = self.table();
            let helper = Helper::spawn(verb, arguments, descriptors)?;
            table.helpers.insert(helper.pid(), sender);
            helper
        };
        helper.finish(reaped).await
    }

    async fn delete_container(self: &Arc<Self>, id: &Id) -> Result<(), PodError> {
        {
            let mut table = self.table();
            let container = table.container(id)?;
            let state = container.init.state;
            if !state.is_deletable() {
                return Err(PodError::NotDeletable { state });
            }
            if std::mem::replace(&mut container.removing, true) {
                return Err(PodError::Removing { id: id.to_string() });
            }
        }
        let result = self.dismantle(id).await;
        let mut table = self.table();
        match result {
            Ok(()) => {
                table.containers.remove(id);
                info!("container {id} is deleted");
            }
            Err(_) => {
                if let Ok(container) = table.container(id) {
                    container.removing = false;
                }
            }
        }
        result
    }

    async fn dismantle(self: &Arc<Self>, id: &Id) -> Result<(), PodError> {
        let cgroup = self.table().container(id)?.cgroup(id)?;
        cgroup.kill()?;
        self.wait_for_ends(id).await?;
        let mut resources = {
            let mut table = self.table();
            let container = table.container(id)?;
            let ends = container.processes.values_mut().chain([&mut container.init]);
            ends.filter_map(|process| process.io.take()).for_each(Io::close);
            std::mem::take(&mut container.resources)
        };
        let result = self.give_back(&mut resources).await;
        if result.is_err() {
            self.table().container(id)?.resources = resources;
        }
        result
    }

    /// Waits until every process that the host knows of has been reaped and reported.
    async fn wait_for_ends(&self, id: &Id) -> Result<(), PodError> {
        let all_ended = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if self.table().container(id).map_or(true, |container| container.has_ended()) {
                    return;
                }
                changed.await;
            }
        };
        let late = |_| PodError::System {
            step: "end the container's processes",
            source: io::ErrorKind::TimedOut.into(),
        };
        tokio::time::timeout(END_DEADLINE, all_ended).await.map_err(late)
    }

    /// Undoes what stands in `resources`; what could not be undone stays in it.
    async fn give_back(&self, resources: &mut Resources) -> Result<(), PodError> {
        if let Some(cgroup) = &resources.cgroup {
            cgroup.kill()?;
            cgroup.wait_until_empty().await?;
        }
        if let Some(rootfs) = &resources.rootfs {
            self.table().storage.unmount(rootfs)?;
            resources.rootfs = None;
        }
        if let Some(watch) = resources.watch.take() {
            self.remove_watch(&mut self.table(), watch);
        }
        if let Some(cgroup) = &resources.cgroup {
            cgroup.remove().await?;
            resources.cgroup = None;
        }
        if let Some(dir) = &resources.dir {
            fs::remove_dir_all(dir).map_err(system("remove the container's directory"))?;
            resources.dir = None;
        }
        Ok(())
    }
}

/// While it lives, processes of unknown owner that end are kept: one may be named any moment.
pub(super) struct Naming(Arc<Pod>);

impl Naming {
    pub(super) fn begin(pod: &Arc<Pod>) -> Self {
        pod.table().unnamed += 1;
        Self(Arc::clone(pod))
    }
}

impl Drop for Naming {
    fn drop(&mut self) {
        let mut table = self.0.table();
        table.unnamed = table.unnamed.saturating_sub(1);
        if table.unnamed == 0 {
            table.early.clear();
        }
    }
}

impl Container {
    fn has_ended(&self) -> bool {
        self.init.state == State::Stopped
            && self.processes.values().all(|process| {
                process.pid.is_none() && matches!(process.state, State::Created | State::Stopped)
            })
    }
}

/// Joins streams to pipes, or keeps them for a terminal.
pub(super) fn open_io(streams: Streams, wanted: &Wanted, uid: u32) -> Result<(Io, Vec<OwnedFd>), PodError> {
    if wanted.terminal {
        return Ok((Io::terminal(streams, wanted.size), Vec::new()));
    }
    let (io, ends) = Io::pipes(streams, uid)?;
    Ok((io, ends.into()))
}

/// Gives a process without HOME its user's, read from the container's own files and never beyond.
pub(super) fn add_home(process: &mut OciProcess, rootfs: &Path) {
    if !program::lacks_home(process) {
        return;
    }
    let open = || -> io::Result<File> {
        let flags = OFlags::CLOEXEC | OFlags::RDONLY;
        let root = rustix::fs::open(rootfs, flags | OFlags::DIRECTORY, Mode::empty())?;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        // A fifo in place of the file must not stop the agent.
        let file = openat2(root, "etc/passwd", flags | OFlags::NONBLOCK, Mode::empty(), resolve)?;
        Ok(file.into())
    };
    let home = program::home(open(), process.user().uid());
    let mut env = process.env().clone().unwrap_or_default();
    env.push(format!("HOME={home}"));
    process.set_env(Some(env));
}

/// The agent's own trouble with the kernel.
pub(super) fn system(step: &'static str) -> impl Fn(io::Error) -> PodError {
    move |source| PodError::System { step, source }
}
