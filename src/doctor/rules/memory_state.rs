//! State of the host's memory: `swap-in-use`, `hugepages-waste`, `memory-pressure`, `io-pressure`,
//! `host-memory-errors`, `cgroup-oom-killed`, `overcommit-strict`, `max-map-count-low`.

use crate::{
    doctor::{
        Applies, Area, Check, Demand, Judgement, Outcome, Rule, Severity, Stop, Value, table,
    },
    facts::NodeFacts,
};

pub(super) static SWAP_IN_USE: Rule = Rule {
    id: "swap-in-use",
    summary: "the machine does not live on swap",
    area: Area::Host,
    severity: Severity::Warn,
    applies: Applies::Always,
    source: "proc_meminfo(5); the limit of a tenth of the memory is our own",
    docs: "Memory that was moved to a disk is memory that is short now or was short before. Ranks \
           that wait for it stop for milliseconds, and the others with them.",
    reads: "SwapTotal, SwapFree, MemTotal of /proc/meminfo",
    fix: "end what uses the memory; swapoff -a && swapon -a once there is room",
    check: Check::Node(swap),
};

pub(super) static HUGEPAGES_WASTE: Rule = Rule {
    id: "hugepages-waste",
    summary: "little memory is reserved for huge pages that nobody uses",
    area: Area::Host,
    severity: Severity::Warn,
    applies: Applies::Always,
    source: "https://docs.kernel.org/admin-guide/mm/hugetlbpage.html",
    docs: "Memory that is reserved for huge pages is lost to everything else. It is often left \
           over from a database or a network stack that no longer runs there.",
    reads: "HugePages_Total, HugePages_Free, Hugepagesize of /proc/meminfo",
    fix: "sysctl vm.nr_hugepages=0, or the number that is used",
    check: Check::Node(hugepages),
};

pub(super) static MEMORY_PRESSURE: Rule = Rule {
    id: "memory-pressure",
    summary: "nothing waits for memory",
    area: Area::Host,
    severity: Severity::Warn,
    applies: Applies::Always,
    source: "https://docs.kernel.org/accounting/psi.html; the limit of 5 % is our own",
    docs: "Time in which all tasks stood still because the kernel looked for memory. It should be \
           zero on a machine that a job is about to start on.",
    reads: "avg10 of /proc/pressure/memory",
    fix: "end what uses the memory, or choose another node",
    check: Check::Node(memory_pressure),
};

pub(super) static IO_PRESSURE: Rule = Rule {
    id: "io-pressure",
    summary: "nothing waits for the disks",
    area: Area::Storage,
    severity: Severity::Warn,
    applies: Applies::Always,
    source: "https://docs.kernel.org/accounting/psi.html; the limit of 40 % is our own",
    docs: "Time in which all tasks stood still because a disk or a network file system did not \
           answer. Loading the model and saving checkpoints then take many times longer.",
    reads: "avg10 of /proc/pressure/io",
    fix: "wait until the copy or backup has ended; check the file server",
    check: Check::Node(io_pressure),
};

pub(super) static HOST_MEMORY_ERRORS: Rule = Rule {
    id: "host-memory-errors",
    summary: "the memory controllers counted no errors",
    area: Area::Host,
    severity: Severity::Warn,
    applies: Applies::Always,
    source: "https://docs.kernel.org/driver-api/edac.html; the limit of 1000 corrected is our own",
    docs: "An uncorrected error of the host's memory kills a process or the machine. Thousands of \
           corrected ones come before it, and slow the machine down.",
    reads: "ce_count and ue_count in /sys/devices/system/edac/mc",
    fix: "leave the node out and have the memory module replaced",
    check: Check::Node(memory_errors),
};

pub(super) static CGROUP_OOM_KILLED: Rule = Rule {
    id: "cgroup-oom-killed",
    summary: "no process of this control group was killed for memory",
    area: Area::Host,
    severity: Severity::Warn,
    applies: Applies::Always,
    source: "https://docs.kernel.org/admin-guide/cgroup-v2.html (memory.events)",
    docs: "The kernel killed a process of the same container or service at its memory limit. The \
           same limit holds for the job.",
    reads: "memory.events of the control group",
    fix: "raise the memory limit, or find out what took the memory",
    check: Check::Node(oom_killed),
};

pub(super) static OVERCOMMIT_STRICT: Rule = Rule {
    id: "overcommit-strict",
    summary: "the kernel allows reserving more memory than there is",
    area: Area::Host,
    severity: Severity::Warn,
    applies: Applies::Always,
    source: "https://docs.kernel.org/mm/overcommit-accounting.html",
    docs: "With vm.overcommit_memory=2 the kernel counts what programs reserve and not what they \
           use. CUDA reserves address space for all memory of host and GPUs, and the trainer maps \
           whole weight files: both then fail with `out of memory` on a machine that is empty.",
    reads: "/proc/sys/vm/overcommit_memory",
    fix: "sysctl vm.overcommit_memory=0",
    check: Check::Node(overcommit),
};

pub(super) static MAX_MAP_COUNT_LOW: Rule = Rule {
    id: "max-map-count-low",
    summary: "a process may have enough memory maps",
    area: Area::Host,
    severity: Severity::Warn,
    applies: Applies::Always,
    source: "https://docs.kernel.org/admin-guide/sysctl/vm.html (default 65530)",
    docs: "Every mapped file, thread stack and pinned buffer is a map. Below the kernel's default \
           the mapping fails with `Cannot allocate memory` although there is plenty.",
    reads: "/proc/sys/vm/max_map_count",
    fix: "sysctl vm.max_map_count=65530 or more",
    check: Check::Node(max_map_count),
};

fn swap(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.system.memory;
    let memory = fact.get()?;
    if memory.swap_total == 0 {
        return Err(Stop::skip("the machine has no swap"));
    }
    let used = memory.swap_total.saturating_sub(memory.swap_free);
    let limit = node.memory.total_bytes.get()? / 10;
    let problem = (limit < used).then(|| {
        SWAP_IN_USE.problem(
            format!("{} are on swap", table::bytes(used)),
            format!("ranks of {} may wait for the disk", demand.name()),
            "free -h; vmstat 1 3 (columns si, so)",
        )
    });
    Judgement::of(fact, Value::Bytes(used), format!("at most {}", table::bytes(limit)), problem)
}

fn hugepages(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.system.memory;
    let memory = fact.get()?;
    let limit = node.memory.total_bytes.get()? / 10;
    let problem = (limit < memory.huge_free).then(|| {
        HUGEPAGES_WASTE.problem(
            format!("{} are reserved for huge pages and not used", table::bytes(memory.huge_free)),
            format!("{} cannot use this memory", demand.name()),
            "grep Huge /proc/meminfo",
        )
    });
    let required = format!("at most {} unused", table::bytes(limit));
    Judgement::of(fact, Value::Bytes(memory.huge_free), required, problem)
}

const MUCH_MEMORY_PRESSURE: f64 = 5.0;
const MUCH_IO_PRESSURE: f64 = 40.0;

fn memory_pressure(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.system.pressure;
    let Some(pressure) = fact.get()? else {
        return Err(Stop::skip("the kernel does not measure pressure"));
    };
    let percent = pressure.memory_full;
    let problem = (MUCH_MEMORY_PRESSURE < percent).then(|| {
        MEMORY_PRESSURE.problem(
            format!("everything waited for memory {percent} % of the last ten seconds"),
            format!("ranks of {} will be slow, or be killed", demand.name()),
            "cat /proc/pressure/memory",
        )
    });
    Judgement::of(fact, percent, format!("at most {MUCH_MEMORY_PRESSURE} %"), problem)
}

fn io_pressure(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.system.pressure;
    let Some(pressure) = fact.get()? else {
        return Err(Stop::skip("the kernel does not measure pressure"));
    };
    let percent = pressure.io_full;
    let problem = (MUCH_IO_PRESSURE < percent).then(|| {
        IO_PRESSURE.problem(
            format!("everything waited for disks {percent} % of the last ten seconds"),
            format!("{} loads and saves slowly", demand.name()),
            "cat /proc/pressure/io; iostat -x 1 3",
        )
    });
    Judgement::of(fact, percent, format!("at most {MUCH_IO_PRESSURE} %"), problem)
}

fn memory_errors(node: &NodeFacts, demand: &Demand) -> Outcome {
    const MANY: u64 = 1000;
    let fact = &node.system.memory_errors;
    let Some(errors) = fact.get()? else {
        return Err(Stop::skip("no driver counts errors of the host's memory"));
    };
    let text = format!("{} corrected, {} uncorrected", errors.corrected, errors.uncorrected);
    let bad = 0 < errors.uncorrected || MANY <= errors.corrected;
    let problem = bad.then(|| {
        HOST_MEMORY_ERRORS.problem(
            format!("the host's memory had errors since boot: {text}"),
            format!("ranks of {} on this node may be killed", demand.name()),
            "grep . /sys/devices/system/edac/mc/mc*/?e_count",
        )
    });
    Judgement::of(fact, text, format!("under {MANY} corrected, 0 uncorrected"), problem)
}

fn oom_killed(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.system.cgroup_events;
    let kills = fact.get()?.oom_kills;
    let problem = (0 < kills).then(|| {
        CGROUP_OOM_KILLED.problem(
            format!("the kernel killed {kills} processes of this group for memory"),
            format!("the same may end ranks of {} (exit 137)", demand.name()),
            "cat /sys/fs/cgroup/memory.events",
        )
    });
    Judgement::of(fact, kills, "0", problem)
}

fn overcommit(node: &NodeFacts, demand: &Demand) -> Outcome {
    let (fact, mode) = super::setting(node, "vm.overcommit_memory")?;
    let problem = (mode == 2).then(|| {
        OVERCOMMIT_STRICT.problem(
            "vm.overcommit_memory is 2: reservations count as use",
            format!("CUDA or the weights of {} may not get their address space", demand.name()),
            "sysctl vm.overcommit_memory; grep Commit /proc/meminfo",
        )
    });
    Judgement::of(fact, mode, "0 or 1", problem)
}

fn max_map_count(node: &NodeFacts, demand: &Demand) -> Outcome {
    const DEFAULT: u64 = 65_530;
    let (fact, count) = super::setting(node, "vm.max_map_count")?;
    let problem = (count < DEFAULT).then(|| {
        MAX_MAP_COUNT_LOW.problem(
            format!("vm.max_map_count is {count} (default {DEFAULT})"),
            format!("ranks of {} may fail to map weights or buffers", demand.name()),
            "sysctl vm.max_map_count",
        )
    });
    Judgement::of(fact, count, format!("at least {DEFAULT}"), problem)
}
