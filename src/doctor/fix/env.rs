//! Repairs in the job file.

use super::{Draft, Finding, Goal, Step, Target};
use crate::{
    doctor::{Stack, rules},
    facts::NodeFacts,
    job::edit::Edit,
};

/// Variables that a check complains of: the ranks must not see those that are set.
const UNSET: &[(&str, &[&str])] = &[
    ("ib-disabled-leftover", &["NCCL_IB_DISABLE"]),
    ("bootstrap-interface", &["NCCL_SOCKET_IFNAME"]),
    ("gloo-interface", &["GLOO_SOCKET_IFNAME"]),
    ("visible-devices-stale", &["CUDA_VISIBLE_DEVICES"]),
    ("world-size-mismatch", LAUNCHERS),
    ("rank-env-partial", LAUNCHERS),
    ("local-rank-mismatch", &["LOCAL_RANK", "LOCAL_WORLD_SIZE"]),
    ("port-in-use", &["MASTER_PORT"]),
    ("port-ephemeral", &["MASTER_PORT"]),
    ("master-addr", &["MASTER_ADDR"]),
    ("master-not-local", &["MASTER_ADDR"]),
    ("dns-unresolved", &["MASTER_ADDR"]),
    ("nccl-p2p-disabled", &["NCCL_P2P_DISABLE", "NCCL_P2P_LEVEL"]),
    ("nccl-shm-disabled", &["NCCL_SHM_DISABLE"]),
    ("nccl-algorithm-forced", &["NCCL_ALGO", "NCCL_PROTO"]),
    ("nccl-net-forced", &["NCCL_NET"]),
    ("cuda-eager-loading", &["CUDA_MODULE_LOADING"]),
    ("jit-cache-off", &["CUDA_CACHE_DISABLE", "CUDA_CACHE_MAXSIZE"]),
    ("rdma-selector-empty", &["NCCL_IB_HCA"]),
    ("gid-mismatch", &["NCCL_IB_GID_INDEX"]),
    ("nccl-hostid-clash", &["NCCL_HOSTID"]),
];

/// What the launcher tells each rank itself.
const LAUNCHERS: &[&str] = &["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"];

/// Interfaces that NCCL must not choose, unless the machine shows more.
const VIRTUAL: &str = "^lo,docker,veth,virbr,cni";

/// A change of the ranks' variables.
enum Variable {
    Set(&'static str, String),
    Unset(String),
}

pub(super) fn variables(finding: &Finding<'_>) -> Option<Draft> {
    let mut wanted = Vec::new();
    for node in &finding.nodes {
        wanted.extend(of_node(finding, node));
    }
    let (mut edits, mut commands) = (Vec::new(), Vec::new());
    for variable in wanted {
        let path = |part: &str| ["spec", "env", part].map(str::to_owned).to_vec();
        let (edit, command) = match variable {
            Variable::Set(name, value) => {
                let command = format!("export {name}=\"{value}\"");
                let path = [path("set"), vec![name.to_owned()]].concat();
                (Edit::Set { path, value }, command)
            }
            Variable::Unset(name) => {
                let command = format!("unset {name}");
                (Edit::Add { path: path("unset"), item: name }, command)
            }
        };
        if !edits.contains(&edit) {
            edits.push(edit);
            commands.push(command);
        }
    }
    if edits.is_empty() {
        return None;
    }
    let path = finding.scene.job_file.clone();
    let obstacle = if finding.demand.stack == Stack::Official {
        Some("the official scripts are not started by qvl: in their shell".to_owned())
    } else if path.is_none() {
        Some("without --job FILE there is no file to write it into: in the shell".to_owned())
    } else {
        None
    };
    let target = Target::JobFile { path: path.unwrap_or_default() };
    finding.draft_with(vec![Step { target, goal: Goal::Edits(edits) }], obstacle, commands)
}

fn of_node(finding: &Finding<'_>, node: &NodeFacts) -> Vec<Variable> {
    let Some(variables) = node.env.variables.value() else { return Vec::new() };
    let unset = |names: &[&str]| -> Vec<Variable> {
        let set = names.iter().filter(|name| variables.contains_key(**name));
        set.map(|name| Variable::Unset((*name).to_owned())).collect()
    };
    match finding.rule {
        "bad-cuda-env" => {
            let names: Vec<&str> = rules::debugging_variables().collect();
            unset(&names)
        }
        "nccl-errors-ignored" => {
            let off = rules::ERROR_HANDLING.into_iter();
            let off: Vec<&str> =
                off.filter(|name| variables.get(*name).is_some_and(|v| v == "0")).collect();
            unset(&off)
        }
        "nccl-debug-verbose" => {
            let mut changes = vec![Variable::Set("NCCL_DEBUG", "WARN".to_owned())];
            changes.extend(unset(&["NCCL_DEBUG_SUBSYS"]));
            changes
        }
        "cuda-device-order" => {
            vec![Variable::Set("CUDA_DEVICE_ORDER", "PCI_BUS_ID".to_owned())]
        }
        "virtual-interface-first" => {
            vec![Variable::Set("NCCL_SOCKET_IFNAME", real_interfaces(node))]
        }
        "omp-threads" => {
            let cpus = node.memory.cpus.value().copied().unwrap_or(1);
            let threads = (cpus / finding.demand.ranks_on(node).max(1)).max(1);
            vec![Variable::Set("OMP_NUM_THREADS", threads.to_string())]
        }
        rule => {
            let known = UNSET.iter().find(|(id, _names)| *id == rule);
            known.map_or_else(Vec::new, |(_id, names)| unset(names))
        }
    }
}

/// A selector that leaves out all interfaces without hardware.
fn real_interfaces(node: &NodeFacts) -> String {
    let interfaces = node.network.interfaces.value().map_or(&[][..], Vec::as_slice);
    let mut selector = VIRTUAL.to_owned();
    for interface in interfaces.iter().filter(|interface| interface.is_virtual) {
        if rules::selects(&selector, &interface.name) {
            selector = format!("{selector},{}", interface.name);
        }
    }
    selector
}

/// The size of `/dev/shm` in the pods of the job.
pub(super) fn pod_shm(finding: &Finding<'_>) -> Option<Draft> {
    let path = finding.scene.job_file.clone()?;
    let field = ["spec", "cluster", "shm"].map(str::to_owned).to_vec();
    let goal = Goal::Edits(vec![Edit::Set { path: field, value: "16Gi".to_owned() }]);
    finding.draft(vec![Step { target: Target::JobFile { path }, goal }], None)
}
