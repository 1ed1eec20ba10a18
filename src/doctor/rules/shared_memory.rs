//! `shm-full`, `shm-stale`, `shm-counts-as-memory`, `remove-ipc`, `pod-shm-small`.

use crate::{
    doctor::{
        Applies, Area, Check, Demand, Evidence, Judgement, Outcome, Rule, Severity, Stop, Value,
        table,
    },
    facts::NodeFacts,
};

pub(super) static SHM_FULL: Rule = Rule {
    id: "shm-full",
    summary: "/dev/shm has free room",
    area: Area::Host,
    severity: Severity::Block,
    applies: Applies::GpuGroup,
    source: "DeepSpeed ds_report (512 MB)",
    docs: "A file system of the right size is of no use when it is full of files of other \
           programs. NCCL then fails at start, or a rank dies with SIGBUS.",
    reads: "statvfs /dev/shm",
    fix: "remove files that no program uses from /dev/shm",
    check: Check::Node(full),
};

pub(super) static SHM_STALE: Rule = Rule {
    id: "shm-stale",
    summary: "no old files of NCCL or PyTorch are left in /dev/shm",
    area: Area::Host,
    severity: Severity::Warn,
    applies: Applies::GpuGroup,
    source: "NVIDIA/nccl (files nccl-*); awslabs hyperpod-nccl",
    docs: "Ranks that were killed leave their shared files behind. They take memory until \
           somebody removes them, and a rank of another user cannot open a file of the same name. \
           Files of a job that runs are seldom older than an hour without a GPU process.",
    reads: "names, sizes and ages in /dev/shm",
    fix: "rm /dev/shm/nccl-* /dev/shm/torch_* once no job runs on the node",
    check: Check::Node(stale),
};

pub(super) static SHM_COUNTS_AS_MEMORY: Rule = Rule {
    id: "shm-counts-as-memory",
    summary: "/dev/shm fits below the memory limit",
    area: Area::Host,
    severity: Severity::Warn,
    applies: Applies::GpuGroup,
    source: "https://kubernetes.io/docs/concepts/storage/volumes/#emptydir (medium Memory)",
    docs: "What is written to /dev/shm counts as memory of the control group. When it may grow \
           larger than the limit, a rank is killed (exit 137) while `df` still shows free room.",
    reads: "statvfs /dev/shm, memory.max of the control group",
    fix: "raise the memory limit, or set a sizeLimit for /dev/shm below it",
    check: Check::Node(counts_as_memory),
};

pub(super) static REMOVE_IPC: Rule = Rule {
    id: "remove-ipc",
    summary: "logging out does not remove shared memory of the job",
    area: Area::Host,
    severity: Severity::Warn,
    applies: Applies::GpuGroup,
    source: "logind.conf(5), RemoveIPC; awslabs hyperpod-nccl",
    docs: "Unless told otherwise, systemd-logind removes all shared memory of an ordinary user \
           when the last session ends: a job that was started from a terminal dies when the \
           terminal is closed. System users, and containers, are not hit.",
    reads: "/etc/systemd/logind.conf, /proc/*/stat, Uid of /proc/self/status",
    fix: "RemoveIPC=no in /etc/systemd/logind.conf, then restart systemd-logind",
    check: Check::Node(remove_ipc),
};

pub(super) static POD_SHM_SMALL: Rule = Rule {
    id: "pod-shm-small",
    summary: "the job gives its pods a /dev/shm that is large enough for NCCL",
    area: Area::Job,
    severity: Severity::Warn,
    applies: Applies::GpuGroup,
    source: "AMD-AGI/Primus (8 GiB); https://kubernetes.io/docs/concepts/storage/volumes/#emptydir",
    docs: "A pod's /dev/shm is a volume of the size that the job asks for, spec.cluster.shm. Ranks \
           of one pod that have no peer access exchange through it; when it is full they die with \
           SIGBUS or `No space left on device`. The pod's own test before the start finds it too, \
           but then the GPUs are taken already.",
    reads: "spec.cluster.shm",
    fix: "spec.cluster.shm: 16Gi; it counts as memory of the pod only as far as it is used",
    check: Check::Job(pod_shm),
};

const WANTED: u64 = 8 << 30;
const NEEDED: u64 = 512 << 20;
const OLD_S: u64 = 3600;
/// First number of ordinary users.
const FIRST_USER: u32 = 1000;

fn full(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.shm.mount;
    let mount = fact.get()?;
    if mount.total_bytes < NEEDED {
        return Err(Stop::skip("/dev/shm is too small in all: see shm-small"));
    }
    let free = mount.free_bytes;
    let problem = (free < NEEDED).then(|| {
        SHM_FULL.problem(
            format!(
                "/dev/shm has {} free of {}",
                table::bytes(free),
                table::bytes(mount.total_bytes)
            ),
            format!("ranks of {} may die with SIGBUS in NCCL", demand.name()),
            "df -h /dev/shm; ls -lS /dev/shm | head",
        )
    });
    Judgement::of(fact, Value::Bytes(free), "at least 512 MiB free", problem)
}

fn stale(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.shm.files;
    let files = fact.get()?;
    let old: Vec<_> = files.iter().filter(|file| OLD_S < file.age_s).collect();
    let bytes: u64 = old.iter().map(|file| file.bytes).sum();
    let problem = old.first().map(|first| {
        SHM_STALE.problem(
            format!("{} files, {}, such as `{}`", old.len(), table::bytes(bytes), first.name),
            format!("they take memory from {}, and may keep NCCL from starting", demand.name()),
            "ls -l /dev/shm",
        )
    });
    Judgement::of(fact, old.len(), "none older than an hour", problem)
}

fn counts_as_memory(node: &NodeFacts, demand: &Demand) -> Outcome {
    let Some(limit) = node.memory.cgroup.get()?.memory_max_bytes else {
        return Err(Stop::skip("the control group has no memory limit"));
    };
    let fact = &node.shm.mount;
    let total = fact.get()?.total_bytes;
    let problem = (limit < total).then(|| {
        SHM_COUNTS_AS_MEMORY.problem(
            format!(
                "/dev/shm may grow to {}, the memory limit is {}",
                table::bytes(total),
                table::bytes(limit)
            ),
            format!("ranks of {} may be killed for memory by what NCCL shares", demand.name()),
            "df -h /dev/shm; cat /sys/fs/cgroup/memory.max",
        )
    });
    Judgement::of(fact, Value::Bytes(total), format!("at most {}", table::bytes(limit)), problem)
}

fn pod_shm(demand: &Demand) -> Outcome {
    let Some(bytes) = demand.pod_shm_bytes else {
        return Err(Stop::skip("the job does not run in pods"));
    };
    let ranks = demand.ranks_per_node();
    if ranks.is_some_and(|ranks| ranks < 2) {
        return Err(Stop::skip("one rank in a pod shares nothing"));
    }
    let evidence = Evidence::new(POD_SHM_SMALL.reads, Value::Bytes(bytes), "at least 8 GiB");
    let problem = (bytes < WANTED).then(|| {
        POD_SHM_SMALL.problem(
            format!("spec.cluster.shm is {} (8 GiB wanted)", table::bytes(bytes)),
            format!("ranks of {} in one pod may die with SIGBUS in NCCL", demand.name()),
            "qvl explain job spec.cluster.shm",
        )
    });
    Ok(Judgement::from_option(problem, evidence))
}

fn remove_ipc(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.system.remove_ipc;
    let Some(removes) = *fact.get()? else {
        return Err(Stop::skip("systemd-logind does not run here"));
    };
    let uid = *node.system.uid.get()?;
    let text = format!("RemoveIPC={}, user {uid}", if removes { "yes" } else { "no" });
    let in_container = node.container.kind.get()?.is_some();
    let problem = (removes && FIRST_USER <= uid && !in_container).then(|| {
        REMOVE_IPC.problem(
            format!("RemoveIPC is on, and user {uid} is an ordinary one"),
            format!("{} dies when the last session of the user ends", demand.name()),
            "grep RemoveIPC /etc/systemd/logind.conf; loginctl",
        )
    });
    Ok(Judgement::from_option(problem, Evidence::of(fact, text, "no, or a system user")))
}
