//! The training samples of a job, tokenised, and the units built from them.

use std::path::{Path, PathBuf};

use super::{
    batch::{ImageInput, Label, UnitBatch},
    failure::Failure,
    features::FeatureCache,
    model::{ModelConfig, QwenVl},
    step::{LabelInfo, Unit},
};
use crate::{
    data::{
        chatml::{Class, Encoded, encode_training},
        sample::{self, SampleError},
        tokenizer::{Tokenizer, TokenizerError},
    },
    job::{FineTuneJob, OnOverlong, Task},
    wire::TrainerExit,
};

/// A tokenised sample.
#[derive(Clone, Debug)]
pub struct Encoding {
    pub ids: Vec<u32>,
    labels: Vec<Option<Class>>,
    /// First slot and file of each picture.
    pub images: Vec<(usize, PathBuf)>,
    task: Task,
    weight: f32,
    set: String,
}

/// All training samples, set after set.
#[derive(Debug)]
pub struct Corpus {
    samples: Vec<Encoding>,
    padding: u32,
    warnings: Vec<String>,
}

impl Corpus {
    /// Reads and tokenises the training sets of a job; paths are relative to `folder`.
    pub fn load(
        job: &FineTuneJob,
        folder: &Path,
        tokenizer: &Tokenizer,
    ) -> Result<Corpus, Failure> {
        let data = &job.spec.data;
        let mut corpus = Corpus {
            samples: Vec::new(),
            padding: tokenizer.specials().end_of_text,
            warnings: Vec::new(),
        };
        for set in &data.train {
            let path = folder.join(&set.path);
            let file = sample::read(&path)?;
            let beside = path.parent().unwrap_or(Path::new("."));
            if !file.dropped_turns.is_empty() {
                let count = file.dropped_turns.len();
                corpus.warnings.push(format!(
                    "data set `{}`: {count} samples begin with the assistant; that turn was dropped",
                    set.name
                ));
            }
            let mut overlong = 0;
            for sample in &file.samples {
                let encoded = encode_training(tokenizer, sample, data.mask);
                if (data.max_length as usize) < encoded.ids.len() {
                    overlong += 1;
                    if data.on_overlong == OnOverlong::Error {
                        return Err(does_not_fit(
                            &set.path,
                            &sample.id,
                            encoded.ids.len(),
                            data.max_length,
                        ));
                    }
                    continue;
                }
                #[expect(clippy::cast_possible_truncation, reason = "a loss weight")]
                let weight = set.weight as f32;
                corpus.samples.push(Encoding::new(encoded, beside, set.task, weight, &set.name));
            }
            if 0 < overlong {
                corpus.warnings.push(format!(
                    "data set `{}`: {overlong} samples are longer than {} tokens and were dropped",
                    set.name, data.max_length
                ));
            }
        }
        Ok(corpus)
    }

    /// What the user should know about the data.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Indices of the samples of the named sets, or of all.
    pub fn samples_of(&self, sets: Option<&[String]>) -> Vec<usize> {
        let belongs = |i: &usize| sets.is_none_or(|sets| sets.contains(&self.samples[*i].set));
        (0..self.samples.len()).filter(belongs).collect()
    }

    /// Text of the first sample without its pictures, for the canary of an adapter.
    pub fn canary(&self) -> Vec<u32> {
        let Some(sample) = self.samples.first() else { return vec![self.padding] };
        let after = sample.images.last().map_or(0, |(start, _path)| start + 1);
        let words = sample.ids.iter().skip(after).copied().filter(|id| *id < self.padding);
        let ids: Vec<u32> = words.collect();
        if ids.is_empty() { vec![self.padding] } else { ids }
    }

    /// The unit of these samples, padded to the longest of them.
    pub fn unit(
        &self,
        members: &[usize],
        model: &QwenVl,
        features: &mut FeatureCache,
    ) -> Result<Unit, Failure> {
        let samples: Vec<(u64, &Encoding)> =
            members.iter().map(|i| (*i as u64, &self.samples[*i])).collect();
        unit_of(&samples, self.padding, model, features)
    }
}

impl Encoding {
    /// A sample whose picture paths are relative to `beside`.
    pub fn new(encoded: Encoded, beside: &Path, task: Task, weight: f32, set: &str) -> Self {
        let images = encoded.images.into_iter().map(|span| (span.start, beside.join(span.path)));
        Encoding {
            ids: encoded.ids,
            labels: encoded.labels,
            images: images.collect(),
            task,
            weight,
            set: set.to_owned(),
        }
    }
}

/// A unit of samples, each with its key for dropout.
pub fn unit_of(
    samples: &[(u64, &Encoding)],
    padding: u32,
    model: &QwenVl,
    features: &mut FeatureCache,
) -> Result<Unit, Failure> {
    let length = samples.iter().map(|(_key, sample)| sample.ids.len()).max().unwrap_or(1);
    let mut unit = UnitBatch { rows: samples.len(), length, ..UnitBatch::default() };
    let mut info = Vec::new();
    for (row, (key, sample)) in samples.iter().enumerate() {
        unit.ids.extend(&sample.ids);
        unit.ids.extend(std::iter::repeat_n(padding, length - sample.ids.len()));
        unit.lengths.push(sample.ids.len());
        unit.samples.push(*key);
        // The output at a position predicts the token after it, so the first token is no label.
        for (at, class) in sample.labels.iter().enumerate().skip(1) {
            let Some(class) = class else { continue };
            let (target, weight) = (sample.ids[at], sample.weight);
            unit.labels.push(Label { row, position: at - 1, target, weight });
            let content = *class == Class::Content;
            info.push(LabelInfo { task: sample.task, content, weight });
        }
        for (start, path) in &sample.images {
            let content = features.content(model, path)?;
            unit.images.push(ImageInput { row, start: *start, content });
        }
    }
    Ok(Unit { unit, info })
}

fn does_not_fit(path: &str, id: &str, length: usize, most: u32) -> Failure {
    Failure::new(
        TrainerExit::Data,
        format!("data set `{path}`, sample `{id}`: {length} tokens, data.maxLength is {most}"),
    )
    .hint("raise data.maxLength, shorten the sample, or set data.onOverlong to `drop`")
}

/// The tokenizer of a model folder, checked against the model's configuration.
pub fn tokenizer(base: &Path, config: &ModelConfig) -> Result<Tokenizer, Failure> {
    let tokenizer = Tokenizer::load(base, config.visual.n_queries)?;
    let (found, expected) = (tokenizer.specials().img_start, config.visual.image_start_id);
    if found != expected || config.vocab_size < tokenizer.vocabulary() {
        return Err(Failure::new(
            TrainerExit::Data,
            format!(
                "`{}`: qwen.tiktoken puts <img> at id {found}, config.json expects {expected}",
                base.display()
            ),
        )
        .hint("vocabulary and config.json must come from the same release"));
    }
    Ok(tokenizer)
}

impl From<SampleError> for Failure {
    fn from(error: SampleError) -> Self {
        let hint = error.hint();
        let exit = match &error {
            SampleError::Read { .. } => TrainerExit::InputMissing,
            SampleError::Json { .. } | SampleError::Empty { .. } | SampleError::Sample { .. } => {
                TrainerExit::Data
            }
        };
        Failure::of(exit, error).hint(hint)
    }
}

impl From<TokenizerError> for Failure {
    fn from(error: TokenizerError) -> Self {
        let hint = error.hint();
        let exit = match &error {
            TokenizerError::Read { .. } => TrainerExit::InputMissing,
            TokenizerError::LfsPointer { .. }
            | TokenizerError::Line { .. }
            | TokenizerError::Truncated { .. }
            | TokenizerError::OtherModel { .. }
            | TokenizerError::Build { .. } => TrainerExit::Data,
        };
        Failure::of(exit, error).hint(hint)
    }
}
