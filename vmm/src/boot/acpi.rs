//! The machine's ACPI tables: the least that gives Linux its CPUs, interrupts, devices and an
//! orderly power-off.
//!
//! RSDP -> XSDT -> FADT (hardware-reduced: no PM timer, no SCI, no legacy PIC) -> DSDT, and MADT.
//! The DSDT is static: all ten virtio slots are always in it, an unused slot says so in its
//! registers. So the tables depend on the vCPU count and the debug console, never on the pod.
//!
//! A hardware-reduced kernel has no ISA interrupts, so that devices named on the command line would
//! get none; devices in the DSDT get their line from the I/O APIC directly.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

use crate::memory::layout::{
    ACPI_TABLES, IOAPIC, LOCAL_APIC, PVPANIC, RESET_PORT, SERIAL_GSI, SERIAL_PORT, SLEEP_CONTROL_PORT,
    SLEEP_STATUS_PORT, VIRTIO_GSI, VIRTIO_MMIO, VIRTIO_MMIO_LENGTH,
};
use crate::plan::{Contents, Item, PageType};

const OEM: [u8; 6] = *b"HULL  ";
const OEM_TABLE: [u8; 8] = *b"HULLVM  ";
const OEM_REVISION: u32 = 1;
/// FADT boot architecture flags: no VGA, no CMOS clock. (That there is no 8042 is their default.)
const NO_VGA_NO_CMOS: u16 = 1 << 2 | 1 << 5;
/// The value for the reset register; any will do.
const RESET_VALUE: u8 = 1;
/// `SLP_TYP` of `\_S5`, which the guest writes to the sleep control register.
pub const SLEEP_TYPE_S5: u8 = 5;
/// Tables start at multiples of this in their item.
const ALIGNMENT: usize = 16;

/// The shape that the tables describe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// vCPUs, numbered from 0, which is also their APIC id.
    pub vcpus: u8,
    /// Virtio slots, numbered from 0.
    pub slots: u8,
    /// Whether the UART is there.
    pub console: bool,
}

/// The tables as one item of the launch plan; the RSDP is at its start.
#[must_use]
pub fn item(shape: Shape) -> Item {
    Item {
        name: "ACPI tables",
        address: ACPI_TABLES,
        contents: Contents::Bytes(tables(shape)),
        page_type: PageType::Normal,
    }
}

fn tables(shape: Shape) -> Vec<u8> {
    // The RSDP comes first and names an address behind itself that is known once all is placed.
    let mut blob = vec![0; Rsdp::len().next_multiple_of(ALIGNMENT)];
    let dsdt = place(&mut blob, dsdt(shape).as_slice());
    let fadt = place(&mut blob, &to_bytes(&fadt(dsdt)));
    let madt = place(&mut blob, &to_bytes(&madt(shape.vcpus)));
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = place(&mut blob, &to_bytes(&xsdt));
    let rsdp = to_bytes(&Rsdp::new(OEM, xsdt));
    blob.splice(..rsdp.len(), rsdp);
    blob
}

/// Appends a table and returns its guest-physical address.
fn place(blob: &mut Vec<u8>, table: &[u8]) -> u64 {
    let address = ACPI_TABLES + blob.len() as u64;
    blob.extend_from_slice(table);
    blob.resize(blob.len().next_multiple_of(ALIGNMENT), 0);
    address
}

fn to_bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn madt(vcpus: u8) -> MADT {
    let mut madt = MADT::new(OEM, OEM_TABLE, OEM_REVISION, LocalInterruptController::Address(LOCAL_APIC));
    for cpu in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IOAPIC, 0));
    madt
}

fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = NO_VGA_NO_CMOS.into();
    fadt.reset_reg = port(RESET_PORT);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = port(SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(SLEEP_STATUS_PORT);
    fadt.finalize()
}

fn port(number: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, number.into())
}

fn dsdt(shape: Shape) -> Sdt {
    let mut body = Vec::new();
    Name::new("_S5_".into(), &Package::new(vec![&SLEEP_TYPE_S5, &SLEEP_TYPE_S5])).to_aml_bytes(&mut body);
    let mut devices = Vec::new();
    for slot in 0..shape.slots {
        virtio_node(slot, &mut devices);
    }
    pvpanic_node(&mut devices);
    if shape.console {
        serial_node(&mut devices);
    }
    body.extend(Scope::raw("_SB_".into(), devices));
    let mut table = Sdt::new(*b"DSDT", 36, 2, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(&body);
    table
}

fn virtio_node(slot: u8, into: &mut Vec<u8>) {
    let address = VIRTIO_MMIO + u64::from(slot) * VIRTIO_MMIO_LENGTH;
    let path = format!("VR{slot:02}");
    Device::new(
        path.as_str().into(),
        vec![
            &Name::new("_HID".into(), &"LNRO0005"),
            &Name::new("_UID".into(), &slot),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &Memory32Fixed::new(true, address as u32, VIRTIO_MMIO_LENGTH as u32),
                    &Interrupt::new(true, true, false, false, VIRTIO_GSI + u32::from(slot)),
                ]),
            ),
        ],
    )
    .to_aml_bytes(into);
}

fn pvpanic_node(into: &mut Vec<u8>) {
    Device::new(
        "PEVT".into(),
        vec![
            &Name::new("_HID".into(), &"QEMU0001"),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&Memory32Fixed::new(true, PVPANIC as u32, 1)]),
            ),
        ],
    )
    .to_aml_bytes(into);
}

fn serial_node(into: &mut Vec<u8>) {
    Device::new(
        "COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &0_u8),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &IO::new(SERIAL_PORT, SERIAL_PORT, 1, 8),
                    &Interrupt::new(true, true, false, false, SERIAL_GSI),
                ]),
            ),
        ],
    )
    .to_aml_bytes(into);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MAX_VCPUS;
    use crate::memory::layout::ACPI_LENGTH;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn u64_at(blob: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(blob[offset..offset + 8].try_into().unwrap())
    }

    /// The table at a guest address, by its own length field.
    fn table(blob: &[u8], address: u64) -> &[u8] {
        let start = (address - ACPI_TABLES) as usize;
        let length = u32::from_le_bytes(blob[start + 4..start + 8].try_into().unwrap()) as usize;
        &blob[start..start + length]
    }

    #[test]
    fn every_table_is_reachable_and_sums_to_zero() {
        for (vcpus, console) in [(1, false), (2, true), (MAX_VCPUS, true)] {
            let blob = tables(Shape { vcpus, slots: 10, console });
            assert!(blob.len() as u64 <= ACPI_LENGTH);
            assert_eq!(&blob[..8], b"RSD PTR ");
            assert_eq!((sum(&blob[..20]), sum(&blob[..36])), (0, 0));
            let xsdt = table(&blob, u64_at(&blob, 24));
            assert_eq!((&xsdt[..4], sum(xsdt), xsdt.len()), (&b"XSDT"[..], 0, 36 + 16));
            let fadt = table(&blob, u64_at(xsdt, 36));
            let madt = table(&blob, u64_at(xsdt, 44));
            let dsdt = table(&blob, u64_at(fadt, 140));
            for (found, signature) in [(fadt, b"FACP"), (madt, b"APIC"), (dsdt, b"DSDT")] {
                assert_eq!((&found[..4], sum(found)), (&signature[..], 0));
            }
            assert_eq!(madt.len(), 44 + usize::from(vcpus) * 8 + 12);
        }
    }

    #[test]
    fn the_fadt_is_hardware_reduced_with_reset_and_sleep_registers() {
        let fadt = to_bytes(&fadt(ACPI_TABLES));
        let flags = u32::from_le_bytes(fadt[112..116].try_into().unwrap());
        assert_eq!(flags & (1 << 20 | 1 << 10), 1 << 20 | 1 << 10);
        for (offset, number) in [(116, RESET_PORT), (244, SLEEP_CONTROL_PORT), (256, SLEEP_STATUS_PORT)] {
            assert_eq!((fadt[offset], fadt[offset + 1], fadt[offset + 3]), (1, 8, 1));
            assert_eq!(u64_at(&fadt, offset + 4), u64::from(number));
        }
    }

    #[test]
    fn the_tables_name_all_slots_whatever_the_pod() {
        let blob = tables(Shape { vcpus: 1, slots: 10, console: false });
        let count = |text: &[u8]| blob.windows(text.len()).filter(|window| *window == text).count();
        assert_eq!(count(b"LNRO0005"), 10);
        assert_eq!(count(b"QEMU0001"), 1);
        assert_eq!(count(b"COM1"), 0);
    }
}
