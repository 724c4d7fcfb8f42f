//! Joins the guest's stream connections to the processes that wait for them.
//!
//! For each stream of a process the shim makes an id; the agent dials port STREAM and sends the id as
//! its first 8 bytes. Ids are unique in the pod's life, so a late connection finds nobody and is closed.

use std::collections::HashMap;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hull_protocol::limits::STREAM_HEADER_DEADLINE;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tracing::warn;

/// Connections that may be without their id at one time. The agent sends it at once, so more than a
/// few mean a guest that means harm; the others wait in the machine's own queue.
const MAX_UNNAMED: usize = 64;

/// Hands connections to whoever expects them.
#[derive(Debug, Default)]
pub struct StreamBroker {
    expected: Mutex<Expected>,
}

#[derive(Debug, Default)]
struct Expected {
    last_id: u64,
    waiting: HashMap<u64, oneshot::Sender<UnixStream>>,
}

/// A stream that is expected. Dropping it ends the expectation.
#[derive(Debug)]
pub struct Ticket {
    /// The id that the agent will send; never 0.
    pub id: u64,
    broker: Arc<StreamBroker>,
    arrival: oneshot::Receiver<UnixStream>,
}

impl StreamBroker {
    /// Expects one more stream.
    pub fn expect(self: &Arc<Self>) -> Ticket {
        let (sender, arrival) = oneshot::channel();
        let mut expected = self.lock();
        expected.last_id += 1;
        let id = expected.last_id;
        expected.waiting.insert(id, sender);
        Ticket { id, broker: self.clone(), arrival }
    }

    /// Serves the machine's stream port until the machine is gone.
    pub async fn serve(self: Arc<Self>, mut connections: mpsc::Receiver<StdUnixStream>) {
        let unnamed = Arc::new(Semaphore::new(MAX_UNNAMED));
        while let Some(connection) = connections.recv().await {
            let Ok(permit) = unnamed.clone().acquire_owned().await else { return };
            let broker = self.clone();
            tokio::spawn(async move {
                match tokio::time::timeout(STREAM_HEADER_DEADLINE, broker.join(connection)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => warn!(%error, "a stream of the guest is refused"),
                    Err(_) => warn!("a stream of the guest is refused: no id in time"),
                }
                drop(permit);
            });
        }
    }

    async fn join(&self, connection: StdUnixStream) -> std::io::Result<()> {
        connection.set_nonblocking(true)?;
        let mut stream = UnixStream::from_std(connection)?;
        let id = stream.read_u64_le().await?;
        let waiting = self.lock().waiting.remove(&id);
        let sender = waiting.ok_or_else(|| std::io::Error::other(format!("nobody expects stream {id}")))?;
        // The process may have been deleted in this instant; then the stream closes.
        let _ = sender.send(stream);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Expected> {
        // No code between lock and unlock can panic; a poisoned map is still whole.
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    /// Waits for the connection. `None` if it never comes because the broker is gone.
    pub async fn arrive(mut self) -> Option<UnixStream> {
        (&mut self.arrival).await.ok()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.broker.lock().waiting.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn streams_find_their_tickets() {
        let broker = Arc::new(StreamBroker::default());
        let (sender, receiver) = mpsc::channel(4);
        let server = tokio::spawn(broker.clone().serve(receiver));
        let (first, second) = (broker.expect(), broker.expect());
        assert_ne!(first.id, second.id);
        for (id, text) in [(second.id, b"2"), (first.id, b"1")] {
            let (guest, host) = StdUnixStream::pair().unwrap();
            sender.send(host).await.unwrap();
            guest.set_nonblocking(true).unwrap();
            let mut guest = UnixStream::from_std(guest).unwrap();
            guest.write_u64_le(id).await.unwrap();
            guest.write_all(text).await.unwrap();
        }
        let mut text = String::new();
        first.arrive().await.unwrap().read_to_string(&mut text).await.unwrap();
        second.arrive().await.unwrap().read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "12");
        drop(sender);
        server.await.unwrap();
        assert!(broker.lock().waiting.is_empty());
    }

    #[tokio::test]
    async fn unexpected_streams_are_closed() {
        let broker = Arc::new(StreamBroker::default());
        drop(broker.expect());
        assert!(broker.lock().waiting.is_empty());
        let (guest, host) = StdUnixStream::pair().unwrap();
        guest.set_nonblocking(true).unwrap();
        let mut guest = UnixStream::from_std(guest).unwrap();
        guest.write_u64_le(1).await.unwrap();
        assert!(broker.join(host).await.is_err());
        assert_eq!(guest.read(&mut [0; 1]).await.unwrap(), 0);
    }
}
