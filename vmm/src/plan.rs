//! The launch plan: everything that is in guest memory before the guest runs.
//!
//! The builder makes it, [`LaunchPlan::execute`] performs it on plain KVM. Nothing else writes guest
//! memory before boot, so what a launch measurement would cover is this value and no more.
//!
//! ```text
//! boot::kernel ---\
//! boot::params ----> LaunchPlan (ordered, no overlap) --> execute: GuestRam
//! boot::acpi -----/
//! ```

use std::fs::File;
use std::io;
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, VolatileSlice};

use crate::memory::GuestRam;
use crate::memory::layout::PAGE;
use crate::sys::pread;

/// What an item is filled with.
#[derive(Clone, Debug)]
pub enum Contents {
    /// These bytes.
    Bytes(Vec<u8>),
    /// A part of a file, read straight into guest memory.
    File {
        /// The file.
        file: Arc<File>,
        /// Where in it.
        offset: u64,
        /// How much of it.
        length: u64,
    },
}

impl Contents {
    /// Bytes.
    #[must_use]
    pub fn length(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { length, .. } => *length,
        }
    }
}

/// How a measured launch would treat the pages of an item. Plain KVM treats all alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageType {
    /// Part of the measurement, byte for byte.
    Normal,
    /// Not measured: the guest checks it against a measured hash before use.
    Staged,
}

/// One item: whole pages from `address` on.
#[derive(Clone, Debug)]
pub struct Item {
    /// What it is, for errors.
    pub name: &'static str,
    /// Guest-physical address, page aligned.
    pub address: u64,
    /// What goes there; the rest of the last page is zero.
    pub contents: Contents,
    /// How it counts.
    pub page_type: PageType,
}

impl Item {
    /// The pages that the item occupies: first page's address and the one behind the last.
    fn pages(&self) -> Option<(u64, u64)> {
        let end = self.address.checked_add(self.contents.length())?;
        Some((self.address, end.checked_next_multiple_of(PAGE)?))
    }
}

/// Ordered items without overlap.
#[derive(Clone, Debug, Default)]
pub struct LaunchPlan {
    items: Vec<Item>,
}

/// A plan that cannot be made or carried out.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// An item is not on a page boundary, empty, or beyond the address space.
    #[error("The {name} at {address:#x} with {length} bytes is not a run of whole pages")]
    Alignment {
        /// Which item.
        name: &'static str,
        /// Its address.
        address: u64,
        /// Its length.
        length: u64,
    },
    /// The source of an item cannot be read.
    #[error("Cannot read the {name} into guest memory")]
    Contents {
        /// Which item.
        name: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Two items want the same page.
    #[error("The {name} at {address:#x} overlaps the {other}")]
    Overlap {
        /// The later item.
        name: &'static str,
        /// Its address.
        address: u64,
        /// The earlier item.
        other: &'static str,
    },
    /// An item lies outside the machine's memory.
    #[error("The {name} at {address:#x} with {length} bytes does not fit into the machine's memory")]
    OutsideMemory {
        /// Which item.
        name: &'static str,
        /// Its address.
        address: u64,
        /// Its length.
        length: u64,
        /// What the memory says.
        #[source]
        source: GuestMemoryError,
    },
}

impl LaunchPlan {
    /// Adds an item at the end.
    ///
    /// # Errors
    /// When it is not page aligned, is empty, or shares a page with an earlier item.
    pub fn add(&mut self, item: Item) -> Result<(), PlanError> {
        let length = item.contents.length();
        let pages = item.pages().filter(|_| length > 0 && item.address.is_multiple_of(PAGE));
        let Some((start, end)) = pages else {
            return Err(PlanError::Alignment { name: item.name, address: item.address, length });
        };
        let overlaps = |other: &&Item| other.pages().is_some_and(|(first, last)| start < last && first < end);
        if let Some(other) = self.items.iter().find(overlaps) {
            return Err(PlanError::Overlap { name: item.name, address: item.address, other: other.name });
        }
        self.items.push(item);
        Ok(())
    }

    /// The items in launch order.
    pub fn items(&self) -> impl Iterator<Item = &Item> {
        self.items.iter()
    }

    /// Writes the items into fresh (zeroed) guest memory.
    ///
    /// # Errors
    /// When an item lies outside the memory or its file cannot be read.
    pub fn execute(&self, ram: &GuestRam) -> Result<(), PlanError> {
        self.items.iter().try_for_each(|item| item.write(ram))
    }
}

impl Item {
    fn write(&self, ram: &GuestRam) -> Result<(), PlanError> {
        let outside = |source| PlanError::OutsideMemory {
            name: self.name,
            address: self.address,
            length: self.contents.length(),
            source,
        };
        match &self.contents {
            Contents::Bytes(bytes) => {
                ram.view().write_slice(bytes, GuestAddress(self.address)).map_err(outside)
            }
            Contents::File { file, offset, length } => {
                let target = self.slice(ram, *length).map_err(outside)?;
                pread::read_exact_at(file, *offset, target)
                    .map_err(|source| PlanError::Contents { name: self.name, source })
            }
        }
    }

    fn slice<'a>(&self, ram: &'a GuestRam, length: u64) -> Result<VolatileSlice<'a>, GuestMemoryError> {
        let start = GuestAddress(self.address);
        let length = usize::try_from(length).map_err(|_| GuestMemoryError::InvalidGuestAddress(start))?;
        GuestMemoryBackend::get_slice(ram.view(), start, length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(name: &'static str, address: u64, length: usize) -> Item {
        Item { name, address, contents: Contents::Bytes(vec![0x5a; length]), page_type: PageType::Normal }
    }

    #[test]
    fn neighbours_pass_and_sharing_a_page_does_not() {
        let mut plan = LaunchPlan::default();
        plan.add(item("first", 0x2000, 0x1001)).unwrap();
        plan.add(item("before", 0x1000, 0x1000)).unwrap();
        plan.add(item("behind", 0x4000, 1)).unwrap();
        let error = plan.add(item("tail", 0x3000, 1)).unwrap_err();
        assert_eq!(error.to_string(), "The tail at 0x3000 overlaps the first");
        assert!(matches!(plan.add(item("around", 0x0, 0x10000)), Err(PlanError::Overlap { .. })));
        assert_eq!(plan.items().map(|item| item.name).collect::<Vec<_>>(), ["first", "before", "behind"]);
    }

    #[test]
    fn crooked_items_are_refused() {
        let mut plan = LaunchPlan::default();
        for (address, length) in [(0x1001, 1), (0x1000, 0), (u64::MAX - 4095, 8192)] {
            let result = plan.add(item("x", address, length));
            assert!(matches!(result, Err(PlanError::Alignment { .. })), "{address:#x} {length}");
        }
    }

    #[test]
    fn execution_writes_each_item_and_names_the_one_that_does_not_fit() {
        let ram = GuestRam::allocate(64).unwrap();
        let mut plan = LaunchPlan::default();
        plan.add(item("a", 0x1000, 3)).unwrap();
        let path = std::env::temp_dir().join(format!("hull-plan-{}", std::process::id()));
        std::fs::write(&path, b"0123456789").unwrap();
        let file = Arc::new(File::open(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
        let part = |length| Contents::File { file: Arc::clone(&file), offset: 2, length };
        let from_file = |address, length| Item { contents: part(length), ..item("f", address, 1) };
        plan.add(from_file(0x3000, 8)).unwrap();
        plan.execute(&ram).unwrap();
        let mut bytes = [0; 10];
        ram.view().read_slice(&mut bytes, GuestAddress(0x3000)).unwrap();
        assert_eq!(&bytes, b"23456789\0\0");
        plan.add(from_file(0x5000, 9)).unwrap();
        assert!(matches!(plan.execute(&ram), Err(PlanError::Contents { name: "f", .. })));
        let mut plan = LaunchPlan::default();
        plan.add(item("b", 64 << 20, 1)).unwrap();
        assert!(matches!(plan.execute(&ram), Err(PlanError::OutsideMemory { name: "b", .. })));
    }
}
