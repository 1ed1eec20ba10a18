//! What only a look at several nodes, or at the plan, shows: memory, drift, the smallest change.

use std::collections::BTreeSet;

use crate::{
    cli::plan::Plan,
    doctor::{self, Ask, Demand, Largest, MemoryFit, Report, Seen, Stack},
    facts::Snapshot,
    job::{
        FineTuneJob, Method,
        memory::official::{self, Recipe},
    },
};

/// The job and its plan, as far as they are here.
pub(super) struct Known {
    /// The job, if one is given.
    pub job: Option<FineTuneJob>,
    /// Its plan, if model and data are on this machine.
    pub planned: Option<Plan>,
}

/// Adds it to a report.
pub(super) fn add(
    report: &mut Report,
    snapshot: &Snapshot,
    demand: &Demand,
    known: &Known,
    allowed: &BTreeSet<String>,
    seen: Seen,
) {
    report.memory = known.planned.as_ref().and_then(|planned| fit(snapshot, demand, planned));
    let per_node = known.job.as_ref().and_then(|job| job.spec.cluster.gpus_per_node);
    report.compare(snapshot, demand, Ask { per_node, allowed, seen });
}

/// Memory of a rank under the official scripts, without the CUDA context; `None` for full training,
/// of which nothing is published to compare with.
pub(super) fn official(planned: &Plan) -> Option<u64> {
    let Method::Lora(_) = planned.job.spec.method else { return None };
    // The script looks for this word in the path of the model, and else trains the embedding too.
    let is_chat = planned.job.spec.model.path.to_lowercase().contains("chat");
    let recipe = if is_chat { Recipe::LoraChat } else { Recipe::LoraBase };
    let length = u64::from(planned.job.spec.data.max_length);
    let plan = official::plan(&planned.shape, recipe, length);
    Some(plan.total().saturating_sub(official::CONTEXT_BYTES))
}

/// The plan's estimate against every GPU. That of the official stack is another one, for samples of
/// another length.
fn fit(snapshot: &Snapshot, demand: &Demand, planned: &Plan) -> Option<MemoryFit> {
    if demand.stack == Stack::Official {
        return None;
    }
    let samples = |usable| planned.most_samples(usable);
    let tokens = |usable| planned.most_tokens(usable);
    doctor::memory_fit(snapshot, demand, &Largest { samples: &samples, tokens: &tokens })
}
