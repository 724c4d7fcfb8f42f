//! virtio-mmio, version 2 (virtio 1.2, section 4.2): the registers between a driver and a device.
//!
//! ```text
//!          ACK|DRIVER        FEATURES_OK             DRIVER_OK
//! Reset ------------> Found -------------> Agreed -------------> Active
//!   ^                   |   (subset, VERSION_1)     |  (queues valid, device willing)
//!   |                   v                           v
//!   +------------- Failed / NeedsReset <------------+
//!   status = 0, from everywhere
//! ```
//! The state is the status register itself. Features can be written in `Found`, queues set up in
//! `Agreed`, both nowhere else. Runs on vCPU threads; notifications go by ioeventfd and never come
//! here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_DEVICE_FEATURES,
    VIRTIO_MMIO_DEVICE_FEATURES_SEL, VIRTIO_MMIO_DEVICE_ID, VIRTIO_MMIO_DRIVER_FEATURES,
    VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS,
    VIRTIO_MMIO_MAGIC_VALUE, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, VIRTIO_MMIO_QUEUE_AVAIL_LOW,
    VIRTIO_MMIO_QUEUE_DESC_HIGH, VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NUM,
    VIRTIO_MMIO_QUEUE_NUM_MAX, VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_HIGH,
    VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_STATUS, VIRTIO_MMIO_VENDOR_ID, VIRTIO_MMIO_VERSION,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::eventfd::EventFd;

use super::queue::QueueSetup;
use super::{ActivateError, Activation, ActiveQueue, Counter, Interrupt, VirtioDevice};
use crate::bus::BusDevice;
use crate::memory::GuestRam;
use crate::thread::Workers;

/// "virt".
const MAGIC: u32 = 0x7472_6976;
/// The non-legacy register layout.
const VERSION: u32 = 2;
/// "HULL".
const VENDOR: u32 = 0x4c4c_5548;
/// `InterruptStatus` bit: the configuration or the status changed.
const STATUS_CONFIG: u32 = 2;

const ACKNOWLEDGE: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE;
const DRIVER: u32 = VIRTIO_CONFIG_S_DRIVER;
const DRIVER_OK: u32 = VIRTIO_CONFIG_S_DRIVER_OK;
const FAILED: u32 = VIRTIO_CONFIG_S_FAILED;
const FEATURES_OK: u32 = VIRTIO_CONFIG_S_FEATURES_OK;
const NEEDS_RESET: u32 = VIRTIO_CONFIG_S_NEEDS_RESET;

/// Offered by every device. A driver that does not take `ACCESS_PLATFORM` can still work on plain
/// KVM; one without `VERSION_1` cannot.
const COMMON_FEATURES: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_F_ACCESS_PLATFORM
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// A device behind its registers.
pub struct Transport {
    device: Box<dyn VirtioDevice>,
    /// What activation needs; gone once the machine is taken down.
    resources: Option<(GuestRam, Workers)>,
    line: Arc<EventFd>,
    interrupt_status: Arc<AtomicU32>,
    kicks: Vec<EventFd>,
    queues: Vec<QueueSetup>,
    status: u32,
    queue_select: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    failure: Option<ActivateError>,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport")
            .field("device_type", &self.device.device_type())
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

impl Transport {
    /// Registers for `device`. `kicks` has one eventfd for each queue, connected to the address of
    /// `QueueNotify`; `line` is the device's irqfd.
    #[must_use]
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestRam,
        workers: Workers,
        line: Arc<EventFd>,
        kicks: Vec<EventFd>,
    ) -> Self {
        let queues = device.queue_sizes().iter().map(|size| QueueSetup::new(*size)).collect();
        Self {
            device,
            resources: Some((memory, workers)),
            line,
            interrupt_status: Arc::new(AtomicU32::new(0)),
            kicks,
            queues,
            status: 0,
            queue_select: 0,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            failure: None,
        }
    }

    /// The device's counters.
    #[must_use]
    pub fn counters(&self) -> Vec<Counter> {
        self.device.counters()
    }

    /// Why the device could not start, if it could not.
    #[must_use]
    pub fn failure(&self) -> Option<&ActivateError> {
        self.failure.as_ref()
    }

    /// Stops the device for good and lets go of the machine's memory.
    pub fn shut_down(&mut self) {
        self.reset();
        self.resources = None;
    }

    fn features(&self) -> u64 {
        self.device.features() | COMMON_FEATURES
    }

    fn read_register(&self, register: u32) -> u32 {
        let queue = self.queues.get(self.queue_select as usize);
        match register {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.device.device_type(),
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => half(self.features(), self.device_features_select),
            VIRTIO_MMIO_QUEUE_NUM_MAX => queue.map_or(0, |queue| queue.max_size().into()),
            VIRTIO_MMIO_QUEUE_READY => queue.map_or(0, |queue| queue.ready().into()),
            VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt_status.load(Ordering::SeqCst),
            VIRTIO_MMIO_STATUS => self.status,
            // Our configurations never change while a device is active.
            VIRTIO_MMIO_CONFIG_GENERATION => 0,
            // Shared memory regions: a length of all ones means none. Others: write-only or unknown.
            SHM_LENGTH_LOW | SHM_LENGTH_HIGH => u32::MAX,
            _ => 0,
        }
    }

    fn write_register(&mut self, register: u32, value: u32) {
        match register {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_select = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_select = value,
            VIRTIO_MMIO_DRIVER_FEATURES => self.set_driver_features(value),
            VIRTIO_MMIO_QUEUE_SEL => self.queue_select = value,
            VIRTIO_MMIO_INTERRUPT_ACK => {
                self.interrupt_status.fetch_and(!value, Ordering::SeqCst);
            }
            VIRTIO_MMIO_STATUS => self.set_status(value),
            _ => self.write_queue_register(register, value),
        }
    }

    fn set_driver_features(&mut self, value: u32) {
        if self.status & (DRIVER | FEATURES_OK) != DRIVER {
            return;
        }
        let shift = match self.driver_features_select {
            0 => 0,
            1 => 32,
            _ => return,
        };
        let mask = u64::from(u32::MAX) << shift;
        self.driver_features = self.driver_features & !mask | u64::from(value) << shift;
    }

    fn write_queue_register(&mut self, register: u32, value: u32) {
        if self.status & (FEATURES_OK | DRIVER_OK) != FEATURES_OK {
            return;
        }
        let Some(queue) = self.queues.get_mut(self.queue_select as usize) else { return };
        match register {
            VIRTIO_MMIO_QUEUE_NUM => queue.set_size(value),
            VIRTIO_MMIO_QUEUE_READY => queue.set_ready(value == 1),
            VIRTIO_MMIO_QUEUE_DESC_LOW => queue.descriptors.set_low(value),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => queue.descriptors.set_high(value),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => queue.available.set_low(value),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => queue.available.set_high(value),
            VIRTIO_MMIO_QUEUE_USED_LOW => queue.used.set_low(value),
            VIRTIO_MMIO_QUEUE_USED_HIGH => queue.used.set_high(value),
            _ => {}
        }
    }

    /// A driver adds bits one step at a time; it never takes one back but by a reset.
    fn set_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        if value & self.status != self.status & !NEEDS_RESET {
            return self.status |= FAILED;
        }
        let (before, added) = (self.status & !NEEDS_RESET, value & !self.status);
        match added {
            0 => {}
            // Linux sets ACKNOWLEDGE and DRIVER in two writes; both at once are as good.
            _ if added & !(ACKNOWLEDGE | DRIVER) == 0 => self.status |= added,
            FEATURES_OK if before == ACKNOWLEDGE | DRIVER => self.agree(),
            DRIVER_OK if before == ACKNOWLEDGE | DRIVER | FEATURES_OK => self.activate(),
            _ => self.status |= FAILED,
        }
    }

    /// The driver sees from a missing `FEATURES_OK` that its choice is refused.
    fn agree(&mut self) {
        let wanted = self.driver_features;
        if wanted & !self.features() == 0 && wanted & 1 << VIRTIO_F_VERSION_1 != 0 {
            self.status |= FEATURES_OK;
        }
    }

    fn activate(&mut self) {
        match self.activation().and_then(|activation| self.device.activate(activation)) {
            Ok(()) => self.status |= DRIVER_OK,
            Err(failure) => {
                self.failure = Some(failure);
                self.status |= NEEDS_RESET;
                self.interrupt_status.fetch_or(STATUS_CONFIG, Ordering::SeqCst);
                // The line can only be missing while the machine goes.
                let _ = self.line.write(1);
            }
        }
    }

    fn activation(&self) -> Result<Activation, ActivateError> {
        let event_idx = self.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let (memory, workers) = self.resources.as_ref().ok_or(ActivateError::ShutDown)?;
        let mut queues = Vec::with_capacity(self.queues.len());
        for (index, (setup, kick)) in self.queues.iter().zip(&self.kicks).enumerate() {
            let queue = setup.build(memory.view(), event_idx).ok_or(ActivateError::Queue { index })?;
            let kick = kick
                .try_clone()
                .map_err(|source| ActivateError::Descriptor { what: "notification eventfd", source })?;
            queues.push(ActiveQueue { queue, kick });
        }
        Ok(Activation {
            memory: memory.clone(),
            features: self.driver_features,
            queues,
            interrupt: Interrupt::new(Arc::clone(&self.interrupt_status), Arc::clone(&self.line)),
            workers: workers.clone(),
        })
    }

    fn reset(&mut self) {
        self.device.reset();
        for queue in &mut self.queues {
            *queue = QueueSetup::new(queue.max_size());
        }
        self.interrupt_status.store(0, Ordering::SeqCst);
        (self.status, self.queue_select, self.driver_features) = (0, 0, 0);
        (self.device_features_select, self.driver_features_select) = (0, 0);
    }
}

/// Length of the selected shared memory region; newer than the bindings.
const SHM_LENGTH_LOW: u32 = 0xb0;
const SHM_LENGTH_HIGH: u32 = 0xb4;

/// The 32 bits of `features` that `select` asks for.
fn half(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

impl BusDevice for Transport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(u64::from(VIRTIO_MMIO_CONFIG)) {
            return self.device.read_config(offset, data);
        }
        // Registers are 32 bits wide and read as such.
        if let (Ok(register), [_, _, _, _]) = (u32::try_from(offset), &data) {
            data.copy_from_slice(&self.read_register(register).to_le_bytes());
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (Ok(register), Ok(value)) = (u32::try_from(offset), <[u8; 4]>::try_from(data)) {
            self.write_register(register, u32::from_le_bytes(value));
        }
    }
}

/// The registers of a slot without a device: device id 0.
#[derive(Debug)]
pub struct EmptySlot;

impl BusDevice for EmptySlot {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let value: u32 = match u32::try_from(offset) {
            Ok(VIRTIO_MMIO_MAGIC_VALUE) => MAGIC,
            Ok(VIRTIO_MMIO_VERSION) => VERSION,
            _ => 0,
        };
        if let [_, _, _, _] = data {
            data.copy_from_slice(&value.to_le_bytes());
        }
    }

    fn write(&mut self, _: u64, _: &[u8]) {}
}

#[cfg(test)]
#[path = "transport_tests.rs"]
mod tests;
