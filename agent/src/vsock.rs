//! The way to the host: vsock connections, and the one that carries the session.
//!
//! Only this room and `log` know what a connection is made of; the containers' streams see
//! `container::io::Host`.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream;
use hull_protocol::ports;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio_vsock::{VsockAddr, VsockStream};
use ttrpc::asynchronous::transport::Listener;

use crate::container::io::{Connection, Host};

/// How long the host may take to accept: its side is a thread of the machine's own process.
const DIAL_DEADLINE: Duration = Duration::from_secs(10);

/// The host of this machine.
#[derive(Clone, Copy, Debug)]
pub struct VsockHost;

impl VsockHost {
    /// Connects to a port of the host.
    ///
    /// # Errors
    /// The kernel's; `TimedOut` after the deadline.
    pub async fn dial(self, port: u32) -> io::Result<VsockStream> {
        let connect = VsockStream::connect(VsockAddr::new(ports::HOST_CID, port));
        tokio::time::timeout(DIAL_DEADLINE, connect)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Connects for the session; the receiver resolves when that connection is lost.
    ///
    /// # Errors
    /// As [`VsockHost::dial`].
    pub async fn control(self) -> io::Result<(Control, oneshot::Receiver<()>)> {
        let connection = self.dial(ports::CONTROL).await?;
        let (sender, lost) = oneshot::channel();
        Ok((Control { connection, lost: Some(sender) }, lost))
    }
}

#[async_trait]
impl Host for VsockHost {
    async fn dial(&self, port: u32) -> io::Result<Box<dyn Connection>> {
        Ok(Box::new(VsockHost::dial(*self, port).await?))
    }
}

/// A listener that has accepted `connection` and will never accept another.
pub fn listener_of<C: AsyncRead + AsyncWrite + Send + Sync + 'static>(connection: C) -> Listener {
    Listener::new(stream::once(async { Ok(connection) }).chain(stream::pending()))
}

/// The session's connection: tells when it ends, which ttrpc itself keeps quiet about.
#[derive(Debug)]
pub struct Control {
    connection: VsockStream,
    lost: Option<oneshot::Sender<()>>,
}

impl Control {
    fn tell(&mut self) {
        if let Some(lost) = self.lost.take() {
            // Nobody waits once the machine is going down.
            let _ = lost.send(());
        }
    }
}

impl AsyncRead for Control {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = ready!(Pin::new(&mut self.connection).poll_read(cx, buf));
        if result.is_err() || (buf.filled().len() == before && buf.remaining() > 0) {
            self.tell();
        }
        Poll::Ready(result)
    }
}

impl AsyncWrite for Control {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.connection).poll_write(cx, bytes));
        if result.is_err() {
            self.tell();
        }
        Poll::Ready(result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.connection).poll_shutdown(cx)
    }
}
