//! Which devices a container may use: the spec's rules as a BPF program on its control group.
//!
//! Without it, a container whose root may make device nodes could read the layer disk, and with it
//! the files of other containers. The rules are tried from the last to the first; the first that
//! matches decides; none means no. As with runc, the harmless devices that every container has come
//! after the spec's rules, so they are always allowed, and so is making (not opening) any node.
//!
//! ```text
//! r2 = type, r3 = access, r4 = major, r5 = minor      (struct bpf_cgroup_dev_ctx, by r1)
//! each rule: jump over it unless type, access, major, minor fit; r0 = allow; exit
//! ```

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use libcontainer::oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::sys::bpf::{Instruction, filter_devices};

/// Rules of one container: containerd writes about 10; a privileged one has one per device.
const MAX_RULES: usize = 1024;

const MKNOD: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;
const ALL: i32 = MKNOD | READ | WRITE;
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;

/// Instructions of a verdict.
const VERDICT_LENGTH: usize = 2;

/// What can be wrong with the rules.
#[derive(Debug, thiserror::Error)]
pub enum DevicesError {
    /// The cap.
    #[error("Spec has {count} device rules: {MAX_RULES} are possible")]
    TooMany {
        /// How many came.
        count: usize,
    },
    /// A rule that says nothing this kernel knows.
    #[error("Device rule {rule:?} is not understood")]
    Unknown {
        /// In the form of control groups.
        rule: String,
    },
    /// The kernel did not take the program.
    #[error("Device rules cannot be put into force")]
    Kernel(#[source] io::Error),
}

/// One rule, parsed; `None` fits everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    allow: bool,
    kind: Option<i32>,
    major: Option<i32>,
    minor: Option<i32>,
    access: i32,
}

/// Puts `rules` into force for the control group at `cgroup`.
///
/// # Errors
/// [`DevicesError`].
pub fn restrict(cgroup: &Path, rules: &[LinuxDeviceCgroup]) -> Result<(), DevicesError> {
    if rules.len() > MAX_RULES {
        return Err(DevicesError::TooMany { count: rules.len() });
    }
    let mut parsed = rules.iter().map(Rule::parse).collect::<Result<Vec<_>, _>>()?;
    parsed.extend(always());
    let program = compile(&parsed);
    File::open(cgroup)
        .and_then(|directory| filter_devices(directory.as_fd(), &program))
        .map_err(DevicesError::Kernel)
}

/// What every container may use.
fn always() -> impl Iterator<Item = Rule> {
    let node = |kind| Rule { allow: true, kind: Some(kind), major: None, minor: None, access: MKNOD };
    let device =
        |(major, minor)| Rule { allow: true, kind: Some(CHARACTER), major: Some(major), minor, access: ALL };
    let devices = [
        (1, Some(3)), // null
        (1, Some(5)), // zero
        (1, Some(7)), // full
        (1, Some(8)), // random
        (1, Some(9)), // urandom
        (5, Some(0)), // tty
        (5, Some(1)), // console
        (5, Some(2)), // ptmx
        (136, None),  // terminals
    ];
    [BLOCK, CHARACTER].into_iter().map(node).chain(devices.into_iter().map(device))
}

impl Rule {
    fn fits_all(&self) -> bool {
        let Self { kind, major, minor, access, .. } = self;
        kind.is_none() && major.is_none() && minor.is_none() && *access == ALL
    }

    fn parse(rule: &LinuxDeviceCgroup) -> Result<Self, DevicesError> {
        let unknown = || DevicesError::Unknown { rule: rule.to_string() };
        let kind = match rule.typ().unwrap_or_default() {
            LinuxDeviceType::A => None,
            LinuxDeviceType::B => Some(BLOCK),
            LinuxDeviceType::C | LinuxDeviceType::U => Some(CHARACTER),
            LinuxDeviceType::P => return Err(unknown()),
        };
        let mut access = 0;
        for letter in rule.access().as_deref().unwrap_or_default().chars() {
            access |= match letter {
                'r' => READ,
                'w' => WRITE,
                'm' => MKNOD,
                _ => return Err(unknown()),
            };
        }
        let number = |number: Option<i64>| match number {
            None | Some(-1) => Ok(None),
            Some(number) => i32::try_from(number).ok().filter(|n| *n >= 0).map(Some).ok_or_else(unknown),
        };
        let (major, minor) = (number(rule.major())?, number(rule.minor())?);
        Ok(Self { allow: rule.allow(), kind, major, minor, access: if access == 0 { ALL } else { access } })
    }
}

fn compile(rules: &[Rule]) -> Vec<Instruction> {
    let mut program = vec![
        op(LOAD_WORD, 2, 1, 0, 0), // r2 = access << 16 | type
        op(COPY, 3, 2, 0, 0),
        op(SHIFT_RIGHT, 3, 0, 0, 16),
        op(AND, 2, 0, 0, 0xffff),
        op(LOAD_WORD, 4, 1, 4, 0),
        op(LOAD_WORD, 5, 1, 8, 0), // the context, r1, is free from here on
    ];
    for rule in rules.iter().rev() {
        append(&mut program, rule);
        if rule.fits_all() {
            return program; // the kernel refuses instructions that cannot be reached
        }
    }
    program.extend([op(SET, 0, 0, 0, 0), op(EXIT, 0, 0, 0, 0)]);
    program
}

fn append(program: &mut Vec<Instruction>, rule: &Rule) {
    // Jumps are filled in backwards: each knows then what it has to skip.
    let mut tests: Vec<Instruction> = Vec::new();
    for (register, value) in [(2, rule.kind), (4, rule.major), (5, rule.minor)] {
        tests.extend(value.map(|value| op(JUMP_UNLESS_EQUAL, register, 0, 0, value)));
    }
    if rule.access != ALL {
        // An allowing rule must cover all that is asked; a denying one any of it.
        let (mask, skip) =
            if rule.allow { (ALL & !rule.access, JUMP_UNLESS_EQUAL) } else { (rule.access, JUMP_IF_EQUAL) };
        tests.extend([op(COPY, 1, 3, 0, 0), op(AND, 1, 0, 0, mask), op(skip, 1, 0, 0, 0)]);
    }
    let length = tests.len();
    for (place, test) in tests.iter_mut().enumerate() {
        if test.code == JUMP_UNLESS_EQUAL || test.code == JUMP_IF_EQUAL {
            // At most six tests and two instructions of a verdict.
            test.offset = (length - place - 1 + VERDICT_LENGTH) as i16;
        }
    }
    program.append(&mut tests);
    program.extend([op(SET, 0, 0, 0, i32::from(rule.allow)), op(EXIT, 0, 0, 0, 0)]);
}

const LOAD_WORD: u8 = 0x61; // BPF_LDX | BPF_MEM | BPF_W
const COPY: u8 = 0xbf; // BPF_ALU64 | BPF_MOV | BPF_X
const SET: u8 = 0xb7; // BPF_ALU64 | BPF_MOV | BPF_K
const AND: u8 = 0x57; // BPF_ALU64 | BPF_AND | BPF_K
const SHIFT_RIGHT: u8 = 0x77; // BPF_ALU64 | BPF_RSH | BPF_K
const JUMP_IF_EQUAL: u8 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_UNLESS_EQUAL: u8 = 0x55; // BPF_JMP | BPF_JNE | BPF_K
const EXIT: u8 = 0x95; // BPF_JMP | BPF_EXIT

fn op(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: from << 4 | to, offset, immediate }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel's interpreter would answer.
    fn run(program: &[Instruction], kind: i32, access: i32, major: i32, minor: i32) -> i64 {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0_i64; 16];
        let mut at = 0_usize;
        for _ in 0..10_000 {
            let Instruction { code, registers: names, offset, immediate } = program[at];
            let (to, from) = ((names & 0xf) as usize, (names >> 4) as usize);
            at += 1;
            match code {
                LOAD_WORD => registers[to] = i64::from(context[offset as usize / 4]),
                COPY => registers[to] = registers[from],
                SET => registers[to] = i64::from(immediate),
                AND => registers[to] &= i64::from(immediate),
                SHIFT_RIGHT => registers[to] >>= immediate,
                JUMP_IF_EQUAL if registers[to] == i64::from(immediate) => at += offset as usize,
                JUMP_UNLESS_EQUAL if registers[to] != i64::from(immediate) => at += offset as usize,
                JUMP_IF_EQUAL | JUMP_UNLESS_EQUAL => {}
                EXIT => return registers[0],
                other => panic!("code {other:#x}"),
            }
        }
        panic!("no end");
    }

    fn rules(json: serde_json::Value) -> Result<Vec<Rule>, DevicesError> {
        let rules: Vec<LinuxDeviceCgroup> = serde_json::from_value(json).unwrap();
        let mut parsed = rules.iter().map(Rule::parse).collect::<Result<Vec<_>, _>>()?;
        parsed.extend(always());
        Ok(parsed)
    }

    #[test]
    fn containerds_rules_decide_as_they_are_meant() {
        let program = compile(
            &rules(serde_json::json!([
                {"allow": false, "access": "rwm"},
                {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rwm"},
                {"allow": true, "type": "b", "major": 8, "access": "r"},
                {"allow": true, "type": "c", "major": 7, "minor": -1},
                {"allow": false, "type": "c", "major": 7, "minor": 9, "access": "w"}
            ]))
            .unwrap(),
        );
        for (kind, access, major, minor, allowed) in [
            (CHARACTER, READ | WRITE, 1, 3, true),    // null is always allowed
            (CHARACTER, READ | WRITE, 136, 17, true), // so are terminals
            (CHARACTER, READ | WRITE, 10, 229, true), // fuse by rule
            (CHARACTER, READ, 10, 228, false),
            (BLOCK, READ, 254, 16, false), // the layer disk
            (BLOCK, MKNOD, 254, 16, true), // a node may be made, as with runc
            (BLOCK, READ, 8, 5, true),
            (BLOCK, READ | WRITE, 8, 5, false), // only reading
            (CHARACTER, READ | WRITE, 7, 8, true),
            (CHARACTER, READ | WRITE, 7, 9, false), // the later rule denies writing
            (CHARACTER, READ, 7, 9, true),
        ] {
            let verdict = run(&program, kind, access, major, minor);
            assert_eq!(verdict == 1, allowed, "{kind} {access} {major}:{minor}");
        }
    }

    #[test]
    fn no_instruction_is_out_of_reach() {
        let all = serde_json::json!({"allow": true, "access": "rwm"});
        let one = serde_json::json!({"allow": false, "type": "c", "major": 1, "minor": 2, "access": "r"});
        let last = compile(&rules(serde_json::json!([one, all])).unwrap());
        let only = compile(&rules(serde_json::json!([all])).unwrap());
        assert_eq!(last, only, "what a rule for everything hides is left out");
        assert_eq!(run(&only, BLOCK, READ | WRITE, 254, 16), 1);
    }

    #[test]
    fn rules_that_mean_nothing_are_refused() {
        for json in [
            serde_json::json!([{"allow": true, "type": "p", "access": "r"}]),
            serde_json::json!([{"allow": true, "type": "c", "access": "x"}]),
            serde_json::json!([{"allow": true, "type": "c", "major": 5_000_000_000_i64}]),
            serde_json::json!([{"allow": true, "type": "c", "major": -2}]),
        ] {
            assert!(matches!(rules(json.clone()), Err(DevicesError::Unknown { .. })), "{json}");
        }
    }

    #[test]
    fn rules_are_capped() {
        let many = vec![LinuxDeviceCgroup::default(); MAX_RULES + 1];
        let result = restrict(Path::new("/nonexistent"), &many);
        assert!(matches!(result, Err(DevicesError::TooMany { count }) if count == MAX_RULES + 1));
    }
}
