//! What takes time: each function is one operation, spawned by the actor, with no access to its records.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hull_protocol::agent::{CreateContainerRequest, CreateProcessRequest, Layer};
use protobuf::MessageField;
use tokio::sync::watch;
use tracing::{info, warn};

use super::guest::{Guest, ImageSlot, ImageSource};
use super::{ExecTask, Target};
use crate::error::{Error, Result, chain};
use crate::io::{Owner, ProcessIo, StdioPaths};
use crate::sandbox::vm::BootError;
use crate::spec::ContainerSpec;

/// What operations see of a machine that may still be starting.
#[derive(Debug, Clone)]
pub enum GuestStatus {
    /// Wait.
    Booting,
    /// Here it is.
    Ready(Guest),
    /// There is none.
    Failed(Arc<BootError>),
}

/// Everything that a Create needs.
pub struct CreateContainer {
    /// Its id.
    pub id: String,
    /// containerd's namespace.
    pub namespace: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Its specification.
    pub spec: ContainerSpec,
    /// Its root file system.
    pub rootfs: Vec<containerd_shim_protos::api::Mount>,
    /// Its streams.
    pub stdio: StdioPaths,
    /// The machine.
    pub guest: watch::Receiver<GuestStatus>,
    /// Where images come from.
    pub images: Arc<dyn ImageSource>,
}

/// What a Create has made.
#[derive(Debug)]
pub struct Created {
    /// Open streams.
    pub io: ProcessIo,
    /// Place on the layer disk.
    pub image: ImageSlot,
}

/// Image and machine are made at the same time; then the guest mounts one into the other.
pub async fn create_container(mut task: CreateContainer) -> Result<Created> {
    let begun = Instant::now();
    let mount_point = task.bundle.join("rootfs");
    let image = async {
        let image = task.images.image(&task.rootfs, &task.spec.root_path, &mount_point).await?;
        Ok::<_, Error>((image, begun.elapsed()))
    };
    let guest = async { ready_guest(&mut task.guest).await.map(|guest| (guest, begun.elapsed())) };
    let ((image, image_time), (guest, guest_time)) = tokio::try_join!(image, guest)?;
    let cached = image.cached;
    let slot = guest.machine.map_image(image.file, image.length_bytes).map_err(Error::LayerDisk)?;
    let prepared = prepare_in_guest(&task, &guest, slot).await;
    match prepared {
        Ok(io) => {
            info!(
                container = task.id.as_str(),
                image_ms = millis(image_time),
                image_cached = cached,
                guest_ms = millis(guest_time),
                total_ms = millis(begun.elapsed()),
                "container created"
            );
            Ok(Created { io, image: slot })
        }
        Err(error) => {
            guest.machine.unmap_image(slot);
            Err(error)
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

async fn ready_guest(status: &mut watch::Receiver<GuestStatus>) -> Result<Guest> {
    let settled = status.wait_for(|status| !matches!(status, GuestStatus::Booting)).await;
    match &*settled.map_err(|_| Error::Ending)? {
        GuestStatus::Ready(guest) => Ok(guest.clone()),
        GuestStatus::Failed(error) => Err(Error::Boot(error.clone())),
        GuestStatus::Booting => Err(Error::Ending),
    }
}

async fn prepare_in_guest(task: &CreateContainer, guest: &Guest, slot: ImageSlot) -> Result<ProcessIo> {
    let owner = Owner { container: &task.id, namespace: &task.namespace };
    let (io, stdio) = ProcessIo::open(&task.stdio, owner, &guest.streams).await?;
    let layer = Layer {
        offset_bytes: slot.offset_bytes,
        length_bytes: slot.length_bytes,
        fs_type: "erofs".to_owned(),
        ..Default::default()
    };
    let request = CreateContainerRequest {
        container_id: task.id.clone(),
        spec: task.spec.json.clone(),
        layers: vec![layer],
        stdio: MessageField::some(stdio),
        readonly_rootfs: task.spec.readonly,
        ..Default::default()
    };
    guest.call(guest.agent.create_container(request)).await?;
    Ok(io)
}

/// Registers a further process.
pub async fn create_process(task: ExecTask, namespace: String, guest: Guest) -> Result<ProcessIo> {
    let owner = Owner { container: &task.target.id, namespace: &namespace };
    let (io, stdio) = ProcessIo::open(&task.stdio, owner, &guest.streams).await?;
    let request = CreateProcessRequest {
        container_id: task.target.id,
        process_id: task.target.exec_id,
        process: task.process,
        stdio: MessageField::some(stdio),
        ..Default::default()
    };
    guest.call(guest.agent.create_process(request)).await?;
    Ok(io)
}

/// Runs a process. If the guest's answer is late, the process may run all the same: then it is killed,
/// because nobody will ask for it again.
pub async fn start(target: Target, guest: Guest) -> Result<()> {
    let started = guest.call(guest.agent.start(&target.id, &target.exec_id)).await;
    if matches!(started, Err(Error::Agent(crate::agent::AgentError::Late { .. }))) {
        const KILL: u32 = 9;
        let all = target.exec_id.is_empty();
        let _ = guest.call(guest.agent.signal(&target.id, &target.exec_id, KILL, all)).await;
    }
    started
}

/// Deletes a process: its output reaches its reader or is thrown away; of a further process, the guest
/// (given only then) forgets it. Never fails: a guest that does not answer must not keep a record alive.
pub async fn delete_process(target: Target, io: Option<ProcessIo>, drain: Duration, guest: Option<Guest>) {
    if let Some(io) = io {
        io.drain(drain).await;
    }
    if let Some(guest) = guest {
        delete_in_guest(&guest, &target.id, &target.exec_id).await;
    }
}

/// Lets the guest clean up after a container, then takes its image away.
pub async fn sweep(id: String, image: Option<ImageSlot>, guest: Option<Guest>) {
    let Some(guest) = guest else { return };
    delete_in_guest(&guest, &id, "").await;
    if let Some(image) = image {
        guest.machine.unmap_image(image);
    }
}

async fn delete_in_guest(guest: &Guest, id: &str, exec_id: &str) {
    match guest.call(guest.agent.delete(id, exec_id)).await {
        Ok(()) | Err(Error::MachineGone(_)) => {}
        Err(Error::Agent(error)) if error.is_not_found() => {}
        Err(error) => warn!(container = id, error = chain(&error), "the guest did not clean up"),
    }
}
