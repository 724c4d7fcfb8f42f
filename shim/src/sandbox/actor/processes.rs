//! What operations and the guest report: how records move on, and what containerd is told.

use super::requests::answer;
use super::*;
use crate::io::StdioPaths;

impl Actor {
    pub(super) fn container_created(&mut self, id: String, result: Result<Created>, reply: Reply<()>) {
        let Some(container) = self.containers.get_mut(&id) else { return };
        match result {
            Ok(created) => {
                container.image = Some(created.image);
                container.init.io = Some(created.io);
                // Cannot fail: the record is Creating until this moment.
                let _ = container.init.step(Step::Created, "created");
                self.events.send(TaskEvent::create(&id, container, self.identity.shim_pid));
                answer(reply, Ok(()));
                let target = Target { id, exec_id: String::new() };
                self.apply_held_exit(&target);
                self.unpark(&target);
            }
            Err(error) => {
                warn!(container = id, error = chain(&error), "Create failed");
                let parked = std::mem::take(&mut container.init.parked);
                self.containers.remove(&id);
                self.forget(&id);
                answer(reply, Err(error));
                parked.into_iter().for_each(|command| self.request(command));
            }
        }
    }

    pub(super) fn process_created(&mut self, target: Target, result: Result<ProcessIo>, reply: Reply<()>) {
        let Ok(container) = self.container(&target.id) else { return };
        match result {
            Ok(io) => {
                let Ok(process) = container.process(&target.id, &target.exec_id) else { return };
                process.io = Some(io);
                let _ = process.step(Step::Created, "created");
                self.events.send(TaskEvent::exec_added(&target.id, &target.exec_id));
                answer(reply, Ok(()));
                self.apply_held_exit(&target);
                self.unpark(&target);
            }
            Err(error) => {
                let process = container.execs.remove(&target.exec_id);
                answer(reply, Err(error));
                process
                    .into_iter()
                    .flat_map(|process| process.parked)
                    .for_each(|command| self.request(command));
            }
        }
    }

    pub(super) fn started(&mut self, target: Target, result: Result<()>, reply: Reply<()>) {
        let pid = self.identity.shim_pid;
        let died = self.guest().is_none_or(|guest| guest.is_dead());
        let Ok(process) = self.process(&target) else { return };
        match result {
            Ok(()) => {
                process.started = true;
                let _ = process.step(Step::Started, "started");
                self.events.send(TaskEvent::start(&target.id, &target.exec_id, pid));
                answer(reply, Ok(()));
                self.apply_held_exit(&target);
                if died {
                    self.exited(&target, Exited::now(MACHINE_DIED));
                }
            }
            Err(error) => {
                // It counts as ended, so that it can be deleted; it never started, so there is no event.
                let status = if died { MACHINE_DIED } else { NEVER_RAN };
                let exit = process.held_exit.take().unwrap_or(Exited::now(status));
                process.finish(exit);
                answer(reply, Err(error));
            }
        }
        self.unpark(&target);
    }

    pub(super) fn frozen(&mut self, id: &str, step: Step, result: Result<()>, reply: Reply<()>) {
        let result = result.and_then(|()| {
            let verb = if step == Step::Paused { "paused" } else { "resumed" };
            // It may have ended in the meantime.
            self.container(id)?.init.step(step, verb)
        });
        if result.is_ok() {
            let event = if step == Step::Paused { TaskEvent::paused(id) } else { TaskEvent::resumed(id) };
            self.events.send(event);
        }
        answer(reply, result);
    }

    /// containerd's part of a deletion is over. What the guest holds of a container is cleaned up
    /// behind the answer: a pod that ends now never needs it.
    pub(super) fn deleted(&mut self, target: &Target, reply: Reply<Exited>) {
        let pid = self.identity.shim_pid;
        let Ok(container) = self.container(&target.id) else { return };
        if !target.exec_id.is_empty() {
            let Some(process) = container.execs.remove(&target.exec_id) else { return };
            self.answer_delete(process, reply);
            return;
        }
        let image = container.image.take();
        // The record keeps the id from being used again until the guest has forgotten it, too.
        let process = std::mem::replace(&mut container.init, Process::new(StdioPaths::default()));
        container.deleted = true;
        let exit = process.exit.unwrap_or(Exited::now(MACHINE_DIED));
        self.events.send(TaskEvent::delete(&target.id, pid, exit));
        self.forget(&target.id);
        self.answer_delete(process, reply);
        let id = target.id.clone();
        let sweep = ops::sweep(id.clone(), image, self.guest());
        self.spawn(sweep, move |()| Done::Swept(id));
    }

    fn answer_delete(&mut self, mut process: Process, reply: Reply<Exited>) {
        // What was deleted before it ever ran was killed for it.
        let exit = process.exit.unwrap_or(Exited::now(MACHINE_DIED));
        process.wake(exit);
        answer(reply, Ok(exit));
        process.parked.into_iter().for_each(|command| self.request(command));
    }

    pub(super) fn swept(&mut self, id: &str) {
        let container = self.containers.remove(id);
        let parked = container.map(|container| container.init.parked);
        parked.into_iter().flatten().for_each(|command| self.request(command));
    }

    /// containerd is done with a container: its journal entry ends, and the pod may have no use left.
    fn forget(&mut self, id: &str) {
        if let Err(error) = self.journal.write(&Entry::ContainerGone { id: id.to_owned() }) {
            warn!(%error, "the journal cannot be written");
        }
        if self.is_empty() {
            self.deadline = Some(Instant::now() + self.config.timeouts.idle());
        }
    }

    /// Requests that came while an operation was under way, in their order.
    fn unpark(&mut self, target: &Target) {
        let parked = self.process(target).map(|process| std::mem::take(&mut process.parked));
        parked.unwrap_or_default().into_iter().for_each(|command| self.request(command));
    }

    fn apply_held_exit(&mut self, target: &Target) {
        let held = self.process(target).ok().and_then(|process| process.held_exit.take());
        if let Some(exit) = held {
            self.exited(target, exit);
        }
    }

    pub(super) fn agent_event(&mut self, event: AgentEvent) {
        match event {
            AgentEvent::Exit { container, process, exit } => {
                let target = Target { id: container, exec_id: process };
                match self.process(&target).map(|process| process.state) {
                    Ok(State::Creating | State::Starting) => {
                        if let Ok(process) = self.process(&target) {
                            process.held_exit = Some(exit);
                        }
                    }
                    Ok(_) => self.exited(&target, exit),
                    // Of a process whose deletion was faster than this news.
                    Err(_) => {}
                }
            }
            AgentEvent::Oom { container } => {
                if self.containers.contains_key(&container) {
                    self.events.send(TaskEvent::oom(&container));
                }
            }
        }
    }

    /// A process has ended: record, waiters, event, in this order; a container's others before its init.
    fn exited(&mut self, target: &Target, exit: Exited) {
        if target.exec_id.is_empty() {
            let others = self.container(&target.id).map(|container| container.running_execs());
            for exec_id in others.unwrap_or_default() {
                // They share init's pid namespace, so the kernel has killed them.
                self.exited(
                    &Target { id: target.id.clone(), exec_id },
                    Exited { status: MACHINE_DIED, ..exit },
                );
            }
        }
        let pid = self.identity.shim_pid;
        let Ok(process) = self.process(target) else { return };
        if process.state == State::Starting {
            process.held_exit = Some(exit);
        } else if process.finish(exit) {
            self.events.send(TaskEvent::exit(&target.id, &target.exec_id, pid, exit));
        }
    }

    /// Everything ends with its machine. What is in transition is told by its operation.
    pub(super) fn machine_died(&mut self, reason: &str) {
        if self.phase != Phase::Ready {
            return;
        }
        error!(reason, "the machine died");
        self.step(state::Event::MachineExited);
        self.all_exited();
    }

    pub(super) fn all_exited(&mut self) {
        let ids: Vec<_> = self.containers.keys().cloned().collect();
        for id in ids {
            self.exited(&Target { id, exec_id: String::new() }, Exited::now(MACHINE_DIED));
        }
    }
}
