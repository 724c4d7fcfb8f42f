//! The machine's threads: each has a name, a seccomp filter and an owner that joins it.
//!
//! Threads inherit the filter of the thread that starts them, and a vCPU's filter must not allow
//! what a device's does. So all threads are started by one that has no filter of its own:
//!
//! ```text
//! vCPU thread: device.activate() -> Workers::spawn --request--> hull-spawn --> hull-<name>
//!                                        ^------ JoinHandle ------/
//! ```
//! `hull-spawn` ends when the last [`Workers`] is gone, and is joined by [`Spawner`]'s drop.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::control::{Control, MachineExit};
use crate::seccomp::{self, Allowed};
use crate::sys::signal;

/// Stack of each thread: the deepest call chain needs a tenth of it.
const STACK_BYTES: usize = 256 * 1024;

/// How long the drop waits for `hull-spawn`, which has nothing to do but to notice.
const SPAWNER_LIMIT: Duration = Duration::from_secs(1);
/// Pause between two looks at a thread that is to end.
const JOIN_INTERVAL: Duration = Duration::from_micros(200);

type Body = Box<dyn FnOnce() + Send>;

struct Request {
    name: String,
    syscalls: &'static [Allowed],
    body: Body,
    reply: SyncSender<io::Result<JoinHandle<()>>>,
}

/// Starts threads for devices and vCPUs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Workers {
    requests: Sender<Request>,
}

impl Workers {
    /// Starts a thread called `hull-<name>` (15 bytes at most in all) that may make only the
    /// listed system calls besides the common ones. A panic in `body` ends the machine with
    /// `MachineExit::Failed`.
    ///
    /// # Errors
    /// When the host refuses another thread.
    pub fn spawn(
        &self,
        name: &str,
        syscalls: &'static [Allowed],
        body: impl FnOnce() + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        let (reply, answer) = sync_channel(1);
        let request = Request { name: format!("hull-{name}"), syscalls, body: Box::new(body), reply };
        let gone = || io::Error::other("the machine is being taken down");
        self.requests.send(request).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())?
    }
}

#[cfg(test)]
impl Default for Workers {
    /// Workers of a machine that nobody watches, for the tests of devices. Threads that they start
    /// are under the same filters as in the product.
    fn default() -> Self {
        let (requests, work) = channel();
        std::thread::spawn(move || serve(&work, &Arc::new(Control::new())));
        Self { requests }
    }
}

/// Owner of the `hull-spawn` thread.
#[derive(Debug)]
pub struct Spawner {
    workers: Option<Workers>,
    thread: Option<JoinHandle<()>>,
}

impl Spawner {
    /// Starts `hull-spawn`. Failing threads end the machine through `control`.
    ///
    /// # Errors
    /// When the host refuses another thread.
    pub fn new(control: Arc<Control>) -> io::Result<Self> {
        let (requests, work) = channel();
        let thread = builder("hull-spawn").spawn(move || {
            // Should blocking fail, a stray signal handler could run here: no harm without a filter.
            let _ = signal::block_others();
            serve(&work, &control);
        })?;
        Ok(Self { workers: Some(Workers { requests }), thread: Some(thread) })
    }

    /// A handle for whoever needs threads.
    ///
    /// # Errors
    /// Never before the drop.
    pub fn workers(&self) -> io::Result<Workers> {
        self.workers.clone().ok_or_else(|| io::Error::other("the machine is being taken down"))
    }
}

impl Drop for Spawner {
    /// All devices have been shut down by now, so no other handle is left and the thread ends; but
    /// for one that hangs on a vCPU thread which could not be joined.
    fn drop(&mut self) {
        self.workers = None;
        if let Some(thread) = self.thread.take() {
            join_within(thread, SPAWNER_LIMIT);
        }
    }
}

/// Joins a thread that has been told to end. Past the deadline it is left to itself, with what it
/// holds: it then hangs in the host's kernel, which no signal would help. Whether it was joined.
pub fn join_within(thread: JoinHandle<()>, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    while !thread.is_finished() {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(JOIN_INTERVAL);
    }
    // A panic was reported where it happened.
    let _ = thread.join();
    true
}

fn builder(name: &str) -> std::thread::Builder {
    std::thread::Builder::new().name(name.to_owned()).stack_size(STACK_BYTES)
}

fn serve(work: &Receiver<Request>, control: &Arc<Control>) {
    while let Ok(request) = work.recv() {
        let started = start(request.name, request.syscalls, request.body, Arc::clone(control));
        // Nobody waits for the answer any more only if the machine is being taken down.
        let _ = request.reply.send(started);
    }
}

fn start(
    name: String,
    syscalls: &'static [Allowed],
    body: Body,
    control: Arc<Control>,
) -> io::Result<JoinHandle<()>> {
    let filter = seccomp::compile(&[seccomp::COMMON, syscalls]).map_err(io::Error::other)?;
    builder(&name).spawn(move || {
        let confined =
            signal::block_others().and_then(|()| seccomp::apply(&filter).map_err(io::Error::other));
        if let Err(error) = confined {
            return control
                .end(MachineExit::Failed(format!("The thread {name} cannot be confined: {error}")));
        }
        if let Err(panic) = catch_unwind(AssertUnwindSafe(body)) {
            control.end(MachineExit::Failed(format!("The thread {name} panicked: {}", message(&*panic))));
        }
    })
}

/// The text of a panic, where it has one.
fn message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joining_ends_at_the_limit() {
        let (release, wait) = channel::<()>();
        let thread = std::thread::spawn(move || while wait.recv().is_ok() {});
        assert!(!join_within(thread, Duration::from_millis(20)));
        drop(release);
        assert!(join_within(std::thread::spawn(|| ()), Duration::from_secs(10)));
    }

    #[test]
    fn a_panic_in_a_worker_fails_the_machine() {
        let control = Arc::new(Control::new());
        let spawner = Spawner::new(Arc::clone(&control)).unwrap();
        // Without the hook: what it does to print a backtrace is not on the list.
        let body = || std::panic::resume_unwind(Box::new(format!("number {}", 7)));
        let thread = spawner.workers().unwrap().spawn("test", &[], body).unwrap();
        assert_eq!(thread.thread().name(), Some("hull-test"));
        let _ = thread.join();
        let exit = control.exit().borrow().clone();
        assert_eq!(exit, Some(MachineExit::Failed("The thread hull-test panicked: number 7".into())));
        drop(spawner);
    }
}
