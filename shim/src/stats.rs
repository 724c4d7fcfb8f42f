//! The guest's cgroup values in containerd's message.

use std::collections::HashMap;

use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PidsStat,
};
use hull_protocol::agent::StatsContainerResponse;
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};

/// Type name of the message, as containerd registers it.
const TYPE: &str = "io.containerd.cgroups.v2.Metrics";

/// What Stats answers with.
pub fn metrics(guest: StatsContainerResponse) -> Any {
    let cpu = guest.cpu.unwrap_or_default();
    let memory = guest.memory.unwrap_or_default();
    let io = guest.io.iter().map(|io| IOEntry {
        major: io.major,
        minor: io.minor,
        rbytes: io.rbytes,
        wbytes: io.wbytes,
        rios: io.rios,
        wios: io.wios,
        ..Default::default()
    });
    let metrics = Metrics {
        pids: MessageField::some(PidsStat {
            current: guest.pids_current,
            limit: guest.pids_limit,
            ..Default::default()
        }),
        cpu: MessageField::some(CPUStat {
            usage_usec: cpu.usage_usec,
            user_usec: cpu.user_usec,
            system_usec: cpu.system_usec,
            nr_periods: cpu.nr_periods,
            nr_throttled: cpu.nr_throttled,
            throttled_usec: cpu.throttled_usec,
            ..Default::default()
        }),
        memory_events: MessageField::some(MemoryEvents {
            low: memory.low,
            high: memory.high,
            max: memory.max,
            oom: memory.oom,
            oom_kill: memory.oom_kill,
            ..Default::default()
        }),
        memory: MessageField::some(MemoryStat {
            usage: memory.usage,
            usage_limit: memory.usage_limit,
            swap_usage: memory.swap_usage,
            swap_limit: memory.swap_limit,
            max_usage: memory.max_usage,
            ..memory_stat(&memory.stat)
        }),
        io: MessageField::some(IOStat { usage: io.collect(), ..Default::default() }),
        ..Default::default()
    };
    // Serialising to memory fails only for uninitialised proto2 messages.
    Any { type_url: TYPE.to_owned(), value: metrics.write_to_bytes().unwrap_or_default(), ..Any::new() }
}

/// The lines of memory.stat by their names; a kernel that lacks one leaves it 0.
fn memory_stat(stat: &HashMap<String, u64>) -> MemoryStat {
    let value = |name: &str| stat.get(name).copied().unwrap_or_default();
    MemoryStat {
        anon: value("anon"),
        file: value("file"),
        kernel_stack: value("kernel_stack"),
        slab: value("slab"),
        sock: value("sock"),
        shmem: value("shmem"),
        file_mapped: value("file_mapped"),
        file_dirty: value("file_dirty"),
        file_writeback: value("file_writeback"),
        anon_thp: value("anon_thp"),
        inactive_anon: value("inactive_anon"),
        active_anon: value("active_anon"),
        inactive_file: value("inactive_file"),
        active_file: value("active_file"),
        unevictable: value("unevictable"),
        slab_reclaimable: value("slab_reclaimable"),
        slab_unreclaimable: value("slab_unreclaimable"),
        pgfault: value("pgfault"),
        pgmajfault: value("pgmajfault"),
        workingset_refault: value("workingset_refault_anon") + value("workingset_refault_file"),
        workingset_activate: value("workingset_activate_anon") + value("workingset_activate_file"),
        workingset_nodereclaim: value("workingset_nodereclaim"),
        pgrefill: value("pgrefill"),
        pgscan: value("pgscan"),
        pgsteal: value("pgsteal"),
        pgactivate: value("pgactivate"),
        pgdeactivate: value("pgdeactivate"),
        pglazyfree: value("pglazyfree"),
        pglazyfreed: value("pglazyfreed"),
        thp_fault_alloc: value("thp_fault_alloc"),
        thp_collapse_alloc: value("thp_collapse_alloc"),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use hull_protocol::agent::MemoryStats;

    use super::*;

    #[test]
    fn values_reach_the_fields_that_cri_reads() {
        let guest = StatsContainerResponse {
            pids_current: 3,
            memory: MessageField::some(MemoryStats {
                usage: 100,
                oom_kill: 2,
                stat: HashMap::from([("inactive_file".to_owned(), 40)]),
                ..Default::default()
            }),
            ..Default::default()
        };
        let any = metrics(guest);
        let metrics = Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!(any.type_url, TYPE);
        assert_eq!((metrics.pids.current, metrics.memory.usage, metrics.memory.inactive_file), (3, 100, 40));
        assert_eq!(metrics.memory_events.oom_kill, 2);
    }
}
