//! `gpu-count-mismatch`: the whole chain from the PCI bus to the job.

use super::visible;
use crate::{
    doctor::{Applies, Area, Check, Demand, Evidence, Judgement, Outcome, Problem, Rule, Severity},
    facts::NodeFacts,
};

pub(super) static RULE: Rule = Rule {
    id: "gpu-count-mismatch",
    summary: "PCI bus, NVML, CUDA_VISIBLE_DEVICES and the job agree on the number of GPUs",
    area: Area::Gpu,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "NVIDIA/aicr#1858, NVCRE#82 (7 of 8 GPUs: a hang without a reason)",
    docs: "A GPU can be on the bus without the driver seeing it, be hidden by \
           CUDA_VISIBLE_DEVICES, or be missing altogether. A launcher that does not look starts \
           more ranks than there are GPUs, and they hang in the rendezvous. In a container the \
           bus shows the GPUs of the host, so only too few of them count there. In a cluster the \
           device plugin says how many GPUs the scheduler may give away; it counts them when it \
           starts, so a GPU that vanishes later is still given to pods.",
    reads: "/sys/bus/pci/devices, nvmlDeviceGetCount_v2, CUDA_VISIBLE_DEVICES, allocatable GPUs",
    fix: "lower the number of ranks, or leave the node out",
    check: Check::Node(check),
};

fn check(node: &NodeFacts, demand: &Demand) -> Outcome {
    let gpus = node.nvml.gpus.get()?.len();
    let on_bus = node.driver.pci_gpus.get()?.len();
    let visible = visible::indices(node).len();
    let needed = demand.ranks_per_node().map(|ranks| ranks as usize);
    let in_container = node.container.kind.get()?.is_some();
    let offered = node.offered_gpus.map(|offered| usize::try_from(offered).unwrap_or(usize::MAX));
    let chain = format!(
        "PCI bus {on_bus}, NVML {gpus}, visible to CUDA {visible}, {}ranks of the job on this node {}",
        offered.map_or(String::new(), |offered| format!("allocatable in the cluster {offered}, ")),
        needed.map_or("as many as GPUs".to_owned(), |needed| needed.to_string())
    );
    let required = if in_container { "bus >= NVML >= visible >= ranks" } else { "bus = NVML" };
    let evidence = Evidence::of(&node.nvml.gpus, chain.as_str(), required);
    let problem = |what: String, fix: String| Problem {
        severity: Severity::Block,
        what: format!("{what}: {chain}"),
        impact: format!(
            "ranks of {} without a GPU fail, and the others wait for them",
            demand.name()
        ),
        fix,
        see: "lspci -d 10de: | grep -E '3D|VGA'; nvidia-smi -L; echo $CUDA_VISIBLE_DEVICES"
            .to_owned(),
    };
    let found = if on_bus < gpus || (!in_container && gpus < on_bus) {
        Some(problem(
            format!("{on_bus} GPUs on the PCI bus, but {gpus} in the driver"),
            "look for the missing GPU in dmesg (NVRM, fallen off the bus); reset it or reboot"
                .to_owned(),
        ))
    } else if let Some(offered) = offered.filter(|offered| *offered != gpus) {
        Some(disagrees_with_the_cluster(offered, gpus, needed, &chain, demand))
    } else if visible < needed.unwrap_or(0) || visible == 0 {
        let needed = needed.unwrap_or(1);
        Some(problem(
            format!("{needed} ranks on this node, but {visible} usable GPUs"),
            format!(
                "run with --gpus {visible} on this node, or add nodes; the global batch stays the same"
            ),
        ))
    } else {
        None
    };
    Ok(Judgement::from_option(found, evidence))
}

/// The scheduler gives away another number of GPUs than there are.
fn disagrees_with_the_cluster(
    offered: usize,
    gpus: usize,
    needed: Option<usize>,
    chain: &str,
    demand: &Demand,
) -> Problem {
    let name = demand.name();
    let (severity, impact) = if gpus < offered {
        let impact = format!(
            "the scheduler gives {name} a GPU that is not there: its pod does not start, or a rank fails"
        );
        (Severity::Block, impact)
    } else if offered < needed.unwrap_or(1) {
        (Severity::Block, format!("pods of {name} do not fit on this node, and wait"))
    } else {
        (Severity::Warn, format!("pods of {name} cannot have the others"))
    };
    Problem {
        severity,
        what: format!("{offered} GPUs allocatable in the cluster, but {gpus} in the driver: {chain}"),
        impact,
        fix: "look for a fault of the missing GPU (xid-seen, gpu-lost); if it is healthy or gone for \
              good, restart the pod of NVIDIA's device plugin on this node"
            .to_owned(),
        see: "kubectl describe node NODE | grep nvidia.com/gpu; nvidia-smi -L".to_owned(),
    }
}
