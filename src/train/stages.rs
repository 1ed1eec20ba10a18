//! The stages of a job, resolved against its data.

use super::{corpus::Corpus, failure::Failure};
use crate::{
    job::{FineTuneJob, Schedule, schedule},
    wire::TrainerExit,
};

/// One stage with everything that its steps need.
#[derive(Clone, Debug)]
pub struct StagePlan {
    pub index: usize,
    pub name: String,
    /// Steps of the stages before.
    pub first_step: u64,
    pub steps: u64,
    /// Samples of the corpus that belong to the stage.
    pub samples: Vec<usize>,
    pub reset_optimizer: bool,
    peak: f64,
    schedule: Schedule,
}

impl StagePlan {
    /// Steps done when the stage ends.
    pub fn end(&self) -> u64 {
        self.first_step + self.steps
    }

    /// Learning rate after `within` steps of the stage.
    pub fn learning_rate_at(&self, within: u64) -> f64 {
        schedule::learning_rate(&self.schedule, self.peak, within, self.steps)
    }
}

/// All stages in order.
pub fn plan(job: &FineTuneJob, corpus: &Corpus) -> Result<Vec<StagePlan>, Failure> {
    let spec = &job.spec;
    let mut first_step = 0;
    let mut stages = Vec::with_capacity(spec.stages.len());
    for (index, stage) in spec.stages.iter().enumerate() {
        let samples = corpus.samples_of(stage.sets.as_deref());
        if samples.is_empty() {
            return Err(Failure::new(
                TrainerExit::Data,
                format!("stage `{}` has no sample", stage.name),
            )
            .hint("check `sets` of the stage, and `data.maxLength`: longer samples were dropped"));
        }
        let steps = schedule::stage_steps(stage, samples.len() as u64, spec.batch.global);
        stages.push(StagePlan {
            index,
            name: stage.name.clone(),
            first_step,
            steps,
            samples,
            reset_optimizer: stage.reset_optimizer,
            peak: stage.learning_rate.unwrap_or(spec.optimizer.learning_rate),
            schedule: stage.schedule.clone().unwrap_or_else(|| spec.schedule.clone()),
        });
        first_step += steps;
    }
    Ok(stages)
}
