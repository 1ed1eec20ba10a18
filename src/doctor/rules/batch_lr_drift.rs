//! `batch-lr-drift`: does the number of ranks change what is trained?

use crate::doctor::{
    Applies, Area, Check, Demand, Evidence, Judgement, Outcome, Problem, Rule, Severity, Stack,
    Stop,
};

pub(super) static RULE: Rule = Rule {
    id: "batch-lr-drift",
    summary: "the batch of a step does not depend on the number of ranks",
    area: Area::Job,
    severity: Severity::Warn,
    applies: Applies::Always,
    source: "QwenLM/Qwen-VL finetune/finetune_lora_single_gpu.sh and finetune_lora_ds.sh",
    docs: "The official scripts fix the batch of one rank (2 samples x 8 accumulation steps), so \
           eight ranks take 128 samples a step instead of 16 at the same learning rate: eight times \
           fewer steps, another result. qvl-train fixes the batch of the whole job.",
    check: Check::Job(check),
};

/// Samples of one rank in one step of the official LoRA scripts: 2 x 8.
const OFFICIAL_PER_RANK: u32 = 16;
/// Learning rate of the official LoRA scripts.
const OFFICIAL_RATE: f64 = 1e-5;

fn check(demand: &Demand) -> Outcome {
    if demand.stack == Stack::Official {
        let Some(ranks) = demand.ranks else {
            return Err(Stop::skip("no number of ranks was given (--job or --gpus)"));
        };
        let batch = OFFICIAL_PER_RANK * ranks;
        let evidence = Evidence::new("official scripts", batch, "16, as on one GPU");
        let problem = (1 < ranks).then(|| Problem {
            severity: Severity::Warn,
            what: format!("{batch} samples a step on {ranks} ranks, 16 on one, both at learning rate {OFFICIAL_RATE:.0e}"),
            impact: format!("{ranks} times fewer steps: the result is not that of one GPU"),
            fix: "set gradient_accumulation_steps to 8 / ranks, scale the learning rate on purpose, or use qvl-train"
                .to_owned(),
            see: "grep -E 'batch_size|accumulation|learning_rate' finetune/*.sh".to_owned(),
        });
        return Ok(Judgement::from_option(problem, evidence));
    }
    let Some(batch) = demand.batch else {
        return Err(Stop::skip("no job was given (--job FILE)"));
    };
    let text = format!("{} samples a step at {:.1e}", batch.global, batch.learning_rate);
    Ok(Judgement::pass(Evidence::new("spec.batch.global", text, "the same on any number of ranks")))
}
