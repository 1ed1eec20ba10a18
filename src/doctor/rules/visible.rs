//! `visible-devices-stale`: what CUDA_VISIBLE_DEVICES means on this node.

use crate::{
    doctor::{Applies, Area, Check, Demand, Evidence, Judgement, Outcome, Problem, Rule, Severity},
    facts::{GpuFacts, NodeFacts},
};

pub(super) static RULE: Rule = Rule {
    id: "visible-devices-stale",
    summary: "CUDA_VISIBLE_DEVICES names GPUs that exist",
    area: Area::Ranks,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "https://docs.nvidia.com/cuda/cuda-c-programming-guide/#cuda-environment-variables",
    docs: "CUDA reads the list from the left and ignores everything from the first entry that it \
           does not know. A list that was right on another machine, or before a GPU was replaced, \
           so hides GPUs without a message.",
    reads: "CUDA_VISIBLE_DEVICES, nvmlDeviceGetUUID",
    fix: "unset CUDA_VISIBLE_DEVICES",
    check: Check::Node(check),
};

const NAME: &str = "CUDA_VISIBLE_DEVICES";

/// Entries of CUDA_VISIBLE_DEVICES; `None` if it is not set.
pub(super) fn entries(node: &NodeFacts) -> Option<Vec<String>> {
    let variables = node.env.variables.value()?;
    let list = variables.get(NAME)?;
    Some(list.split(',').map(|entry| entry.trim().to_owned()).filter(|e| !e.is_empty()).collect())
}

/// NVML index that one entry means.
pub(super) fn resolve(entry: &str, gpus: &[GpuFacts]) -> Option<u32> {
    if let Ok(index) = entry.parse::<u32>() {
        return gpus.iter().any(|gpu| gpu.index == index).then_some(index);
    }
    // CUDA takes any prefix of a UUID that names one GPU.
    let matches = |gpu: &&GpuFacts| gpu.uuid.value().is_some_and(|uuid| uuid.starts_with(entry));
    let mut found = gpus.iter().filter(matches);
    let first = found.next()?;
    (entry.starts_with("GPU-") && found.next().is_none()).then_some(first.index)
}

/// NVML indices of the GPUs that CUDA shows, in its order. Like CUDA it stops at the first entry
/// that names nothing.
pub(in crate::doctor) fn indices(node: &NodeFacts) -> Vec<u32> {
    let gpus = node.nvml.gpus.value().map_or(&[][..], Vec::as_slice);
    match entries(node) {
        None => gpus.iter().map(|gpu| gpu.index).collect(),
        Some(entries) => entries.iter().map_while(|entry| resolve(entry, gpus)).collect(),
    }
}

fn check(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.env.variables;
    let variables = fact.get()?;
    let Some(list) = variables.get(NAME) else {
        return Ok(Judgement::pass(Evidence::of(fact, "not set", "names GPUs that exist")));
    };
    let gpus = node.nvml.gpus.get()?;
    let entries = entries(node).unwrap_or_default();
    let evidence = Evidence::of(fact, list.as_str(), "every entry names one GPU").about(NAME);
    let stale = entries.iter().find(|entry| resolve(entry, gpus).is_none());
    let problem = stale.map(|entry| Problem {
        severity: Severity::Block,
        what: format!("{NAME}={list}: `{entry}` names none of the {} GPUs", gpus.len()),
        impact: format!(
            "CUDA ignores it and what follows, so ranks of {} see {} GPUs",
            demand.name(),
            indices(node).len()
        ),
        fix: format!("unset {NAME}; qvl gives each rank its GPU itself"),
        see: format!("echo ${NAME}; nvidia-smi -L"),
    });
    Ok(Judgement::from_option(problem, evidence))
}
