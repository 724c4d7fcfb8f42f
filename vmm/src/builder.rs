//! The recipe: from a configuration to a running machine, one type for each phase.
//!
//! ```text
//! Configured --load--> Loaded --wire--> Wired --run--> Hardware of a running machine
//!  files,               guest memory     devices,       vCPU threads
//!  sizes                filled, VM       vCPUs
//! ```
//! Each step consumes the phase before, so nothing can be done twice or in the wrong order. If one
//! fails, dropping what it had undoes all before.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::boot::kernel::Kernel;
use crate::boot::{acpi, cmdline, params};
use crate::bus::Bus;
use crate::config::{MachineConfig, MachineKind, Sizes};
use crate::control::Control;
use crate::cpuid;
use crate::devices::power::{self, Power};
use crate::devices::pvpanic::{self, PvPanic};
use crate::devices::serial::{self, Serial};
use crate::devices::virtio::block::{Extents, LayerDisk};
use crate::devices::virtio::transport::{EmptySlot, Transport};
use crate::devices::virtio::vsock::VsockDevice;
use crate::devices::{Parts, Row, TABLE};
use crate::error::MachineError;
use crate::irq;
use crate::kvm::{KvmError, Registers, System, Vcpu, Vm};
use crate::machine::{Hardware, Slot};
use crate::memory::GuestRam;
use crate::memory::layout::{PVPANIC, SERIAL_GSI, SERIAL_PORT, VIRTIO_GSI, VIRTIO_MMIO, VIRTIO_MMIO_LENGTH};
use crate::metrics::{BootClock, Exits};
use crate::plan::{LaunchPlan, PlanError};
use crate::seccomp;
use crate::sys::signal;
use crate::thread::Spawner;
use crate::vcpu::{self, Shared};

/// Offset of `QueueNotify` among a slot's registers.
const QUEUE_NOTIFY: u64 = 0x50;
/// `IA32_MTRR_DEF_TYPE` and its value: MTRRs on, everything write-back. Without it the kernel takes
/// all memory for uncached and does without PAT.
const MTRR_DEF_TYPE: (u32, u64) = (0x2ff, 1 << 11 | 6);
/// Bytes hashed at a time.
const HASH_CHUNK: usize = 128 * 1024;

/// Phase 1: the caller's wishes are sound, the files are open and the right ones.
#[derive(Debug)]
pub(crate) struct Configured {
    sizes: Sizes,
    kernel: Kernel,
    root: Extents,
    console: Option<OwnedFd>,
    kind: MachineKind,
}

/// Phase 2: the guest's memory is filled as planned, and an empty VM exists.
#[derive(Debug)]
pub(crate) struct Loaded {
    sizes: Sizes,
    root: Extents,
    console: Option<OwnedFd>,
    start: Registers,
    system: System,
    vm: Arc<Vm>,
    ram: GuestRam,
}

/// Phase 3: devices and vCPUs are in the VM, and the boot vCPU knows where to start.
#[derive(Debug)]
pub(crate) struct Wired {
    vcpus: Vec<Vcpu>,
    shared: Arc<Shared>,
    hardware: Hardware,
}

impl Configured {
    pub fn new(config: MachineConfig, clock: &mut BootClock) -> Result<Self, MachineError> {
        let sizes = config.sizes()?;
        let kernel = open("kernel", &config.kernel, config.kernel_sha256)?;
        let root = open("root image", &config.root_image, config.root_image_sha256)?;
        let kernel = Kernel::read(kernel, sizes.memory_mib)
            .map_err(|source| MachineError::Kernel { path: config.kernel, source })?;
        let root = Extents::of_file(root)
            .map_err(|source| MachineError::RootImage { path: config.root_image, source })?;
        clock.step("files");
        Ok(Self { sizes, kernel, root, console: config.console, kind: config.kind })
    }

    /// Fills memory and makes the VM at the same time: KVM spends most of the latter waiting for
    /// grace periods of the host's kernel.
    pub fn load(self, clock: &mut BootClock) -> Result<Loaded, MachineError> {
        let system = System::open()?;
        let plan = self.plan()?;
        let ram = GuestRam::allocate(self.sizes.memory_mib)?;
        clock.step("memory");
        let vm = std::thread::scope(|scope| {
            let filling = std::thread::Builder::new()
                .name("hull-load".into())
                .spawn_scoped(scope, || plan.execute(&ram))
                .map_err(host("thread hull-load"))?;
            let vm = match self.kind {
                MachineKind::Kvm => system.create_vm(),
            };
            filling.join().map_err(|_| host("guest's memory")(io::Error::other("hull-load panicked")))??;
            Ok::<_, MachineError>(Arc::new(vm?))
        })?;
        ram.register(&vm)?;
        clock.step("load");
        let start = params::registers(self.kernel.entry());
        Ok(Loaded { sizes: self.sizes, root: self.root, console: self.console, start, system, vm, ram })
    }

    /// All that the guest finds in its memory.
    fn plan(&self) -> Result<LaunchPlan, PlanError> {
        let mut plan = LaunchPlan::default();
        let console = self.console.is_some();
        let line = cmdline::to_bytes(&cmdline::command_line(console));
        for item in params::items(self.sizes.memory_mib, line) {
            plan.add(item)?;
        }
        let shape = acpi::Shape { vcpus: self.sizes.vcpus, slots: TABLE.len() as u8, console };
        plan.add(acpi::item(shape))?;
        self.kernel.items().try_for_each(|item| plan.add(item))?;
        Ok(plan)
    }
}

impl Loaded {
    pub fn wire(self, clock: &mut BootClock) -> Result<Wired, MachineError> {
        let Self { sizes, root, console, start, system, vm, ram } = self;
        let control = Arc::new(Control::new());
        signal::prepare_kicks().map_err(host("handler of the kick signal"))?;
        let spawner = Spawner::new(Arc::clone(&control)).map_err(host("thread hull-spawn"))?;
        let (ports, console_dropped) = ports(&vm, &control, console)?;
        let device = VsockDevice::new().map_err(host("vsock device"))?;
        let vsock = device.handle();
        let layers = Arc::new(Extents::for_layers());
        let mut parts = Parts { root: Arc::new(root), layers: Arc::clone(&layers), vsock: Some(device) };
        let (registers, slots) = slots(&vm, &ram, &control, &spawner, &mut parts)?;
        clock.step("devices");
        let vcpus = vcpus(&system, &vm, sizes.vcpus, start)?;
        clock.step("vcpus");
        let stats = vcpus.iter().filter_map(Vcpu::stats).collect();
        let exits = Arc::new(Exits::default());
        let shared = Arc::new(Shared { control: Arc::clone(&control), ports, registers, exits });
        let layers = LayerDisk::new(layers);
        let hardware = Hardware { slots, layers, vsock, console_dropped, control, spawner, stats };
        Ok(Wired { vcpus, shared, hardware })
    }
}

impl Wired {
    /// Starts the vCPU threads. Should one not start, dropping the hardware ends those before it.
    pub fn run(self, clock: &mut BootClock) -> Result<(Hardware, Arc<Exits>), MachineError> {
        let Self { vcpus, shared, hardware } = self;
        let workers = hardware.spawner.workers().map_err(host("vCPU threads"))?;
        for vcpu in vcpus {
            let name = format!("vcpu{}", vcpu.index());
            let shared = Arc::clone(&shared);
            let thread = workers
                .spawn(&name, seccomp::VCPU, move || vcpu::run(vcpu, &shared))
                .map_err(host(format!("thread hull-{name}")))?;
            hardware.control.adopt(thread);
        }
        clock.step("run");
        Ok((hardware, Arc::clone(&shared.exits)))
    }
}

fn host(what: impl Into<String>) -> impl FnOnce(io::Error) -> MachineError {
    move |source| MachineError::Host { what: what.into(), source }
}

/// Opens a file and, where a hash is expected, compares it.
fn open(what: &'static str, path: &Path, expected: Option<[u8; 32]>) -> Result<File, MachineError> {
    let failed = |source| MachineError::Open { what, path: PathBuf::from(path), source };
    let file = File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.is_dir() {
        return Err(failed(io::ErrorKind::IsADirectory.into()));
    }
    let Some(expected) = expected else { return Ok(file) };
    let found = hash(&file).map_err(failed)?;
    if found == expected {
        return Ok(file);
    }
    let path = PathBuf::from(path);
    Err(MachineError::Hash { what, path, found: hex(&found), expected: hex(&expected) })
}

fn hash(mut file: &File) -> io::Result<[u8; 32]> {
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; HASH_CHUNK];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(hasher.finalize().into()),
            length => hasher.update(chunk.get(..length).unwrap_or_default()),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

type Dropped = Option<Arc<AtomicU64>>;

fn ports(vm: &Vm, control: &Arc<Control>, console: Option<OwnedFd>) -> Result<(Bus, Dropped), MachineError> {
    let mut bus = Bus::default();
    bus.insert(power::START, power::LENGTH, Arc::new(Mutex::new(Power::new(Arc::clone(control)))))?;
    let Some(sink) = console else { return Ok((bus, None)) };
    let line = irq::line(vm, SERIAL_GSI)?;
    let (serial, dropped) = Serial::new(sink, line).map_err(MachineError::Console)?;
    bus.insert(SERIAL_PORT.into(), serial::LENGTH, Arc::new(Mutex::new(serial)))?;
    Ok((bus, Some(dropped)))
}

/// Fills the slots and puts their registers, and pvpanic's, on a bus.
fn slots(
    vm: &Vm,
    ram: &GuestRam,
    control: &Arc<Control>,
    spawner: &Spawner,
    parts: &mut Parts,
) -> Result<(Bus, Vec<Slot>), MachineError> {
    let mut bus = Bus::default();
    let mut slots = Vec::new();
    bus.insert(PVPANIC, pvpanic::LENGTH, Arc::new(Mutex::new(PvPanic::new(Arc::clone(control)))))?;
    for (row, index) in TABLE.iter().zip(0_u32..) {
        let address = VIRTIO_MMIO + u64::from(index) * VIRTIO_MMIO_LENGTH;
        match slot(vm, ram, spawner, parts, row, (address, VIRTIO_GSI + index))? {
            Some(transport) => {
                let transport = Arc::new(Mutex::new(transport));
                bus.insert(address, VIRTIO_MMIO_LENGTH, Arc::clone(&transport) as _)?;
                slots.push(Slot { name: row.name, transport });
            }
            None => bus.insert(address, VIRTIO_MMIO_LENGTH, Arc::new(Mutex::new(EmptySlot)))?,
        }
    }
    Ok((bus, slots))
}

/// One slot's device behind its registers, with its interrupt line and notifications connected.
fn slot(
    vm: &Vm,
    ram: &GuestRam,
    spawner: &Spawner,
    parts: &mut Parts,
    row: &Row,
    (address, gsi): (u64, u32),
) -> Result<Option<Transport>, MachineError> {
    let Some(device) = (row.build)(parts, row.name) else { return Ok(None) };
    let line = irq::line(vm, gsi)?;
    let mut kicks = Vec::new();
    for queue in (0..).take(device.queue_sizes().len()) {
        let kick = EventFd::new(EFD_NONBLOCK).map_err(host(format!("eventfd of {}", row.name)))?;
        vm.connect_notification(&kick, address + QUEUE_NOTIFY, queue)?;
        kicks.push(kick);
    }
    let workers = spawner.workers().map_err(host("device threads"))?;
    Ok(Some(Transport::new(device, ram.clone(), workers, line, kicks)))
}

fn vcpus(system: &System, vm: &Arc<Vm>, count: u8, start: Registers) -> Result<Vec<Vcpu>, MachineError> {
    let supported = system.supported_cpuid()?;
    let tsc_deadline = system.has_tsc_deadline();
    let mut vcpus = Vec::with_capacity(count.into());
    for index in 0..count {
        let vcpu = vm.create_vcpu(index)?;
        let cpuid = cpuid::for_vcpu(&supported, index, count, tsc_deadline);
        vcpu.set_cpuid(&cpuid.ok_or(KvmError::Capability("room for CPUID leaves"))?)?;
        vcpu.set_msrs(&[MTRR_DEF_TYPE])?;
        // The others wait for the boot vCPU's INIT and SIPI.
        if index == 0 {
            vcpu.set_registers(start)?;
        }
        vcpus.push(vcpu);
    }
    Ok(vcpus)
}
