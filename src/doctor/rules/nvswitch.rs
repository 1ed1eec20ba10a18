//! `fabric-manager`, `imex-not-ready`, `mnnvl-denied`: NVLink beyond one board.

use crate::{
    doctor::{Applies, Area, Check, Demand, Evidence, Judgement, Outcome, Rule, Severity, Stop},
    facts::NodeFacts,
};

pub(super) static FABRIC_MANAGER: Rule = Rule {
    id: "fabric-manager",
    summary: "the Fabric Manager runs on NVSwitch machines",
    area: Area::Links,
    severity: Severity::Warn,
    applies: Applies::Gpus,
    source: "NVIDIA Fabric Manager user guide; NVIDIA/nccl#1231 (CUDA error 802)",
    docs: "NVSwitches do nothing until the Fabric Manager has set them up, and when it ends, jobs \
           that run lose the fabric. From a container the process of the host is not seen; then \
           fabric-not-ready tells the result.",
    reads: "bridges of NVIDIA in /sys/bus/pci/devices, /proc/*/stat",
    fix: "systemctl enable --now nvidia-fabricmanager, of the driver's version",
    check: Check::Node(fabric_manager),
};

pub(super) static IMEX_NOT_READY: Rule = Rule {
    id: "imex-not-ready",
    summary: "memory of other nodes can be reached over NVLink",
    area: Area::Links,
    severity: Severity::Warn,
    applies: Applies::GpuNodes,
    source: "NVIDIA IMEX service guide; awslabs hyperpod-nccl",
    docs: "On racks whose nodes share one NVLink fabric (GB200, GB300) the IMEX service exports \
           memory between nodes. Without a channel in the container NCCL fails at start, or goes \
           over the network.",
    reads: "/dev/nvidia-caps-imex-channels, nvmlDeviceGetName",
    fix: "start nvidia-imex on all nodes and give the pod a channel (ComputeDomain); NCCL_MNNVL_ENABLE=0 goes without",
    check: Check::Node(imex),
};

pub(super) static MNNVL_DENIED: Rule = Rule {
    id: "mnnvl-denied",
    summary: "the NVLink domain is not larger than NCCL can handle",
    area: Area::Links,
    severity: Severity::Warn,
    applies: Applies::GpuNodes,
    source: "NVIDIA/nccl#2186 (44 GPUs in a clique or more)",
    docs: "With 44 GPUs or more in one NVLink domain of several nodes NCCL was seen to hang or to \
           give wrong results, newer versions more often.",
    reads: "nvmlDeviceGetName, number of ranks, NCCL_MNNVL_ENABLE",
    fix: "try NCCL_MNNVL_ENABLE=0, and compare speed and results",
    check: Check::Node(mnnvl),
};

/// Whether the GPUs are of a rack with one NVLink fabric.
fn is_rack(node: &NodeFacts, demand: &Demand) -> Result<bool, Stop> {
    let products = super::peers::products(node, demand)?;
    Ok(products.iter().any(|name| name.contains("GB200") || name.contains("GB300")))
}

fn fabric_manager(node: &NodeFacts, demand: &Demand) -> Outcome {
    let switches = *node.driver.nvswitches.get()?;
    if switches == 0 {
        return Err(Stop::skip("the machine has no NVSwitch"));
    }
    if node.container.kind.get()?.is_some() {
        return Err(Stop::skip("a container does not see the host's processes"));
    }
    let fact = &node.system.processes;
    let runs = fact.get()?.daemons.contains("nv-fabricmanage");
    let problem = (!runs).then(|| {
        FABRIC_MANAGER.problem(
            format!("{switches} NVSwitches, but nv-fabricmanager does not run"),
            format!("CUDA returns 802 to ranks of {}, or they lose the fabric", demand.name()),
            "systemctl status nvidia-fabricmanager",
        )
    });
    Judgement::of(fact, runs, "yes", problem)
}

fn imex(node: &NodeFacts, demand: &Demand) -> Outcome {
    if !is_rack(node, demand)? {
        return Err(Stop::skip("the GPUs are not of a rack with one NVLink fabric"));
    }
    let fact = &node.driver.imex_channels;
    let channels = *fact.get()?;
    let problem = (channels == 0).then(|| {
        IMEX_NOT_READY.problem(
            "no IMEX channel is there",
            format!("ranks of {} on several nodes cannot use NVLink", demand.name()),
            "ls /dev/nvidia-caps-imex-channels; nvidia-imex-ctl -N",
        )
    });
    Judgement::of(fact, channels, "at least 1", problem)
}

fn mnnvl(node: &NodeFacts, demand: &Demand) -> Outcome {
    const CLIQUE: u32 = 44;
    if !is_rack(node, demand)? {
        return Err(Stop::skip("the GPUs are not of a rack with one NVLink fabric"));
    }
    let off = node.env.variables.get()?.get("NCCL_MNNVL_ENABLE").is_some_and(|v| v == "0");
    let ranks = demand.ranks.unwrap_or_else(|| demand.ranks_on(node) * demand.nodes);
    let evidence = Evidence::new("ranks", ranks, format!("under {CLIQUE}, or NCCL_MNNVL_ENABLE=0"));
    let problem = (CLIQUE <= ranks && !off).then(|| {
        MNNVL_DENIED.problem(
            format!("{ranks} GPUs in one NVLink domain (known trouble from {CLIQUE} on)"),
            format!("{} may hang or compute wrong sums", demand.name()),
            "echo $NCCL_MNNVL_ENABLE; nvidia-smi -q | grep -A6 Fabric",
        )
    });
    Ok(Judgement::from_option(problem, evidence))
}
