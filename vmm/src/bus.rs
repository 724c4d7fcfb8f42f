//! Addresses to devices: one bus for memory-mapped registers, one for I/O ports.
//!
//! Built once by the builder, then only read: the vCPU threads look devices up without a lock and
//! lock the one device that they touch.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// What a device does on its bus.
///
/// # Contract
/// Called on a vCPU thread with the device's lock held, while that vCPU's guest waits: no blocking.
/// `offset` is within the registered range; `offset + data.len()` may reach beyond it. The guest
/// chooses both freely, so a device ignores what makes no sense.
pub trait BusDevice: Send {
    /// Fills `data`; bytes that mean nothing stay as they are (all ones).
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// Takes `data`.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// One range of addresses.
struct Entry {
    start: u64,
    length: u64,
    device: Arc<Mutex<dyn BusDevice>>,
}

/// Ranges without overlap, sorted.
#[derive(Default)]
pub struct Bus {
    entries: Vec<Entry>,
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.entries.iter().map(|entry| (entry.start, entry.length))).finish()
    }
}

/// Two devices want the same address, or none at all.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("The device at {start:#x} with {length} bytes overlaps another one")]
pub struct Overlap {
    /// Start of the refused range.
    pub start: u64,
    /// Its length.
    pub length: u64,
}

impl Bus {
    /// Adds a device.
    ///
    /// # Errors
    /// When the range is empty, wraps around, or overlaps another device's.
    pub fn insert(
        &mut self,
        start: u64,
        length: u64,
        device: Arc<Mutex<dyn BusDevice>>,
    ) -> Result<(), Overlap> {
        let refused = Overlap { start, length };
        let end = start.checked_add(length).filter(|_| length > 0).ok_or(Overlap { start, length })?;
        let at = self.entries.partition_point(|entry| entry.start < start);
        let before = at.checked_sub(1).and_then(|index| self.entries.get(index));
        let overlaps_before = before.is_some_and(|entry| entry.start + entry.length > start);
        let overlaps_behind = self.entries.get(at).is_some_and(|entry| entry.start < end);
        if overlaps_before || overlaps_behind {
            return Err(refused);
        }
        self.entries.insert(at, Entry { start, length, device });
        Ok(())
    }

    /// A guest's read. Where no device is, all bits are ones. Returns whether a device answered.
    pub fn read(&self, address: u64, data: &mut [u8]) -> bool {
        data.fill(0xff);
        let Some((offset, entry)) = self.find(address) else { return false };
        entry.device.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
        true
    }

    /// A guest's write. Where no device is, nothing happens. Returns whether a device answered.
    pub fn write(&self, address: u64, data: &[u8]) -> bool {
        let Some((offset, entry)) = self.find(address) else { return false };
        entry.device.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data);
        true
    }

    fn find(&self, address: u64) -> Option<(u64, &Entry)> {
        let at = self.entries.partition_point(|entry| entry.start <= address).checked_sub(1)?;
        let entry = self.entries.get(at)?;
        let offset = address - entry.start;
        (offset < entry.length).then_some((offset, entry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo(u8);

    impl BusDevice for Echo {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(self.0 + offset as u8);
        }
        fn write(&mut self, _: u64, data: &[u8]) {
            self.0 = data[0];
        }
    }

    fn echo(value: u8) -> Arc<Mutex<Echo>> {
        Arc::new(Mutex::new(Echo(value)))
    }

    #[test]
    fn each_address_finds_its_device_or_none() {
        let mut bus = Bus::default();
        bus.insert(0x2000, 0x10, echo(0x20)).unwrap();
        bus.insert(0x1000, 0x10, echo(0x10)).unwrap();
        let read = |address| {
            let mut data = [0];
            (bus.read(address, &mut data), data[0])
        };
        assert_eq!(read(0x1000), (true, 0x10));
        assert_eq!(read(0x100f), (true, 0x1f));
        assert_eq!(read(0x2003), (true, 0x23));
        for nowhere in [0, 0xfff, 0x1010, 0x1fff, 0x2010, u64::MAX] {
            assert_eq!(read(nowhere), (false, 0xff), "{nowhere:#x}");
        }
        assert!(bus.write(0x1004, &[0x40]));
        assert!(!bus.write(0x1010, &[0x40]));
        assert_eq!(read(0x1001), (true, 0x41));
    }

    #[test]
    fn overlaps_are_refused_on_both_sides() {
        let mut bus = Bus::default();
        bus.insert(0x1000, 0x1000, echo(0)).unwrap();
        for (start, length) in [(0x1000, 1), (0x1fff, 1), (0xfff, 2), (0, 0x3000), (0x5000, 0), (u64::MAX, 2)]
        {
            assert_eq!(bus.insert(start, length, echo(0)), Err(Overlap { start, length }));
        }
        bus.insert(0x2000, 1, echo(0)).unwrap();
        bus.insert(0xfff, 1, echo(0)).unwrap();
    }
}
