//! `device-node-missing` and `cgroup-device-denied`: can the device files be opened?

use crate::{
    doctor::{
        Applies, Area, Check, Demand, Evidence, Judgement, Outcome, Problem, Rule, Severity, Stop,
    },
    facts::{DeviceNode, NodeFacts},
};

pub(super) static DEVICE_NODE_MISSING: Rule = Rule {
    id: "device-node-missing",
    summary: "the device files exist",
    area: Area::Driver,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "NVIDIA/gpu-operator#2685 (ready without nvidia-uvm nodes)",
    docs: "CUDA opens /dev/nvidiactl, /dev/nvidia-uvm and one /dev/nvidia<N> for each GPU. In a \
           container they are missing when the runtime did not mount them; nvidia-smi needs only \
           some of them and so proves nothing.",
    reads: "/dev/nvidia*",
    fix: "nvidia-modprobe -c 0 -u; in a container, a device list of the NVIDIA toolkit (CDI)",
    check: Check::Node(missing),
};

pub(super) static CGROUP_DEVICE_DENIED: Rule = Rule {
    id: "cgroup-device-denied",
    summary: "the device files open for reading and writing",
    area: Area::Driver,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "NVIDIA/nvidia-container-toolkit#48 (devices lost after systemctl daemon-reload)",
    docs: "The control group of a container has a list of allowed devices. `systemctl \
           daemon-reload` may drop GPUs from it while the container runs, and then the file is \
           there but cannot be opened.",
    reads: "open of /dev/nvidia* for reading and writing",
    fix: "use the systemd cgroup driver or CDI, and restart the container",
    check: Check::Node(denied),
};

fn missing(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.driver.device_nodes;
    let nodes = fact.get()?;
    let mut wanted = vec!["/dev/nvidiactl".to_owned(), "/dev/nvidia-uvm".to_owned()];
    let gpus = node.nvml.gpus.value().map_or(&[][..], Vec::as_slice);
    let mut unknown = Vec::new();
    for gpu in gpus {
        match gpu.minor_number.get() {
            Ok(minor) => wanted.push(format!("/dev/nvidia{minor}")),
            Err(unread) => unknown.push(unread),
        }
    }
    let missing: Vec<String> =
        wanted.into_iter().filter(|path| !nodes.contains_key(path)).collect();
    let present: Vec<String> = nodes.keys().cloned().collect();
    let evidence = Evidence::of(fact, present, "nvidiactl, nvidia-uvm and one file for each GPU");
    let problem = (!missing.is_empty()).then(|| Problem {
        severity: Severity::Block,
        what: format!("{} is missing", missing.join(", ")),
        impact: format!("cuInit fails, so no rank of {} can start", demand.name()),
        fix: "on a host: nvidia-modprobe -u -c=0; in a container: let the NVIDIA runtime mount the devices (CDI)"
            .to_owned(),
        see: "ls -l /dev/nvidia*".to_owned(),
    });
    Ok(Judgement { unknown, ..Judgement::from_option(problem, evidence) })
}

fn denied(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.driver.device_nodes;
    let nodes = fact.get()?;
    if nodes.is_empty() {
        return Err(Stop::skip("there is no device file: see device-node-missing"));
    }
    let refused: Vec<String> = nodes
        .iter()
        .filter_map(|(path, node)| match node {
            DeviceNode::Opens => None,
            DeviceNode::Denied { errno } => Some(format!("{path} ({errno})")),
        })
        .collect();
    let evidence = Evidence::of(fact, refused.clone(), "all open");
    let problem = (!refused.is_empty()).then(|| Problem {
        severity: Severity::Block,
        what: format!("{} cannot be opened", refused.join(", ")),
        impact: format!("CUDA loses these GPUs, so ranks of {} fail", demand.name()),
        fix: "restart the container; to keep it from coming back, use CDI or the systemd cgroup driver"
            .to_owned(),
        see: "for f in /dev/nvidia*; do : <>$f || echo $f; done".to_owned(),
    });
    Ok(Judgement::from_option(problem, evidence))
}
