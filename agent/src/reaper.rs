//! The only place that waits for processes: PID 1 reaps everything, its own and orphans alike.
//!
//! Signals coalesce, so each ring reaps until nothing is left.

use std::io;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::process::{WaitOptions, wait};
use tokio::signal::unix::{SignalKind, signal};

use crate::container::{Pod, Reaped};

/// Reaps for the machine's life.
///
/// # Errors
/// The kernel's, if it does not take the signal handler.
pub async fn run(pod: Arc<Pod>) -> io::Result<()> {
    let mut children = signal(SignalKind::child())?;
    loop {
        reap_all(&pod);
        if children.recv().await.is_none() {
            return Ok(()); // the runtime is going down
        }
    }
}

fn reap_all(pod: &Arc<Pod>) {
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => pod.reaped(pid, Reaped::now(status)),
            Err(Errno::INTR) => {}
            Ok(None) | Err(_) => return,
        }
    }
}
