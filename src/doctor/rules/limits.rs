//! `shm-small`, `memlock-low`, `fd-limit`.

use crate::{
    doctor::{
        Applies, Area, Check, Demand, Evidence, Judgement, Outcome, Problem, Rule, Severity, Stop,
        Value, table,
    },
    facts::NodeFacts,
};

pub(super) static SHM_SMALL: Rule = Rule {
    id: "shm-small",
    summary: "/dev/shm is large enough for NCCL",
    area: Area::Host,
    severity: Severity::Block,
    applies: Applies::GpuGroup,
    source: "AMD-AGI/Primus (8 GiB); DeepSpeed ds_report (512 MB)",
    docs: "NCCL exchanges through /dev/shm between ranks of one node that have no peer access. \
           Containers get 64 MiB of it unless told otherwise; ranks then die with SIGBUS or `No \
           space left on device`.",
    reads: "statvfs /dev/shm",
    fix: "docker run --shm-size=16g; in a pod, an emptyDir with medium Memory",
    check: Check::Node(shm),
};

pub(super) static MEMLOCK_LOW: Rule = Rule {
    id: "memlock-low",
    summary: "RDMA may lock memory",
    area: Area::Host,
    severity: Severity::Block,
    applies: Applies::GpuNodes,
    source: "awslabs hyperpod-nccl (8 GiB)",
    docs: "RDMA registers memory, and registered memory is locked. Under the usual limit of 8 MiB \
           the registration fails when the communicator starts.",
    reads: "/proc/self/limits, CapEff of /proc/self/status",
    fix: "ulimit -l unlimited, or the capability IPC_LOCK",
    check: Check::Node(memlock),
};

pub(super) static FD_LIMIT: Rule = Rule {
    id: "fd-limit",
    summary: "ranks may open enough files",
    area: Area::Host,
    severity: Severity::Block,
    applies: Applies::Always,
    source: "NCCL user guide (65536 for groups); the least that a rank needs is our own count",
    docs: "Sockets, device files and data files are file descriptors. A rank of this trainer needs \
           a few hundred; NCCL needs some for each peer and channel.",
    reads: "/proc/self/limits",
    fix: "ulimit -n 65536, or LimitNOFILE= in the service",
    check: Check::Node(files),
};

const SHM_WANTED: u64 = 8 << 30;
const SHM_NEEDED: u64 = 512 << 20;
const MEMLOCK_NEEDED: u64 = 8 << 30;
const FILES_WANTED: u64 = 65_536;
const FILES_NEEDED: u64 = 1024;

fn shm(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.shm.mount;
    let total = fact.get()?.total_bytes;
    let (ranks, text) = (demand.ranks_on(node), table::bytes(total));
    if ranks < 2 {
        return Err(Stop::skip("one rank on this node shares nothing"));
    }
    let evidence = Evidence::of(fact, Value::Bytes(total), "at least 8 GiB, 512 MiB at least");
    let severity = if total < SHM_NEEDED { Severity::Block } else { Severity::Warn };
    let problem = (total < SHM_WANTED).then(|| Problem {
        severity,
        what: format!("/dev/shm has {text} (8 GiB wanted, under 512 MiB ranks fail)"),
        impact: format!(
            "the {ranks} ranks of {} on this node may die with SIGBUS in NCCL",
            demand.name()
        ),
        fix: "docker run --shm-size=16g; in a pod: an emptyDir with medium Memory at /dev/shm"
            .to_owned(),
        see: "df -h /dev/shm".to_owned(),
    });
    Ok(Judgement::from_option(problem, evidence))
}

fn memlock(node: &NodeFacts, demand: &Demand) -> Outcome {
    if node.network.rdma_ports.get()?.is_empty() {
        return Err(Stop::skip("there is no RDMA hardware"));
    }
    let fact = &node.limits.memlock_bytes;
    let limit = *fact.get()?;
    let text = limit.map_or("unlimited".to_owned(), table::bytes);
    let evidence = Evidence::of(fact, text.as_str(), "at least 8 GiB, or CAP_IPC_LOCK");
    let low = limit.is_some_and(|limit| limit < MEMLOCK_NEEDED);
    if !low || *node.limits.cap_ipc_lock.get()? {
        return Ok(Judgement::pass(evidence));
    }
    let problem = Problem {
        severity: Severity::Block,
        what: format!("the limit for locked memory is {text} (8 GiB required)"),
        impact: format!("RDMA cannot register memory, so ranks of {} fail at start", demand.name()),
        fix: "ulimit -l unlimited, or LimitMEMLOCK=infinity and the capability IPC_LOCK".to_owned(),
        see: "ulimit -l".to_owned(),
    };
    Ok(Judgement::problem(problem, evidence))
}

fn files(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.limits.open_files;
    let limit = *fact.get()?;
    let nccl =
        demand.compute != crate::job::Compute::Cpu && 1 < demand.ranks_on(node).max(demand.nodes);
    let wanted = if nccl { FILES_WANTED } else { FILES_NEEDED };
    let text = limit.map_or("unlimited".to_owned(), |limit| limit.to_string());
    let evidence = Evidence::of(fact, text.as_str(), format!("at least {wanted}"));
    let Some(limit) = limit.filter(|limit| *limit < wanted) else {
        return Ok(Judgement::pass(evidence));
    };
    let severity = if limit < 256 { Severity::Block } else { Severity::Warn };
    let problem = Problem {
        severity,
        what: format!("a process may open {limit} files ({wanted} wanted)"),
        impact: format!("ranks of {} may fail with `Too many open files`", demand.name()),
        fix: format!("ulimit -n {wanted}, or LimitNOFILE= in the service"),
        see: "ulimit -n; ulimit -Hn".to_owned(),
    };
    Ok(Judgement::problem(problem, evidence))
}
