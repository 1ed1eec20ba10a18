//! How GPUs of a node reach each other: `p2p-broken`, `topology-odd`, `nvlink-count`,
//! `nvlink-unequal`, `nvlink-errors`.

use std::collections::BTreeSet;

use crate::{
    doctor::{
        Applies, Area, Check, Demand, Evidence, Judgement, Outcome, Rule, Severity, Stop,
        gpus::{self, GpuVerdict, Texts, each_gpu},
        table,
    },
    facts::{GpuFacts, NodeFacts},
};

pub(super) static P2P_BROKEN: Rule = Rule {
    id: "p2p-broken",
    summary: "GPUs read each other's memory",
    area: Area::Links,
    severity: Severity::Block,
    applies: Applies::GpuGroup,
    source: "nvmlDeviceGetP2PStatus; NVIDIA/nccl#631, NVIDIA/nccl-tests#117",
    docs: "Boards with NVLink must have peer access between all GPUs; without it NCCL falls back \
           to the host's memory, ten times slower. PCIe cards may lack it: consumer cards always \
           do, and then /dev/shm carries the traffic. Whether peer copies arrive right needs a \
           test: ACS and IOMMU are what breaks them.",
    reads: "nvmlDeviceGetP2PStatus between all GPUs of the job",
    fix: "on boards with NVLink: check the fabric and reset the GPUs; on cards: NCCL_P2P_DISABLE=1 and a large /dev/shm",
    check: Check::Node(p2p),
};

pub(super) static TOPOLOGY_ODD: Rule = Rule {
    id: "topology-odd",
    summary: "the ranks use GPUs that are near each other",
    area: Area::Links,
    severity: Severity::Warn,
    applies: Applies::GpuGroup,
    source: "nvmlDeviceGetTopologyCommonAncestor; nvidia-smi topo -m",
    docs: "Without NVLink the path between two GPUs decides: under one host bridge it is fast, \
           across sockets slow. When the job needs fewer GPUs than the node has, the ones of one \
           socket are the better choice.",
    reads: "nvmlDeviceGetTopologyCommonAncestor, numa_node of the GPUs",
    fix: "choose GPUs of one socket with CUDA_VISIBLE_DEVICES",
    check: Check::Node(topology),
};

pub(super) static NVLINK_COUNT: Rule = Rule {
    id: "nvlink-count",
    summary: "boards have as many NVLinks as their product",
    area: Area::Links,
    severity: Severity::Warn,
    applies: Applies::GpuGroup,
    source: "NVIDIA Health Validation nvlink_bandwidth_count_speed; product data sheets",
    docs: "An A100 on a board has 12 NVLinks, an H100, H200 or B200 has 18. A link that failed at \
           boot may not be listed at all, so that all listed ones are up.",
    reads: "nvmlDeviceGetNvLinkState, nvmlDeviceGetName",
    fix: "reset all GPUs of the node; if links stay missing, have the board inspected",
    check: Check::Node(count),
};

pub(super) static NVLINK_UNEQUAL: Rule = Rule {
    id: "nvlink-unequal",
    summary: "either all GPUs of the job have NVLink, or none",
    area: Area::Links,
    severity: Severity::Warn,
    applies: Applies::GpuGroup,
    source: "NCCL user guide, NCCL_P2P_LEVEL; bridges join pairs of PCIe cards",
    docs: "Bridges join two cards. A job over bridged and unbridged cards runs at the speed of \
           the slowest pair, and the order of ranks decides how often it is crossed.",
    reads: "nvmlDeviceGetNvLinkState",
    fix: "use the bridged cards only, or order ranks so that pairs are neighbours",
    check: Check::Node(unequal),
};

pub(super) static NVLINK_ERRORS: Rule = Rule {
    id: "nvlink-errors",
    summary: "NVLinks send without errors",
    area: Area::Links,
    severity: Severity::Warn,
    applies: Applies::GpuGroup,
    source: "DCGM (recovery errors); the limits of 1000 replays and checksums are our own",
    docs: "A link that had to be trained again stopped all traffic for a moment, and will do so \
           again. Packets that are sent again by the thousand cost bandwidth.",
    reads: "nvmlDeviceGetNvLinkErrorCounter of all links",
    fix: "reset all GPUs of the node; if errors come back, have the board inspected",
    check: Check::Node(errors),
};

/// Name of an `nvmlGpuP2PStatus_t`.
fn p2p_name(status: u32) -> &'static str {
    match status {
        0 => "works",
        1 => "the chipset cannot",
        2 => "the GPU cannot",
        3 => "the topology forbids it",
        4 => "switched off in the driver",
        5 => "not supported",
        _ => "unknown",
    }
}

fn p2p(node: &NodeFacts, demand: &Demand) -> Outcome {
    let used = gpus::used(node, demand);
    if used.len() < 2 {
        return Err(Stop::skip("the job uses one GPU of this node"));
    }
    let texts = Texts {
        impact: "NCCL copies through the host's memory: exchanges take about ten times longer",
        fix: P2P_BROKEN.fix,
        see: "nvidia-smi topo -p2p r",
    };
    each_gpu(node, demand, texts, |gpu| {
        let fact = &gpu.peers;
        let peers = fact.get()?.iter().filter(|peer| used.contains(&peer.index));
        let broken: Vec<_> = peers.filter(|peer| peer.p2p_read != 0).collect();
        let evidence = Evidence::of(fact, broken.len(), "0 peers out of reach");
        let Some(first) = broken.first().filter(|_| used.contains(&gpu.index)) else {
            return Ok(GpuVerdict::Fine(evidence));
        };
        let name = gpu.name.get()?;
        if !table::is_data_center(name) {
            return Ok(GpuVerdict::Exempt("consumer GPUs have no peer access: see shm-small"));
        }
        let severity = if table::has_nvlink(name) { Severity::Block } else { Severity::Warn };
        let reason = p2p_name(first.p2p_read);
        let what = format!("cannot read {} other GPUs of the job ({reason})", broken.len());
        Ok(GpuVerdict::Bad(severity, what, evidence))
    })
}

/// Links that are up.
fn active(gpu: &GpuFacts) -> Result<usize, Stop> {
    Ok(gpu.nvlinks.get()?.iter().filter(|link| link.active).count())
}

fn topology(node: &NodeFacts, demand: &Demand) -> Outcome {
    /// `NVML_TOPOLOGY_SYSTEM`: across sockets.
    const SYSTEM: u32 = 50;
    let all = node.nvml.gpus.get()?;
    let used = gpus::used(node, demand);
    if used.len() < 2 || used.len() == all.len() {
        return Err(Stop::skip("the job uses one GPU of this node, or all of them"));
    }
    let mut across = false;
    let mut linked = true;
    for gpu in all.iter().filter(|gpu| used.contains(&gpu.index)) {
        linked &= 0 < active(gpu)?;
        let peers = gpu.peers.get()?.iter().filter(|peer| used.contains(&peer.index));
        across |= peers.into_iter().any(|peer| SYSTEM <= peer.path);
    }
    if linked {
        return Err(Stop::skip("the GPUs reach each other over NVLink"));
    }
    let near = |index: u32| {
        let peers = all.iter().find(|gpu| gpu.index == index)?.peers.value()?;
        Some(1 + peers.iter().filter(|peer| peer.path < SYSTEM).count())
    };
    let better = all.iter().any(|gpu| near(gpu.index).is_some_and(|size| used.len() <= size));
    let fact = &node.nvml.gpus;
    let problem = (across && better).then(|| {
        TOPOLOGY_ODD.problem(
            format!("GPUs {} are on two sockets, though one socket has enough", gpus::list(&used)),
            format!("exchanges of {} cross the link between the sockets", demand.name()),
            "nvidia-smi topo -m",
        )
    });
    Judgement::of(fact, gpus::list(&used), "GPUs of one socket", problem)
}

fn count(node: &NodeFacts, demand: &Demand) -> Outcome {
    let texts = Texts {
        impact: "this GPU exchanges with less bandwidth than its peers, and all wait for it",
        fix: NVLINK_COUNT.fix,
        see: "nvidia-smi nvlink -s",
    };
    each_gpu(node, demand, texts, |gpu| {
        let Some(expected) = table::nvlinks(gpu.name.get()?) else {
            return Ok(GpuVerdict::Exempt("the number of NVLinks of the product is not known"));
        };
        let fact = &gpu.nvlinks;
        let listed = fact.get()?.len();
        let evidence = Evidence::of(fact, listed, expected.to_string());
        // None at all is told by nvlink-inactive.
        if listed == 0 || expected <= listed {
            return Ok(GpuVerdict::Fine(evidence));
        }
        let what = format!("{listed} NVLinks are listed, the product has {expected}");
        Ok(GpuVerdict::Bad(Severity::Warn, what, evidence))
    })
}

fn unequal(node: &NodeFacts, demand: &Demand) -> Outcome {
    let used = gpus::used(node, demand);
    let all = node.nvml.gpus.get()?;
    let mut with = Vec::new();
    let mut without = Vec::new();
    for gpu in all.iter().filter(|gpu| used.contains(&gpu.index)) {
        if table::has_nvlink(gpu.name.get()?) {
            return Err(Stop::skip("the GPUs are boards with NVLink: see nvlink-inactive"));
        }
        let list = if 0 < active(gpu)? { &mut with } else { &mut without };
        list.push(gpu.index);
    }
    let fact = &node.nvml.gpus;
    let mixed = !with.is_empty() && !without.is_empty();
    let problem = mixed.then(|| {
        NVLINK_UNEQUAL.problem(
            format!("GPUs {} have a bridge, {} do not", gpus::list(&with), gpus::list(&without)),
            format!("{} runs at the speed of the pairs without a bridge", demand.name()),
            "nvidia-smi topo -m",
        )
    });
    Judgement::of(
        fact,
        format!("{} with, {} without", with.len(), without.len()),
        "all or none",
        problem,
    )
}

fn errors(node: &NodeFacts, demand: &Demand) -> Outcome {
    const MANY: u64 = 1000;
    let texts = Texts {
        impact: "exchanges stop for moments, and the link may fail during the job",
        fix: NVLINK_ERRORS.fix,
        see: "nvidia-smi nvlink -e",
    };
    each_gpu(node, demand, texts, |gpu| {
        let fact = &gpu.nvlink_errors;
        let Some(errors) = *fact.get()? else {
            return Ok(GpuVerdict::Exempt("the GPUs have no NVLink that is up"));
        };
        let text = format!(
            "{} recoveries, {} replays, {} wrong checksums",
            errors.recoveries, errors.replays, errors.crc
        );
        let evidence = Evidence::of(fact, text.as_str(), format!("0, under {MANY}, under {MANY}"));
        if errors.recoveries == 0 && errors.replays < MANY && errors.crc < MANY {
            return Ok(GpuVerdict::Fine(evidence));
        }
        Ok(GpuVerdict::Bad(Severity::Warn, format!("NVLink errors: {text}"), evidence))
    })
}

/// Names of all products among the GPUs of the job, for rules that compare.
pub(super) fn products(node: &NodeFacts, demand: &Demand) -> Result<BTreeSet<String>, Stop> {
    let used = gpus::used(node, demand);
    let mut names = BTreeSet::new();
    for gpu in node.nvml.gpus.get()?.iter().filter(|gpu| used.contains(&gpu.index)) {
        names.insert(gpu.name.get()?.clone());
    }
    Ok(names)
}
