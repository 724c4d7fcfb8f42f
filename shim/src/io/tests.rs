//! Real fifos on one side, socket pairs in the guest's place on the other.

use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::*;

struct Pair {
    dir: PathBuf,
    broker: Arc<StreamBroker>,
    connections: mpsc::Sender<StdUnixStream>,
}

const OWNER: Owner<'static> = Owner { container: "c", namespace: "n" };

impl Pair {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("hull-io-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        let (connections, receiver) = mpsc::channel(8);
        let broker = Arc::new(StreamBroker::default());
        tokio::spawn(broker.clone().serve(receiver));
        Pair { dir, broker, connections }
    }

    fn fifo(&self, name: &str) -> String {
        let path = self.dir.join(name);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        path.display().to_string()
    }

    /// The guest's end of a stream.
    async fn dial(&self, id: u64) -> UnixStream {
        let (guest, host) = StdUnixStream::pair().unwrap();
        self.connections.send(host).await.unwrap();
        guest.set_nonblocking(true).unwrap();
        let mut guest = UnixStream::from_std(guest).unwrap();
        guest.write_u64_le(id).await.unwrap();
        guest
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn client_reader(path: &str) -> std::fs::File {
    let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).unwrap();
    std::fs::OpenOptions::new().read(true).custom_flags(nonblocking).open(path).unwrap()
}

#[tokio::test]
async fn output_reaches_the_fifo_and_its_end_closes_it() {
    let pair = Pair::new("output");
    let paths = StdioPaths { stdout: pair.fifo("out"), ..Default::default() };
    let (io, ids) = ProcessIo::open(&paths, OWNER, &pair.broker).await.unwrap();
    assert!(ids.stdout != 0 && ids.stdin == 0 && ids.stderr == 0);
    let client = pipe_reader(&paths.stdout);
    let mut guest = pair.dial(ids.stdout).await;
    // Much more than a pipe holds, with a slow start on the reader's side.
    let sent: Vec<u8> = (0..4_000_000u32).map(|n| (n % 251) as u8).collect();
    let expected = sent.clone();
    let writer = tokio::spawn(async move {
        guest.write_all(&sent).await.unwrap();
    });
    let received = tokio::task::spawn_blocking(move || {
        std::thread::sleep(Duration::from_millis(50));
        let (mut client, mut bytes) = (client, Vec::new());
        client.read_to_end(&mut bytes).unwrap();
        bytes
    });
    writer.await.unwrap();
    assert!(received.await.unwrap() == expected);
    io.drain(Duration::from_secs(5)).await;
}

/// A blocking reader that is open already, as containerd's is.
fn pipe_reader(path: &str) -> std::fs::File {
    let client = client_reader(path);
    rustix::fs::fcntl_setfl(&client, OFlags::empty()).unwrap();
    client
}

#[tokio::test]
async fn a_reader_that_comes_back_misses_nothing() {
    let pair = Pair::new("restart");
    let paths = StdioPaths { stdout: pair.fifo("out"), ..Default::default() };
    let (_io, ids) = ProcessIo::open(&paths, OWNER, &pair.broker).await.unwrap();
    let mut guest = pair.dial(ids.stdout).await;
    drop(client_reader(&paths.stdout));
    guest.write_all(b"while away").await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let mut client = pipe_reader(&paths.stdout);
    let mut bytes = [0; 10];
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"while away");
}

#[tokio::test]
async fn input_ends_only_after_close_io() {
    let pair = Pair::new("input");
    let paths = StdioPaths { stdin: pair.fifo("in"), ..Default::default() };
    let (mut io, ids) = ProcessIo::open(&paths, OWNER, &pair.broker).await.unwrap();
    let mut guest = pair.dial(ids.stdin).await;
    for text in ["one", "two"] {
        // A client that opens, writes and goes away is not the end.
        let mut client = std::fs::OpenOptions::new().write(true).open(&paths.stdin).unwrap();
        client.write_all(text.as_bytes()).unwrap();
        drop(client);
        let mut bytes = [0; 3];
        guest.read_exact(&mut bytes).await.unwrap();
        assert_eq!(bytes, text.as_bytes());
    }
    let mut byte = [0; 1];
    let early = tokio::time::timeout(Duration::from_millis(50), guest.read(&mut byte)).await;
    assert!(early.is_err(), "end of input before CloseIO");
    io.close_stdin();
    io.close_stdin();
    assert_eq!(guest.read(&mut byte).await.unwrap(), 0);
}

#[tokio::test]
async fn output_that_nobody_reads_delays_delete_only_so_long() {
    let pair = Pair::new("stuck");
    let paths = StdioPaths { stdout: pair.fifo("out"), ..Default::default() };
    let (io, ids) = ProcessIo::open(&paths, OWNER, &pair.broker).await.unwrap();
    let mut guest = pair.dial(ids.stdout).await;
    let writer = tokio::spawn(async move { guest.write_all(&vec![0; 1 << 20]).await });
    let begun = std::time::Instant::now();
    io.drain(Duration::from_millis(100)).await;
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert!(writer.await.unwrap().is_err());
}

#[tokio::test]
async fn files_are_appended_to() {
    let pair = Pair::new("file");
    let path = pair.dir.join("a sub+dir/log");
    // As Go writes it.
    let uri = format!("file://{}", path.display()).replace(' ', "%20");
    let paths = StdioPaths { stdout: uri.clone(), stderr: uri, ..Default::default() };
    let (io, ids) = ProcessIo::open(&paths, OWNER, &pair.broker).await.unwrap();
    for (id, text) in [(ids.stdout, "out"), (ids.stderr, "err")] {
        pair.dial(id).await.write_all(text.as_bytes()).await.unwrap();
    }
    io.drain(Duration::from_secs(5)).await;
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains("out") && text.contains("err"), "{text}");
}

#[tokio::test]
async fn unusable_streams_are_named() {
    let pair = Pair::new("bad");
    let plain = pair.dir.join("plain");
    std::fs::write(&plain, "").unwrap();
    for (path, word) in [
        ("/nonexistent/fifo".to_owned(), "/nonexistent/fifo"),
        (plain.display().to_string(), "no fifo"),
        ("http://x".to_owned(), "unknown scheme"),
    ] {
        let paths = StdioPaths { stdout: path, ..Default::default() };
        let error = ProcessIo::open(&paths, OWNER, &pair.broker).await.unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
    }
}
