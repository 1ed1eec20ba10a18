//! From nodes and pods to what is free. Pure.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Node, Pod, ResourceRequirements, Taint},
    apimachinery::pkg::api::resource::Quantity,
};

use super::{
    plan::{NodeRoom, Room},
    quantity,
};

/// Resource of NVIDIA's device plugin.
pub(crate) const GPU: &str = "nvidia.com/gpu";
/// Label of NVIDIA's feature discovery on nodes with GPUs.
pub(crate) const PRESENT: &str = "nvidia.com/gpu.present";
const PRODUCT: &str = "nvidia.com/gpu.product";

/// Room of every node, by name. `gpu` is the extended resource that ranks ask for, if any;
/// `excluded` are nodes that the job does not want.
pub(crate) fn of(
    nodes: &[Node],
    pods: &[Pod],
    gpu: Option<&str>,
    selector: &BTreeMap<String, String>,
    excluded: &[String],
) -> Vec<NodeRoom> {
    let mut used: BTreeMap<&str, Room> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| !is_over(pod)) {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
        let Some(node) = node else { continue };
        let room = used.entry(node).or_default();
        let asks = asks(pod, gpu);
        room.gpus += asks.gpus;
        room.cpu_milli += asks.cpu_milli;
        room.memory_bytes += asks.memory_bytes;
        room.pods += 1;
    }
    let mut rooms: Vec<NodeRoom> =
        nodes.iter().map(|node| room(node, &used, gpu, selector, excluded)).collect();
    rooms.sort_by(|a, b| a.name.cmp(&b.name));
    rooms
}

fn room(
    node: &Node,
    used: &BTreeMap<&str, Room>,
    gpu: Option<&str>,
    selector: &BTreeMap<String, String>,
    excluded: &[String],
) -> NodeRoom {
    let name = node.metadata.name.clone().unwrap_or_default();
    let has = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
    let units = |name: &str| amount(has, name).unwrap_or(0).div_ceil(1000);
    let whole = Room {
        gpus: gpu.map_or(0, units),
        cpu_milli: amount(has, "cpu").unwrap_or(0),
        memory_bytes: units("memory"),
        pods: units("pods"),
    };
    let used = used.get(name.as_str()).copied().unwrap_or_default();
    let free = Room {
        gpus: whole.gpus.saturating_sub(used.gpus),
        cpu_milli: whole.cpu_milli.saturating_sub(used.cpu_milli),
        memory_bytes: whole.memory_bytes.saturating_sub(used.memory_bytes),
        pods: whole.pods.saturating_sub(used.pods),
    };
    let product = node.metadata.labels.as_ref().and_then(|labels| labels.get(PRODUCT)).cloned();
    NodeRoom { unusable: unusable(node, gpu, selector, excluded), name, product, whole, free }
}

/// Why the scheduler would not take this node, in the words of kubectl.
pub(crate) fn unusable(
    node: &Node,
    gpu: Option<&str>,
    selector: &BTreeMap<String, String>,
    excluded: &[String],
) -> Option<String> {
    if node.metadata.name.as_ref().is_some_and(|name| excluded.contains(name)) {
        return Some("excluded by cluster.excludeNodes".to_owned());
    }
    let spec = node.spec.as_ref();
    if spec.and_then(|spec| spec.unschedulable) == Some(true) {
        return Some("cordoned".to_owned());
    }
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = conditions.into_iter().flatten().find(|condition| condition.type_ == "Ready");
    if ready.is_none_or(|ready| ready.status != "True") {
        return Some("not ready".to_owned());
    }
    let none = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&none);
    let missing = selector.iter().find(|(key, value)| labels.get(*key) != Some(value));
    if let Some((key, value)) = missing {
        return Some(format!("has no label {key}={value}"));
    }
    // Clusters that taint GPU nodes let pods pass that ask for the resource of that name.
    let keeps_out = |taint: &&Taint| {
        matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute")
            && Some(taint.key.as_str()) != gpu
    };
    let taint = spec.and_then(|spec| spec.taints.as_ref()?.iter().find(keeps_out));
    taint.map(|taint| format!("has the taint {}:{}", taint.key, taint.effect))
}

fn is_over(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// What a pod takes from its node: the containers together, or the largest init container.
fn asks(pod: &Pod, gpu: Option<&str>) -> Room {
    let Some(spec) = &pod.spec else { return Room::default() };
    let mut sum = Room::default();
    for container in &spec.containers {
        let one = one(container.resources.as_ref(), gpu);
        sum.gpus += one.gpus;
        sum.cpu_milli += one.cpu_milli;
        sum.memory_bytes += one.memory_bytes;
    }
    for container in spec.init_containers.iter().flatten() {
        let one = one(container.resources.as_ref(), gpu);
        sum.gpus = sum.gpus.max(one.gpus);
        sum.cpu_milli = sum.cpu_milli.max(one.cpu_milli);
        sum.memory_bytes = sum.memory_bytes.max(one.memory_bytes);
    }
    sum
}

fn one(resources: Option<&ResourceRequirements>, gpu: Option<&str>) -> Room {
    let requests = resources.and_then(|resources| resources.requests.as_ref());
    let limits = resources.and_then(|resources| resources.limits.as_ref());
    // A limit without a request is the request too.
    let ask = |name: &str| amount(requests, name).or_else(|| amount(limits, name)).unwrap_or(0);
    Room {
        gpus: gpu.map_or(0, |name| ask(name).div_ceil(1000)),
        cpu_milli: ask("cpu"),
        memory_bytes: ask("memory").div_ceil(1000),
        pods: 0,
    }
}

fn amount(amounts: Option<&BTreeMap<String, Quantity>>, name: &str) -> Option<u64> {
    quantity::milli(&amounts?.get(name)?.0)
}

/// Units of a resource that pods may have on a node.
pub(crate) fn allocatable(node: &Node, resource: &str) -> u64 {
    let has = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
    amount(has, resource).unwrap_or(0) / 1000
}

/// Units of a resource that a node has, also while its device plugin is away.
pub(crate) fn capacity(node: &Node, resource: &str) -> u64 {
    let has = node.status.as_ref().and_then(|status| status.capacity.as_ref());
    amount(has, resource).unwrap_or(0) / 1000
}

/// Whether any node offers this resource.
pub(crate) fn any_has(nodes: &[Node], resource: &str) -> bool {
    nodes.iter().any(|node| 0 < allocatable(node, resource))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[expect(clippy::needless_pass_by_value, reason = "calls read better")]
    fn node(name: &str, spec: Value, gpus: &str) -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"zone": "a"}},
            "spec": spec,
            "status": {
                "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110", "nvidia.com/gpu": gpus},
                "conditions": [{"type": "Ready", "status": "True"}]}}))
        .unwrap()
    }

    fn pod(node: &str, phase: &str, gpus: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p"},
            "spec": {"nodeName": node, "containers": [{"name": "c",
                "resources": {"limits": {"nvidia.com/gpu": gpus}, "requests": {"cpu": "500m"}}}]},
            "status": {"phase": phase}}))
        .unwrap()
    }

    #[test]
    fn pods_that_are_over_take_nothing() {
        let nodes = [node("n1", json!({}), "4")];
        let pods =
            [pod("n1", "Running", "1"), pod("n1", "Succeeded", "2"), pod("n2", "Running", "1")];
        let rooms = of(&nodes, &pods, Some(GPU), &BTreeMap::new(), &[]);
        assert_eq!((rooms[0].whole.gpus, rooms[0].free.gpus), (4, 3));
        assert_eq!((rooms[0].free.cpu_milli, rooms[0].free.pods), (3500, 109));
        assert_eq!(rooms[0].free.memory_bytes, 8 << 30);
        assert!(any_has(&nodes, GPU));
        assert!(!any_has(&nodes, "amd.com/gpu"));
    }

    #[test]
    fn each_reason_against_a_node_is_named() {
        let taint = |key: &str| json!({"taints": [{"key": key, "effect": "NoSchedule"}]});
        let selector = |key: &str| BTreeMap::from([(key.to_owned(), "a".to_owned())]);
        let why = |node: &Node, key: &str| unusable(node, Some(GPU), &selector(key), &[]);
        let cordoned = node("n", json!({"unschedulable": true}), "1");
        assert_eq!(why(&cordoned, "zone").as_deref(), Some("cordoned"));
        let plain = node("n", json!({}), "1");
        assert_eq!(why(&plain, "zone"), None);
        assert_eq!(why(&plain, "disk").as_deref(), Some("has no label disk=a"));
        assert_eq!(why(&node("n", taint(GPU), "1"), "zone"), None);
        let tainted = node("n", taint("team"), "1");
        assert_eq!(why(&tainted, "zone").as_deref(), Some("has the taint team:NoSchedule"));
        let mut gone = node("n", json!({}), "1");
        gone.status.as_mut().unwrap().conditions = None;
        assert_eq!(why(&gone, "zone").as_deref(), Some("not ready"));
        let unwanted = unusable(&plain, Some(GPU), &selector("zone"), &["n".to_owned()]);
        assert_eq!(unwanted.as_deref(), Some("excluded by cluster.excludeNodes"));
    }
}
