//! `qvl data lint`: what is wrong with data sets, before a GPU hour is spent on them.
//!
//! A finding names the file, the sample and the rule; [`rule::RULES`] lists the rules. Nothing
//! stops at the first problem, and a file that is no data set at all is a finding too.

mod parallel;
mod pictures;
mod print;
mod prompts;
pub mod rule;
mod samples;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use serde::Serialize;

pub use print::print;
pub use rule::{Rule, Severity};

use super::{
    chatml::encode_training,
    sample::{self, Sample, SampleError},
    tokenizer::{Tokenizer, TokenizerError},
};
use crate::job::{Data, Mask, OnOverlong};

/// Findings of one rule in one file that are kept; the rest is only counted.
const KEPT: usize = 50;

/// How to check.
#[derive(Clone, Debug)]
pub struct Options {
    /// Model folder whose tokenizer measures the samples; lengths are not checked without it.
    pub model: Option<PathBuf>,
    /// Longest sample in tokens.
    pub max_length: u32,
    /// What the job does with a longer one.
    pub on_overlong: OnOverlong,
    /// Which tokens count as labels.
    pub mask: Mask,
    /// Evaluation sets; they are checked too, and must not overlap with the training sets.
    pub eval: Vec<PathBuf>,
    /// Decode every picture. Without it, only header and end of each are read.
    pub decode: bool,
    /// Read samples and measure them, and leave the rest: pictures, boxes, repetitions, prompts.
    pub lengths_only: bool,
}

impl Options {
    /// The defaults of a job, no evaluation sets.
    pub fn new(model: Option<PathBuf>, max_length: u32) -> Self {
        Options {
            model,
            max_length,
            on_overlong: OnOverlong::default(),
            mask: Mask::default(),
            eval: Vec::new(),
            decode: false,
            lengths_only: false,
        }
    }

    /// As a job says; `folder` is that of the job file.
    pub fn of_job(data: &Data, folder: &Path, model: PathBuf) -> Self {
        Options {
            on_overlong: data.on_overlong,
            mask: data.mask,
            eval: data.eval.iter().map(|set| folder.join(&set.path)).collect(),
            ..Options::new(Some(model), data.max_length)
        }
    }
}

/// What a file is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    Train,
    Eval,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// Id of the rule.
    pub rule: &'static str,
    pub severity: Severity,
    pub file: String,
    /// Id of the sample; empty if it is about the whole file.
    pub sample: String,
    pub what: String,
    pub hint: &'static str,
}

/// File, sample and what is wrong, in one line.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Finding { file, sample, what, .. } = self;
        match sample.as_str() {
            "" => write!(f, "{file}: {what}"),
            sample => write!(f, "{file} `{sample}`: {what}"),
        }
    }
}

/// Numbers of one file.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FileSummary {
    pub file: String,
    pub purpose: Purpose,
    /// Samples that can be used: well formed, and short enough if longer ones are dropped.
    pub samples: usize,
    /// Samples that cannot.
    pub unusable: usize,
    /// Different pictures.
    pub pictures: usize,
    pub boxes: usize,
    /// Tokens of the usable samples, pictures included; 0 if lengths were not measured, as are
    /// the numbers below.
    pub tokens: u64,
    pub mean_tokens: f64,
    pub p95_tokens: usize,
    pub max_tokens: usize,
    /// Tokens that carry a loss, all usable samples together.
    pub label_tokens: usize,
}

/// Everything that was found.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LintReport {
    /// One for each file, training sets first.
    pub files: Vec<FileSummary>,
    /// At most 50 for each rule and file.
    pub findings: Vec<Finding>,
    /// How often each rule found something, those that were not kept included.
    pub counts: BTreeMap<&'static str, usize>,
}

impl LintReport {
    /// Whether a training on these files makes no sense.
    pub fn blocks(&self) -> bool {
        self.findings.iter().any(|finding| finding.severity == Severity::Block)
    }

    fn add(&mut self, rule: &'static Rule, file: &Path, sample: &str, what: String) {
        *self.counts.entry(rule.id).or_default() += 1;
        let file = file.display().to_string();
        let same = |finding: &&Finding| finding.rule == rule.id && finding.file == file;
        if self.findings.iter().filter(same).count() < KEPT {
            let Rule { id, severity, hint } = *rule;
            let sample = sample.to_owned();
            self.findings.push(Finding { rule: id, severity, file, sample, what, hint });
        }
    }
}

/// Checks training sets, and the evaluation sets of the options. Only the tokenizer is an error,
/// because without it the question was wrong.
pub fn lint(files: &[PathBuf], options: &Options) -> Result<LintReport, TokenizerError> {
    let tokenizer = match &options.model {
        Some(folder) => Some(Tokenizer::load(folder, slots(folder))?),
        None => None,
    };
    let mut run = Run {
        options,
        tokenizer,
        report: LintReport::default(),
        seen: samples::Seen::default(),
        pictures: pictures::Pictures::default(),
        prompts: Vec::new(),
    };
    for (purpose, files) in [(Purpose::Train, files), (Purpose::Eval, &options.eval)] {
        for path in files {
            let summary = run.file(path, purpose);
            run.report.files.push(summary);
        }
    }
    prompts::compare(&run.prompts, &mut run.report);
    Ok(run.report)
}

/// What is known while the files are read one after another.
struct Run<'a> {
    options: &'a Options,
    tokenizer: Option<Tokenizer>,
    report: LintReport,
    seen: samples::Seen,
    pictures: pictures::Pictures,
    prompts: Vec<prompts::Prompts>,
}

impl Run<'_> {
    fn file(&mut self, path: &Path, purpose: Purpose) -> FileSummary {
        let mut summary = FileSummary {
            file: path.display().to_string(),
            purpose,
            samples: 0,
            unusable: 0,
            pictures: 0,
            boxes: 0,
            tokens: 0,
            mean_tokens: 0.0,
            p95_tokens: 0,
            max_tokens: 0,
            label_tokens: 0,
        };
        let (file, bad) = match sample::read_all(path) {
            Ok(read) => read,
            Err(error) => {
                self.report.add(&rule::FORMAT, path, "", chain(&error));
                return summary;
            }
        };
        for error in &bad {
            let SampleError::Sample { id, what, .. } = error else { continue };
            self.report.add(&rule::SAMPLE, path, id, what.clone());
        }
        for id in &file.dropped_turns {
            let what = "the first turn is the assistant's and will be dropped".to_owned();
            self.report.add(&rule::FIRST_TURN, path, id, what);
        }
        if !self.options.lengths_only {
            summary.pictures =
                self.pictures.check(&file, purpose, self.options.decode, &mut self.report);
            summary.boxes = samples::check(&file, &self.pictures, &mut self.report);
            self.seen.check(&file, purpose, &self.pictures, &mut self.report);
            self.prompts.push(prompts::Prompts::of(&file, purpose));
        }
        let lengths = self.lengths(path, &file.samples);
        summary.samples = lengths.len();
        summary.unusable = bad.len() + file.samples.len() - lengths.len();
        summarise(&mut summary, &lengths);
        summary
    }

    /// Tokens and labelled tokens of each usable sample; zeros without a tokenizer.
    fn lengths(&mut self, path: &Path, samples: &[Sample]) -> Vec<(usize, usize)> {
        let Some(tokenizer) = &self.tokenizer else { return vec![(0, 0); samples.len()] };
        let Options { mask, max_length, on_overlong, .. } = *self.options;
        let lengths = parallel::map(samples, |sample| {
            let encoded = encode_training(tokenizer, sample, mask);
            (encoded.ids.len(), encoded.labels.iter().flatten().count())
        });
        let too_long = match on_overlong {
            OnOverlong::Error => &rule::TOO_LONG,
            OnOverlong::Drop => &rule::DROPPED,
        };
        let mut usable = Vec::with_capacity(samples.len());
        for (sample, length) in samples.iter().zip(lengths) {
            if (max_length as usize) < length.0 {
                let what = format!("{} tokens, the limit is {max_length}", length.0);
                self.report.add(too_long, path, &sample.id, what);
                if on_overlong == OnOverlong::Drop {
                    continue;
                }
            }
            usable.push(length);
        }
        usable
    }
}

/// Positions of a picture from the model's configuration; 256 without one.
fn slots(folder: &Path) -> usize {
    let text = std::fs::read_to_string(folder.join("config.json")).unwrap_or_default();
    let config: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
    let queries = config.pointer("/visual/n_queries").and_then(serde_json::Value::as_u64);
    queries.and_then(|queries| usize::try_from(queries).ok()).unwrap_or(256)
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn summarise(summary: &mut FileSummary, lengths: &[(usize, usize)]) {
    let mut tokens: Vec<usize> = lengths.iter().map(|(tokens, _labels)| *tokens).collect();
    tokens.sort_unstable();
    let Some(longest) = tokens.last() else { return };
    let total: usize = tokens.iter().sum();
    summary.tokens = total as u64;
    summary.mean_tokens = total as f64 / tokens.len() as f64;
    summary.p95_tokens = tokens[(tokens.len() * 95 / 100).min(tokens.len() - 1)];
    summary.max_tokens = *longest;
    summary.label_tokens = lengths.iter().map(|(_tokens, labels)| labels).sum();
}
