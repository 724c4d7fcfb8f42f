//! Counting who is connected: an empty pod that nobody is connected to can never be used again.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::stream::{self, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

/// A connection that counts as long as it is open.
#[derive(Debug)]
pub struct Counted {
    stream: UnixStream,
    count: Arc<watch::Sender<usize>>,
}

/// The listener's connections, and how many are open.
pub fn counted(
    listener: UnixListener,
) -> (impl Stream<Item = io::Result<Counted>> + Send, watch::Receiver<usize>) {
    let (count, open) = watch::channel(0);
    let count = Arc::new(count);
    let connections = stream::poll_fn(move |context| {
        listener.poll_accept(context).map(|accepted| {
            Some(accepted.map(|(stream, _)| {
                count.send_modify(|count| *count += 1);
                Counted { stream, count: count.clone() }
            }))
        })
    });
    (connections, open)
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.count.send_modify(|count| *count = count.saturating_sub(1));
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;

    use super::*;

    #[tokio::test]
    async fn connections_count_while_they_are_open() {
        let path = std::env::temp_dir().join(format!("hull-count-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let (mut connections, open) = counted(UnixListener::bind(&path).unwrap());
        assert_eq!(*open.borrow(), 0);
        let _client = UnixStream::connect(&path).await.unwrap();
        let first = connections.next().await.unwrap().unwrap();
        assert_eq!(*open.borrow(), 1);
        drop(first);
        assert_eq!(*open.borrow(), 0);
        std::fs::remove_file(&path).unwrap();
    }
}
