//! What a machine has counted, for operators and benches.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::devices::virtio::Counter;
use crate::kvm::Stats;

/// What we read of KVM's statistics: all exits of the hardware, those for device accesses, halts and
/// interrupts, nested page faults that were resolved, emulated instructions, injected interrupts.
pub const KVM_STATISTICS: [&str; 9] = [
    "exits",
    "io_exits",
    "mmio_exits",
    "halt_exits",
    "irq_exits",
    "irq_window_exits",
    "pf_fixed",
    "insn_emulation",
    "irq_injections",
];

/// A snapshot of all counters of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineMetrics {
    /// Exits from the guest to this process, by kind.
    pub exits: Vec<Counter>,
    /// KVM's own statistics, summed over the vCPUs: [`KVM_STATISTICS`] as far as the host has them.
    pub kvm: Vec<Counter>,
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

/// Sums KVM's statistics over the vCPUs.
#[must_use]
pub fn kvm_counters(vcpus: &[Stats]) -> Vec<Counter> {
    let mut sums: Vec<Counter> = Vec::new();
    for (name, value) in vcpus.iter().flat_map(|vcpu| vcpu.read(&KVM_STATISTICS)) {
        match sums.iter_mut().find(|sum| sum.name == name) {
            Some(sum) => sum.value = sum.value.saturating_add(value),
            None => sums.push(Counter { name, value }),
        }
    }
    sums
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
