//! Requests: what each one checks, and what it sets going.

use hull_protocol::limits::{MAX_CONTAINERS, MAX_PROCESSES_PER_CONTAINER};

use super::*;

impl Actor {
    /// Handles a request, or parks it until the operation that decides over it has ended.
    pub(super) fn request(&mut self, command: Command) {
        let Some(command) = self.park(command) else { return };
        match command {
            Command::Create(task, reply) => self.create(task, reply),
            Command::Start(target, reply) => self.start(target, reply),
            Command::Delete(target, reply) => self.delete(target, reply),
            Command::Wait(target, reply) => match self.process(&target) {
                Ok(process) => process.wait(reply),
                Err(error) => answer(reply, Err(error)),
            },
            Command::Kill(target, signal, all, reply) => self.kill(target, signal, all, reply),
            Command::Exec(task, reply) => self.exec(task, reply),
            Command::Resize(target, width, height, reply) => self.resize(target, width, height, reply),
            Command::CloseStdin(target, reply) => {
                let closed = self.process(&target).map(|process| {
                    if let Some(io) = process.io.as_mut() {
                        io.close_stdin();
                    }
                });
                answer(reply, closed);
            }
            Command::State(target, reply) => {
                let status = self.status(&target);
                answer(reply, status);
            }
            Command::Exists(id, reply) => {
                let exists = self.container(&id).map(drop);
                answer(reply, exists);
            }
            Command::Pause(id, reply) => self.pause(id, reply),
            Command::Resume(id, reply) => self.resume(id, reply),
            Command::Update(id, resources, reply) => self.update(id, resources, reply),
            Command::Stats(id, reply) => self.stats(id, reply),
            Command::Shutdown(now, reply) => {
                if now || self.is_empty() {
                    self.end("Shutdown");
                }
                answer(reply, Ok(()));
            }
            Command::LogSummary => self.log_summary(),
        }
    }

    /// Puts a command aside if its process is in transition and the command depends on what follows.
    fn park(&mut self, command: Command) -> Option<Command> {
        if let Command::Create(task, _) = &command
            && let Some(swept) = self.containers.get_mut(&task.id).filter(|container| container.deleted)
        {
            // The guest still cleans up after the last container of that name.
            swept.init.parked.push(command);
            return None;
        }
        let target = match &command {
            Command::Start(target, _)
            | Command::Delete(target, _)
            | Command::Kill(target, ..)
            | Command::Resize(target, ..) => target.clone(),
            Command::Pause(id, _)
            | Command::Resume(id, _)
            | Command::Update(id, ..)
            | Command::Stats(id, _) => Target { id: id.clone(), exec_id: String::new() },
            Command::Exec(task, _) => Target { id: task.target.id.clone(), exec_id: String::new() },
            _ => return Some(command),
        };
        let Ok(container) = self.container(&target.id) else { return Some(command) };
        let creating = container.init.state == State::Creating;
        if creating && matches!(command, Command::Delete(..)) && target.exec_id.is_empty() {
            // The caller of Create has given up; a Shutdown that follows need not wait for it.
            container.abandoned = true;
        }
        // Until it is decided whether init runs, nothing can be done with the others either.
        let decides = if container.init.state.in_transition() { "" } else { target.exec_id.as_str() };
        match container.process(&target.id, decides) {
            Ok(process) if process.state.in_transition() => {
                process.parked.push(command);
                None
            }
            _ => Some(command),
        }
    }

    pub(super) fn container(&mut self, id: &str) -> Result<&mut Container> {
        let known = self.containers.get_mut(id).filter(|container| !container.deleted);
        known.ok_or_else(|| Error::NoSuchTask(id.to_owned()))
    }

    pub(super) fn process(&mut self, target: &Target) -> Result<&mut Process> {
        self.container(&target.id)?.process(&target.id, &target.exec_id)
    }

    fn create(&mut self, task: CreateTask, reply: Reply<()>) {
        let id = task.id.clone();
        match self.begin_create(&task) {
            Ok(operation) => {
                let container = Container::new(task.bundle, task.rootfs, task.stdio);
                self.containers.insert(id.clone(), container);
                self.deadline = None;
                let operation = ops::create_container(operation);
                self.spawn(operation, move |result| Done::ContainerCreated(id, result, reply));
            }
            Err(error) => {
                warn!(container = id, error = chain(&error), "Create is refused");
                answer(reply, Err(error));
            }
        }
    }

    fn begin_create(&mut self, task: &CreateTask) -> Result<ops::CreateContainer> {
        if !spec::is_id(&task.id) {
            return Err(Error::Invalid(format!("{:?} is no valid id", task.id)));
        }
        if self.containers.contains_key(&task.id) {
            return Err(Error::TaskExists(task.id.clone()));
        }
        if self.containers.len() >= MAX_CONTAINERS {
            return Err(Error::TooMany { what: "containers", limit: MAX_CONTAINERS });
        }
        if self.phase == Phase::Dead {
            self.live_guest()?;
        }
        let bundle = PathBuf::from(&task.bundle);
        let spec = spec::read(&bundle)?;
        self.journal.write(&Entry::Container { id: task.id.clone() }).map_err(Error::Journal)?;
        self.boot(&spec);
        Ok(ops::CreateContainer {
            id: task.id.clone(),
            namespace: self.identity.namespace.clone(),
            bundle,
            spec,
            rootfs: task.rootfs.clone(),
            stdio: task.stdio.clone(),
            guest: self.guest.subscribe(),
            images: self.means.images.clone(),
        })
    }

    fn start(&mut self, target: Target, reply: Reply<()>) {
        match self.begin_start(&target) {
            Ok(guest) => {
                let operation = ops::start(target.clone(), guest);
                self.spawn(operation, move |result| Done::Started(target, result, reply));
            }
            Err(error) => answer(reply, Err(error)),
        }
    }

    fn begin_start(&mut self, target: &Target) -> Result<Guest> {
        const VERB: &str = "started";
        let container = self.container(&target.id)?;
        let init = container.init.state;
        let process = container.process(&target.id, &target.exec_id)?;
        if !target.exec_id.is_empty() && init != State::Running {
            return Err(Error::WrongState { verb: VERB, state: init_is(init) });
        }
        if process.state != State::Created {
            return Err(Error::WrongState { verb: VERB, state: process.state.name() });
        }
        let guest = self.live_guest()?;
        self.process(target)?.step(Step::StartBegun, VERB)?;
        Ok(guest)
    }

    fn exec(&mut self, task: super::super::ExecTask, reply: Reply<()>) {
        match self.begin_exec(&task) {
            Ok(guest) => {
                let target = task.target.clone();
                let operation = ops::create_process(task, self.identity.namespace.clone(), guest);
                self.spawn(operation, move |result| Done::ProcessCreated(target, result, reply));
            }
            Err(error) => answer(reply, Err(error)),
        }
    }

    fn begin_exec(&mut self, task: &super::super::ExecTask) -> Result<Guest> {
        let Target { id, exec_id } = task.target.clone();
        let container = self.container(&id)?;
        if !spec::is_id(&exec_id) {
            return Err(Error::Invalid(format!("{exec_id:?} is no valid exec id")));
        }
        if container.execs.contains_key(&exec_id) {
            return Err(Error::ProcessExists { id, exec_id });
        }
        if container.execs.len() >= MAX_PROCESSES_PER_CONTAINER {
            return Err(Error::TooMany { what: "processes", limit: MAX_PROCESSES_PER_CONTAINER });
        }
        let init = container.init.state;
        if !matches!(init, State::Created | State::Running) {
            return Err(Error::WrongState { verb: "joined by another one", state: init_is(init) });
        }
        let guest = self.live_guest()?;
        self.container(&id)?.execs.insert(exec_id, Process::new(task.stdio.clone()));
        Ok(guest)
    }

    fn kill(&mut self, target: Target, signal: u32, all: bool, reply: Reply<()>) {
        let check = self.process(&target).map(|process| process.state).and_then(|state| match state {
            State::Created if !target.exec_id.is_empty() => {
                Err(Error::WrongState { verb: "signalled", state: state.name() })
            }
            State::Stopped | State::Deleting => Err(Error::Finished),
            _ => Ok(()),
        });
        // With the machine every process has ended, even if its record does not say so yet.
        let guest = check.and_then(|()| self.live_guest().map_err(|_| Error::Finished));
        self.ask_guest(guest, reply, move |guest| async move {
            let sent = guest.call(guest.agent.signal(&target.id, &target.exec_id, signal, all)).await;
            sent.map_err(|error| match error {
                Error::Agent(error) if error.is_not_found() => Error::Finished,
                Error::MachineGone(_) => Error::Finished,
                error => error,
            })
        });
    }

    fn resize(&mut self, target: Target, width: u32, height: u32, reply: Reply<()>) {
        const VERB: &str = "resized";
        let needed = self.process(&target).and_then(|process| match process.state {
            State::Stopped | State::Deleting => {
                Err(Error::WrongState { verb: VERB, state: process.state.name() })
            }
            // Clients without a terminal of their own send 0 x 0.
            _ => Ok(process.stdio.terminal && width > 0 && height > 0),
        });
        match needed {
            Ok(true) => {
                let guest = self.live_guest();
                self.ask_guest(guest, reply, move |guest| async move {
                    guest.call(guest.agent.resize(&target.id, &target.exec_id, width, height)).await
                });
            }
            Ok(false) => answer(reply, Ok(())),
            Err(error) => answer(reply, Err(error)),
        }
    }

    fn pause(&mut self, id: String, reply: Reply<()>) {
        match self.guest_in_state(&id, State::Running, "paused") {
            Ok(guest) => {
                let name = id.clone();
                let operation = async move { guest.call(guest.agent.pause(&name)).await };
                self.spawn(operation, move |result| Done::Paused(id, result, reply));
            }
            Err(error) => answer(reply, Err(error)),
        }
    }

    fn resume(&mut self, id: String, reply: Reply<()>) {
        match self.guest_in_state(&id, State::Paused, "resumed") {
            Ok(guest) => {
                let name = id.clone();
                let operation = async move { guest.call(guest.agent.resume(&name)).await };
                self.spawn(operation, move |result| Done::Resumed(id, result, reply));
            }
            Err(error) => answer(reply, Err(error)),
        }
    }

    fn guest_in_state(&mut self, id: &str, state: State, verb: &'static str) -> Result<Guest> {
        let init = self.container(id)?.init.state;
        if init != state {
            return Err(Error::WrongState { verb, state: init.name() });
        }
        self.live_guest()
    }

    fn update(&mut self, id: String, resources: Vec<u8>, reply: Reply<()>) {
        let guest = self.guest_while_alive(&id, "updated");
        self.ask_guest(guest, reply, move |guest| async move {
            guest.call(guest.agent.update(&id, resources)).await
        });
    }

    fn stats(&mut self, id: String, reply: Reply<protobuf::well_known_types::any::Any>) {
        let guest = self.guest_while_alive(&id, "measured");
        self.ask_guest(guest, reply, move |guest| async move {
            guest.call(guest.agent.stats(&id)).await.map(crate::stats::metrics)
        });
    }

    fn guest_while_alive(&mut self, id: &str, verb: &'static str) -> Result<Guest> {
        let init = self.container(id)?.init.state;
        if matches!(init, State::Stopped | State::Deleting) {
            return Err(Error::WrongState { verb, state: init.name() });
        }
        self.live_guest()
    }

    /// A question to the guest that changes no record.
    fn ask_guest<T: Send + 'static, F: Future<Output = Result<T>> + Send + 'static>(
        &self,
        guest: Result<Guest>,
        reply: Reply<T>,
        question: impl FnOnce(Guest) -> F,
    ) {
        match guest {
            Ok(guest) => {
                let question = question(guest);
                // Owned by its deadline in agent.rs.
                tokio::spawn(async move { answer(reply, question.await) });
            }
            Err(error) => answer(reply, Err(error)),
        }
    }

    fn delete(&mut self, target: Target, reply: Reply<Exited>) {
        match self.begin_delete(&target) {
            Ok((io, drain)) => {
                let guest = self.guest().filter(|_| !target.exec_id.is_empty());
                let operation = ops::delete_process(target.clone(), io, drain, guest);
                self.spawn(operation, move |()| Done::Deleted(target, reply));
            }
            Err(error) => answer(reply, Err(error)),
        }
    }

    fn begin_delete(&mut self, target: &Target) -> Result<(Option<ProcessIo>, Duration)> {
        let drain = self.config.timeouts.drain();
        let process = self.process(target)?;
        process.step(Step::DeleteBegun, "deleted")?;
        // What never ran has nothing to say.
        let drain = if process.started { drain } else { Duration::ZERO };
        Ok((process.io.take(), drain))
    }

    fn status(&mut self, target: &Target) -> Result<Status> {
        let container = self.container(&target.id)?;
        let bundle = container.bundle.clone();
        let process = container.process(&target.id, &target.exec_id)?;
        Ok(Status { bundle, state: process.state, stdio: process.stdio.clone(), exit: process.exit })
    }

    fn log_summary(&self) {
        info!(phase = ?self.phase, containers = self.containers.len(), "summary");
        for (id, container) in &self.containers {
            let execs: Vec<_> =
                container.execs.iter().map(|(id, process)| (id.as_str(), process.state.name())).collect();
            info!(container = id.as_str(), init = container.init.state.name(), ?execs, "summary");
        }
    }
}

/// A caller that went away needs no answer.
pub(super) fn answer<T>(reply: Reply<T>, result: Result<T>) {
    let _ = reply.send(result);
}

/// The state of a container's init, in the words of a message about another process.
fn init_is(state: State) -> &'static str {
    match state {
        State::Creating => "in a container that is being created",
        State::Created => "in a container that is not started",
        State::Starting => "in a container that is being started",
        State::Running => "in a running container",
        State::Paused => "in a paused container",
        State::Stopped => "in a stopped container",
        State::Deleting => "in a container that is being deleted",
    }
}
