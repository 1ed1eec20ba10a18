//! Evaluation: answers of the model to the questions of a set, and what they are worth.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    batch::ImageInput,
    collective::Collective,
    corpus::{Encoding, unit_of},
    failure::Failure,
    features::FeatureCache,
    model::{Prompt, QwenVl},
};
use crate::{
    data::{
        boxes,
        chatml::{PromptStyle, encode_prompt, encode_training},
        sample::{self, Role, Sample},
        tokenizer::Tokenizer,
    },
    job::{FineTuneJob, Mask, Task},
    telemetry::{
        answers::{self, Answer},
        whole,
    },
    wire::{EvalMetrics, TrainerExit},
};

/// Samples that are computed together. Fixed, so that the numbers do not depend on the ranks.
const TOGETHER: usize = 16;

/// An evaluation set, tokenised.
#[derive(Debug)]
pub struct EvalCorpus {
    name: String,
    task: Task,
    items: Vec<Item>,
    padding: u32,
    stop: Vec<u32>,
}

#[derive(Debug)]
struct Item {
    id: String,
    question: String,
    reference: String,
    prompt_ids: Vec<u32>,
    images: Vec<(usize, PathBuf)>,
    whole: Encoding,
}

/// A measured set.
#[derive(Clone, Debug)]
pub struct Measured {
    pub metrics: EvalMetrics,
    pub answers: Vec<Answer>,
}

/// Reads the evaluation sets of a job.
pub fn load(
    job: &FineTuneJob,
    folder: &Path,
    tokenizer: &Tokenizer,
) -> Result<Vec<EvalCorpus>, Failure> {
    let sets = job.spec.data.eval.iter().map(|set| {
        let limit = set.limit.map(|limit| limit as usize);
        let path = folder.join(&set.path);
        EvalCorpus::read(&set.name, &path, set.task, limit, tokenizer, PromptStyle::ChatMl)
    });
    sets.collect()
}

impl EvalCorpus {
    /// Reads a set; the last answer of each sample is the reference, what comes before it is the
    /// question.
    pub fn read(
        name: &str,
        path: &Path,
        task: Task,
        limit: Option<usize>,
        tokenizer: &Tokenizer,
        style: PromptStyle,
    ) -> Result<EvalCorpus, Failure> {
        let file = sample::read(path)?;
        let beside = path.parent().unwrap_or(Path::new("."));
        let items = file.samples.iter().take(limit.unwrap_or(usize::MAX));
        let items = items.map(|sample| item(sample, beside, task, tokenizer, style));
        let specials = tokenizer.specials();
        Ok(EvalCorpus {
            name: name.to_owned(),
            task,
            items: items.collect(),
            padding: specials.end_of_text,
            stop: vec![specials.im_end, specials.im_start, specials.end_of_text],
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }
}

fn item(
    sample: &Sample,
    beside: &Path,
    task: Task,
    tokenizer: &Tokenizer,
    style: PromptStyle,
) -> Item {
    let last = sample.turns.iter().rposition(|turn| turn.role == Role::Assistant).unwrap_or(0);
    let question = sample.turns[last.saturating_sub(1)].text.clone();
    let before = &sample.turns[..last.saturating_sub(1)];
    let history: Vec<(String, String)> =
        before.chunks_exact(2).map(|pair| (pair[0].text.clone(), pair[1].text.clone())).collect();
    let prompt = encode_prompt(tokenizer, &history, &question, style);
    let images = prompt.images.iter().map(|span| (span.start, beside.join(&span.path)));
    let whole = encode_training(tokenizer, sample, Mask::AnswerOnly);
    Item {
        id: sample.id.clone(),
        reference: sample.turns[last].text.clone(),
        images: images.collect(),
        prompt_ids: prompt.ids,
        whole: Encoding::new(whole, beside, task, 1.0, ""),
        question,
    }
}

/// Measures a set. Each rank takes every so-many-th group of samples; all ranks end with all
/// answers.
pub fn measure(
    model: &QwenVl,
    tokenizer: &Tokenizer,
    set: &EvalCorpus,
    most: usize,
    group: &mut dyn Collective,
    features: &mut FeatureCache,
) -> Result<Measured, Failure> {
    let groups: Vec<&[Item]> = set.items.chunks(TOGETHER).collect();
    let mut mine: Vec<(usize, Vec<Answer>)> = Vec::new();
    for (i, items) in groups.iter().enumerate() {
        if i % group.world() == group.rank() {
            mine.push((i, answers(model, tokenizer, set, items, most, features)?));
        }
    }
    let bytes = serde_json::to_vec(&mine).expect("plain data");
    let mut all: Vec<(usize, Vec<Answer>)> = Vec::new();
    for bytes in group.all_gather_bytes(&bytes)? {
        let part: Vec<(usize, Vec<Answer>)> = serde_json::from_slice(&bytes)
            .map_err(|error| Failure::of(TrainerExit::Internal, error))?;
        all.extend(part);
    }
    all.sort_by_key(|(i, _answers)| *i);
    let answers: Vec<Answer> = all.into_iter().flat_map(|(_i, answers)| answers).collect();
    Ok(Measured { metrics: answers::metrics(&answers), answers })
}

fn answers(
    model: &QwenVl,
    tokenizer: &Tokenizer,
    set: &EvalCorpus,
    items: &[Item],
    most: usize,
    features: &mut FeatureCache,
) -> Result<Vec<Answer>, Failure> {
    let mut prompts = Vec::with_capacity(items.len());
    for item in items {
        let mut images = Vec::new();
        for (start, path) in &item.images {
            let content = features.content(model, path)?;
            images.push(ImageInput { row: 0, start: *start, content });
        }
        prompts.push(Prompt { ids: item.prompt_ids.clone(), images });
    }
    let spoken = model.generate(&prompts, most, &set.stop)?;
    let wholes: Vec<(u64, &Encoding)> = items.iter().map(|item| (0, &item.whole)).collect();
    let unit = unit_of(&wholes, set.padding, model, features)?;
    let losses = model.losses(&unit.unit)?;
    let mut sums = vec![(0.0, 0_u64); items.len()];
    for (label, loss) in unit.unit.labels.iter().zip(losses) {
        sums[label.row].0 += f64::from(loss);
        sums[label.row].1 += 1;
    }
    let judged = items.iter().zip(spoken).zip(sums);
    Ok(judged
        .map(|((item, ids), (loss, tokens))| {
            judge(set.task, item, tokenizer.decode(&ids), loss, tokens)
        })
        .collect())
}

fn judge(task: Task, item: &Item, answer: String, loss: f64, tokens: u64) -> Answer {
    let grounding = task == Task::Grounding;
    let found = boxes::parse_answer(&answer).filter(|_found| grounding);
    let expected = boxes::parse_answer(&item.reference).filter(|_expected| grounding);
    let overlap = found.as_ref().zip(expected.as_ref());
    let overlap = overlap.map_or(0.0, |(found, expected)| found.iou(expected));
    Answer {
        id: item.id.clone(),
        question: item.question.clone(),
        reference: item.reference.clone(),
        exact: answer.trim() == item.reference.trim(),
        image: item.images.first().map(|(_start, path)| path.clone()),
        answer,
        iou: grounding.then_some(overlap),
        parsed: grounding.then_some(found.is_some()),
        expected: expected.map(rectangle),
        found: found.map(rectangle),
        loss,
        tokens,
    }
}

/// The number by which checkpoints are compared: higher is better.
pub fn score(metrics: &EvalMetrics) -> f64 {
    match (&metrics.mean_iou, &metrics.exact_match) {
        (Some(iou), _) => iou.value,
        (None, Some(exact)) => exact.value,
        (None, None) => metrics.loss.map_or(f64::NEG_INFINITY, |loss| -loss),
    }
}

/// Writes answers, one JSON object per line; the file appears whole.
pub fn write(path: &Path, answers: &[Answer]) -> Result<(), Failure> {
    let failed = |error: std::io::Error| {
        let what = format!("failed to write `{}`", path.display());
        Failure::of(TrainerExit::CheckpointIo, anyhow::Error::new(error).context(what))
            .hint("check free space and permissions of the output folder")
    };
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(failed)?;
    let line = |answer| serde_json::to_string(answer).expect("plain data") + "\n";
    let lines: String = answers.iter().map(line).collect();
    whole::write(path, lines.as_bytes()).map_err(failed)
}

fn rectangle(found: boxes::Box2d) -> [f64; 4] {
    [found.x1 / 1000.0, found.y1 / 1000.0, found.x2 / 1000.0, found.y2 / 1000.0]
}
