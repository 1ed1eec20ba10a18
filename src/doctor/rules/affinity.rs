//! Processors and cards beside the GPUs: `numa-unknown`, `gpu-far-from-cpus`, `rdma-far-from-gpu`.

use crate::{
    doctor::{Applies, Area, Check, Demand, Judgement, Outcome, Rule, Severity, Stop, gpus},
    facts::{GpuFacts, NodeFacts, PciState},
};

pub(super) static NUMA_UNKNOWN: Rule = Rule {
    id: "numa-unknown",
    summary: "the firmware says on which socket a GPU is",
    area: Area::Links,
    severity: Severity::Warn,
    applies: Applies::Gpus,
    source: "sysfs numa_node; NVIDIA Health Validation (NUMA nodes)",
    docs: "On a machine with several sockets each GPU is near one of them. When the firmware does \
           not say which (-1, as in many virtual machines), nobody can put a rank beside its GPU, \
           and NCCL guesses the paths.",
    reads: "numa_node of the GPUs in /sys/bus/pci/devices, /sys/devices/system/node",
    fix: "update the firmware; in a virtual machine, give it the host's topology",
    check: Check::Node(unknown),
};

pub(super) static GPU_FAR_FROM_CPUS: Rule = Rule {
    id: "gpu-far-from-cpus",
    summary: "the process may run beside its GPUs",
    area: Area::Links,
    severity: Severity::Warn,
    applies: Applies::Gpus,
    source: "sysfs local_cpulist; Kubernetes topology manager",
    docs: "A container that got processors of one socket and a GPU of the other sends every copy \
           and every kernel start across the link between the sockets.",
    reads: "local_cpulist of the GPUs, Cpus_allowed_list of /proc/self/status",
    fix: "numactl --cpunodebind, or topologyManagerPolicy: single-numa-node on the kubelet",
    check: Check::Node(far_from_cpus),
};

pub(super) static RDMA_FAR_FROM_GPU: Rule = Rule {
    id: "rdma-far-from-gpu",
    summary: "a network card is on the socket of each GPU",
    area: Area::Network,
    severity: Severity::Warn,
    applies: Applies::GpuNodes,
    source: "NCCL user guide, GPUDirect RDMA (distance of card and GPU)",
    docs: "NCCL uses GPUDirect when card and GPU are near each other. With all cards on the other \
           socket every byte goes through the host, at a fraction of the card's rate.",
    reads: "numa_node of the GPUs and of /sys/class/infiniband/*/device",
    fix: "use GPUs on the socket of the card (CUDA_VISIBLE_DEVICES), or move the card",
    check: Check::Node(rdma_far),
};

fn unknown(node: &NodeFacts, demand: &Demand) -> Outcome {
    let nodes = *node.system.numa_nodes.get()?;
    if nodes < 2 {
        return Err(Stop::skip("the machine has one NUMA node"));
    }
    let fact = &node.driver.pci_gpus;
    let gpus = fact.get()?;
    let lost = gpus.iter().find(|gpu| gpu.numa_node.is_none_or(|node| node < 0));
    let problem = lost.map(|gpu| {
        NUMA_UNKNOWN.problem(
            format!("the NUMA node of GPU {} is not told ({nodes} nodes)", gpu.address),
            format!("ranks of {} may run on the far socket", demand.name()),
            format!("cat /sys/bus/pci/devices/{}/numa_node", gpu.address),
        )
    });
    let found: Vec<String> =
        gpus.iter().map(|gpu| gpu.numa_node.map_or("?".to_owned(), |n| n.to_string())).collect();
    Judgement::of(fact, found, "0 or more", problem)
}

/// State on the bus of the GPUs that the ranks use.
fn used<'n>(
    node: &'n NodeFacts,
    demand: &Demand,
) -> Result<Vec<(&'n GpuFacts, &'n PciState)>, Stop> {
    let indices = gpus::used(node, demand);
    let states = node.driver.pci_states.get()?;
    let mut found = Vec::new();
    for gpu in node.nvml.gpus.get()?.iter().filter(|gpu| indices.contains(&gpu.index)) {
        let Some(address) = gpu.pci_address.value() else { continue };
        found.extend(
            states.iter().find(|s| s.address.eq_ignore_ascii_case(address)).map(|s| (gpu, s)),
        );
    }
    if found.is_empty() {
        return Err(Stop::skip("no GPU of the job was found on the PCI bus"));
    }
    Ok(found)
}

fn far_from_cpus(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.system.allowed_cpus;
    let allowed = fact.get()?;
    let used = used(node, demand)?;
    let near = |state: &PciState| {
        state.local_cpus.iter().any(|(a, b)| allowed.iter().any(|(c, d)| a <= d && c <= b))
    };
    let far: Vec<u32> = used
        .iter()
        .filter(|(_gpu, state)| !state.local_cpus.is_empty() && !near(state))
        .map(|(gpu, _state)| gpu.index)
        .collect();
    let text = |list: &[(u32, u32)]| {
        let parts: Vec<String> = list.iter().map(|(a, b)| format!("{a}-{b}")).collect();
        parts.join(",")
    };
    let problem = (!far.is_empty()).then(|| {
        GPU_FAR_FROM_CPUS.problem(
            format!("no processor of {} is beside GPU {}", text(allowed), gpus::list(&far)),
            format!("copies of {} cross the link between the sockets", demand.name()),
            "nvidia-smi topo -m; grep Cpus_allowed_list /proc/self/status",
        )
    });
    Judgement::of(fact, text(allowed), "some beside each GPU", problem)
}

fn rdma_far(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.network.rdma_ports;
    let active = fact.get()?.iter().filter(|port| port.state == "ACTIVE");
    let cards: Vec<i32> = active.filter_map(|port| port.numa_node.filter(|n| 0 <= *n)).collect();
    if cards.is_empty() {
        return Err(Stop::skip("no active RDMA port tells its NUMA node"));
    }
    let on_bus = node.driver.pci_gpus.get()?;
    let used = used(node, demand)?;
    let place = |state: &PciState| {
        on_bus.iter().find(|gpu| gpu.address == state.address)?.numa_node.filter(|n| 0 <= *n)
    };
    let far: Vec<u32> = used
        .iter()
        .filter(|(_gpu, state)| place(state).is_some_and(|node| !cards.contains(&node)))
        .map(|(gpu, _state)| gpu.index)
        .collect();
    let text: Vec<String> = cards.iter().map(|node| format!("NUMA node {node}")).collect();
    let problem = (!far.is_empty()).then(|| {
        RDMA_FAR_FROM_GPU.problem(
            format!("GPU {} is on another socket than all RDMA cards", gpus::list(&far)),
            format!("{} exchanges gradients through the host's memory", demand.name()),
            "nvidia-smi topo -m",
        )
    });
    Judgement::of(fact, text, "a card on the socket of each GPU", problem)
}
