//! What computing tells about a host: `memory-bandwidth-uneven`, `cpu-miscomputes`, `straggler`.

use std::collections::BTreeMap;

use super::active::{done, facts, rate};
use crate::{
    doctor::{
        Applies, Area, Check, Demand, Evidence, Judgement, Outcome, Problem, Rule, Severity, Stop,
    },
    facts::{ComputeTest, CoreTest, NodeFacts, NodeName, Snapshot},
    locate,
};

pub(super) static MEMORY_BANDWIDTH_UNEVEN: Rule = Rule {
    id: "memory-bandwidth-uneven",
    summary: "the memory of all NUMA nodes is equally fast",
    area: Area::Host,
    severity: Severity::Warn,
    applies: Applies::Always,
    source: "STREAM (https://www.cs.virginia.edu/stream/ref.html); 70 % is a proposal",
    docs: "A memory module that is missing, or was switched off after errors, takes the bandwidth \
           of its channel with it. Ranks on that NUMA node are slower, and all others wait for \
           them. Compared is the bandwidth for each processor; it needs --active.",
    reads: "a triad on the processors of each NUMA node, about half a second each",
    fix: "dmidecode -t memory: fill all channels alike, or have the failed module replaced",
    check: Check::Node(uneven),
};

pub(super) static CPU_MISCOMPUTES: Rule = Rule {
    id: "cpu-miscomputes",
    summary: "every processor multiplies matrices to the same bits",
    area: Area::Host,
    severity: Severity::Block,
    applies: Applies::Always,
    source: "IEEE 754; Hochschild et al., Cores that don't count, HotOS 2021",
    docs: "A processor that gives wrong numbers, without any error that a counter sees, spoils a \
           training silently. Products and sums are exactly defined, so one matrix product, again \
           and again on each processor, must always have the bits that arithmetic prescribes. A \
           clean result of half a second is no proof of health. It needs --active.",
    reads: "CRC-32C of f32 products of 160 x 160, on each processor for 0.4 s",
    fix: "leave the node out and have the processor replaced; until then keep ranks off it (taskset)",
    check: Check::Node(miscomputes),
};

pub(super) static STRAGGLER: Rule = Rule {
    id: "straggler",
    summary: "no node computes more slowly than its peers",
    area: Area::Host,
    severity: Severity::Warn,
    applies: Applies::Nodes,
    source: "DLRover network-check, AMD-AGI/Primus (relative to peers); the factor 1.5 is a proposal",
    docs: "All ranks wait for the slowest in every step. Nodes of one kind differ by a few percent; \
           one that needs half as long again is hot, throttled, or shared with somebody. Compared \
           is the median processor and the memory bandwidth against the median of all nodes, and \
           three of them are needed. It needs --active on each node, and --facts.",
    reads: "products and triads of the active tests of all nodes",
    fix: "look for heat, a power limit or another program on the node, or leave it out",
    check: Check::Fleet(straggler),
};

/// The slowest node has at least this part of the fastest one's bandwidth.
const EVEN: f64 = 0.7;
/// A straggler is so many times slower than the median of its peers.
const SLOWER: f64 = 1.5;

fn uneven(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &facts(node)?.memory;
    let nodes = &done(fact)?.nodes;
    let each = |i: usize| nodes[i].bytes_per_second / f64::from(nodes[i].threads.max(1));
    let mut judgement = Judgement::default();
    for numa in nodes {
        let text = format!("{} with {} threads", rate(numa.bytes_per_second), numa.threads);
        let evidence = Evidence::of(fact, text, "at least 70 % of the fastest NUMA node");
        judgement.evidence.push(evidence.about(format!("NUMA node {}", numa.node)));
    }
    let by_speed = |a: &usize, b: &usize| each(*a).total_cmp(&each(*b));
    let (Some(slowest), Some(fastest)) =
        ((0..nodes.len()).min_by(by_speed), (0..nodes.len()).max_by(by_speed))
    else {
        return Err(Stop::skip("no NUMA node has a processor that this process may use"));
    };
    if each(slowest) < EVEN * each(fastest) {
        judgement.problems.push(MEMORY_BANDWIDTH_UNEVEN.problem(
            format!(
                "NUMA node {}: {} for each processor, {} on NUMA node {}",
                nodes[slowest].node,
                rate(each(slowest)),
                rate(each(fastest)),
                nodes[fastest].node
            ),
            format!("ranks of {} on that NUMA node are slower, and all wait", demand.name()),
            "numactl --hardware; dmidecode -t memory",
        ));
    }
    Ok(judgement)
}

fn miscomputes(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &facts(node)?.compute;
    let test = done(fact)?;
    if test.cores.is_empty() {
        return Err(Stop::skip("this process may use no processor"));
    }
    let liars: Vec<&CoreTest> = test.cores.iter().filter(|core| !core.wrong.is_empty()).collect();
    let runs: u64 = test.cores.iter().map(|core| u64::from(core.runs)).sum();
    let text = format!(
        "{} of {} processors differ, {runs} products, median {:.1} GFLOP/s",
        liars.len(),
        test.cores.len(),
        median_flops(test).unwrap_or(0.0) / 1e9
    );
    let problem = liars.first().map(|first| Problem {
        severity: Severity::Block,
        what: format!(
            "processor {}: {} of {} products have other bits{}",
            names(&liars),
            first.wrong.len(),
            first.runs,
            // All of them would be the fault of an emulator or of this program.
            if liars.len() == test.cores.len() { ", on every processor" } else { "" }
        ),
        impact: format!("{} computes wrong gradients, and nothing says so", demand.name()),
        fix: CPU_MISCOMPUTES.fix.to_owned(),
        see: "mcelog --client; journalctl -k | grep -i mce".to_owned(),
    });
    Judgement::of(fact, text, format!("CRC-32C {:08x} every time", test.expected), problem)
}

fn names(cores: &[&CoreTest]) -> String {
    let numbers: Vec<u32> = cores.iter().map(|core| core.cpu).collect();
    crate::doctor::gpus::list(&numbers)
}

/// Of the processor in the middle.
fn median_flops(test: &ComputeTest) -> Option<f64> {
    let mut all: Vec<f64> = test.cores.iter().map(|core| core.flops).collect();
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied()
}

fn straggler(snapshot: &Snapshot, demand: &Demand) -> Outcome {
    if snapshot.nodes.values().all(|node| node.active.is_none()) {
        facts(snapshot.nodes.values().next().ok_or_else(|| Stop::skip("there is no node"))?)?;
    }
    let mut judgement = Judgement::default();
    let mut flops: BTreeMap<&NodeName, f64> = BTreeMap::new();
    let mut memory: BTreeMap<&NodeName, f64> = BTreeMap::new();
    for (name, node) in &snapshot.nodes {
        let Some(active) = node.active.as_deref() else { continue };
        match done(&active.compute) {
            Ok(test) => flops.extend(median_flops(test).map(|median| (name, median))),
            Err(Stop::Unknown(unread)) => judgement.unknown.push(unread),
            Err(stop @ Stop::Skip(_)) => return Err(stop),
        }
        match done(&active.memory) {
            Ok(test) => {
                memory.insert(name, test.nodes.iter().map(|node| node.bytes_per_second).sum());
            }
            Err(Stop::Unknown(unread)) => judgement.unknown.push(unread),
            Err(stop @ Stop::Skip(_)) => return Err(stop),
        }
    }
    if flops.len().max(memory.len()) < 3 && judgement.unknown.is_empty() {
        return Err(Stop::skip("fewer than three nodes made active tests"));
    }
    let kinds = [("products", &flops, "FLOP/s"), ("memory", &memory, "B/s")];
    for (what, speeds, unit) in kinds {
        let slow = locate::stragglers(speeds, SLOWER);
        let text: Vec<String> =
            slow.iter().map(|name| format!("{name}: {:.1} G{unit}", speeds[*name] / 1e9)).collect();
        judgement.evidence.push(Evidence::new(
            what,
            text.clone(),
            "no node 1.5 times slower than the median",
        ));
        if !text.is_empty() {
            judgement.problems.push(STRAGGLER.problem(
                format!("slower than the other nodes ({what}): {}", text.join(", ")),
                format!("all ranks of {} wait for it in every step", demand.name()),
                "turbostat --quiet --interval 5; top",
            ));
        }
    }
    Ok(judgement)
}
