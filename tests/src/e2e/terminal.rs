//! A program on a terminal of its own, as a user's shell would start it.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// The terminal's side that a human would have, and the program on the other.
#[derive(Debug)]
pub(crate) struct Terminal {
    master: File,
    child: Child,
    screen: String,
    bytes: Receiver<Vec<u8>>,
}

impl Terminal {
    /// Starts `command` as the leader of a session on a new terminal of this size.
    pub(crate) fn start(command: &Command, columns: u16, rows: u16) -> Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).context("Opening a terminal")?;
        grantpt(&master).context("Opening a terminal")?;
        unlockpt(&master).context("Opening a terminal")?;
        let name = ptsname(&master, Vec::new()).context("Naming a terminal")?;
        let name = name.to_string_lossy().into_owned();
        let open = || OpenOptions::new().read(true).write(true).open(&name);
        let slave = open().with_context(|| format!("Opening {name}"))?;
        let master = File::from(master);
        resize(&master, columns, rows)?;
        // setsid makes the terminal the session's own, which std can't do without unsafe code.
        let mut leader = Command::new("setsid");
        leader.args(["--ctty", "--wait"]).arg(command.get_program()).args(command.get_args());
        leader.stdout(Stdio::from(slave.try_clone().context("Sharing a terminal")?));
        leader.stderr(Stdio::from(slave.try_clone().context("Sharing a terminal")?));
        leader.stdin(Stdio::from(slave));
        let child = leader.spawn().context("Starting setsid")?;
        drop(leader);
        let bytes = follow(master.try_clone().context("Sharing a terminal")?);
        Ok(Self { master, child, screen: String::new(), bytes })
    }

    /// Types.
    pub(crate) fn send(&mut self, text: &str) -> Result<()> {
        self.master.write_all(text.as_bytes()).context("Writing to the terminal")
    }

    pub(crate) fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        resize(&self.master, columns, rows)
    }

    /// Reads until `wanted` is on the screen; gives what came before it and takes both off.
    pub(crate) fn read_until(&mut self, wanted: &str, limit: Duration) -> Result<String> {
        let end = Instant::now() + limit;
        loop {
            if let Some((before, after)) = self.screen.split_once(wanted) {
                let before = before.to_owned();
                self.screen = after.to_owned();
                return Ok(before);
            }
            match self.bytes.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.screen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(_) => bail!("The terminal does not show {wanted:?} but {:?}", self.screen),
            }
        }
    }

    /// Waits for the program; gives its exit code and what is left on the screen.
    pub(crate) fn finish(mut self, limit: Duration) -> Result<(i32, String)> {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().context("Waiting for a program")? {
                break status;
            }
            if start.elapsed() > limit {
                bail!("The program on the terminal does not end; its screen: {:?}", self.screen);
            }
            std::thread::sleep(Duration::from_millis(30));
        };
        while let Ok(bytes) = self.bytes.recv_timeout(Duration::from_millis(300)) {
            self.screen.push_str(&String::from_utf8_lossy(&bytes));
        }
        Ok((status.code().unwrap_or(-1), self.screen.clone()))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It has usually ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn resize(master: &File, columns: u16, rows: u16) -> Result<()> {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(master, size).context("Resizing a terminal")
}

/// Reads the terminal until it hangs up (EIO), in a thread that ends with it.
fn follow(mut master: File) -> Receiver<Vec<u8>> {
    let (send, bytes) = mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count) = master.read(&mut buffer) {
            let Some(part) = buffer.get(..count).filter(|part| !part.is_empty()) else { break };
            if send.send(part.to_vec()).is_err() {
                break;
            }
        }
    });
    bytes
}
