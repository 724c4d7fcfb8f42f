//! BPF programs of type `CGROUP_DEVICE`: load one and attach it to a control group
//! (`linux/bpf.h`). The programs are made in `container::devices`.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const PROG_LOAD: libc::c_long = 5;
const PROG_ATTACH: libc::c_long = 8;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
/// Groups below may add programs of their own; all of them must agree.
const ALLOW_MULTI: u32 = 1 << 1;

/// `struct bpf_insn`
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u8,
    /// Destination register in the low half, source register in the high one.
    pub registers: u8,
    /// Of a jump, or into memory.
    pub offset: i16,
    /// Immediate operand.
    pub immediate: i32,
}
const _: () = assert!(size_of::<Instruction>() == 8);

/// `union bpf_attr` as `BPF_PROG_LOAD` reads it, up to the last field that is used here.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
}
const _: () = assert!(size_of::<Load>() == 24);

/// `union bpf_attr` as `BPF_PROG_ATTACH` reads it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Attach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}
const _: () = assert!(size_of::<Attach>() == 16);

/// Makes `program` decide over every access to a device from the control group `directory`.
///
/// # Errors
/// The kernel's; `EINVAL` for a program that its verifier does not take.
pub fn filter_devices(directory: BorrowedFd<'_>, program: &[Instruction]) -> io::Result<()> {
    let insn_cnt = u32::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
    let load = Load {
        prog_type: PROG_TYPE_CGROUP_DEVICE,
        insn_cnt,
        insns: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
    };
    // SAFETY: the kernel reads insn_cnt instructions from the slice that is borrowed here and a
    // string that ends with a zero; both outlive the call. It writes nothing.
    let descriptor = check(unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &load, size_of::<Load>()) })?;
    // SAFETY: the call above has just opened this descriptor, and nothing else knows it.
    let loaded = unsafe { OwnedFd::from_raw_fd(descriptor) };
    let attach = Attach {
        target_fd: directory.as_raw_fd().unsigned_abs(),
        attach_bpf_fd: loaded.as_raw_fd().unsigned_abs(),
        attach_type: ATTACH_CGROUP_DEVICE,
        attach_flags: ALLOW_MULTI,
    };
    // SAFETY: the kernel reads one Attach, which outlives the call, and takes its own reference to
    // the program.
    check(unsafe { libc::syscall(libc::SYS_bpf, PROG_ATTACH, &attach, size_of::<Attach>()) }).map(drop)
}

fn check(result: libc::c_long) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}
