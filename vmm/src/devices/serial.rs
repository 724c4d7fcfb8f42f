//! The debug console: a 16550 UART, output only.
//!
//! Output is written to a sink that must not be waited for: a reader that stops reading costs lost
//! lines, never a stopped vCPU. Only machines with a `console` have it.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vm_superio::{Serial as Uart, Trigger, serial::NoEvents};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;
use crate::sys::fd;

/// I/O ports of a 16550.
pub const LENGTH: u64 = 8;

/// The device.
#[derive(Debug)]
pub struct Serial {
    uart: Uart<Line, NoEvents, Sink>,
}

/// The UART's interrupt.
#[derive(Debug)]
struct Line(Arc<EventFd>);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Where the bytes go, and how many could not.
#[derive(Debug)]
struct Sink {
    file: File,
    dropped: Arc<AtomicU64>,
}

impl Write for Sink {
    /// Takes all bytes, also those that the sink has no room for.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes).unwrap_or(0);
        self.dropped.fetch_add((bytes.len() - written.min(bytes.len())) as u64, Ordering::Relaxed);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Serial {
    /// A UART that writes to `sink`, which becomes non-blocking, and interrupts through `line`.
    /// The second value counts bytes that the sink did not take.
    ///
    /// # Errors
    /// When `sink` cannot be made non-blocking.
    pub fn new(sink: OwnedFd, line: Arc<EventFd>) -> io::Result<(Self, Arc<AtomicU64>)> {
        fd::set_nonblocking(&sink)?;
        let dropped = Arc::new(AtomicU64::new(0));
        let sink = Sink { file: File::from(sink), dropped: Arc::clone(&dropped) };
        Ok((Self { uart: Uart::new(Line(line), sink) }, dropped))
    }
}

impl BusDevice for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let ([value], Ok(offset)) = (data, u8::try_from(offset)) {
            *value = self.uart.read(offset);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let ([value], Ok(offset)) = (data, u8::try_from(offset)) {
            // A lost console interrupt is no reason to stop the machine.
            let _ = self.uart.write(offset, *value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn output_arrives_and_a_full_sink_does_not_block() {
        let (mut reader, writer) = UnixStream::pair().unwrap();
        let line = Arc::new(EventFd::new(0).unwrap());
        let (mut serial, dropped) = Serial::new(OwnedFd::from(writer), line).unwrap();
        for byte in b"hello" {
            serial.write(0, &[*byte]);
        }
        let mut text = [0; 5];
        reader.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"hello");
        while dropped.load(Ordering::Relaxed) == 0 {
            serial.write(0, b"x");
        }
        serial.write(0, b"two bytes are not a register access");
        let mut status = [0];
        serial.read(5, &mut status);
        assert_ne!(status[0] & 0x20, 0, "the transmitter is always ready");
    }
}
