//! Further processes of a container, and the starts of all of them.
//!
//! A start runs in a task of its own, as a create does (`lifecycle`). A further process is made by
//! the helper `exec` only when it is started; until then it is a plan and open streams.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use hull_protocol::limits::MAX_PROCESSES_PER_CONTAINER;
use libcontainer::oci_spec::runtime::{BoxBuilder, Process as OciProcess};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::error::PodError;
use super::helper::{self, Made};
use super::io::{Io, Size, Streams, Wanted};
use super::lifecycle::{Naming, add_home, open_io, system};
use super::state::{Change, State};
use super::{Container, Id, Plan, Pod, Process, ProcessId, create};
use crate::log::warning;

/// The parts of a `CreateProcess` request, checked.
#[derive(Debug)]
pub struct CreateProcess {
    /// Its container.
    pub container_id: Id,
    /// Its id.
    pub id: Id,
    /// What to run.
    pub process: OciProcess,
    /// Its streams.
    pub wanted: Wanted,
}

/// A further process on its way to run.
struct Start {
    dir: PathBuf,
    file: PathBuf,
    cgroup: PathBuf,
    init: Pid,
    handle: Result<OwnedFd, PodError>,
    plan: Plan,
    size: Option<Size>,
}

impl Pod {
    /// Registers a further process and opens its streams.
    ///
    /// # Errors
    /// The container takes none, the id is taken, or a stream cannot be opened.
    pub async fn create_process(self: &Arc<Self>, request: CreateProcess) -> Result<(), PodError> {
        self.table().container(&request.container_id)?.check_takes(&request)?;
        let uid = request.process.user().uid();
        let streams = Streams::dial(self.host.as_ref(), &request.wanted).await?;
        let (io, ends) = open_io(streams, &request.wanted, uid)?;
        let mut table = self.table();
        let container = table.container(&request.container_id)?;
        container.check_takes(&request)?;
        let plan = Some(Plan { process: request.process, streams: ends });
        let process = Process { state: State::Created, pid: None, uid, io: Some(io), plan };
        container.processes.insert(request.id, process);
        Ok(())
    }

    /// Runs what was created; returns its process id.
    ///
    /// # Errors
    /// The state does not allow it, or the program cannot be run.
    pub async fn start(self: &Arc<Self>, id: &Id, process_id: &ProcessId) -> Result<Pid, PodError> {
        let Some(process_id) = process_id else { return self.start_init(id) };
        let (pod, id, process_id) = (Arc::clone(self), id.clone(), process_id.clone());
        let work = tokio::spawn(async move { pod.start_process(&id, &process_id).await });
        work.await.unwrap_or(Err(PodError::Aborted))
    }

    fn start_init(&self, id: &Id) -> Result<Pid, PodError> {
        let mut table = self.table();
        let container = table.container(id)?;
        let state = container.init.state.next(Change::Start)?;
        let pid = container.init.pid.ok_or(PodError::Finished)?;
        let dir = container.resources.dir.clone().unwrap_or_default();
        // libcontainer's init listens; the kernel takes both calls without its help.
        UnixStream::connect(dir.join(create::START_SOCKET))
            .and_then(|mut socket| socket.write_all(b"start container"))
            .map_err(system("start the container's init"))?;
        container.init.state = state.next(Change::Started)?;
        Ok(pid)
    }

    async fn start_process(self: &Arc<Self>, id: &Id, process_id: &Id) -> Result<Pid, PodError> {
        let start = self.begin_start(id, process_id)?;
        let naming = Naming::begin(self);
        let result = self.exec(&start).await;
        drop(start);
        let mut table = self.table();
        let outcome = match result {
            Ok(made) => self.started(&mut table, id, process_id, made),
            Err(error) => Err(error),
        };
        if outcome.is_err()
            && let Ok(process) = table.process(id, &Some(process_id.clone()))
        {
            process.state = process.state.next(Change::StartFailed).unwrap_or(State::Stopped);
            process.io.take().into_iter().for_each(Io::close);
        }
        self.settle(&mut table, id);
        drop(table);
        drop(naming);
        outcome
    }

    fn begin_start(&self, id: &Id, process_id: &Id) -> Result<Start, PodError> {
        let mut table = self.table();
        let container = table.container(id)?;
        let init = container.init.pid.filter(|_| container.init.state.takes_processes());
        let wrong = PodError::ContainerState { id: id.to_string(), state: container.init.state };
        let (dir, cgroup) = (container.resources.dir.clone(), container.cgroup(id)?);
        let process = container.process(&Some(process_id.clone()))?;
        let state = process.state.next(Change::Start)?;
        let (Some(init), Some(dir)) = (init, dir) else { return Err(wrong) };
        let size = process.io.as_ref().and_then(Io::size);
        let plan = process.plan.take().ok_or(PodError::Finished)?;
        process.state = state;
        let handle = pidfd_open(init, PidfdFlags::empty());
        let number = table.next_number;
        table.next_number += 1;
        Ok(Start {
            file: dir.join(format!("p{number}.json")),
            dir,
            cgroup: cgroup.path().into(),
            init,
            handle: handle.map_err(|error| system("take hold of the container's init")(error.into())),
            plan,
            size,
        })
    }

    async fn exec(self: &Arc<Self>, start: &Start) -> Result<Made, PodError> {
        let handle = match &start.handle {
            Ok(handle) => handle,
            Err(_) => return Err(PodError::Finished),
        };
        let mut process = start.plan.process.clone();
        add_home(&mut process, &start.dir.join("rootfs"));
        if let Some(size) = start.size {
            let size = BoxBuilder::default().width(u64::from(size.width)).height(u64::from(size.height));
            process.set_console_size(size.build().ok());
        }
        let json = serde_json::to_vec(&process).map_err(io::Error::from);
        json.and_then(|json| fs::write(&start.file, json))
            .map_err(system("write the process's configuration"))?;
        let mut descriptors = vec![handle.as_fd()];
        descriptors.extend(start.plan.streams.iter().map(AsFd::as_fd));
        let init = start.init.as_raw_nonzero().to_string();
        let arguments =
            [start.dir.as_os_str(), start.file.as_os_str(), start.cgroup.as_os_str(), OsStr::new(&init)];
        let made = self.run_helper(helper::EXEC, &arguments, &descriptors).await;
        // A file of a tmpfs that goes with the container.
        let _ = fs::remove_file(&start.file);
        Ok(made?)
    }

    fn started(
        self: &Arc<Self>,
        table: &mut super::Table,
        id: &Id,
        process_id: &Id,
        made: Made,
    ) -> Result<Pid, PodError> {
        let process_id = Some(process_id.clone());
        let process = table.process(id, &process_id)?;
        process.state = process.state.next(Change::Started)?;
        process.pid = Some(made.pid);
        if let (Some(master), Some(io)) = (made.console, &mut process.io)
            && let Err(error) = io.attach(master, process.uid)
        {
            warning!("container {id}: the terminal of a process is lost: {error}");
        }
        self.adopt(table, made.pid, id, &process_id);
        Ok(made.pid)
    }

    /// Forgets a further process.
    pub(super) fn delete_process(&self, id: &Id, process_id: &Id) -> Result<(), PodError> {
        let mut table = self.table();
        let container = table.container(id)?;
        let state = container.process(&Some(process_id.clone()))?.state;
        if !state.is_deletable() {
            return Err(PodError::NotDeletable { state });
        }
        if let Some(io) = container.processes.remove(process_id).and_then(|process| process.io) {
            io.close();
        }
        Ok(())
    }
}

impl Container {
    fn check_takes(&self, request: &CreateProcess) -> Result<(), PodError> {
        if !self.init.state.takes_processes() || self.removing {
            let id = request.container_id.to_string();
            return Err(PodError::ContainerState { id, state: self.init.state });
        }
        if self.processes.contains_key(&request.id) {
            return Err(PodError::ProcessExists { id: request.id.to_string() });
        }
        if self.processes.len() >= MAX_PROCESSES_PER_CONTAINER {
            return Err(PodError::TooManyProcesses);
        }
        Ok(())
    }
}
