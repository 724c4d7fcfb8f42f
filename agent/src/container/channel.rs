//! Messages between the agent and its helper processes: a `SOCK_SEQPACKET` pair that carries file
//! descriptors both ways.
//!
//! ```text
//! agent -> helper   'G'            descriptors for the process, once
//! helper -> agent   'C'            + the master of its terminal, at most once
//!                   'P' pid        it is ready (create) or runs (exec): the last message
//!                   'E' text       it failed: the last message
//! ```
//! The helper finds its end as descriptor 0.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::process::Pid;

/// Longest text of an error; the rest of a longer one is cut off.
const MAX_TEXT_BYTES: usize = 4096;
/// Descriptors in one message: a process handle and three streams.
const MAX_DESCRIPTORS: usize = 4;

/// One end.
#[derive(Debug)]
pub struct Channel(OwnedFd);

/// What a helper says.
#[derive(Debug)]
pub enum Report {
    /// The master of the process's terminal.
    Console(OwnedFd),
    /// The process is there.
    Ready(Pid),
    /// It could not be made; why.
    Failed(String),
}

impl Channel {
    /// Both ends.
    ///
    /// # Errors
    /// The kernel's.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        Ok((Self(a), Self(b)))
    }

    /// Takes an inherited end.
    pub fn from_inherited(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }

    /// Hands `descriptors` to the helper.
    ///
    /// # Errors
    /// The kernel's.
    pub fn go(&self, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.send(b"G", descriptors)
    }

    /// Waits for the agent's descriptors.
    ///
    /// # Errors
    /// The kernel's, or `InvalidData` for anything but [`Channel::go`].
    pub fn wait_for_go(&self) -> io::Result<Vec<OwnedFd>> {
        let (message, descriptors) = receive(&self.0)?;
        if message == b"G" { Ok(descriptors) } else { Err(io::ErrorKind::InvalidData.into()) }
    }

    /// Tells the agent.
    ///
    /// # Errors
    /// The kernel's.
    pub fn report(&self, report: &Report) -> io::Result<()> {
        match report {
            Report::Console(master) => self.send(b"C", &[master.as_fd()]),
            Report::Ready(pid) => {
                let mut message = b"P".to_vec();
                message.extend(pid.as_raw_nonzero().get().to_le_bytes());
                self.send(&message, &[])
            }
            Report::Failed(text) => {
                let text = text.as_bytes().get(..MAX_TEXT_BYTES).unwrap_or(text.as_bytes());
                self.send(&[b"E", text].concat(), &[])
            }
        }
    }

    /// The descriptor, for waiting on it or for inheriting it.
    pub fn into_descriptor(self) -> OwnedFd {
        self.0
    }

    fn send(&self, message: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        sendmsg(&self.0, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }
}

/// Takes one report from the agent's end.
///
/// # Errors
/// The kernel's (`WouldBlock` on an end that was made so), `UnexpectedEof` if the helper is gone,
/// `InvalidData` for what is no report.
pub fn take_report(descriptor: &OwnedFd) -> io::Result<Report> {
    let (message, mut descriptors) = receive(descriptor)?;
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    match message.split_first() {
        Some((b'C', [])) => descriptors.pop().map(Report::Console).ok_or_else(invalid),
        Some((b'P', pid)) => {
            let pid = pid.try_into().map(i32::from_le_bytes).ok().and_then(Pid::from_raw);
            pid.map(Report::Ready).ok_or_else(invalid)
        }
        Some((b'E', text)) => Ok(Report::Failed(String::from_utf8_lossy(text).into_owned())),
        Some(_) => Err(invalid()),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Takes one message of any kind and its descriptors.
///
/// # Errors
/// The kernel's.
pub fn receive(descriptor: &OwnedFd) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut message = vec![0; MAX_TEXT_BYTES + 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut message)];
    let received = recvmsg(descriptor, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    message.truncate(received.bytes);
    let mut descriptors = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            descriptors.extend(rights);
        }
    }
    Ok((message, descriptors))
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_and_reports_cross() {
        let (agent, helper) = Channel::pair().unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        agent.go(&[read.as_fd(), write.as_fd()]).unwrap();
        assert_eq!(helper.wait_for_go().unwrap().len(), 2);
        helper.report(&Report::Console(write)).unwrap();
        assert!(matches!(take_report(&agent.0).unwrap(), Report::Console(_)));
        helper.report(&Report::Ready(Pid::from_raw(77).unwrap())).unwrap();
        assert!(
            matches!(take_report(&agent.0).unwrap(), Report::Ready(pid) if pid.as_raw_nonzero().get() == 77)
        );
        helper.report(&Report::Failed("x".repeat(MAX_TEXT_BYTES + 1))).unwrap();
        assert!(
            matches!(take_report(&agent.0).unwrap(), Report::Failed(text) if text.len() == MAX_TEXT_BYTES)
        );
        drop(helper);
        assert_eq!(take_report(&agent.0).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn what_is_no_report_is_refused() {
        let (agent, helper) = Channel::pair().unwrap();
        for message in [&b"P12"[..], b"P\0\0\0\0", b"C", b"?"] {
            helper.send(message, &[]).unwrap();
            assert_eq!(take_report(&agent.0).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }
}
