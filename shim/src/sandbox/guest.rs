//! A running guest as the actor uses it: agent, machine, streams, and the news of its death.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api::Mount;
use hull_protocol::agent::HelloRequest;
use tokio::sync::watch;

use super::size::Size;
use super::vm::BootError;
use crate::agent::{AgentError, AgentPort};
use crate::error::{Error, Result};
use crate::rootfs::{Image, RootfsError};
use crate::streams::StreamBroker;

/// An image's place on the layer disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageSlot {
    /// Where it begins.
    pub offset_bytes: u64,
    /// How long it is.
    pub length_bytes: u64,
}

/// The machine as the actor uses it; `vm.rs` implements it over the VMM.
#[async_trait]
pub trait MachinePort: Send + Sync + 'static {
    /// Puts an image on the layer disk. Quick. The error is a sentence.
    fn map_image(&self, file: File, length_bytes: u64) -> std::result::Result<ImageSlot, String>;
    /// Takes it off; reads of it fail from then on.
    fn unmap_image(&self, slot: ImageSlot);
    /// Stops the machine and frees its memory. May be called again; returns within a few seconds.
    async fn stop(&self);
}

/// What a machine is made for.
#[derive(Debug, Clone)]
pub struct BootPlan {
    /// Virtual hardware.
    pub size: Size,
    /// What the agent is told about the pod; the version is filled in on the way.
    pub hello: HelloRequest,
}

/// Makes guests; `vm.rs` implements it with KVM.
#[async_trait]
pub trait Booter: Send + Sync + 'static {
    /// Starts a machine and waits for its agent. Called once at a time; on error nothing is left.
    async fn boot(&self, plan: BootPlan) -> std::result::Result<Guest, BootError>;
}

/// Makes images of root file systems; `rootfs.rs` implements it with a cache on disk.
#[async_trait]
pub trait ImageSource: Send + Sync + 'static {
    /// The image of these mounts, or of the absolute path `root_path` if there are none. `mount_point`
    /// is an empty directory of the container's own. On error nothing is left.
    async fn image(
        &self,
        mounts: &[Mount],
        root_path: &Path,
        mount_point: &Path,
    ) -> std::result::Result<Image, RootfsError>;
}

/// A running guest. Clones are the same guest.
#[derive(Clone)]
pub struct Guest {
    /// The agent.
    pub agent: Arc<dyn AgentPort>,
    /// The machine.
    pub machine: Arc<dyn MachinePort>,
    /// Streams of its processes.
    pub streams: Arc<StreamBroker>,
    /// Why the machine died, once it has.
    pub death: watch::Receiver<Option<String>>,
}

impl std::fmt::Debug for Guest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guest").field("death", &*self.death.borrow()).finish_non_exhaustive()
    }
}

impl Guest {
    /// Makes a call to the agent that ends at once when the machine dies.
    ///
    /// # Errors
    /// The agent's, or [`Error::MachineGone`].
    pub async fn call<T>(&self, call: impl Future<Output = std::result::Result<T, AgentError>>) -> Result<T> {
        let mut death = self.death.clone();
        tokio::select! {
            answer = call => answer.map_err(|error| match error {
                // The connection closes a moment before the machine's end is known.
                AgentError::Closed { reason, .. } => Error::MachineGone(reason),
                error => Error::Agent(error),
            }),
            reason = died(&mut death) => Err(Error::MachineGone(reason)),
        }
    }

    /// Whether the machine has died.
    pub fn is_dead(&self) -> bool {
        self.death.borrow().is_some()
    }
}

/// Waits for the machine's death and says why it died.
pub async fn died(death: &mut watch::Receiver<Option<String>>) -> String {
    match death.wait_for(Option::is_some).await {
        Ok(reason) => reason.clone().unwrap_or_default(),
        // Whoever watched the machine is gone, so nobody knows that it is alive.
        Err(_) => "its watcher ended".to_owned(),
    }
}
