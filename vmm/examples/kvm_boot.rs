//! Boots a machine on real KVM and checks how it ends. `cargo xtask` runs it inside the test node;
//! it fails where KVM is unusable, it never skips.
//!
//! ```text
//! kvm_boot --kernel vmlinux --root rootfs.erofs [--vcpus N] [--memory MIB] [--layer FILE]
//!          [--expect TEXT] [--exit powered-off|reset|panicked|stopped] [--seconds N] [--quiet]
//! ```
//! Without `--expect` it waits for the machine's end; with it, for the text on the console, then
//! stops the machine. Prints the console, the boot spans and the counters.
#![allow(clippy::print_stdout, reason = "it is a command")]

use std::error::Error;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use hull_vmm::{Machine, MachineConfig, MachineExit, MachineKind};

struct Options {
    kernel: PathBuf,
    root: PathBuf,
    vcpus: u8,
    memory_mib: u32,
    layer: Option<PathBuf>,
    expect: Option<String>,
    exit: String,
    limit: Duration,
    quiet: bool,
}

impl Options {
    fn parse() -> Result<Self, Box<dyn Error>> {
        let mut options = Self {
            kernel: "target/guest/vmlinux".into(),
            root: "target/guest/rootfs.erofs".into(),
            vcpus: 1,
            memory_mib: 256,
            layer: None,
            expect: None,
            exit: "stopped".into(),
            limit: Duration::from_secs(60),
            quiet: false,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(name) = arguments.next() {
            if name == "--quiet" {
                options.quiet = true;
                continue;
            }
            let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
            match name.as_str() {
                "--kernel" => options.kernel = value.into(),
                "--root" => options.root = value.into(),
                "--vcpus" => options.vcpus = value.parse()?,
                "--memory" => options.memory_mib = value.parse()?,
                "--layer" => options.layer = Some(value.into()),
                "--expect" => options.expect = Some(value),
                "--exit" => options.exit = value,
                "--seconds" => options.limit = Duration::from_secs(value.parse()?),
                _ => return Err(format!("unknown option {name}").into()),
            }
        }
        Ok(options)
    }
}

fn main() -> ExitCode {
    match Options::parse().and_then(|options| boot(&options)) {
        Ok(()) => {
            println!("kvm_boot: ok");
            ExitCode::SUCCESS
        }
        Err(error) => {
            let mut chain = error.source();
            print!("kvm_boot: FAILED: {error}");
            while let Some(cause) = chain {
                print!(": {cause}");
                chain = cause.source();
            }
            println!();
            ExitCode::FAILURE
        }
    }
}

fn boot(options: &Options) -> Result<(), Box<dyn Error>> {
    let (mut output, sink) = UnixStream::pair()?;
    output.set_read_timeout(Some(Duration::from_millis(20)))?;
    output.set_nonblocking(options.quiet)?;
    let console = (!options.quiet).then(|| OwnedFd::from(sink));
    let begin = Instant::now();
    let machine = Machine::start(MachineConfig {
        vcpus: options.vcpus,
        memory_mib: options.memory_mib,
        kernel: options.kernel.clone(),
        kernel_sha256: None,
        root_image: options.root.clone(),
        root_image_sha256: None,
        console,
        kind: MachineKind::Kvm,
    })?;
    if let Some(layer) = &options.layer {
        let file = File::open(layer)?;
        let length = file.metadata()?.len();
        println!("kvm_boot: layer at {:?}", machine.layers().map(file, length)?);
    }
    let outcome = watch(&machine, options, &mut output, begin);
    report(&machine);
    let stopping = Instant::now();
    machine.stop();
    machine.stop();
    println!("kvm_boot: stopped in {:?}", stopping.elapsed());
    outcome?;
    let exit = machine.exited().borrow().clone();
    let found = match exit {
        Some(MachineExit::PoweredOff) => "powered-off".to_owned(),
        Some(MachineExit::Reset) => "reset".to_owned(),
        Some(MachineExit::Panicked) => "panicked".to_owned(),
        Some(MachineExit::Stopped) => "stopped".to_owned(),
        other => format!("{other:?}"),
    };
    if found == options.exit {
        Ok(())
    } else {
        Err(format!("the exit is {found}, not {}", options.exit).into())
    }
}

/// Copies the console until the awaited text or the machine's end.
fn watch(
    machine: &Machine,
    options: &Options,
    output: &mut UnixStream,
    begin: Instant,
) -> Result<(), Box<dyn Error>> {
    let exited = machine.exited();
    let mut seen = String::new();
    let mut buffer = [0; 4096];
    while begin.elapsed() < options.limit {
        match output.read(&mut buffer) {
            Ok(length) => {
                let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default());
                print!("{text}");
                io::stdout().flush()?;
                seen.push_str(&text);
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(error) => return Err(error.into()),
        }
        if options.expect.as_ref().is_some_and(|text| seen.contains(text)) {
            println!("kvm_boot: seen after {:?}", begin.elapsed());
            return Ok(());
        }
        if exited.borrow().is_some() {
            return match &options.expect {
                Some(text) => Err(format!("the machine ended before it said {text:?}").into()),
                None => {
                    println!("kvm_boot: ended after {:?}", begin.elapsed());
                    Ok(())
                }
            };
        }
        if options.quiet {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    Err(format!("nothing happened within {:?}", options.limit).into())
}

fn report(machine: &Machine) {
    let metrics = machine.metrics();
    for span in &metrics.boot {
        println!("kvm_boot: span {:8} {:?} (at {:?})", span.name, span.took, span.end);
    }
    for exit in &metrics.exits {
        println!("kvm_boot: exits {} {}", exit.name, exit.value);
    }
    print!("kvm_boot: kvm");
    for statistic in &metrics.kvm {
        print!(" {}={}", statistic.name, statistic.value);
    }
    println!();
    for device in &metrics.devices {
        print!("kvm_boot: device {}", device.name);
        for counter in &device.counters {
            print!(" {}={}", counter.name, counter.value);
        }
        println!("{}", device.failure.as_deref().unwrap_or_default());
    }
}
