use std::sync::Mutex;

use super::*;

/// Remembers what the transport asked of it.
#[derive(Default)]
struct Log {
    activated: Option<u64>,
    resets: u32,
    refuse: bool,
}

struct Probe(Arc<Mutex<Log>>);

impl VirtioDevice for Probe {
    fn device_type(&self) -> u32 {
        2
    }
    fn features(&self) -> u64 {
        1 << 5
    }
    fn queue_sizes(&self) -> &[u16] {
        &[16, 16]
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(offset as u8);
    }
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let mut log = self.0.lock().unwrap();
        if log.refuse {
            return Err(ActivateError::QueueCount { expected: 0, found: activation.queues.len() });
        }
        log.activated = Some(activation.features);
        Ok(())
    }
    fn reset(&mut self) {
        self.0.lock().unwrap().resets += 1;
    }
}

const GOOD_FEATURES: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << 5;

fn transport() -> (Transport, Arc<Mutex<Log>>) {
    let log = Arc::new(Mutex::new(Log::default()));
    let event = || EventFd::new(vmm_sys_util::eventfd::EFD_NONBLOCK).unwrap();
    let transport = Transport::new(
        Box::new(Probe(Arc::clone(&log))),
        GuestRam::allocate(64).unwrap(),
        Workers::default(),
        Arc::new(event()),
        vec![event(), event()],
    );
    (transport, log)
}

fn read(transport: &mut Transport, register: u32) -> u32 {
    let mut data = [0xff; 4];
    transport.read(u64::from(register), &mut data);
    u32::from_le_bytes(data)
}

fn write(transport: &mut Transport, register: u32, value: u32) {
    transport.write(u64::from(register), &value.to_le_bytes());
}

fn choose_features(transport: &mut Transport, features: u64) {
    for (select, value) in [(0, features as u32), (1, (features >> 32) as u32)] {
        write(transport, VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
        write(transport, VIRTIO_MMIO_DRIVER_FEATURES, value);
    }
}

fn set_up_queues(transport: &mut Transport) {
    for queue in 0..2 {
        let base = 0x10_0000 + queue * 0x1_0000;
        write(transport, VIRTIO_MMIO_QUEUE_SEL, queue);
        write(transport, VIRTIO_MMIO_QUEUE_NUM, 8);
        write(transport, VIRTIO_MMIO_QUEUE_DESC_LOW, base);
        write(transport, VIRTIO_MMIO_QUEUE_AVAIL_LOW, base + 0x1000);
        write(transport, VIRTIO_MMIO_QUEUE_USED_LOW, base + 0x2000);
        write(transport, VIRTIO_MMIO_QUEUE_READY, 1);
    }
}

/// Goes through the hand-shake up to `DRIVER_OK`.
fn drive(transport: &mut Transport, features: u64) -> u32 {
    write(transport, VIRTIO_MMIO_STATUS, ACKNOWLEDGE);
    write(transport, VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER);
    choose_features(transport, features);
    write(transport, VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    set_up_queues(transport);
    let status = read(transport, VIRTIO_MMIO_STATUS);
    write(transport, VIRTIO_MMIO_STATUS, status | DRIVER_OK);
    read(transport, VIRTIO_MMIO_STATUS)
}

#[test]
fn identification_registers_say_virtio_2() {
    let (mut transport, _) = transport();
    assert_eq!(read(&mut transport, VIRTIO_MMIO_MAGIC_VALUE), MAGIC);
    assert_eq!(read(&mut transport, VIRTIO_MMIO_VERSION), 2);
    assert_eq!(read(&mut transport, VIRTIO_MMIO_DEVICE_ID), 2);
    write(&mut transport, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
    assert_eq!(read(&mut transport, VIRTIO_MMIO_DEVICE_FEATURES), 0b11);
    write(&mut transport, VIRTIO_MMIO_QUEUE_SEL, 7);
    assert_eq!(read(&mut transport, VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
    let mut config = [0; 2];
    transport.read(0x104, &mut config);
    assert_eq!(config, [4, 4]);
    assert_eq!(read(&mut EmptySlotAsTransport::slot(), VIRTIO_MMIO_DEVICE_ID), 2);
    let mut id = [0xff; 4];
    EmptySlot.read(8, &mut id);
    assert_eq!(id, [0; 4]);
}

/// Only to read a filled slot next to an empty one.
struct EmptySlotAsTransport;

impl EmptySlotAsTransport {
    fn slot() -> Transport {
        transport().0
    }
}

#[test]
fn a_correct_driver_activates_the_device_and_can_start_again() {
    let (mut transport, log) = transport();
    let all = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
    assert_eq!(drive(&mut transport, GOOD_FEATURES), all);
    assert_eq!(log.lock().unwrap().activated.take(), Some(GOOD_FEATURES));
    write(&mut transport, VIRTIO_MMIO_STATUS, 0);
    assert_eq!(read(&mut transport, VIRTIO_MMIO_STATUS), 0);
    assert_eq!(log.lock().unwrap().resets, 1);
    write(&mut transport, VIRTIO_MMIO_QUEUE_SEL, 0);
    assert_eq!(read(&mut transport, VIRTIO_MMIO_QUEUE_READY), 0);
    assert_eq!(drive(&mut transport, GOOD_FEATURES), all);
}

#[test]
fn features_that_were_not_offered_or_lack_version_1_are_refused() {
    for features in [GOOD_FEATURES | 1 << 6, 1 << VIRTIO_RING_F_EVENT_IDX, 0] {
        let (mut transport, log) = transport();
        let status = drive(&mut transport, features);
        assert_eq!(status & (FEATURES_OK | DRIVER_OK), 0, "{features:#x}");
        assert!(log.lock().unwrap().activated.is_none());
    }
}

#[test]
fn every_step_out_of_order_fails_without_activation() {
    let steps: [&[u32]; 6] = [
        &[DRIVER_OK],
        &[FEATURES_OK],
        &[ACKNOWLEDGE, ACKNOWLEDGE | FEATURES_OK],
        &[ACKNOWLEDGE | DRIVER, ACKNOWLEDGE | DRIVER | DRIVER_OK],
        &[ACKNOWLEDGE | DRIVER, ACKNOWLEDGE],
        &[ACKNOWLEDGE | DRIVER, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK],
    ];
    for step in steps {
        let (mut transport, log) = transport();
        for status in step {
            write(&mut transport, VIRTIO_MMIO_STATUS, *status);
        }
        assert_ne!(read(&mut transport, VIRTIO_MMIO_STATUS) & FAILED, 0, "{step:?}");
        assert_eq!(drive(&mut transport, GOOD_FEATURES) & DRIVER_OK, 0, "{step:?}: only a reset helps");
        assert!(log.lock().unwrap().activated.is_none());
        write(&mut transport, VIRTIO_MMIO_STATUS, 0);
        assert_ne!(drive(&mut transport, GOOD_FEATURES) & DRIVER_OK, 0, "{step:?}: after a reset");
    }
}

#[test]
fn bad_queues_and_unwilling_devices_ask_for_a_reset() {
    let (mut transport, log) = transport();
    write(&mut transport, VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER);
    choose_features(&mut transport, GOOD_FEATURES);
    let agreed = ACKNOWLEDGE | DRIVER | FEATURES_OK;
    write(&mut transport, VIRTIO_MMIO_STATUS, agreed);
    write(&mut transport, VIRTIO_MMIO_STATUS, agreed | DRIVER_OK);
    assert_eq!(read(&mut transport, VIRTIO_MMIO_STATUS), agreed | NEEDS_RESET);
    assert_eq!(read(&mut transport, VIRTIO_MMIO_INTERRUPT_STATUS), STATUS_CONFIG);
    assert!(matches!(transport.failure(), Some(ActivateError::Queue { index: 0 })));
    write(&mut transport, VIRTIO_MMIO_INTERRUPT_ACK, STATUS_CONFIG);
    assert_eq!(read(&mut transport, VIRTIO_MMIO_INTERRUPT_STATUS), 0);

    write(&mut transport, VIRTIO_MMIO_STATUS, 0);
    log.lock().unwrap().refuse = true;
    assert_eq!(drive(&mut transport, GOOD_FEATURES), agreed | NEEDS_RESET);
}

#[test]
fn queues_and_features_are_frozen_outside_their_state() {
    let (mut transport, log) = transport();
    set_up_queues(&mut transport);
    write(&mut transport, VIRTIO_MMIO_QUEUE_SEL, 0);
    assert_eq!(read(&mut transport, VIRTIO_MMIO_QUEUE_READY), 0, "before FEATURES_OK");
    choose_features(&mut transport, u64::MAX);
    drive(&mut transport, GOOD_FEATURES);
    write(&mut transport, VIRTIO_MMIO_QUEUE_SEL, 0);
    write(&mut transport, VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(read(&mut transport, VIRTIO_MMIO_QUEUE_READY), 1, "after DRIVER_OK");
    assert_eq!(log.lock().unwrap().activated, Some(GOOD_FEATURES));
}

#[test]
fn accesses_of_other_widths_do_nothing() {
    let (mut transport, _) = transport();
    let mut byte = [0xff];
    transport.read(0, &mut byte);
    assert_eq!(byte, [0xff]);
    transport.write(u64::from(VIRTIO_MMIO_STATUS), &[1]);
    transport.write(u64::from(VIRTIO_MMIO_STATUS), &[1; 8]);
    assert_eq!(read(&mut transport, VIRTIO_MMIO_STATUS), 0);
}

/// Random registers, values and widths: whatever the guest does, nothing panics and the device is
/// only ever activated with features that it offered.
#[test]
fn random_accesses_are_harmless() {
    let (mut transport, log) = transport();
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let registers =
        [0x14, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, 0x70, 0x70, 0x70, 0x80, 0x84, 0x90, 0xa0];
    for _ in 0..20_000 {
        let register = registers[(random() % registers.len() as u64) as usize];
        let value = if random() % 2 == 0 { random() % 16 } else { random() };
        let bytes = value.to_le_bytes();
        let width = [4, 4, 4, 1, 2, 8][(random() % 6) as usize];
        transport.write(register, &bytes[..width]);
        let mut data = [0; 8];
        transport.read(random() % 0x200, &mut data[..width]);
    }
    if let Some(features) = log.lock().unwrap().activated {
        assert_eq!(features & !(COMMON_FEATURES | 1 << 5), 0);
    }
}
