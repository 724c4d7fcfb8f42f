use std::fs::File;
use std::io::{Read, Write};
use std::sync::Mutex;

use tokio::net::UnixStream;

use super::*;

/// The host's side of every connection, in the order of dialling.
#[derive(Default)]
struct Loop(Mutex<Vec<UnixStream>>);

#[async_trait]
impl Host for Loop {
    async fn dial(&self, port: u32) -> io::Result<Box<dyn Connection>> {
        assert_eq!(port, ports::STREAM);
        let (guest, host) = UnixStream::pair()?;
        self.0.lock().unwrap().push(host);
        Ok(Box::new(guest))
    }
}

impl Loop {
    async fn accept(&self) -> (u64, UnixStream) {
        let mut stream = self.0.lock().unwrap().remove(0);
        let mut id = [0; 8];
        stream.read_exact(&mut id).await.unwrap();
        (u64::from_le_bytes(id), stream)
    }
}

fn wanted(stdin: u64, stdout: u64, stderr: u64) -> Wanted {
    Wanted { stdin, stdout, stderr, terminal: false, size: None }
}

fn uid() -> u32 {
    rustix::process::getuid().as_raw()
}

#[tokio::test]
async fn bytes_and_ends_cross_both_ways() {
    let host = Loop::default();
    let streams = Streams::dial(&host, &wanted(7, 8, 0)).await.unwrap();
    let (io, [stdin, stdout, stderr]) = Io::pipes(streams, uid()).unwrap();
    let (id_in, mut to_process) = host.accept().await;
    let (id_out, mut from_process) = host.accept().await;
    assert_eq!((id_in, id_out), (7, 8));

    to_process.write_all(b"question").await.unwrap();
    to_process.shutdown().await.unwrap();
    let process = tokio::task::spawn_blocking(move || {
        let mut question = String::new();
        File::from(stdin).read_to_string(&mut question).unwrap();
        File::from(stdout).write_all(b"answer").unwrap();
        File::from(stderr).write_all(b"into /dev/null").unwrap();
        question
    });
    assert_eq!(process.await.unwrap(), "question");
    let mut answer = String::new();
    from_process.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "answer");
    io.close();
}

#[tokio::test]
async fn output_waits_for_a_slow_host_and_nothing_is_lost() {
    let host = Loop::default();
    let streams = Streams::dial(&host, &wanted(0, 1, 0)).await.unwrap();
    let (io, [_, stdout, _]) = Io::pipes(streams, uid()).unwrap();
    let (_, mut from_process) = host.accept().await;
    let text: Vec<u8> = (0..4 << 20).map(|number| (number % 251) as u8).collect();
    let written = text.clone();
    let process = tokio::task::spawn_blocking(move || File::from(stdout).write_all(&written).unwrap());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!process.is_finished(), "back-pressure must have stopped the writer");
    io.close();
    let mut received = Vec::new();
    from_process.read_to_end(&mut received).await.unwrap();
    assert!(received == text);
    process.await.unwrap();
}

#[tokio::test]
async fn a_host_that_hangs_up_closes_the_pipe() {
    let host = Loop::default();
    let streams = Streams::dial(&host, &wanted(0, 1, 0)).await.unwrap();
    let (_io, [_, stdout, _]) = Io::pipes(streams, uid()).unwrap();
    drop(host.accept().await);
    let process = tokio::task::spawn_blocking(move || {
        let mut stdout = File::from(stdout);
        while stdout.write_all(&[0; 4096]).is_ok() {}
    });
    tokio::time::timeout(Duration::from_secs(10), process).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_terminal_carries_both_ways_and_remembers_its_size() {
    let host = Loop::default();
    let streams = Streams::dial(&host, &wanted(1, 2, 0)).await.unwrap();
    let mut io = Io::terminal(streams, None);
    io.resize(Size { width: 132, height: 43 }).unwrap();
    let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    rustix::pty::unlockpt(&master).unwrap();
    let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    io.attach(master, uid()).unwrap();
    let size = rustix::termios::tcgetwinsize(&slave).unwrap();
    assert_eq!((size.ws_col, size.ws_row), (132, 43));

    let (_, mut to_process) = host.accept().await;
    let (_, mut from_process) = host.accept().await;
    to_process.write_all(b"hello\n").await.unwrap();
    let process = tokio::task::spawn_blocking(move || {
        let mut line = [0; 6];
        let mut slave = File::from(slave);
        slave.read_exact(&mut line).unwrap();
        slave.write_all(b"bye\n").unwrap();
        line
    });
    assert_eq!(&process.await.unwrap(), b"hello\n");
    let mut output = String::new();
    from_process.read_to_string(&mut output).await.unwrap();
    assert_eq!(output, "hello\r\nbye\r\n", "echo, then the answer, then the end");
}

#[tokio::test]
async fn pipes_have_no_size() {
    let streams = Streams::dial(&Loop::default(), &wanted(0, 0, 0)).await.unwrap();
    let (mut io, _) = Io::pipes(streams, uid()).unwrap();
    assert!(matches!(io.resize(Size { width: 1, height: 1 }), Err(IoError::NoTerminal)));
    assert_eq!(Size::new(0, 0), None);
    assert_eq!(Size::new(70_000, 1), Some(Size { width: u16::MAX, height: 1 }));
}
