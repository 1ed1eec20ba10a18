//! One rank of a job, from the first byte read to the last byte written.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use candle_core::{DType, Device, Tensor};
use sha2::{Digest, Sha256};

use super::{
    checkpoint::{self, Identity, Loaded, State, Store},
    collective::Collective,
    corpus::{self, Corpus},
    eval::{self, EvalCorpus},
    events::Events,
    export,
    failure::Failure,
    features::FeatureCache,
    memory,
    model::{DropoutKey, Parameter, QwenVl, Trainable},
    optim::{AdamW, Moments},
    order::Order,
    place::{self, Place},
    reduce::Tree,
    stages::{self, StagePlan},
    step::{self, StepPlan, StepResult},
    weights,
};
use crate::{
    data::tokenizer::Tokenizer,
    job::{Dtype, FineTuneJob, Method},
    wire::{Event, StepMetrics, TrainerExit},
};

/// Everything that a running rank holds.
struct Rank<'a> {
    job: &'a FineTuneJob,
    place: &'a Place,
    events: &'a Events,
    output: PathBuf,
    group: Box<dyn Collective>,
    model: QwenVl,
    tokenizer: Tokenizer,
    corpus: Corpus,
    evals: Vec<EvalCorpus>,
    features: FeatureCache,
    optimizer: AdamW,
    stages: Vec<StagePlan>,
    /// Only rank 0 writes.
    store: Option<Store>,
    done: u64,
    seen: (u64, u64),
    stop: Arc<AtomicBool>,
}

/// How the loop ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Done,
    Stopped,
}

/// Runs a job whose paths are relative to `folder`. `stop_after` ends it after so many steps, as
/// if that were its last one.
pub fn run(
    job: &FineTuneJob,
    folder: &Path,
    place: &Place,
    stop_after: Option<u64>,
    events: &Events,
) -> Result<(), Failure> {
    let started = Instant::now();
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&stop))
            .map_err(|error| Failure::of(TrainerExit::Internal, error))?;
    }
    events.send(Event::Started {
        pid: std::process::id(),
        world: u32::try_from(place.world).unwrap_or(u32::MAX),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    });
    let mut rank = prepare(job, folder, place, events, stop)?;
    let last = stop_after.unwrap_or(u64::MAX).min(rank.total_steps());
    if rank.train(last)? == Outcome::Stopped {
        return Err(Failure::new(TrainerExit::Preempted, "stopped on request after a checkpoint")
            .hint("`qvl resume` goes on from here"));
    }
    rank.finish(&folder.join(&job.spec.model.path))?;
    events.send(Event::Finished {
        step: rank.done,
        seconds: started.elapsed().as_secs_f64(),
        peak_resident_bytes: memory::peak_resident_bytes(),
    });
    Ok(())
}

fn prepare<'a>(
    job: &'a FineTuneJob,
    folder: &Path,
    place: &'a Place,
    events: &'a Events,
    stop: Arc<AtomicBool>,
) -> Result<Rank<'a>, Failure> {
    let phase = |name: &str| events.send(Event::Phase { name: name.to_owned() });
    phase("load-model");
    let base = folder.join(&job.spec.model.path);
    let model = load_model(job, folder, &base, place, events)?;
    phase("load-data");
    let tokenizer = corpus::tokenizer(&base, model.config())?;
    let corpus = Corpus::load(job, folder, &tokenizer)?;
    for warning in corpus.warnings() {
        events.send(Event::Warning { message: warning.clone() });
    }
    let evals = eval::load(job, folder, &tokenizer)?;
    let stages = stages::plan(job, &corpus)?;
    phase("rendezvous");
    let identity = Identity { job: job_digest(job), base: weights::fingerprint(&base)? };
    let group = place::join(place, job, &format!("{}{}", identity.job, identity.base), &stop)?;
    let output = folder.join(&job.spec.output);
    let keep = job.spec.checkpoint.keep as usize;
    let store = match place.rank {
        0 => Some(Store::open(&output, place.attempt, identity.clone(), keep)?),
        _ => None,
    };
    let optimizer = AdamW::new(&job.spec.optimizer, &values_of(&model))?;
    let features = FeatureCache::default();
    let mut rank = Rank {
        job,
        place,
        events,
        output,
        group,
        model,
        tokenizer,
        corpus,
        evals,
        features,
        optimizer,
        stages,
        store,
        done: 0,
        seen: (0, 0),
        stop,
    };
    let resumed_from = rank.resume(&identity)?;
    let total_steps = rank.total_steps();
    memory::trim();
    events.send(Event::Ready { step: rank.done, total_steps, resumed_from });
    Ok(rank)
}

fn load_model(
    job: &FineTuneJob,
    folder: &Path,
    base: &Path,
    place: &Place,
    events: &Events,
) -> Result<QwenVl, Failure> {
    let loading = Instant::now();
    let device = place::device(place, job.spec.world.compute)?;
    let dtype = match (job.spec.model.dtype, &device) {
        (Dtype::F16, _) => DType::F16,
        (Dtype::Bf16, _) => DType::BF16,
        (Dtype::F32, _) | (Dtype::Auto, Device::Cpu) => DType::F32,
        (Dtype::Auto, Device::Cuda(_) | Device::Metal(_)) => DType::BF16,
    };
    let trainable = match &job.spec.method {
        Method::Lora(lora) => Trainable::Lora { lora, seed: job.spec.seed },
        Method::Full(full) => Trainable::Full(&full.train),
    };
    let mut model = QwenVl::load(base, &device, dtype, &trainable)?;
    if let Some(adapter) = &job.spec.model.adapter {
        super::apply::adapter(&mut model, &folder.join(adapter))?;
    }
    events.send(Event::ModelLoaded {
        parameters: model.parameter_count(),
        trainable: model.parameters().iter().map(|p| p.value.elem_count() as u64).sum(),
        dtype: format!("{:?}", model.dtype()).to_lowercase(),
        seconds: loading.elapsed().as_secs_f64(),
    });
    Ok(model)
}

/// A digest of what decides the result. Ranks, threads, saving and measuring are left out, so
/// that a run may go on with another number of ranks.
fn job_digest(job: &FineTuneJob) -> String {
    let spec = &job.spec;
    let text = serde_json::to_string(&(
        (&spec.model, &spec.method, &spec.optimizer, &spec.schedule, &spec.batch),
        (&spec.stages, &spec.data.train, spec.data.max_length, spec.data.on_overlong),
        (spec.data.mask, spec.seed),
    ));
    hex(&Sha256::digest(text.expect("plain data").as_bytes()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn values_of(model: &QwenVl) -> Vec<Tensor> {
    model.parameters().iter().map(|parameter| parameter.value.clone()).collect()
}

impl Rank<'_> {
    fn total_steps(&self) -> u64 {
        self.stages.iter().map(|stage| stage.steps).sum()
    }

    fn phase(&self, name: &str) {
        self.events.send(Event::Phase { name: name.to_owned() });
    }

    /// The loop: next batch, forward, backward, reduce, update, report, measure, save.
    fn train(&mut self, last: u64) -> Result<Outcome, Failure> {
        if self.done == 0 && self.job.spec.evaluation.at_start {
            self.evaluate()?;
        }
        self.phase("train");
        let spec = &self.job.spec;
        let (save_every, measure_every) =
            (spec.checkpoint.every_steps, spec.evaluation.every_steps);
        for stage in self.stages.clone() {
            if stage.end() <= self.done {
                continue;
            }
            if stage.reset_optimizer && 0 < stage.index && self.done == stage.first_step {
                self.optimizer = AdamW::new(&spec.optimizer, &values_of(&self.model))?;
            }
            let mut order =
                Order::new(spec.seed.wrapping_add(stage.index as u64), stage.samples.len());
            while self.done < stage.end().min(last) {
                let result = self.step(&stage, &mut order)?;
                let stop = 0.0 < result.sums.stops;
                let at_end = self.done == stage.end() || self.done == last;
                let mut score = None;
                if is_due(measure_every, self.done) && self.done != self.total_steps() {
                    score = self.evaluate()?;
                }
                if is_due(save_every, self.done) || stop || at_end {
                    self.save(&stage, score)?;
                }
                if stop && !at_end {
                    return Ok(Outcome::Stopped);
                }
            }
        }
        Ok(Outcome::Done)
    }

    fn step(&mut self, stage: &StagePlan, order: &mut Order) -> Result<StepResult, Failure> {
        let began = Instant::now();
        let spec = &self.job.spec;
        let (global, unit) = (spec.batch.global as usize, spec.batch.unit as usize);
        let within = self.done - stage.first_step;
        let batch = order.batch(within * global as u64, global);
        let units: Vec<&[usize]> = batch.chunks(unit.max(1)).collect();
        let share = Tree::new(units.len()).share(self.place.rank, self.place.world);
        let mut units_here = Vec::with_capacity(share.len());
        for members in &units[share] {
            let members: Vec<usize> = members.iter().map(|i| stage.samples[*i]).collect();
            units_here.push(self.corpus.unit(&members, &self.model, &mut self.features)?);
        }
        let plan = StepPlan {
            done: self.done,
            learning_rate: stage.learning_rate_at(within),
            max_grad_norm: spec.optimizer.max_grad_norm,
            normalisation: spec.batch.normalisation,
            units: units.len(),
            dropout: DropoutKey { seed: spec.seed, step: self.done, probability: self.dropout() },
            stop: self.stop.load(Ordering::Relaxed),
        };
        let group = self.group.as_mut();
        let result = step::step(&mut self.model, &mut self.optimizer, group, &units_here, &plan)?;
        self.done += 1;
        self.report(stage, &plan, &result, began);
        Ok(result)
    }

    fn dropout(&self) -> f64 {
        match &self.job.spec.method {
            Method::Lora(lora) => lora.dropout,
            Method::Full(_) => 0.0,
        }
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counts of samples and tokens are whole numbers"
    )]
    fn report(&mut self, stage: &StagePlan, plan: &StepPlan, result: &StepResult, began: Instant) {
        let (samples, tokens) = (result.sums.samples as u64, result.sums.tokens as u64);
        self.seen = (self.seen.0 + samples, self.seen.1 + tokens);
        let within = (self.done - stage.first_step) * u64::from(self.job.spec.batch.global);
        self.events.send(Event::Step(StepMetrics {
            step: self.done,
            total_steps: self.total_steps(),
            epoch: within as f64 / stage.samples.len() as f64,
            stage: stage.name.clone(),
            loss: result.loss,
            tasks: result.sums.task_losses(),
            learning_rate: plan.learning_rate,
            grad_norm: result.grad_norm,
            samples,
            tokens,
            seconds: began.elapsed().as_secs_f64(),
            reduce_seconds: result.reduce_seconds,
        }));
    }

    /// Measures all evaluation sets; the score of the set that decides which state is best.
    fn evaluate(&mut self) -> Result<Option<f64>, Failure> {
        self.phase("evaluate");
        let settings = &self.job.spec.evaluation;
        let mut score = None;
        for set in &self.evals {
            let measured = eval::measure(
                &self.model,
                &self.tokenizer,
                set,
                settings.max_new_tokens as usize,
                self.group.as_mut(),
                &mut self.features,
            )?;
            if settings.best_by.as_deref().is_none_or(|name| name == set.name()) && score.is_none()
            {
                score = Some(eval::score(&measured.metrics));
            }
            if self.place.rank == 0 {
                let file = format!("eval/{}-step-{:06}.jsonl", set.name(), self.done);
                eval::write(&self.output.join(file), &measured.answers)?;
                let (step, set, metrics) = (self.done, set.name().to_owned(), measured.metrics);
                self.events.send(Event::Evaluated { step, set, metrics });
            }
        }
        memory::trim();
        self.phase("train");
        Ok(score)
    }

    fn save(&mut self, stage: &StagePlan, score: Option<f64>) -> Result<(), Failure> {
        // All ranks hold the same bits at every step; a difference is a bug or a broken machine,
        // and a checkpoint must not hide it.
        self.group.agree("the trained weights", &weights_digest(self.model.parameters())?)?;
        self.phase("save");
        self.write(stage, score)?;
        // Who does not write waits here and not in the next step, which has less time.
        self.group.agree("the end of a save", &[])?;
        self.phase("train");
        Ok(())
    }

    fn write(&mut self, stage: &StagePlan, score: Option<f64>) -> Result<(), Failure> {
        let Some(store) = &self.store else { return Ok(()) };
        let began = Instant::now();
        let used = (self.done - stage.first_step) * u64::from(self.job.spec.batch.global);
        let state = State {
            step: self.done,
            stage: stage.index,
            stage_step: self.done - stage.first_step,
            optimizer_step: self.optimizer.steps(),
            epoch: used / stage.samples.len() as u64,
            cursor: used % stage.samples.len() as u64,
            seed: self.job.spec.seed,
            samples: self.seen.0,
            tokens: self.seen.1,
        };
        let parameters = self.model.parameters();
        let weights: Vec<_> =
            parameters.iter().map(|p| (p.name.clone(), p.value.clone())).collect();
        let moments: Vec<_> = parameters
            .iter()
            .zip(self.optimizer.moments())
            .map(|(p, moments)| (p.name.clone(), moments.first.clone(), moments.second.clone()))
            .collect();
        let saved = store.save(&state, &weights, &moments, score)?;
        self.events.send(Event::CheckpointSaved {
            step: self.done,
            path: saved.path.display().to_string(),
            bytes: saved.bytes,
            seconds: began.elapsed().as_secs_f64(),
            best: saved.best,
        });
        Ok(())
    }

    /// Goes on from the newest intact checkpoint, which rank 0 chooses for all.
    fn resume(&mut self, identity: &Identity) -> Result<Option<String>, Failure> {
        let device = self.model.device().clone();
        let mut chosen = None;
        if self.place.rank == 0 {
            let found = checkpoint::load_latest(&self.output, identity, &device)?;
            for message in found.warnings {
                self.events.send(Event::Warning { message });
            }
            chosen = found.checkpoint;
        }
        let path =
            chosen.as_ref().map_or(String::new(), |loaded| loaded.path.display().to_string());
        let path = self.group.broadcast_bytes(0, path.as_bytes())?;
        let path = String::from_utf8_lossy(&path).into_owned();
        if path.is_empty() {
            return Ok(None);
        }
        let loaded = match chosen {
            Some(loaded) => loaded,
            None => checkpoint::load(Path::new(&path), identity, &device)?,
        };
        self.restore(loaded)?;
        Ok(Some(path))
    }

    fn restore(&mut self, loaded: Loaded) -> Result<(), Failure> {
        let expected = self.model.parameters().iter().map(|p| &p.name);
        if !loaded.weights.iter().map(|(name, _value)| name).eq(expected) {
            let what = format!("`{}` holds other parameters than the job", loaded.path.display());
            return Err(Failure::new(TrainerExit::Config, what)
                .hint("use another output folder, or the job file of the first start"));
        }
        for (i, (_name, value)) in loaded.weights.into_iter().enumerate() {
            self.model.set_parameter(i, value)?;
        }
        let moments = loaded.moments.into_iter();
        let moments = moments.map(|(_name, first, second)| Moments { first, second }).collect();
        self.optimizer =
            AdamW::resume(&self.job.spec.optimizer, loaded.state.optimizer_step, moments);
        self.done = loaded.state.step;
        self.seen = (loaded.state.samples, loaded.state.tokens);
        Ok(())
    }

    /// Measures once more and writes the result.
    fn finish(&mut self, base: &Path) -> Result<(), Failure> {
        self.evaluate()?;
        if self.place.rank == 0 {
            let canary = self.corpus.canary();
            let event = export::write(&mut self.model, self.job, base, &self.output, &canary)?;
            self.events.send(event);
        }
        self.group.barrier()?;
        Ok(())
    }
}

/// Whether something that happens every so many steps happens now; 0 is never.
fn is_due(every: u64, step: u64) -> bool {
    every != 0 && step.is_multiple_of(every)
}

fn weights_digest(parameters: &[Parameter]) -> Result<Vec<u8>, Failure> {
    let mut hash = Sha256::new();
    for parameter in parameters {
        for value in parameter.value.flatten_all()?.to_vec1::<f32>()? {
            hash.update(value.to_le_bytes());
        }
    }
    Ok(hash.finalize().to_vec())
}
