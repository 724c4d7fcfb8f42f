//! The kernel command line. The machine owns it: it is the same for all pods.

/// Longest line, with its final zero: what the kernel's own buffer takes.
pub const MAX_LENGTH: usize = 2048;

/// Every word with its reason.
const WORDS: [(&str, &str); 17] = [
    ("root=/dev/vda", "slot 0 is the root image"),
    ("ro", "and read-only"),
    ("rootfstype=erofs", "no probing of other file systems"),
    ("init=/agent", "the agent is PID 1"),
    ("pci=off", "there is no PCI; ACPI needs the code, not the probing"),
    ("panic=-1", "a panic is told by pvpanic, then the machine resets at once"),
    ("reboot=t", "the shortest reset: a triple fault, which ends the machine"),
    ("quiet", "no console unless asked for"),
    ("tsc=reliable", "KVM keeps the TSCs in step; no watchdog clock exists"),
    ("no-kvmapf", "async page faults share a page with the host for little gain"),
    ("no-steal-acc", "as does steal time"),
    ("random.trust_cpu=on", "RDRAND is the only source at boot"),
    ("rcupdate.rcu_expedited=1", "grace periods must not cost boot milliseconds"),
    ("cgroup_no_v1=all", "containers get cgroup v2 only"),
    ("noresume", "nothing to resume from"),
    ("nowatchdog", "the host watches the machine"),
    ("i8042.noaux", "no PS/2 controller, where the driver is compiled in"),
];

/// The line for a machine with or without the debug console.
#[must_use]
pub fn command_line(console: bool) -> String {
    let mut line = WORDS.map(|(word, _)| word).join(" ");
    // The port count keeps the 8250 driver from probing four ports that are not there.
    line.push_str(if console { " console=ttyS0 8250.nr_uarts=1" } else { " 8250.nr_uarts=0" });
    line
}

/// The line's bytes in guest memory, zero-terminated.
#[must_use]
pub fn to_bytes(line: &str) -> Vec<u8> {
    let mut bytes = line.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_fits_and_names_the_console_only_with_one() {
        for console in [false, true] {
            let line = command_line(console);
            assert!(to_bytes(&line).len() <= MAX_LENGTH);
            assert!(line.is_ascii() && !line.contains("  "));
            assert_eq!(line.contains("console=ttyS0"), console);
        }
        assert!(command_line(false).starts_with("root=/dev/vda ro rootfstype=erofs init=/agent pci=off"));
        assert_eq!(to_bytes("a b"), b"a b\0");
    }

    #[test]
    fn no_word_is_said_twice_and_each_has_a_reason() {
        for (index, (word, reason)) in WORDS.iter().enumerate() {
            assert!(!reason.is_empty());
            assert!(WORDS.iter().skip(index + 1).all(|(other, _)| other != word), "{word}");
        }
    }
}
