//! The ACPI registers with which a hardware-reduced guest switches itself off or resets: three
//! one-byte I/O ports, sleep control, sleep status and reset.

use std::sync::Arc;

use crate::boot::acpi::SLEEP_TYPE_S5;
use crate::bus::BusDevice;
use crate::control::{Control, MachineExit};
use crate::memory::layout::{RESET_PORT, SLEEP_CONTROL_PORT, SLEEP_STATUS_PORT};

/// First port.
pub const START: u64 = SLEEP_CONTROL_PORT as u64;
/// Number of ports.
pub const LENGTH: u64 = 3;

/// Sleep control: the type field and the bit that starts the transition (ACPI 6.5, table 4.20).
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 7;
const SLEEP_ENABLE: u8 = 1 << 5;

/// The registers.
#[derive(Debug)]
pub struct Power {
    control: Arc<Control>,
}

impl Power {
    /// Registers that end the machine of `control`.
    #[must_use]
    pub fn new(control: Arc<Control>) -> Self {
        Self { control }
    }
}

impl BusDevice for Power {
    /// No state to read: no wake-up is ever pending.
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let [value] = *data else { return };
        match START + offset {
            port if port == u64::from(SLEEP_CONTROL_PORT) => {
                let sleep_type = value >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK;
                if value & SLEEP_ENABLE != 0 && sleep_type == SLEEP_TYPE_S5 {
                    self.control.end(MachineExit::PoweredOff);
                }
            }
            port if port == u64::from(SLEEP_STATUS_PORT) => {}
            port if port == u64::from(RESET_PORT) => self.control.end(MachineExit::Reset),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit_after(offset: u64, data: &[u8]) -> Option<MachineExit> {
        let control = Arc::new(Control::new());
        Power::new(Arc::clone(&control)).write(offset, data);
        control.exit().borrow().clone()
    }

    #[test]
    fn only_a_complete_s5_request_powers_off() {
        assert_eq!(exit_after(0, &[5 << 2 | 1 << 5]), Some(MachineExit::PoweredOff));
        assert_eq!(exit_after(0, &[5 << 2]), None);
        assert_eq!(exit_after(0, &[3 << 2 | 1 << 5]), None);
        assert_eq!(exit_after(0, &[5 << 2 | 1 << 5, 0]), None);
        assert_eq!(exit_after(1, &[0xff]), None);
        assert_eq!(exit_after(2, &[1]), Some(MachineExit::Reset));
    }
}
