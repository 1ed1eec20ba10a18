//! `cgroup-limits` and `host-memory-short`.

use crate::{
    doctor::{
        Applies, Area, Check, Demand, Evidence, Judgement, Outcome, Problem, Rule, Severity, Stack,
        Stop, Value, table,
    },
    facts::NodeFacts,
};

pub(super) static CGROUP_LIMITS: Rule = Rule {
    id: "cgroup-limits",
    summary: "the control group leaves room for the ranks",
    area: Area::Host,
    severity: Severity::Block,
    applies: Applies::Always,
    source: "https://docs.kernel.org/admin-guide/cgroup-v2.html (memory.max, cpu.max, pids.max)",
    docs: "A container's memory limit kills a rank (exit 137) although the machine has memory \
           left. Few processors or processes slow ranks down or keep them from starting.",
    reads: "memory.max, cpu.max, pids.max of the control group and its parents",
    fix: "raise the limit of the container or service",
    check: Check::Node(cgroup),
};

pub(super) static HOST_MEMORY_SHORT: Rule = Rule {
    id: "host-memory-short",
    summary: "the machine has memory for all ranks",
    area: Area::Host,
    severity: Severity::Block,
    applies: Applies::Always,
    source: "measured size of the f32 build of Qwen-VL (38.6 GB); QwenLM/Qwen-VL loading code",
    docs: "On CPUs every rank holds the model in host memory. On GPUs the weights are mapped once \
           per node. The official loader builds a copy in f32 of 38.6 GB in every rank before it \
           moves the model to its GPU.",
    reads: "MemAvailable of /proc/meminfo, the plan's estimate",
    fix: "fewer ranks on the node, or more memory",
    check: Check::Node(host_memory),
};

const PIDS_PER_RANK: u64 = 128;

fn cgroup(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.memory.cgroup;
    let limits = fact.get()?;
    let ranks = u64::from(demand.ranks_on(node));
    let mut judgement = Judgement::default();
    let mut problem = |severity, what: String, impact: &str, see: &str| {
        judgement.problems.push(Problem {
            severity,
            what,
            impact: impact.to_owned(),
            fix: "raise the limit of the container or service (docker run --memory --cpus --pids-limit, resources.limits)"
                .to_owned(),
            see: see.to_owned(),
        });
    };
    if let (Some(max), Some((need, how))) =
        (limits.memory_max_bytes, demand.host_memory_bytes(node))
    {
        let free = max.saturating_sub(limits.memory_used_bytes.unwrap_or(0));
        if free < need {
            problem(
                Severity::Block,
                format!(
                    "{} free under memory.max, {} needed ({how})",
                    table::bytes(free),
                    table::bytes(need)
                ),
                "the kernel kills ranks while they load the model (exit 137)",
                "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory.current",
            );
        }
    }
    if let Some(pids) = limits.pids_max.filter(|pids| *pids < ranks * PIDS_PER_RANK) {
        problem(
            Severity::Warn,
            format!("pids.max is {pids} ({} wanted for {ranks} ranks)", ranks * PIDS_PER_RANK),
            "threads of ranks cannot be created",
            "cat /sys/fs/cgroup/pids.max",
        );
    }
    if let Some(quota) = limits.cpu_quota.filter(|quota| *quota < ranks as f64) {
        problem(
            Severity::Warn,
            format!("cpu.max allows {quota:.1} processors for {ranks} ranks"),
            "ranks share a processor and wait for each other at every step",
            "cat /sys/fs/cgroup/cpu.max",
        );
    }
    let text = format!(
        "memory {}, processors {}, processes {}",
        limits.memory_max_bytes.map_or("no limit".to_owned(), table::bytes),
        limits.cpu_quota.map_or("no limit".to_owned(), |quota| format!("{quota:.1}")),
        limits.pids_max.map_or("no limit".to_owned(), |pids| pids.to_string()),
    );
    Ok(judgement.and(Evidence::of(fact, text, "room for the ranks")))
}

fn host_memory(node: &NodeFacts, demand: &Demand) -> Outcome {
    let Some((need, how)) = demand.host_memory_bytes(node) else {
        return Err(Stop::skip("no job was given (--job FILE)"));
    };
    let fact = &node.memory.available_bytes;
    let free = *fact.get()?;
    let required = format!("at least {} ({how})", table::bytes(need));
    let evidence = Evidence::of(fact, Value::Bytes(free), required);
    let fix = match demand.stack {
        Stack::Official => {
            "load with qvl-train, which maps the weights once per node; or fewer ranks on this node"
        }
        Stack::Own => {
            "fewer ranks on this node (--gpus), lower data.maxLength or batch.unit, or more memory"
        }
    };
    let problem = |severity| Problem {
        severity,
        what: format!(
            "{} of memory free, {} needed ({how})",
            table::bytes(free),
            table::bytes(need)
        ),
        impact: format!(
            "the kernel kills ranks of {} when memory runs out (exit 137)",
            demand.name()
        ),
        fix: fix.to_owned(),
        see: "free -h; grep MemAvailable /proc/meminfo".to_owned(),
    };
    let found = if free < need {
        Some(problem(Severity::Block))
    } else if free - need < free / 20 {
        Some(problem(Severity::Warn))
    } else {
        None
    };
    Ok(Judgement::from_option(found, evidence))
}
