//! What each kind of thread may ask of the host's kernel.
//!
//! Every device folder has its own list beside its code; this module adds the list that every
//! thread needs and compiles both into a filter. A call outside the lists kills the process: the
//! machine has then been broken into, and a pod is worth less than its host.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

/// One permitted system call, and why.
#[derive(Clone, Copy, Debug)]
pub struct Allowed {
    /// The number, `libc::SYS_*`.
    pub number: i64,
    /// Only with this value (of 32 bits) in this argument.
    pub argument: Option<(u8, u32)>,
    /// What the thread needs it for.
    pub reason: &'static str,
}

/// Short form for lists: `allow(libc::SYS_read, "drains the kick eventfd")`.
#[must_use]
pub const fn allow(number: i64, reason: &'static str) -> Allowed {
    Allowed { number, argument: None, reason }
}

/// As [`allow`], only where argument `index` has this `value`.
#[must_use]
pub const fn allow_with(number: i64, index: u8, value: u32, reason: &'static str) -> Allowed {
    Allowed { number, argument: Some((index, value)), reason }
}

/// What every thread of ours needs.
pub const COMMON: &[Allowed] = &[
    allow(libc::SYS_brk, "the allocator"),
    allow(libc::SYS_clock_gettime, "time, where the vDSO has to ask the kernel"),
    allow(libc::SYS_clock_nanosleep, "a pause"),
    allow(libc::SYS_close, "drops descriptors"),
    allow(libc::SYS_exit, "the thread's end"),
    allow(libc::SYS_exit_group, "abort on a panic"),
    allow_with(libc::SYS_fcntl, 1, libc::F_GETFD as u32, "std's check before a close, in debug builds"),
    allow(libc::SYS_futex, "locks, channels and joining"),
    allow(libc::SYS_getpid, "abort on a panic"),
    allow(libc::SYS_getrandom, "the seeds of hash maps"),
    allow(libc::SYS_gettid, "abort on a panic"),
    allow(libc::SYS_madvise, "the allocator and the end of a stack"),
    allow(libc::SYS_mmap, "the allocator"),
    allow(libc::SYS_mprotect, "the allocator growing an arena"),
    allow(libc::SYS_mremap, "the allocator"),
    allow(libc::SYS_munmap, "the allocator"),
    allow(libc::SYS_restart_syscall, "a wait that was stopped and continued"),
    allow(libc::SYS_rt_sigprocmask, "abort and the end of a thread"),
    allow(libc::SYS_rt_sigreturn, "the end of the kick's handler"),
    allow(libc::SYS_sched_yield, "spinning locks"),
    allow(libc::SYS_sigaltstack, "the end of a thread"),
    allow(libc::SYS_tgkill, "kicks vCPUs when the machine ends; abort"),
    allow(libc::SYS_write, "interrupts (irqfd), eventfds, wake-ups of async waiters, panic messages"),
];

/// What a vCPU thread needs: the guest, and setting up the devices that the guest activates.
pub const VCPU: &[Allowed] = &[
    allow_with(libc::SYS_ioctl, 1, KVM_RUN, "runs the guest"),
    allow(libc::SYS_dup, "hands a queue's notification to the device that is activated"),
    allow(libc::SYS_epoll_create1, "activation of a device"),
    allow(libc::SYS_epoll_ctl, "activation of a device"),
    allow(libc::SYS_eventfd2, "activation of a device"),
    allow_with(libc::SYS_fcntl, 1, libc::F_DUPFD_CLOEXEC as u32, "as dup"),
];

/// `KVM_RUN` of linux/kvm.h.
const KVM_RUN: u32 = 0xae80;

/// A filter cannot be made or put on.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// The kernel refuses the filter.
    #[error("The seccomp filter is refused")]
    Apply(#[source] seccompiler::Error),
    /// The lists do not compile (never with the lists of this crate).
    #[error("The seccomp filter does not compile")]
    Compile(#[source] seccompiler::BackendError),
}

/// Compiles lists into one filter.
///
/// # Errors
/// Never with the lists of this crate.
pub fn compile(lists: &[&[Allowed]]) -> Result<BpfProgram, SeccompError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let mut unconditional = Vec::new();
    for allowed in lists.iter().copied().flatten() {
        let chain = rules.entry(allowed.number).or_default();
        match allowed.argument {
            None => unconditional.push(allowed.number),
            Some((index, value)) => chain.push(rule(index, value)?),
        }
    }
    // A call without conditions in one list is free, whatever another list says.
    for number in unconditional {
        rules.insert(number, Vec::new());
    }
    SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, TargetArch::x86_64)
        .and_then(BpfProgram::try_from)
        .map_err(SeccompError::Compile)
}

fn rule(index: u8, value: u32) -> Result<SeccompRule, SeccompError> {
    SeccompCondition::new(index, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, u64::from(value))
        .and_then(|condition| SeccompRule::new(vec![condition]))
        .map_err(SeccompError::Compile)
}

/// Puts a filter on the calling thread for good.
///
/// # Errors
/// When the kernel refuses.
pub fn apply(filter: &BpfProgram) -> Result<(), SeccompError> {
    seccompiler::apply_filter(filter).map_err(SeccompError::Apply)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_lists_compile_sorted_and_with_reasons() {
        for list in [COMMON, VCPU] {
            compile(&[COMMON, list]).unwrap();
            assert!(list.iter().all(|allowed| !allowed.reason.is_empty()));
        }
    }

    #[test]
    fn no_list_repeats_what_is_common() {
        for allowed in VCPU {
            let same =
                |common: &&Allowed| (common.number, common.argument) == (allowed.number, allowed.argument);
            assert!(!COMMON.iter().any(|common| same(&common)), "{}", allowed.number);
        }
    }
}
