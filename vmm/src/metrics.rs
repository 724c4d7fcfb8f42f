//! What a machine has counted, for operators and benches.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::devices::virtio::Counter;

/// A snapshot of all counters of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineMetrics {
    /// Exits from the guest to this process, by kind. Exits that KVM handles itself are in its own
    /// statistics (debugfs).
    pub exits: Vec<Counter>,
    /// By slot, in the order of the slots; empty slots are left out.
    pub devices: Vec<DeviceMetrics>,
    /// What starting the machine took, in order.
    pub boot: Vec<BootSpan>,
    /// Bytes of console output that the sink did not take.
    pub console_bytes_dropped: u64,
}

/// The counters of one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceMetrics {
    /// The slot's name.
    pub name: &'static str,
    /// Why the device could not start, if it could not.
    pub failure: Option<String>,
    /// Its counters.
    pub counters: Vec<Counter>,
}

/// One step of the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootSpan {
    /// The step.
    pub name: &'static str,
    /// From the call of `Machine::start` to the step's end.
    pub end: Duration,
    /// The step alone.
    pub took: Duration,
}

/// Collects the spans.
#[derive(Debug)]
pub struct BootClock {
    start: Instant,
    last: Duration,
    spans: Vec<BootSpan>,
}

impl BootClock {
    /// Starts now.
    #[must_use]
    pub fn new() -> Self {
        Self { start: Instant::now(), last: Duration::ZERO, spans: Vec::new() }
    }

    /// Ends the step that began with the last call.
    pub fn step(&mut self, name: &'static str) {
        let end = self.start.elapsed();
        self.spans.push(BootSpan { name, end, took: end.saturating_sub(self.last) });
        self.last = end;
    }

    /// All steps.
    #[must_use]
    pub fn into_spans(self) -> Vec<BootSpan> {
        self.spans
    }
}

impl Default for BootClock {
    fn default() -> Self {
        Self::new()
    }
}

/// Exits to this process, of all vCPUs.
#[derive(Debug, Default)]
pub struct Exits {
    /// Reads and writes of I/O ports.
    pub io: AtomicU64,
    /// Reads and writes of device registers.
    pub mmio: AtomicU64,
    /// Accesses to addresses where nothing is (also counted above).
    pub unclaimed: AtomicU64,
    /// Signals: kicks, stops by a debugger.
    pub interrupted: AtomicU64,
    /// All others.
    pub other: AtomicU64,
}

impl Exits {
    /// One more of a kind.
    pub fn count(kind: &AtomicU64) {
        kind.fetch_add(1, Ordering::Relaxed);
    }

    /// The counters by name.
    #[must_use]
    pub fn counters(&self) -> Vec<Counter> {
        let kinds = [
            ("io", &self.io),
            ("mmio", &self.mmio),
            ("unclaimed", &self.unclaimed),
            ("interrupted", &self.interrupted),
            ("other", &self.other),
        ];
        kinds.map(|(name, value)| Counter { name, value: value.load(Ordering::Relaxed) }).into()
    }
}
