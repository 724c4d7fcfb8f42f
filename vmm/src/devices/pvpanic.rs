//! pvpanic: the byte that a panicking guest kernel writes, so that a panic is told from a reset.
//! (QEMU's docs/specs/pvpanic: bit 0 panicked, bit 1 a crash kernel was started.)

use std::sync::Arc;

use crate::bus::BusDevice;
use crate::control::{Control, MachineExit};

/// Bytes of the device.
pub const LENGTH: u64 = 1;
/// The only event that we offer; our guest has no crash kernel.
const PANICKED: u8 = 1;

/// The device.
#[derive(Debug)]
pub struct PvPanic {
    control: Arc<Control>,
}

impl PvPanic {
    /// A device that ends the machine of `control`.
    #[must_use]
    pub fn new(control: Arc<Control>) -> Self {
        Self { control }
    }
}

impl BusDevice for PvPanic {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(first) = data.first_mut() {
            *first = PANICKED;
        }
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if data.first().is_some_and(|value| value & PANICKED != 0) {
            self.control.end(MachineExit::Panicked);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_reported_and_nothing_else() {
        let control = Arc::new(Control::new());
        let mut device = PvPanic::new(Arc::clone(&control));
        let mut events = [0xff; 2];
        device.read(0, &mut events);
        assert_eq!(events, [1, 0]);
        device.write(0, &[2]);
        assert!(!control.ended());
        device.write(0, &[1]);
        assert_eq!(*control.exit().borrow(), Some(MachineExit::Panicked));
    }
}
