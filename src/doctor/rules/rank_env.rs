//! `world-size-mismatch` and `rank-gpu-clash`: what the environment says about ranks.

use std::collections::BTreeMap;

use super::visible;
use crate::{
    doctor::{
        Applies, Area, Check, Demand, Evidence, Judgement, Outcome, Problem, Rule, Severity, Stop,
    },
    facts::NodeFacts,
};

pub(super) static WORLD_SIZE_MISMATCH: Rule = Rule {
    id: "world-size-mismatch",
    summary: "WORLD_SIZE, RANK and LOCAL_RANK agree with the job",
    area: Area::Ranks,
    severity: Severity::Block,
    applies: Applies::Always,
    source: "https://pytorch.org/docs/stable/elastic/run.html#environment-variables",
    docs: "Ranks wait until WORLD_SIZE of them have met. A value from another job, or a RANK that \
           is not below it, lets them wait for ever. The launcher sets all of them itself.",
    reads: "WORLD_SIZE, RANK, LOCAL_RANK",
    fix: "unset them; the launcher sets them",
    check: Check::Node(world_size),
};

pub(super) static RANK_GPU_CLASH: Rule = Rule {
    id: "rank-gpu-clash",
    summary: "every rank has a GPU of its own",
    area: Area::Ranks,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "NVIDIA/nccl: `Duplicate GPU detected`",
    docs: "Two ranks on one GPU are refused by NCCL, and run out of memory without it. It happens \
           when CUDA_VISIBLE_DEVICES names a GPU twice, or when there are more ranks than GPUs.",
    reads: "CUDA_VISIBLE_DEVICES, nvmlDeviceGetUUID",
    fix: "start at most one rank for each GPU",
    check: Check::Node(gpu_clash),
};

fn world_size(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.env.variables;
    let variables = fact.get()?;
    let number =
        |name: &str| variables.get(name).map(|text| (name.to_owned(), text.parse::<u32>()));
    let set: Vec<_> = ["WORLD_SIZE", "RANK", "LOCAL_RANK"].into_iter().filter_map(number).collect();
    if set.is_empty() {
        return Ok(Judgement::pass(Evidence::of(fact, "not set", "not set, or as the job says")));
    }
    let text: Vec<String> = set
        .iter()
        .map(|(name, _)| format!("{name}={}", variables.get(name).map_or("", String::as_str)))
        .collect();
    let value = |name: &str| set.iter().find(|(n, _)| n == name).and_then(|(_, v)| v.clone().ok());
    let world = value("WORLD_SIZE");
    let wrong = if set.iter().any(|(_name, value)| value.is_err()) {
        Some("a value is not a number".to_owned())
    } else if let (Some(world), Some(ranks)) = (world, demand.ranks)
        && world != ranks
    {
        Some(format!("the job has {ranks} ranks"))
    } else if let (Some(world), Some(rank)) = (world, value("RANK"))
        && world <= rank
    {
        Some("RANK must be below WORLD_SIZE".to_owned())
    } else {
        None
    };
    let evidence = Evidence::of(fact, text.clone(), "as the job says");
    let problem = wrong.map(|wrong| Problem {
        severity: Severity::Block,
        what: format!("the environment has {}: {wrong}", text.join(" ")),
        impact: format!(
            "ranks of {} that are started by hand wait for ranks that never come",
            demand.name()
        ),
        fix: "unset WORLD_SIZE RANK LOCAL_RANK MASTER_ADDR MASTER_PORT".to_owned(),
        see: "env | grep -E 'WORLD_SIZE|RANK|MASTER_'".to_owned(),
    });
    Ok(Judgement::from_option(problem, evidence))
}

fn gpu_clash(node: &NodeFacts, demand: &Demand) -> Outcome {
    node.env.variables.get()?;
    node.nvml.gpus.get()?;
    let visible = visible::indices(node);
    if visible.is_empty() {
        return Err(Stop::skip("CUDA shows no GPU: see gpu-count-mismatch"));
    }
    let ranks = demand.ranks_on(node) as usize;
    let mut ranks_by_gpu: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for rank in 0..ranks {
        ranks_by_gpu.entry(visible[rank % visible.len()]).or_default().push(rank);
    }
    let map: Vec<String> =
        ranks_by_gpu.iter().map(|(gpu, ranks)| format!("GPU {gpu}: ranks {ranks:?}")).collect();
    let evidence = Evidence::of(&node.nvml.gpus, map, "one rank on each GPU");
    let clash = ranks_by_gpu.iter().find(|(_gpu, ranks)| 1 < ranks.len());
    let problem = clash.map(|(gpu, local)| Problem {
        severity: Severity::Block,
        what: format!(
            "ranks {local:?} would share GPU {gpu} ({ranks} ranks, visible GPUs {visible:?})"
        ),
        impact: format!("NCCL refuses {} with `Duplicate GPU detected`", demand.name()),
        fix: "unset CUDA_VISIBLE_DEVICES, or start at most one rank for each GPU".to_owned(),
        see: "echo $CUDA_VISIBLE_DEVICES; nvidia-smi -L".to_owned(),
    });
    Ok(Judgement::from_option(problem, evidence))
}
