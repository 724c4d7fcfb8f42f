//! `agent container-exec <dir> <process.json> <init pid>`: runs a further process in a container.
//!
//! Not libcontainer's tenant: that one runs without the container's seccomp filter and reads the
//! container's state back through /proc. This verb joins the namespaces of the init by its process
//! handle in one call and then does, in runc's order, what an init does after its root is made.
//! libcontainer's parts serve for capabilities, limits and seccomp.
//!
//! ```text
//! helper: join cgroup -> setns -> fork (child of the agent) -> wait for exec or error -> report
//! child:  session, streams -> limits, umask -> cwd -> ids -> [seccomp] -> caps -> [seccomp] -> exec
//! ```
//! The filter is loaded before the capabilities go, which loading needs, or, with noNewPrivileges,
//! after, so that it need not allow the calls of dropping them.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use libcontainer::capabilities::{drop_privileges, reset_effective};
use libcontainer::oci_spec::runtime::{LinuxSeccomp, Process, Spec};
use libcontainer::seccomp::initialize_seccomp;
use libcontainer::syscall::syscall::create_syscall;
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, chdir, setsid, umask};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use rustix::thread::{
    ThreadNameSpaceType, move_into_thread_name_spaces, set_keep_capabilities, set_no_new_privs,
    set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use super::channel::{Channel, Report};
use super::program::{self, reason};
use crate::sys::process::{Forked, SingleThread, exit_now, fork_sibling};

/// `DEVPTS_SUPER_MAGIC`
const DEVPTS_MAGIC: i64 = 0x1cd1;
/// Device number of the pty multiplexer.
const PTMX: (u32, u32) = (5, 2);

/// What the agent says on the command line.
#[derive(Debug)]
pub struct Arguments {
    /// The container's directory.
    pub dir: PathBuf,
    /// The file with the process.
    pub process: PathBuf,
    /// The container's control group.
    pub cgroup: PathBuf,
    /// The container's init.
    pub init: String,
}

/// Runs the verb: reports to the agent and ends.
pub fn main(arguments: &Arguments, channel: &Channel) {
    let report = match exec(arguments, channel) {
        Ok(pid) => Report::Ready(pid),
        Err(text) => Report::Failed(text),
    };
    // If the agent is gone, so is the machine.
    let _ = channel.report(&report);
}

/// The process to run and what it inherits from its container.
struct Plan {
    process: Process,
    seccomp: Option<LinuxSeccomp>,
}

fn exec(arguments: &Arguments, channel: &Channel) -> Result<Pid, String> {
    let mut descriptors = channel.wait_for_go().map_err(|error| error.to_string())?;
    let plan = Plan::load(arguments)?;
    if descriptors.is_empty() {
        return Err("the agent sent no process handle".into());
    }
    let init = descriptors.remove(0);
    let alone = SingleThread::check().map_err(|error| error.to_string())?;
    join_cgroup(arguments)?;
    set_oom_score(&plan.process)?;
    let spaces = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::PROCESS_ID
        | ThreadNameSpaceType::CONTROL_GROUP
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME;
    move_into_thread_name_spaces(init.as_fd(), spaces).map_err(failed("join the container's namespaces"))?;
    drop(init);
    let (outcome, verdict) = pipe_with(PipeFlags::CLOEXEC).map_err(failed("make a pipe"))?;
    match fork_sibling(alone).map_err(|error| format!("fork failed: {}", reason(&error)))? {
        Forked::Child => {
            drop(outcome);
            let text = become_process(&plan, descriptors, channel);
            // The helper reads the end of the pipe if this fails, and the agent the exit status.
            let _ = File::from(verdict).write_all(text.as_bytes());
            exit_now(1)
        }
        Forked::Parent(pid) => {
            drop((verdict, descriptors));
            let mut text = String::new();
            // Nothing is written when the program runs: the kernel closes the pipe on exec.
            File::from(outcome).read_to_string(&mut text).map_err(|error| error.to_string())?;
            if text.is_empty() { Ok(pid) } else { Err(text) }
        }
    }
}

impl Plan {
    fn load(arguments: &Arguments) -> Result<Self, String> {
        let spec = Spec::load(arguments.dir.join("config.json")).map_err(|error| error.to_string())?;
        let json = fs::read(&arguments.process).map_err(|error| error.to_string())?;
        let mut process: Process = serde_json::from_slice(&json).map_err(|error| error.to_string())?;
        if process.capabilities().is_none() {
            let inits = spec.process().as_ref().and_then(|init| init.capabilities().clone());
            process.set_capabilities(inits);
        }
        let seccomp = spec.linux().as_ref().and_then(|linux| linux.seccomp().clone());
        Ok(Self { process, seccomp })
    }
}

/// Joins the container's control group; if that one only has groups below, the init's.
fn join_cgroup(arguments: &Arguments) -> Result<(), String> {
    let own = fs::write(arguments.cgroup.join("cgroup.procs"), "0");
    let joined = own.or_else(|error| {
        let line = fs::read_to_string(format!("/proc/{}/cgroup", arguments.init))?;
        let path = line.trim().strip_prefix("0::/").ok_or(error)?;
        fs::write(Path::new(crate::init::CGROUP_ROOT).join(path).join("cgroup.procs"), "0")
    });
    joined.map_err(|error| format!("join the container's control group: {}", reason(&error)))
}

fn set_oom_score(process: &Process) -> Result<(), String> {
    let Some(score) = process.oom_score_adj() else { return Ok(()) };
    fs::write("/proc/self/oom_score_adj", score.to_string())
        .map_err(|error| format!("set oom_score_adj: {}", reason(&error)))
}

/// Everything from the fork to the program; returns only what went wrong.
fn become_process(plan: &Plan, descriptors: Vec<OwnedFd>, channel: &Channel) -> String {
    match prepare(plan, descriptors, channel) {
        Ok(()) => program::run(&plan.process).to_string(),
        Err(text) => text,
    }
}

fn prepare(plan: &Plan, descriptors: Vec<OwnedFd>, channel: &Channel) -> Result<(), String> {
    let process = &plan.process;
    let syscall = create_syscall();
    let has_no_new_privs = process.no_new_privileges() == Some(true);
    setsid().map_err(failed("start a session"))?;
    attach_streams(process, descriptors, channel)?;
    if has_no_new_privs {
        set_no_new_privs(true).map_err(failed("set no_new_privs"))?;
    }
    for limit in process.rlimits().as_deref().unwrap_or_default() {
        syscall.set_rlimit(limit).map_err(|error| format!("set {:?}: {error}", limit.typ()))?;
    }
    if let Some(mask) = process.user().umask() {
        umask(Mode::from_raw_mode(mask));
    }
    // As root, who may enter where the user may not; or, where only the user may, below.
    let entered = chdir(process.cwd());
    set_ids(process)?;
    syscall.close_range(0).map_err(|error| format!("close descriptors: {error}"))?;
    if !has_no_new_privs {
        load_filter(plan)?;
    }
    reset_effective(syscall.as_ref()).map_err(|error| format!("raise capabilities: {error}"))?;
    if let Some(capabilities) = process.capabilities() {
        drop_privileges(capabilities, syscall.as_ref())
            .map_err(|error| format!("drop capabilities: {error}"))?;
    }
    entered.or_else(|_| chdir(process.cwd())).map_err(|error| {
        format!("chdir to cwd ({:?}) set in config.json failed: {}", process.cwd(), reason(&error.into()))
    })?;
    if has_no_new_privs {
        load_filter(plan)?;
    }
    Ok(())
}

fn attach_streams(process: &Process, descriptors: Vec<OwnedFd>, channel: &Channel) -> Result<(), String> {
    let [stdin, stdout, stderr] = if process.terminal() == Some(true) {
        open_terminal(process, channel)?
    } else {
        descriptors.try_into().map_err(|_| "the agent sent no streams".to_owned())?
    };
    rustix::stdio::dup2_stdin(stdin).map_err(failed("attach stdin"))?;
    rustix::stdio::dup2_stdout(stdout).map_err(failed("attach stdout"))?;
    rustix::stdio::dup2_stderr(stderr).map_err(failed("attach stderr"))
}

/// Opens a terminal of the container's own devpts. The container's files are not trusted: what is
/// opened must be the kernel's multiplexer, and its other side is asked of the kernel, not of a path.
fn open_terminal(process: &Process, channel: &Channel) -> Result<[OwnedFd; 3], String> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master =
        rustix::fs::open("/dev/pts/ptmx", flags, Mode::empty()).map_err(failed("open a terminal"))?;
    let (stat, fs) = (rustix::fs::fstat(&master), rustix::fs::fstatfs(&master));
    let is_multiplexer =
        stat.is_ok_and(|stat| (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)) == PTMX);
    if !is_multiplexer || !fs.is_ok_and(|fs| fs.f_type == DEVPTS_MAGIC) {
        return Err("/dev/pts/ptmx of the container is no pty multiplexer".into());
    }
    unlockpt(&master).map_err(failed("unlock the terminal"))?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = ioctl_tiocgptpeer(&master, flags).map_err(failed("open the terminal's slave"))?;
    rustix::fs::fchown(&slave, Some(Uid::from_raw(process.user().uid())), None)
        .map_err(failed("give the terminal to its user"))?;
    if let Some(size) = process.console_size() {
        let (rows, columns) = (size.height() as u16, size.width() as u16);
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&slave, size).map_err(failed("size the terminal"))?;
    }
    rustix::process::ioctl_tiocsctty(&slave).map_err(failed("take the terminal as controlling"))?;
    channel.report(&Report::Console(master)).map_err(|error| error.to_string())?;
    let copy = || rustix::io::fcntl_dupfd_cloexec(&slave, 3).map_err(failed("copy the terminal"));
    Ok([copy()?, copy()?, copy()?])
}

fn set_ids(process: &Process) -> Result<(), String> {
    let user = process.user();
    let groups = user.additional_gids().as_deref().unwrap_or_default();
    let groups: Vec<Gid> = groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
    set_keep_capabilities(true).map_err(failed("keep capabilities"))?;
    set_thread_groups(&groups).map_err(failed("set supplementary groups"))?;
    set_thread_res_gid(gid, gid, gid).map_err(failed("set the group"))?;
    set_thread_res_uid(uid, uid, uid).map_err(failed("set the user"))?;
    set_keep_capabilities(false).map_err(failed("keep capabilities"))
}

fn load_filter(plan: &Plan) -> Result<(), String> {
    let Some(seccomp) = &plan.seccomp else { return Ok(()) };
    initialize_seccomp(seccomp).map(drop).map_err(|error| format!("load the seccomp filter: {error}"))
}

fn failed(step: &'static str) -> impl Fn(rustix::io::Errno) -> String {
    move |error| format!("{step}: {}", reason(&error.into()))
}
