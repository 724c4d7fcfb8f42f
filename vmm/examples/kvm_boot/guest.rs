//! The guest's side: PID 1 of a root image that `images` made. It does what its role says; as
//! `serve` it takes commands over vsock, one a line, and answers each with a line.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::FileExt;
use std::process::ExitCode;

use rustix::system::{RebootCommand, reboot};
use vsock::VsockStream;

use crate::images::checksum;

/// The host's context id.
const HOST: u32 = 2;
/// Where `serve` dials for commands.
pub const COMMANDS: u32 = 10;
/// Where `serve` dials for the echo.
pub const ECHO: u32 = 11;

/// What `reset` says on its console, if it has one.
pub const GREETING: &str = "HELLO-FROM-THE-CONSOLE";

/// What a guest is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Powers off at once.
    Off,
    /// Exits, which makes the kernel panic.
    Panic,
    /// Resets.
    Reset,
    /// Takes commands.
    Serve,
}

impl Role {
    /// The name of its image.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Panic => "panic",
            Self::Reset => "reset",
            Self::Serve => "serve",
        }
    }
}

/// Plays the role; returning makes the kernel panic.
pub fn main() -> ExitCode {
    let role = fs::read_to_string("/role").unwrap_or_default();
    let _ = match role.as_str() {
        "off" => reboot(RebootCommand::PowerOff).map_err(io::Error::from),
        "reset" => {
            println!("{GREETING}");
            reboot(RebootCommand::Restart).map_err(io::Error::from)
        }
        "serve" => serve(),
        _ => Ok(()),
    };
    ExitCode::FAILURE
}

fn serve() -> io::Result<()> {
    rustix::mount::mount("proc", "/proc", "proc", rustix::mount::MountFlags::empty(), None)?;
    rustix::mount::mount("sysfs", "/sys", "sysfs", rustix::mount::MountFlags::empty(), None)?;
    let mut answers = VsockStream::connect_with_cid_port(HOST, COMMANDS)?;
    for line in BufReader::new(answers.try_clone()?).lines() {
        let answer = match command(&line?) {
            Ok(answer) => format!("ok {answer}\n"),
            Err(error) => format!("error {error}\n"),
        };
        answers.write_all(answer.as_bytes())?;
    }
    Ok(())
}

fn command(line: &str) -> io::Result<String> {
    let words: Vec<&str> = line.split(' ').collect();
    match words.as_slice() {
        ["cpus"] => Ok(std::thread::available_parallelism()?.to_string()),
        ["memory"] => fs::read_to_string("/proc/meminfo"),
        ["packages"] => fs::read_to_string("/sys/devices/system/cpu/cpu1/topology/physical_package_id"),
        ["serial", disk] => fs::read_to_string(format!("/sys/block/{disk}/serial")),
        ["read", disk, offset, length] => read(disk, number(offset)?, number(length)?),
        ["write", disk] => {
            OpenOptions::new().write(true).open(format!("/dev/{disk}"))?.write_all(&[0; 512])?;
            Ok(String::new())
        }
        ["refused", port] => match VsockStream::connect_with_cid_port(HOST, number(port)? as u32) {
            Ok(_) => Err(io::Error::other("it was accepted")),
            Err(error) => Ok(format!("{:?}", error.kind())),
        },
        ["echo"] => echo(),
        ["off"] => Ok(reboot(RebootCommand::PowerOff).map(|()| String::new())?),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
    .map(|answer| answer.replace('\n', " "))
}

fn number(word: &str) -> io::Result<u64> {
    word.parse().map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn read(disk: &str, offset: u64, length: u64) -> io::Result<String> {
    let mut bytes = vec![0; length as usize];
    File::open(format!("/dev/{disk}"))?.read_exact_at(&mut bytes, offset)?;
    Ok(checksum(&bytes).to_string())
}

/// Sends back what comes until the host's end of file, then ends its own direction.
fn echo() -> io::Result<String> {
    let mut stream = VsockStream::connect_with_cid_port(HOST, ECHO)?;
    let mut buffer = vec![0; 64 * 1024];
    let mut total = 0;
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            length => {
                stream.write_all(buffer.get(..length).unwrap_or_default())?;
                total += length;
            }
        }
    }
    stream.shutdown(Shutdown::Write)?;
    Ok(total.to_string())
}
