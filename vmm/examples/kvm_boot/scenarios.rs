//! The scenarios, one function each: a name, a machine, what must hold.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use hull_vmm::{Machine, MachineConfig, MachineExit};

use crate::guest::{COMMANDS, ECHO, GREETING, Role};
use crate::images::{checksum, layer};
use crate::{Outcome, PATIENCE, Place, chain, wait};

type Scenario = fn(&Place) -> Outcome;

const SCENARIOS: [(&str, Scenario); 10] = [
    ("power-off", |place| ends(place, Role::Off, &MachineExit::PoweredOff)),
    ("reset", |place| ends(place, Role::Reset, &MachineExit::Reset)),
    ("panic", |place| ends(place, Role::Panic, &MachineExit::Panicked)),
    ("console", console),
    ("errors", errors),
    ("disks", disks),
    ("many-vcpus-and-memory", large),
    ("vsock", vsock),
    ("stop-running", stop_running),
    ("no-leaks", no_leaks),
];

/// Runs all scenarios, or the one called `only`, and reports each.
pub fn run(place: &Place, only: Option<&str>) -> Outcome {
    let mut failed = 0;
    for (name, scenario) in SCENARIOS.iter().filter(|(name, _)| only.is_none_or(|only| only == *name)) {
        let begin = Instant::now();
        match scenario(place) {
            Ok(()) => println!("kvm_boot: {name}: ok ({:.1?})", begin.elapsed()),
            Err(error) => {
                println!("kvm_boot: {name}: FAILED: {}", chain(&*error));
                failed += 1;
            }
        }
    }
    if failed == 0 { Ok(()) } else { Err(format!("{failed} scenarios failed").into()) }
}

fn check(holds: bool, what: impl Into<String>) -> Outcome {
    if holds { Ok(()) } else { Err(what.into().into()) }
}

fn ends(place: &Place, role: Role, expected: &MachineExit) -> Outcome {
    let machine = Machine::start(place.config(role)?)?;
    let exit = wait(&machine)?;
    check(exit == *expected, format!("the machine ended with {exit:?}"))?;
    machine.stop();
    let after = machine.exited().borrow().clone();
    check(after.as_ref() == Some(expected), format!("stop changed the exit to {after:?}"))
}

/// The debug console carries the guest's output, and its sink is closed by `stop`.
fn console(place: &Place) -> Outcome {
    let (mut reader, sink) = UnixStream::pair()?;
    let mut config = place.config(Role::Reset)?;
    config.console = Some(sink.into());
    let machine = Machine::start(config)?;
    let exit = wait(&machine)?;
    check(exit == MachineExit::Reset, format!("the machine ended with {exit:?}"))?;
    check(machine.metrics().console_bytes_dropped == 0, "output was dropped")?;
    machine.stop();
    let mut output = String::new();
    reader.read_to_string(&mut output)?;
    check(output.contains(GREETING), format!("the console says {output:?}"))
}

/// A guest that takes commands.
struct Served {
    machine: Machine,
    commands: BufReader<UnixStream>,
    echo: tokio::sync::mpsc::Receiver<UnixStream>,
}

impl Served {
    fn start(config: MachineConfig) -> Outcome<Self> {
        let machine = Machine::start(config)?;
        let mut commands = machine.vsock().listen(COMMANDS)?;
        let echo = machine.vsock().listen(ECHO)?;
        let commands = BufReader::new(accept(&mut commands)?);
        Ok(Self { machine, commands, echo })
    }

    fn ask(&mut self, command: &str) -> Outcome<String> {
        self.commands.get_mut().write_all(format!("{command}\n").as_bytes())?;
        self.answer()
    }

    fn answer(&mut self) -> Outcome<String> {
        let mut line = String::new();
        self.commands.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    fn power_off(mut self) -> Outcome {
        self.commands.get_mut().write_all(b"off\n")?;
        let exit = wait(&self.machine)?;
        check(exit == MachineExit::PoweredOff, format!("the machine ended with {exit:?}"))
    }
}

fn accept(connections: &mut tokio::sync::mpsc::Receiver<UnixStream>) -> Outcome<UnixStream> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let accepted = runtime.block_on(async { tokio::time::timeout(PATIENCE, connections.recv()).await });
    let stream = accepted.map_err(|_| "the guest does not dial")?.ok_or("vsock has ended")?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn errors(place: &Place) -> Outcome {
    let refuse = |change: fn(&mut MachineConfig), text: &str| -> Outcome {
        let mut config = place.config(Role::Off)?;
        change(&mut config);
        match Machine::start(config) {
            Ok(_) => Err(format!("a machine started without {text:?}").into()),
            Err(error) => {
                let found = chain(&error);
                check(found.contains(text), format!("{found:?} does not say {text:?}"))
            }
        }
    };
    refuse(|config| config.kernel = "/nowhere/vmlinux".into(), "Cannot read the kernel /nowhere/vmlinux")?;
    refuse(|config| config.kernel = "/".into(), "is a directory")?;
    refuse(|config| config.kernel = "/proc/self/exe".into(), "not an uncompressed x86-64 ELF kernel")?;
    refuse(|config| config.root_image = "/dev/null".into(), "The root image /dev/null cannot be a disk")?;
    refuse(|config| config.kernel_sha256 = Some([0x5a; 32]), "expected is 5a5a5a5a")?;
    refuse(|config| config.memory_mib = 400 * 1024, "MiB available")?;
    refuse(|config| config.vcpus = 0, "1 to 64 vCPUs, 0 were asked for")
}

fn disks(place: &Place) -> Outcome {
    let mut guest = Served::start(place.config(Role::Serve)?)?;
    let length = 3 * 1024 * 1024 + 12_345;
    let path = layer(&place.work, "layer", length)?;
    let mut expected = fs::read(&path)?;
    let extent = guest.machine.layers().map(File::open(&path)?, length as u64)?;
    expected.resize(extent.length_bytes as usize, 0);
    let read = format!("read vdb {} {}", extent.offset_bytes, extent.length_bytes);
    let found = guest.ask(&read)?;
    check(found == format!("ok {}", checksum(&expected)), format!("the layer read as {found}"))?;
    let beyond = guest.ask(&format!("read vdb {} 4096", extent.offset_bytes + extent.length_bytes))?;
    check(beyond.starts_with("error"), format!("behind the layer is {beyond}"))?;
    let label = guest.ask("read vdb 0 1048576")?;
    check(label == format!("ok {}", checksum(&vec![0; 1 << 20])), format!("the label is {label}"))?;
    let serial = guest.ask("serial vdb")?;
    check(serial.trim_end() == "ok layers", format!("the serial is {serial:?}"))?;
    let write = guest.ask("write vda")?;
    check(write.starts_with("error"), "the root disk can be written")?;
    let second = guest.machine.layers().map(File::open(&path)?, 4096)?;
    guest.machine.layers().unmap(second.id)?;
    let gone = guest.ask(&format!("read vdb {} 4096", second.offset_bytes))?;
    check(gone.starts_with("error"), format!("an unmapped layer is {gone}"))?;
    guest.power_off()
}

/// Four vCPUs in one package, and RAM on both sides of the device hole.
fn large(place: &Place) -> Outcome {
    let mut config = place.config(Role::Serve)?;
    (config.vcpus, config.memory_mib) = (4, 3 * 1024 + 64);
    let mut guest = Served::start(config)?;
    let cpus = guest.ask("cpus")?;
    check(cpus == "ok 4", format!("the guest has {cpus} CPUs"))?;
    let package = guest.ask("packages")?;
    check(package.trim_end() == "ok 0", format!("the second CPU is in package {package}"))?;
    let memory = guest.ask("memory")?;
    let total: u64 = memory.split_whitespace().nth(2).unwrap_or_default().parse()?;
    check(total > 3_000_000, format!("the guest has {total} KiB of memory"))?;
    guest.power_off()
}

fn vsock(place: &Place) -> Outcome {
    const BYTES: usize = 8 << 20;
    let mut guest = Served::start(place.config(Role::Serve)?)?;
    let refused = guest.ask("refused 999")?;
    check(refused == "ok ConnectionReset", format!("a port without a listener says {refused}"))?;
    guest.commands.get_mut().write_all(b"echo\n")?;
    let mut stream = accept(&mut guest.echo)?;
    let sent: Vec<u8> = (0..BYTES).map(|index| (index.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let expected = checksum(&sent);
    let mut writer = stream.try_clone()?;
    let writing = std::thread::spawn(move || {
        writer.write_all(&sent)?;
        writer.shutdown(Shutdown::Write)
    });
    let mut received = Vec::new();
    stream.read_to_end(&mut received)?;
    writing.join().map_err(|_| "the writer panicked")??;
    check(received.len() == BYTES, format!("{} of {BYTES} bytes came back", received.len()))?;
    check(checksum(&received) == expected, "the bytes came back changed")?;
    let total = guest.answer()?;
    check(total == format!("ok {BYTES}"), format!("the guest counted {total}"))?;
    guest.power_off()
}

fn stop_running(place: &Place) -> Outcome {
    let mut config = place.config(Role::Serve)?;
    config.vcpus = 2;
    let mut guest = Served::start(config)?;
    let begin = Instant::now();
    guest.machine.stop();
    guest.machine.stop();
    check(begin.elapsed() < Duration::from_secs(10), format!("stopping took {:?}", begin.elapsed()))?;
    let exit = guest.machine.exited().borrow().clone();
    check(exit == Some(MachineExit::Stopped), format!("the exit is {exit:?}"))?;
    let mut rest = Vec::new();
    guest.commands.read_to_end(&mut rest)?;
    check(guest.machine.vsock().listen(77).is_err(), "vsock goes on")
}

/// Threads, descriptors and mappings of this process.
fn holdings() -> Outcome<[usize; 3]> {
    let count = |path: &str| -> Outcome<usize> { Ok(fs::read_dir(path)?.count()) };
    let large = |line: &&str| {
        line.split_once('-').is_some_and(|(start, rest)| {
            let end = rest.split(' ').next().unwrap_or_default();
            let parse = |text| u64::from_str_radix(text, 16).unwrap_or_default();
            parse(end).saturating_sub(parse(start)) >= 256 << 20
        })
    };
    let maps = fs::read_to_string("/proc/self/maps")?;
    Ok([count("/proc/self/task")?, count("/proc/self/fd")?, maps.lines().filter(large).count()])
}

fn no_leaks(place: &Place) -> Outcome {
    drop(Machine::start(place.config(Role::Off)?)?);
    let before = holdings()?;
    for round in 0..10 {
        let machine = Machine::start(place.config(Role::Off)?)?;
        if round % 2 == 0 {
            wait(&machine)?;
        }
        machine.stop();
        let stopped = holdings()?;
        check(stopped[2] <= before[2], format!("memory is left after stop: {before:?} -> {stopped:?}"))?;
    }
    let after = holdings()?;
    check(after == before, format!("threads, descriptors, large mappings: {before:?} -> {after:?}"))
}
