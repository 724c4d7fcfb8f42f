//! Opening containerd's fifos: never blocking, and with the holds that let containerd restart.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use tokio::net::unix::pipe;

use super::IoError;
use super::copy::Sink;

/// The other end of a fifo, kept open so that a client's coming and going changes nothing.
#[derive(Debug)]
pub struct Hold(#[allow(dead_code)] pipe_end::Held); // held, never used

mod pipe_end {
    /// Either end.
    #[derive(Debug)]
    #[allow(dead_code)] // held, never used
    pub enum Held {
        /// A reader on an output fifo.
        Reader(tokio::net::unix::pipe::Receiver),
        /// A writer on an input fifo.
        Writer(tokio::net::unix::pipe::Sender),
    }
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> IoError {
    let path = path.display().to_string();
    move |source| IoError::Open { path, source }
}

fn check(path: &Path) -> Result<(), IoError> {
    let metadata = std::fs::metadata(path).map_err(failed(path))?;
    if !metadata.file_type().is_fifo() {
        return Err(IoError::NotAFifo(path.display().to_string()));
    }
    Ok(())
}

/// Opens stdin for reading; the hold is a writer.
///
/// # Errors
/// [`IoError`].
pub fn open_input(path: &Path) -> Result<(pipe::Receiver, Hold), IoError> {
    check(path)?;
    let receiver = pipe::OpenOptions::new().open_receiver(path).map_err(failed(path))?;
    // There is a reader now, so this cannot fail with ENXIO.
    let sender = pipe::OpenOptions::new().open_sender(path).map_err(failed(path))?;
    Ok((receiver, Hold(pipe_end::Held::Writer(sender))))
}

/// Opens an output for writing; the hold is a reader, so that a restart of containerd is neither a
/// broken pipe nor an end.
///
/// # Errors
/// [`IoError`].
pub fn open_output(path: &Path) -> Result<Sink, IoError> {
    check(path)?;
    let receiver = pipe::OpenOptions::new().open_receiver(path).map_err(failed(path))?;
    let sender = pipe::OpenOptions::new().open_sender(path).map_err(failed(path))?;
    Ok(Sink::Fifo(sender, Hold(pipe_end::Held::Reader(receiver))))
}

/// Opens a log file for appending, making its directory.
///
/// # Errors
/// [`IoError`].
pub fn open_file(path: &Path) -> Result<File, IoError> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(failed(path))?;
    }
    OpenOptions::new().append(true).create(true).mode(0o644).open(path).map_err(failed(path))
}
