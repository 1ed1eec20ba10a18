//! Judging the GPUs of a node one by one.

use std::collections::BTreeMap;

use super::{Demand, Evidence, Judgement, Outcome, Problem, Severity, Stop};
use crate::facts::{GpuFacts, NodeFacts, Unread};

/// What a rule says about one GPU.
pub(super) enum GpuVerdict {
    Fine(Evidence),
    /// How bad, and what is wrong, as the rest of a sentence that begins with `GPU 3`.
    Bad(Severity, String, Evidence),
    /// The rule does not apply to this GPU.
    Exempt(&'static str),
}

/// The three parts of a problem that are the same for all GPUs.
#[derive(Clone, Copy)]
pub(super) struct Texts {
    pub(super) impact: &'static str,
    pub(super) fix: &'static str,
    pub(super) see: &'static str,
}

/// Judges each GPU; equal problems of several GPUs become one. A problem that would block is a
/// warning on GPUs that the job does not use.
pub(super) fn each_gpu(
    node: &NodeFacts,
    demand: &Demand,
    texts: Texts,
    judge: impl Fn(&GpuFacts) -> Result<GpuVerdict, Unread>,
) -> Outcome {
    let gpus = node.nvml.gpus.get()?;
    let used = used(node, demand);
    let mut judgement = Judgement::default();
    let mut offenders: BTreeMap<(Severity, bool, String), Vec<u32>> = BTreeMap::new();
    let mut exempt = None;
    for gpu in gpus {
        match judge(gpu) {
            Ok(GpuVerdict::Fine(evidence)) => {
                judgement.evidence.push(evidence.about(format!("GPU {}", gpu.index)));
            }
            Ok(GpuVerdict::Bad(severity, what, evidence)) => {
                judgement.evidence.push(evidence.about(format!("GPU {}", gpu.index)));
                let is_used = used.contains(&gpu.index);
                let severity = if is_used { severity } else { severity.min(Severity::Warn) };
                offenders.entry((severity, is_used, what)).or_default().push(gpu.index);
            }
            Ok(GpuVerdict::Exempt(why)) => exempt = Some(why),
            Err(unread) => judgement.unknown.push(about_gpu(gpu, unread)),
        }
    }
    if judgement == Judgement::default() {
        return Err(Stop::skip(exempt.unwrap_or("NVML shows no GPU on this node")));
    }
    judgement.problems = offenders
        .into_iter()
        .map(|((severity, is_used, what), indices)| Problem {
            severity,
            what: format!("GPU {}: {what}", list(&indices)),
            impact: if is_used {
                texts.impact.to_owned()
            } else {
                format!(
                    "{} does not use this GPU; for one that does: {}",
                    demand.name(),
                    texts.impact
                )
            },
            fix: texts.fix.to_owned(),
            see: texts.see.to_owned(),
        })
        .collect();
    Ok(judgement)
}

/// Indices of the GPUs that the ranks of the job will take.
pub(super) fn used(node: &NodeFacts, demand: &Demand) -> Vec<u32> {
    let mut visible = super::rules::visible::indices(node);
    if let Some(ranks) = demand.ranks_per_node() {
        visible.truncate(ranks as usize);
    }
    visible
}

fn about_gpu(gpu: &GpuFacts, unread: Unread) -> Unread {
    Unread { why: format!("GPU {}: {}", gpu.index, unread.why), ..unread }
}

/// `0-3, 6`.
pub(super) fn list(indices: &[u32]) -> String {
    let mut parts: Vec<(u32, u32)> = Vec::new();
    for &index in indices {
        match parts.last_mut() {
            Some((_first, last)) if *last + 1 == index => *last = index,
            Some(_) | None => parts.push((index, index)),
        }
    }
    let text = |(first, last): &(u32, u32)| {
        if first == last { first.to_string() } else { format!("{first}-{last}") }
    };
    parts.iter().map(text).collect::<Vec<_>>().join(", ")
}
