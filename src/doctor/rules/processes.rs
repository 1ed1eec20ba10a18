//! Limits and processes: `process-limit`, `pid-max-low`, `process-table`, `file-size-limit`,
//! `address-space-limit`, `core-dumps-on`, `file-table-full`, `kernel-oops`, `numa-balancing`.

use crate::{
    doctor::{Applies, Area, Check, Demand, Judgement, Outcome, Rule, Severity, Stop, table},
    facts::NodeFacts,
};

pub(super) static PROCESS_LIMIT: Rule = Rule {
    id: "process-limit",
    summary: "the user may start enough processes and threads",
    area: Area::Host,
    severity: Severity::Warn,
    applies: Applies::Always,
    source: "setrlimit(2), RLIMIT_NPROC; the 256 threads of a rank are our own count",
    docs: "The limit counts all threads of the user on the machine. A rank has threads for CUDA, \
           NCCL, data and logs; the one too many fails with `Resource temporarily unavailable`.",
    reads: "Max processes of /proc/self/limits",
    fix: "ulimit -u unlimited, or LimitNPROC=infinity in the service",
    check: Check::Node(process_limit),
};

pub(super) static PID_MAX_LOW: Rule = Rule {
    id: "pid-max-low",
    summary: "the kernel has numbers for all processes",
    area: Area::Host,
    severity: Severity::Warn,
    applies: Applies::Always,
    source: "https://docs.kernel.org/admin-guide/sysctl/kernel.html (pid_max, threads-max)",
    docs: "Threads take numbers of processes. A machine of many processors with the old default of \
           32768 runs out of them under several jobs of many ranks.",
    reads: "/proc/sys/kernel/pid_max, /proc/sys/kernel/threads-max",
    fix: "sysctl kernel.pid_max=4194304",
    check: Check::Node(pid_max),
};

pub(super) static PROCESS_TABLE: Rule = Rule {
    id: "process-table",
    summary: "few processes are dead or stuck",
    area: Area::Host,
    severity: Severity::Warn,
    applies: Applies::Always,
    source: "leptonai/gpud (zombies 1000); facebookresearch/gcm (state D)",
    docs: "Zombies by the thousand are a parent that does not ask for its children, and take \
           numbers of processes. Many processes in state D wait for a disk, a file server or a \
           driver that does not answer; a GPU process in it cannot be killed.",
    reads: "/proc/*/stat",
    fix: "restart the parent of the zombies; find what the stuck processes wait for",
    check: Check::Node(process_table),
};

pub(super) static FILE_SIZE_LIMIT: Rule = Rule {
    id: "file-size-limit",
    summary: "checkpoints may be as large as they are",
    area: Area::Storage,
    severity: Severity::Block,
    applies: Applies::Always,
    source: "setrlimit(2), RLIMIT_FSIZE",
    docs: "A program that writes a file beyond the limit is ended by SIGXFSZ, in the middle of a \
           checkpoint.",
    reads: "Max file size of /proc/self/limits",
    fix: "ulimit -f unlimited, or LimitFSIZE=infinity in the service",
    check: Check::Node(file_size),
};

pub(super) static ADDRESS_SPACE_LIMIT: Rule = Rule {
    id: "address-space-limit",
    summary: "address space is not limited",
    area: Area::Host,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "CUDA programming guide, unified virtual addressing",
    docs: "CUDA reserves addresses for the memory of the host and of all GPUs when it starts: \
           hundreds of gigabytes that cost nothing. Under a limit cuInit fails with `out of \
           memory`. Batch systems set such a limit to bound real memory.",
    reads: "Max address space of /proc/self/limits",
    fix: "ulimit -v unlimited; limit the control group instead",
    check: Check::Node(address_space),
};

pub(super) static CORE_DUMPS_ON: Rule = Rule {
    id: "core-dumps-on",
    summary: "a crash does not fill the disk",
    area: Area::Storage,
    severity: Severity::Warn,
    applies: Applies::Always,
    source: "core(5)",
    docs: "A rank that crashes leaves a file as large as its memory, tens of gigabytes, in its \
           working folder, one for each rank. A pattern that begins with `|` gives the dump to a \
           program that bounds it, and is fine.",
    reads: "Max core file size of /proc/self/limits, /proc/sys/kernel/core_pattern",
    fix: "ulimit -c 0, or a pattern for systemd-coredump",
    check: Check::Node(core_dumps),
};

pub(super) static FILE_TABLE_FULL: Rule = Rule {
    id: "file-table-full",
    summary: "the kernel has room for more open files",
    area: Area::Host,
    severity: Severity::Warn,
    applies: Applies::Always,
    source: "https://docs.kernel.org/admin-guide/sysctl/fs.html (file-nr); leptonai/gpud (80 %)",
    docs: "All open files of the machine share one table. When it is full, every program fails \
           with `Too many open files in system`.",
    reads: "/proc/sys/fs/file-nr",
    fix: "find who holds the files (lsof); sysctl fs.file-max",
    check: Check::Node(file_table),
};

pub(super) static KERNEL_OOPS: Rule = Rule {
    id: "kernel-oops",
    summary: "the kernel has not failed since boot",
    area: Area::Host,
    severity: Severity::Warn,
    applies: Applies::Always,
    source: "https://docs.kernel.org/admin-guide/tainted-kernels.html (bits 4 and 7)",
    docs: "The kernel remembers that it hit an internal error, or that the hardware reported a \
           machine check, and goes on. What follows may be anything, so a long job should not \
           begin there. Bits of modules that are not part of the kernel, such as NVIDIA's, do not \
           count.",
    reads: "/proc/sys/kernel/tainted",
    fix: "look at the kernel log, then reboot the node",
    check: Check::Node(oops),
};

pub(super) static NUMA_BALANCING: Rule = Rule {
    id: "numa-balancing",
    summary: "the kernel does not move the memory of ranks",
    area: Area::Host,
    severity: Severity::Warn,
    applies: Applies::GpuGroup,
    source: "NVIDIA/nccl src/init.cc (warns about NUMA auto balancing)",
    docs: "With automatic balancing the kernel takes pages away to see who uses them, and moves \
           them between sockets. The delays hit the threads that feed the network, and bandwidth \
           varies from step to step.",
    reads: "/proc/sys/kernel/numa_balancing",
    fix: "sysctl kernel.numa_balancing=0",
    check: Check::Node(numa_balancing),
};

const THREADS_PER_RANK: u64 = 256;

fn process_limit(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.limits.processes;
    let Some(limit) = *fact.get()? else {
        return Judgement::of(fact, "unlimited", "enough for the ranks", None);
    };
    let ranks = demand.ranks_on(node);
    let wanted = u64::from(ranks) * THREADS_PER_RANK;
    let problem = (limit < wanted).then(|| {
        PROCESS_LIMIT.problem(
            format!("the user may have {limit} threads ({wanted} wanted for {ranks} ranks)"),
            format!("ranks of {} may fail to start a thread", demand.name()),
            "ulimit -u",
        )
    });
    Judgement::of(fact, limit, format!("at least {wanted}"), problem)
}

fn pid_max(node: &NodeFacts, demand: &Demand) -> Outcome {
    let (fact, pids) = super::setting(node, "kernel.pid_max")?;
    let threads = super::setting(node, "kernel.threads-max").map_or(pids, |(_fact, max)| max);
    let have = pids.min(threads);
    let used = u64::from(node.system.processes.get()?.total);
    let wanted = used + u64::from(demand.ranks_on(node)) * THREADS_PER_RANK;
    let problem = (have < wanted * 2).then(|| {
        PID_MAX_LOW.problem(
            format!("{have} numbers for processes and threads, {used} in use"),
            format!("ranks of {} may fail to start a thread", demand.name()),
            "sysctl kernel.pid_max kernel.threads-max; ps -eLf | wc -l",
        )
    });
    Judgement::of(fact, have, format!("at least {}", wanted * 2), problem)
}

fn process_table(node: &NodeFacts, demand: &Demand) -> Outcome {
    const ZOMBIES: u32 = 1000;
    const BLOCKED: u32 = 20;
    let fact = &node.system.processes;
    let processes = fact.get()?;
    let text = format!("{} zombies, {} in state D", processes.zombies, processes.blocked);
    let bad = ZOMBIES <= processes.zombies || BLOCKED <= processes.blocked;
    let problem = bad.then(|| {
        PROCESS_TABLE.problem(
            text.clone(),
            format!("something on the node hangs, and may hang ranks of {} too", demand.name()),
            "ps -eo pid,ppid,stat,wchan:20,comm | awk '$3 ~ /[ZD]/'",
        )
    });
    Judgement::of(fact, text, format!("under {ZOMBIES} and under {BLOCKED}"), problem)
}

fn file_size(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.limits.file_size_bytes;
    let Some(limit) = *fact.get()? else {
        return Judgement::of(fact, "unlimited", "room for a checkpoint", None);
    };
    // Logs alone are a gigabyte in a long job.
    let wanted = demand.checkpoints.map_or(1 << 30, |need| need.bytes);
    let problem = (limit < wanted).then(|| {
        FILE_SIZE_LIMIT.problem(
            format!(
                "a file may have {}, a checkpoint has {}",
                table::bytes(limit),
                table::bytes(wanted)
            ),
            format!("the rank of {} that saves is ended by SIGXFSZ", demand.name()),
            "ulimit -f",
        )
    });
    Judgement::of(fact, limit, format!("at least {}", table::bytes(wanted)), problem)
}

fn address_space(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.limits.address_space_bytes;
    let limit = *fact.get()?;
    let text = limit.map_or("unlimited".to_owned(), table::bytes);
    let problem = limit.map(|limit| {
        ADDRESS_SPACE_LIMIT.problem(
            format!("address space is limited to {}", table::bytes(limit)),
            format!("CUDA does not start, so no rank of {} can", demand.name()),
            "ulimit -v",
        )
    });
    Judgement::of(fact, text, "unlimited", problem)
}

fn core_dumps(node: &NodeFacts, demand: &Demand) -> Outcome {
    const SMALL: u64 = 1 << 30;
    let fact = &node.limits.core_bytes;
    let limit = *fact.get()?;
    let text = limit.map_or("unlimited".to_owned(), table::bytes);
    let pattern = super::setting_text(node, "kernel.core_pattern")?;
    let large = limit.is_none_or(|limit| SMALL < limit);
    let problem = (large && !pattern.starts_with('|')).then(|| {
        CORE_DUMPS_ON.problem(
            format!("core dumps are {text} and go to files `{pattern}`"),
            format!("a crash of {} may fill the disk with dumps", demand.name()),
            "ulimit -c; sysctl kernel.core_pattern",
        )
    });
    Judgement::of(fact, text, "at most 1 GiB, or a program that takes them", problem)
}

fn file_table(node: &NodeFacts, demand: &Demand) -> Outcome {
    let text = super::setting_text(node, "fs.file-nr")?;
    let numbers: Vec<u64> = text.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    let [used, _free, max] = numbers[..] else {
        return Err(Stop::skip("the kernel does not count open files"));
    };
    let problem = (max / 5 * 4 < used).then(|| {
        FILE_TABLE_FULL.problem(
            format!("{used} of {max} open files of the machine are in use"),
            format!("ranks of {} may fail to open files", demand.name()),
            "sysctl fs.file-nr",
        )
    });
    Judgement::of(&node.system.sysctl, used, format!("at most 80 % of {max}"), problem)
}

fn oops(node: &NodeFacts, demand: &Demand) -> Outcome {
    const MACHINE_CHECK: u64 = 1 << 4;
    const DIED: u64 = 1 << 7;
    let (fact, bits) = super::setting(node, "kernel.tainted")?;
    let what = if bits & DIED != 0 {
        Some("the kernel hit an internal error (oops) since boot")
    } else if bits & MACHINE_CHECK != 0 {
        Some("the hardware reported a machine check since boot")
    } else {
        None
    };
    let problem = what.map(|what| {
        KERNEL_OOPS.problem(
            what,
            format!("ranks of {} on this node may fail in any way", demand.name()),
            "cat /proc/sys/kernel/tainted; dmesg -T | grep -iE 'oops|bug|mce'",
        )
    });
    Judgement::of(fact, bits, "bits 4 and 7 not set", problem)
}

fn numa_balancing(node: &NodeFacts, demand: &Demand) -> Outcome {
    let (fact, on) = super::setting(node, "kernel.numa_balancing")?;
    if *node.system.numa_nodes.get()? < 2 {
        return Err(Stop::skip("the machine has one NUMA node"));
    }
    let problem = (on != 0).then(|| {
        NUMA_BALANCING.problem(
            format!("kernel.numa_balancing is {on}"),
            format!("steps of {} take longer, by an amount that varies", demand.name()),
            "sysctl kernel.numa_balancing",
        )
    });
    Judgement::of(fact, on, "0", problem)
}
