//! The CPU that the guest sees: the host's as KVM offers it, with this machine's topology (one
//! socket, one thread per core) and only the paravirtual features that share no memory beyond the
//! clock.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Leaf 1, ECX: x2APIC, TSC-deadline timer, "runs under a hypervisor".
const X2APIC: u32 = 1 << 21;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: the logical processor count is valid.
const HTT: u32 = 1 << 28;

/// Features of KVM's leaf (linux/kvm_para.h): clocks, no I/O delay, spin-lock kicks, IPIs by
/// hypercall, stable clock. Left out: what keeps pages shared with the host (async page faults,
/// steal time, PV EOI) or only helps migration.
const KVM_FEATURES_LEAF: u32 = 0x4000_0001;
const KVM_FEATURES: u32 = 1 | 1 << 1 | 1 << 3 | 1 << 7 | 1 << 11 | 1 << 24;

/// The table for vCPU `index` of `count`. `None` if KVM offers so many leaves that ours do not fit
/// (never: the table has room for 256, KVM fills some 40).
#[must_use]
pub fn for_vcpu(supported: &CpuId, index: u8, count: u8, tsc_deadline: bool) -> Option<CpuId> {
    let mut cpuid = supported.clone();
    let topology = Topology { id: index.into(), count: count.into() };
    // KVM offers leaf 0xb without levels, or the host's; 0x1f would override it.
    cpuid.retain(|entry| !matches!(entry.function, 0xb | 0x1f));
    for level in topology.levels() {
        cpuid.push(level).ok()?;
    }
    for entry in cpuid.as_mut_slice() {
        topology.fill(entry);
        match entry.function {
            1 => {
                entry.ecx |= X2APIC | HYPERVISOR;
                if tsc_deadline {
                    entry.ecx |= TSC_DEADLINE;
                }
            }
            KVM_FEATURES_LEAF => entry.eax &= KVM_FEATURES,
            _ => {}
        }
    }
    Some(cpuid)
}

#[derive(Clone, Copy)]
struct Topology {
    id: u32,
    count: u32,
}

impl Topology {
    /// Bits of an APIC id that number the cores of the socket.
    fn core_bits(self) -> u32 {
        self.count.next_power_of_two().trailing_zeros()
    }

    fn fill(self, entry: &mut kvm_cpuid_entry2) {
        match (entry.function, entry.index) {
            (1, _) => {
                entry.ebx = entry.ebx & 0xffff | self.count.min(255) << 16 | self.id << 24;
                set(&mut entry.edx, HTT, self.count > 1);
            }
            // Intel's cache leaf: cores per socket; caches but the last are one core's own.
            (4, _) if entry.eax & 0x1f != 0 => {
                let level = entry.eax >> 5 & 7;
                let sharing = if level >= 3 { self.count - 1 } else { 0 };
                entry.eax = entry.eax & 0x3fff | sharing << 14 | (self.count - 1) << 26;
            }
            (0x8000_0008, _) => entry.ecx = self.core_bits() << 12 | (self.count - 1),
            // AMD's cache leaf, as leaf 4.
            (0x8000_001d, _) if entry.eax & 0x1f != 0 => {
                let sharing = if entry.eax >> 5 & 7 >= 3 { self.count - 1 } else { 0 };
                entry.eax = entry.eax & !(0xfff << 14) | sharing << 14;
            }
            (0x8000_001e, _) => (entry.eax, entry.ebx, entry.ecx) = (self.id, self.id, 0),
            _ => {}
        }
    }

    /// The levels of leaf 0xb: kind 1 threads of a core, 2 cores of the socket, 0 the end.
    fn levels(self) -> [kvm_cpuid_entry2; 3] {
        let level = |index: u32, shift: u32, width: u32, kind: u32| kvm_cpuid_entry2 {
            function: 0xb,
            index,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift,
            ebx: width,
            ecx: index | kind << 8,
            edx: self.id,
            ..Default::default()
        };
        [level(0, 0, 1, 1), level(1, self.core_bits(), self.count, 2), level(2, 0, 0, 0)]
    }
}

fn set(register: &mut u32, bits: u32, on: bool) {
    if on {
        *register |= bits;
    } else {
        *register &= !bits;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(entries: &[(u32, u32, [u32; 4])]) -> CpuId {
        let entries: Vec<_> = entries
            .iter()
            .map(|&(function, index, [eax, ebx, ecx, edx])| kvm_cpuid_entry2 {
                function,
                index,
                eax,
                ebx,
                ecx,
                edx,
                ..Default::default()
            })
            .collect();
        CpuId::from_entries(&entries).unwrap()
    }

    fn leaf(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        let found = cpuid.as_slice().iter().find(|entry| (entry.function, entry.index) == (function, index));
        *found.unwrap()
    }

    #[test]
    fn topology_is_one_socket_of_single_threaded_cores() {
        let supported = table(&[
            (1, 0, [0, 0xff00_1234, 0, HTT]),
            (0xb, 0, [9; 4]),
            (0x1f, 0, [9; 4]),
            (0x8000_001d, 3, [3 << 5 | 1 | 0xfff << 14, 0, 0, 0]),
        ]);
        let cpuid = for_vcpu(&supported, 5, 6, true).unwrap();
        let one = leaf(&cpuid, 1, 0);
        assert_eq!((one.ebx, one.edx), (5 << 24 | 6 << 16 | 0x1234, HTT));
        assert_eq!(one.ecx, X2APIC | TSC_DEADLINE | HYPERVISOR);
        let cores = leaf(&cpuid, 0xb, 1);
        assert_eq!((cores.eax, cores.ebx, cores.ecx, cores.edx), (3, 6, 0x201, 5));
        assert_eq!(leaf(&cpuid, 0x8000_001d, 3).eax >> 14, 5);
        assert!(cpuid.as_slice().iter().all(|entry| entry.function != 0x1f));
        let alone = for_vcpu(&supported, 0, 1, false).unwrap();
        assert_eq!(leaf(&alone, 1, 0).edx, 0);
        assert_eq!(leaf(&alone, 1, 0).ecx & TSC_DEADLINE, 0);
        assert_eq!(leaf(&alone, 0xb, 1).eax, 0);
    }

    #[test]
    fn only_chosen_kvm_features_pass() {
        let cpuid = for_vcpu(&table(&[(KVM_FEATURES_LEAF, 0, [u32::MAX; 4])]), 0, 1, true).unwrap();
        assert_eq!(leaf(&cpuid, KVM_FEATURES_LEAF, 0).eax, KVM_FEATURES);
    }
}
