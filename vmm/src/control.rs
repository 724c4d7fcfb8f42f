//! How a machine ends: the first reason wins, everybody learns it, and all vCPUs leave the guest.
//!
//! ```text
//! Running --(power-off | reset | panic | failure | stop)--> Ended(reason)    never back
//! ```
//! Anyone may end the machine: a device on a vCPU thread, a failing thread, the owner of the
//! machine. Joining the threads is `Machine::stop`'s alone.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::sys::signal;

/// Why a machine runs no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MachineExit {
    /// The VMM cannot go on; the text says why.
    Failed(String),
    /// The guest's kernel panicked.
    Panicked,
    /// The guest switched itself off.
    PoweredOff,
    /// The guest asked for a reset, or ended in a triple fault.
    Reset,
    /// `Machine::stop` was called on a running machine.
    Stopped,
}

/// The shared end of a machine.
#[derive(Debug)]
pub struct Control {
    ended: AtomicBool,
    exit: watch::Sender<Option<MachineExit>>,
    vcpus: Mutex<Vec<JoinHandle<()>>>,
}

/// Pause between two rounds of kicks while waiting for vCPU threads.
const KICK_INTERVAL: Duration = Duration::from_millis(1);

impl Control {
    /// Of a machine that runs.
    #[must_use]
    pub fn new() -> Self {
        Self { ended: AtomicBool::new(false), exit: watch::Sender::new(None), vcpus: Mutex::default() }
    }

    /// Whether the vCPUs are to leave the guest for good.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// Ends the machine; only the first reason counts. Does not wait.
    pub fn end(&self, reason: MachineExit) {
        self.ended.store(true, Ordering::SeqCst);
        self.exit.send_if_modified(|exit| {
            let first = exit.is_none();
            if first {
                *exit = Some(reason);
            }
            first
        });
        self.vcpus().iter().for_each(signal::kick);
    }

    /// For those who wait for the end.
    #[must_use]
    pub fn exit(&self) -> watch::Receiver<Option<MachineExit>> {
        self.exit.subscribe()
    }

    /// Takes a started vCPU thread into care.
    pub fn adopt(&self, vcpu: JoinHandle<()>) {
        self.vcpus().push(vcpu);
    }

    /// After `end`: waits until no vCPU thread is left. Returns how many were still busy at
    /// `deadline`; those stay in care for another try.
    pub fn join_vcpus(&self, deadline: Instant) -> usize {
        loop {
            let mut vcpus = self.vcpus();
            let (finished, busy): (Vec<_>, Vec<_>) = vcpus.drain(..).partition(JoinHandle::is_finished);
            // The kick is repeated: one that comes just before KVM_RUN is lost.
            busy.iter().for_each(signal::kick);
            *vcpus = busy;
            let left = vcpus.len();
            drop(vcpus);
            for vcpu in finished {
                // A panic was reported where it happened.
                let _ = vcpu.join();
            }
            if left == 0 || Instant::now() >= deadline {
                return left;
            }
            std::thread::sleep(KICK_INTERVAL);
        }
    }

    fn vcpus(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.vcpus.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Control {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_wins() {
        let control = Control::new();
        let exit = control.exit();
        assert!(!control.ended() && exit.borrow().is_none());
        control.end(MachineExit::Panicked);
        control.end(MachineExit::Reset);
        assert!(control.ended());
        assert_eq!(*exit.borrow(), Some(MachineExit::Panicked));
        assert_eq!(*control.exit().borrow(), Some(MachineExit::Panicked));
    }

    #[test]
    fn joining_is_bounded_and_can_be_repeated() {
        signal::prepare_kicks().unwrap();
        let control = Control::new();
        let (release, wait) = std::sync::mpsc::channel::<()>();
        control.adopt(std::thread::spawn(|| ()));
        control.adopt(std::thread::spawn(move || while wait.recv().is_ok() {}));
        assert_eq!(control.join_vcpus(Instant::now() + Duration::from_millis(30)), 1);
        drop(release);
        assert_eq!(control.join_vcpus(Instant::now() + Duration::from_secs(10)), 0);
    }
}
