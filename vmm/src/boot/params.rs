//! What the kernel's 64-bit entry expects: the zero page, a GDT, identity-mapping page tables.

use linux_loader::bootparam::{boot_e820_entry, boot_params};
use vm_memory::ByteValued;

use crate::kvm::Registers;
use crate::memory::layout::{
    ACPI_TABLES, COMMAND_LINE, GDT, HUGE_PAGE, MapKind, PAGE, PAGE_TABLES, ZERO_PAGE, memory_map,
};
use crate::plan::{Contents, Item, PageType};

/// `boot_flag` and `header` magic numbers of the boot protocol.
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;
/// `type_of_loader`: one without an assigned number.
const LOADER_UNKNOWN: u8 = 0xff;
/// `loadflags`: the protected-mode code is at 1 MiB or above.
const LOADED_HIGH: u8 = 1;
/// The kernel's alignment, for the boot protocol's own checks.
const KERNEL_ALIGNMENT: u32 = 0x20_0000;
/// e820 types.
const E820_RAM: u32 = 1;
const E820_ACPI: u32 = 3;

/// Null, unused, 64-bit code (0x10), data (0x18).
const GDT_ENTRIES: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
/// Page table entry: present, writable.
const TABLE: u64 = 0x3;
/// Page table entry: present, writable, a 2 MiB page.
const LARGE_PAGE: u64 = 0x83;
/// Entries of a page table.
const ENTRIES: u64 = 512;

/// The registers that fit the items of [`items`].
#[must_use]
pub fn registers(entry: u64) -> Registers {
    let gdt_limit = (GDT_ENTRIES.len() * 8 - 1) as u16;
    Registers { rip: entry, rsi: ZERO_PAGE, cr3: PAGE_TABLES, gdt: (GDT, gdt_limit) }
}

/// Zero page, command line, GDT and page tables for a machine of `memory_mib`.
#[must_use]
pub fn items(memory_mib: u32, command_line: Vec<u8>) -> [Item; 4] {
    [
        normal("page tables", PAGE_TABLES, page_tables()),
        normal("zero page", ZERO_PAGE, zero_page(memory_mib, command_line.len())),
        normal("GDT", GDT, GDT_ENTRIES.iter().flat_map(|entry| entry.to_le_bytes()).collect()),
        normal("command line", COMMAND_LINE, command_line),
    ]
}

fn normal(name: &'static str, address: u64, bytes: Vec<u8>) -> Item {
    Item { name, address, contents: Contents::Bytes(bytes), page_type: PageType::Normal }
}

/// The first GiB mapped to itself in 2 MiB pages: the kernel, its zeroed part and all tables are in
/// it, and the kernel soon makes its own tables.
fn page_tables() -> Vec<u8> {
    let mut tables = Vec::with_capacity(3 * PAGE as usize);
    for next in [PAGE_TABLES + PAGE, PAGE_TABLES + 2 * PAGE] {
        tables.extend_from_slice(&(next | TABLE).to_le_bytes());
        tables.resize(tables.len().next_multiple_of(PAGE as usize), 0);
    }
    tables.extend((0..ENTRIES).flat_map(|index| ((index * HUGE_PAGE) | LARGE_PAGE).to_le_bytes()));
    tables
}

fn zero_page(memory_mib: u32, command_line_length: usize) -> Vec<u8> {
    let mut params = boot_params { acpi_rsdp_addr: ACPI_TABLES, ..Default::default() };
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HEADER_MAGIC;
    params.hdr.type_of_loader = LOADER_UNKNOWN;
    params.hdr.loadflags = LOADED_HIGH;
    params.hdr.kernel_alignment = KERNEL_ALIGNMENT;
    params.hdr.cmd_line_ptr = COMMAND_LINE as u32;
    params.hdr.cmdline_size = command_line_length as u32;
    let map = memory_map(memory_mib);
    params.e820_entries = map.len() as u8;
    let mut table = params.e820_table;
    for (entry, (range, kind)) in table.iter_mut().zip(map) {
        let r#type = match kind {
            MapKind::Ram => E820_RAM,
            MapKind::Acpi => E820_ACPI,
        };
        *entry = boot_e820_entry { addr: range.start, size: range.length, r#type };
    }
    params.e820_table = table;
    params.as_slice().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::cmdline;

    #[test]
    fn the_zero_page_has_its_fields_where_the_kernel_reads_them() {
        let page = zero_page(4096, 20);
        assert_eq!(page.len(), 4096);
        let u32_at = |offset: usize| u32::from_le_bytes(page[offset..offset + 4].try_into().unwrap());
        let u64_at = |offset: usize| u64::from_le_bytes(page[offset..offset + 8].try_into().unwrap());
        assert_eq!(u64_at(0x70), ACPI_TABLES);
        assert_eq!(page[0x1e8], 4);
        assert_eq!(page[0x1ef], 0);
        assert_eq!(&page[0x1fe..0x200], &[0x55, 0xaa]);
        assert_eq!(&page[0x202..0x206], b"HdrS");
        assert_eq!(u32_at(0x228), 0x1_0000);
        assert_eq!((u64_at(0x2d0), u64_at(0x2d8), u32_at(0x2e0)), (0, 0xa_0000, 1));
        assert_eq!((u64_at(0x2e4), u64_at(0x2ec), u32_at(0x2f4)), (0x10_0000, 0x1_0000, 3));
    }

    #[test]
    fn page_tables_map_addresses_to_themselves() {
        let tables = page_tables();
        let entry = |index: usize| u64::from_le_bytes(tables[index * 8..index * 8 + 8].try_into().unwrap());
        assert_eq!(tables.len(), 3 * 4096);
        assert_eq!((entry(0), entry(1)), (0x2003, 0));
        assert_eq!((entry(512), entry(513)), (0x3003, 0));
        for index in 0..512 {
            assert_eq!(entry(1024 + index), (index as u64) << 21 | 0x83);
        }
    }

    #[test]
    fn the_items_do_not_overlap() {
        let mut plan = crate::plan::LaunchPlan::default();
        for item in items(64, cmdline::to_bytes(&cmdline::command_line(true))) {
            plan.add(item).unwrap();
        }
    }
}
