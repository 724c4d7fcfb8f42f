//! The guest-physical map: where RAM is, where everything else is, and why.
//!
//! ```text
//! 0x0000_0000  RAM    0x1000 page tables | 0x7000 zero page | 0x8000 GDT | 0x1_0000 command line
//! 0x000a_0000  hole   (backed by RAM, not in the e820 map: no legacy video or BIOS here)
//! 0x0010_0000  ACPI tables (64 KiB, e820 type ACPI)
//! 0x0011_0000  RAM    0x0100_0000 the kernel
//! 0xc000_0000  MMIO   0xd000_0000 virtio slots | 0xd001_0000 pvpanic | IOAPIC | local APICs
//! 0x1_0000_0000 RAM above 4 GiB, if there is more than 3 GiB
//! ```
//! 0x4000-0x6fff stays free for the setup data, secrets and CPUID pages of an SNP launch.

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Alignment of RAM in host memory relative to guest memory, so that both can use huge pages.
pub const HUGE_PAGE: u64 = 2 << 20;
/// Bytes of a MiB.
pub const MIB: u64 = 1 << 20;

/// Identity-mapping page tables: three pages, top table first.
pub const PAGE_TABLES: u64 = 0x1000;
/// The zero page (`struct boot_params`).
pub const ZERO_PAGE: u64 = 0x7000;
/// The GDT that the boot vCPU starts with.
pub const GDT: u64 = 0x8000;
/// The kernel command line, at most one page.
pub const COMMAND_LINE: u64 = 0x1_0000;
/// End of conventional memory, where PCs have video memory and ROMs.
pub const LOW_HOLE: u64 = 0xa_0000;
/// ACPI tables, the RSDP first.
pub const ACPI_TABLES: u64 = 0x10_0000;
/// Room for ACPI tables; 64 CPUs need less than two pages of it.
pub const ACPI_LENGTH: u64 = 0x1_0000;

/// Start of the hole for devices: RAM ends here or goes on at [`HIGH_RAM`].
pub const DEVICE_HOLE: u64 = 0xc000_0000;
/// Start of the RAM that does not fit below the hole.
pub const HIGH_RAM: u64 = 0x1_0000_0000;

/// Registers of virtio slot 0; slot n follows n pages later.
pub const VIRTIO_MMIO: u64 = 0xd000_0000;
/// Size of one slot's registers.
pub const VIRTIO_MMIO_LENGTH: u64 = 0x1000;
/// The pvpanic byte.
pub const PVPANIC: u64 = 0xd001_0000;
/// The I/O APIC, where PCs have it.
pub const IOAPIC: u32 = 0xfec0_0000;
/// The local APICs, where CPUs have them after reset.
pub const LOCAL_APIC: u32 = 0xfee0_0000;

/// ACPI sleep control register (I/O port, one byte).
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
/// ACPI sleep status register (I/O port, one byte).
pub const SLEEP_STATUS_PORT: u16 = 0x601;
/// ACPI reset register (I/O port, one byte).
pub const RESET_PORT: u16 = 0x602;
/// The debug UART, where PCs have their first.
pub const SERIAL_PORT: u16 = 0x3f8;

/// The UART's interrupt line.
pub const SERIAL_GSI: u32 = 4;
/// Interrupt line of slot 0: the ten slots take the ten highest of the I/O APIC's 24 pins, away
/// from all legacy meanings.
pub const VIRTIO_GSI: u32 = 14;

/// One stretch of RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RamRange {
    /// Guest-physical start.
    pub start: u64,
    /// Bytes.
    pub length: u64,
}

impl RamRange {
    /// The first address behind the range.
    #[must_use]
    pub fn end(self) -> u64 {
        self.start + self.length
    }
}

/// Where a machine of `memory_mib` has its RAM: below the device hole, the rest above it.
#[must_use]
pub fn ram_ranges(memory_mib: u32) -> Vec<RamRange> {
    let total = u64::from(memory_mib) * MIB;
    let low = total.min(DEVICE_HOLE);
    let mut ranges = vec![RamRange { start: 0, length: low }];
    if total > low {
        ranges.push(RamRange { start: HIGH_RAM, length: total - low });
    }
    ranges
}

/// What the e820 map calls a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapKind {
    /// Usable RAM (type 1).
    Ram,
    /// ACPI tables (type 3).
    Acpi,
}

/// The memory map that the kernel is given: RAM without the legacy hole and the tables.
#[must_use]
pub fn memory_map(memory_mib: u32) -> Vec<(RamRange, MapKind)> {
    let acpi_end = ACPI_TABLES + ACPI_LENGTH;
    let mut map = vec![
        (RamRange { start: 0, length: LOW_HOLE }, MapKind::Ram),
        (RamRange { start: ACPI_TABLES, length: ACPI_LENGTH }, MapKind::Acpi),
    ];
    for range in ram_ranges(memory_mib) {
        let start = range.start.max(acpi_end);
        map.push((RamRange { start, length: range.end() - start }, MapKind::Ram));
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_adds_up_and_never_touches_the_device_hole() {
        let sizes = (64..320).chain(3 * 1024 - 64..3 * 1024 + 64).chain(4 * 1024 - 64..4 * 1024 + 64);
        for memory_mib in sizes.chain([512 * 1024]) {
            let ranges = ram_ranges(memory_mib);
            let total: u64 = ranges.iter().map(|range| range.length).sum();
            assert_eq!(total, u64::from(memory_mib) * MIB, "{memory_mib} MiB");
            for range in &ranges {
                assert!(range.length > 0, "{memory_mib} MiB");
                assert!(
                    range.end() <= DEVICE_HOLE || range.start >= HIGH_RAM,
                    "{memory_mib} MiB: {range:x?}"
                );
                assert_eq!(range.start % HUGE_PAGE, 0);
            }
        }
    }

    #[test]
    fn the_hole_appears_exactly_at_3_gib() {
        assert_eq!(ram_ranges(3072).len(), 1);
        assert_eq!(
            ram_ranges(3073),
            [RamRange { start: 0, length: DEVICE_HOLE }, RamRange { start: HIGH_RAM, length: MIB },]
        );
    }

    #[test]
    fn the_memory_map_is_sorted_and_leaves_out_the_holes() {
        for memory_mib in [64, 256, 3071, 3072, 3073, 4096, 4097, 65536] {
            let map = memory_map(memory_mib);
            for pair in map.windows(2) {
                assert!(pair[0].0.end() <= pair[1].0.start, "{memory_mib} MiB: {map:x?}");
            }
            let hole = RamRange { start: LOW_HOLE, length: ACPI_TABLES - LOW_HOLE };
            assert!(map.iter().all(|(range, _)| range.end() <= hole.start || range.start >= hole.end()));
            let mapped: u64 = map.iter().map(|(range, _)| range.length).sum();
            assert_eq!(mapped, u64::from(memory_mib) * MIB - hole.length);
        }
    }
}
