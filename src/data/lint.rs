//! `qvl data lint`: what is wrong with a data set, before a GPU hour is spent on it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{
    boxes::{self, BoxProblem},
    chatml::{encode_training, image_paths},
    image,
    sample::{self, Role, Sample},
    tokenizer::{Tokenizer, TokenizerError},
};
use crate::job::Mask;

/// Findings of one rule that are listed before the rest is only counted.
const LISTED: usize = 5;
/// The official tokenizer crashes on longer paths; qvl does not.
const OFFICIAL_PATH_LIMIT: usize = 254;

/// How to check.
#[derive(Clone, Debug)]
pub struct Options {
    /// Model folder whose tokenizer measures the samples; lengths are not checked without it.
    pub model: Option<PathBuf>,
    pub max_length: u32,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    Warn,
    Block,
}

/// One thing that is wrong with one sample.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub rule: &'static str,
    pub severity: Severity,
    pub file: String,
    pub sample: String,
    pub what: String,
    pub hint: &'static str,
}

/// Numbers of one file.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct FileSummary {
    pub file: String,
    pub samples: usize,
    pub pictures: usize,
    pub boxes: usize,
    /// Mean, 95th percentile and largest length in tokens; 0 if lengths were not measured.
    pub mean_tokens: f64,
    pub p95_tokens: usize,
    pub max_tokens: usize,
    /// Tokens that carry a loss, all samples together.
    pub label_tokens: usize,
}

/// Everything that was found.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LintReport {
    pub files: Vec<FileSummary>,
    pub findings: Vec<Finding>,
}

impl LintReport {
    /// Whether a training on these files makes no sense.
    pub fn blocks(&self) -> bool {
        self.findings.iter().any(|finding| finding.severity == Severity::Block)
    }
}

/// Checks files. A file that is no data set at all is a finding too; only the tokenizer is an
/// error, because without it the question was wrong.
pub fn lint(files: &[PathBuf], options: &Options) -> Result<LintReport, TokenizerError> {
    let tokenizer = match &options.model {
        Some(folder) => Some(Tokenizer::load(folder, slots(folder))?),
        None => None,
    };
    let mut report = LintReport::default();
    let mut seen: BTreeMap<String, (String, String)> = BTreeMap::new();
    for path in files {
        let file = match sample::read(path) {
            Ok(file) => file,
            Err(error) => {
                report.findings.push(Finding {
                    rule: "format",
                    severity: Severity::Block,
                    file: path.display().to_string(),
                    sample: String::new(),
                    hint: error.hint(),
                    what: chain(&error),
                });
                continue;
            }
        };
        let mut check = Check {
            file: path.display().to_string(),
            beside: path.parent().unwrap_or(Path::new(".")).to_owned(),
            findings: Vec::new(),
            pictures: BTreeSet::new(),
            summary: FileSummary { file: path.display().to_string(), ..FileSummary::default() },
        };
        let mut lengths = Vec::new();
        for sample in &file.samples {
            check.sample(sample, &mut seen);
            if let Some(tokenizer) = &tokenizer {
                lengths.push(check.length(sample, tokenizer, options.max_length));
            }
        }
        for id in &file.dropped_turns {
            check.warn(
                "first-turn",
                id,
                "the first turn is the assistant's and will be dropped".to_owned(),
                "begin with the user",
            );
        }
        check.summary.samples = file.samples.len();
        check.summary.pictures = check.pictures.len();
        summarise(&mut check.summary, lengths);
        report.findings.extend(check.findings);
        report.files.push(check.summary);
    }
    Ok(report)
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

fn summarise(summary: &mut FileSummary, mut lengths: Vec<usize>) {
    if lengths.is_empty() {
        return;
    }
    lengths.sort_unstable();
    summary.mean_tokens = lengths.iter().sum::<usize>() as f64 / lengths.len() as f64;
    summary.p95_tokens = lengths[(lengths.len() * 95 / 100).min(lengths.len() - 1)];
    summary.max_tokens = lengths[lengths.len() - 1];
}

struct Check {
    file: String,
    beside: PathBuf,
    findings: Vec<Finding>,
    /// Pictures that were looked at, so that each is opened once.
    pictures: BTreeSet<PathBuf>,
    summary: FileSummary,
}

impl Check {
    fn add(
        &mut self,
        rule: &'static str,
        severity: Severity,
        id: &str,
        what: String,
        hint: &'static str,
    ) {
        let (file, sample) = (self.file.clone(), id.to_owned());
        self.findings.push(Finding { rule, severity, file, sample, what, hint });
    }

    fn warn(&mut self, rule: &'static str, id: &str, what: String, hint: &'static str) {
        self.add(rule, Severity::Warn, id, what, hint);
    }

    fn block(&mut self, rule: &'static str, id: &str, what: String, hint: &'static str) {
        self.add(rule, Severity::Block, id, what, hint);
    }

    fn sample(&mut self, sample: &Sample, seen: &mut BTreeMap<String, (String, String)>) {
        let mut whole = String::new();
        for turn in &sample.turns {
            whole.push_str(&turn.text);
            self.specials(&sample.id, &turn.text);
            for path in image_paths(&turn.text) {
                self.picture(&sample.id, path);
            }
            if turn.role == Role::Assistant {
                self.boxes(&sample.id, &turn.text);
                if turn.text.trim().is_empty() {
                    self.block(
                        "empty-answer",
                        &sample.id,
                        "an answer is empty".to_owned(),
                        "remove the sample",
                    );
                }
            } else if turn.text.matches("<img>").count() != turn.text.matches("</img>").count() {
                self.block(
                    "image-tag",
                    &sample.id,
                    "<img> and </img> do not match".to_owned(),
                    "write <img>path</img>",
                );
            } else if turn.text.contains("<img>") && !turn.text.contains("Picture 1: <img>") {
                self.warn(
                    "prompt-format",
                    &sample.id,
                    "a picture does not follow `Picture 1: `".to_owned(),
                    "the official prompt is `Picture 1: <img>path</img>`; use one form for training and use",
                );
            }
        }
        let place = (self.file.clone(), sample.id.clone());
        if let Some((file, id)) = seen.insert(whole, place) {
            let what = format!("the same pictures and text as sample `{id}` of {file}");
            self.warn(
                "duplicate",
                &sample.id,
                what,
                "between training and evaluation this is a leak",
            );
        }
    }

    fn specials(&mut self, id: &str, text: &str) {
        for token in ["<|im_start|>", "<|im_end|>", "<|endoftext|>"] {
            if text.contains(token) {
                let what =
                    format!("the text holds {token}, which ends or begins a turn in training");
                self.block("special-token", id, what, "remove it from the text");
            }
        }
    }

    fn picture(&mut self, id: &str, path: &str) {
        if path.starts_with("http://") || path.starts_with("https://") {
            let what = format!("`{path}` is a URL");
            return self.block("remote-image", id, what, "download the pictures first");
        }
        if OFFICIAL_PATH_LIMIT < path.len() {
            let what =
                format!("the path has {} bytes, the official tokenizer takes 254", path.len());
            self.warn("long-path", id, what, "qvl has no such limit; other tools do");
        }
        let full = self.beside.join(path);
        if !self.pictures.insert(full.clone()) {
            return;
        }
        if let Err(error) = image::dimensions(&full) {
            let hint = error.hint();
            self.block("image-unreadable", id, chain(&error), hint);
        }
    }

    fn boxes(&mut self, id: &str, text: &str) {
        for (inner, parsed) in boxes::parse_training(text) {
            self.summary.boxes += 1;
            let Err(problem) = parsed else { continue };
            let (rule, hint) = match problem {
                BoxProblem::Form => ("box-form", "write (x1,y1),(x2,y2) without spaces"),
                BoxProblem::Decimal => ("box-decimal", "multiply by 1000 / size and round down"),
                BoxProblem::Range => {
                    ("box-range", "coordinates are thousandths, 0 to 999, not pixels")
                }
                BoxProblem::Reversed => ("box-reversed", "the upper left corner comes first"),
                BoxProblem::Empty => ("box-empty", "a box needs width and height"),
            };
            self.block(rule, id, format!("<box>{inner}</box>"), hint);
        }
    }

    fn length(&mut self, sample: &Sample, tokenizer: &Tokenizer, most: u32) -> usize {
        let encoded = encode_training(tokenizer, sample, Mask::AnswerOnly);
        self.summary.label_tokens += encoded.labels.iter().flatten().count();
        let length = encoded.ids.len();
        if (most as usize) < length {
            let what = format!("{length} tokens, the limit is {most}");
            let hint = "raise data.maxLength; the official code cuts the end off, </img> included";
            self.block("too-long", &sample.id, what, hint);
        }
        length
    }
}

/// The report for a person.
pub fn print(report: &LintReport, out: &mut impl io::Write) -> io::Result<()> {
    for file in &report.files {
        write!(
            out,
            "{}: {} samples, {} pictures, {} boxes",
            file.file, file.samples, file.pictures, file.boxes
        )?;
        if 0 < file.max_tokens {
            let FileSummary { mean_tokens, p95_tokens, max_tokens, .. } = file;
            write!(out, ", tokens mean {mean_tokens:.0}, p95 {p95_tokens}, max {max_tokens}")?;
        }
        writeln!(out)?;
    }
    let mut by_rule: BTreeMap<&str, Vec<&Finding>> = BTreeMap::new();
    for finding in &report.findings {
        by_rule.entry(finding.rule).or_default().push(finding);
    }
    for (rule, findings) in &by_rule {
        let word = if findings[0].severity == Severity::Block { "BLOCK" } else { "warn " };
        writeln!(out, "{word} {rule}: {} samples", findings.len())?;
        for finding in findings.iter().take(LISTED) {
            writeln!(out, "      {} `{}`: {}", finding.file, finding.sample, finding.what)?;
        }
        if LISTED < findings.len() {
            writeln!(out, "      and {} more", findings.len() - LISTED)?;
        }
        writeln!(out, "      hint: {}", findings[0].hint)?;
    }
    if by_rule.is_empty() {
        writeln!(out, "no problems found")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lints one sample with that question and answer, beside a real picture `a.png`.
    fn rules(question: &str, answer: &str) -> Vec<&'static str> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy("tests/goldens/a.png", folder.path().join("a.png")).unwrap();
        std::fs::write(
            folder.path().join("cut.png"),
            &std::fs::read("tests/goldens/a.png").unwrap()[..20],
        )
        .unwrap();
        let path = folder.path().join("d.json");
        let turns = serde_json::json!([{"from": "user", "value": question}, {"from": "assistant", "value": answer}]);
        let text = serde_json::json!([{"id": "0", "conversations": turns}]).to_string();
        std::fs::write(&path, text).unwrap();
        let options = Options { model: None, max_length: 100 };
        let report = lint(&[path], &options).unwrap();
        report.findings.iter().map(|finding| finding.rule).collect()
    }

    #[test]
    fn one_bad_thing_gives_one_finding() {
        let picture = "Picture 1: <img>a.png</img>\nFind it";
        let good = "<ref>x</ref><box>(1,2),(3,4)</box>";
        assert_eq!(rules(picture, good), [""; 0]);
        assert_eq!(rules(picture, "<box>(1, 2),(3,4)</box>"), ["box-form"]);
        assert_eq!(rules(picture, "<box>(0.1,2),(3,4)</box>"), ["box-decimal"]);
        assert_eq!(rules(picture, "<box>(1,2),(1280,4)</box>"), ["box-range"]);
        assert_eq!(rules(picture, "<box>(3,2),(1,4)</box>"), ["box-reversed"]);
        assert_eq!(rules(picture, "<box>(3,2),(3,4)</box>"), ["box-empty"]);
        assert_eq!(rules("<img>a.png</img>x", good), ["prompt-format"]);
        assert_eq!(rules("Picture 1: <img>b.png</img>\nx", good), ["image-unreadable"]);
        assert_eq!(rules("Picture 1: <img>cut.png</img>\nx", good), ["image-unreadable"]);
        assert_eq!(rules("Picture 1: <img>a.png\nx", good), ["image-tag"]);
        assert_eq!(rules("Picture 1: <img>https://x/a.png</img>\nx", good), ["remote-image"]);
        assert_eq!(rules("a<|im_end|>", good), ["special-token"]);
        assert_eq!(rules(picture, " "), ["empty-answer"]);
    }

    #[test]
    fn the_same_sample_twice_is_a_duplicate() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.json");
        let one =
            r#"{"conversations":[{"from":"user","value":"q"},{"from":"assistant","value":"a"}]}"#;
        std::fs::write(&path, format!("[{one},{one}]")).unwrap();
        let report = lint(&[path], &Options { model: None, max_length: 10 }).unwrap();
        assert_eq!(report.findings.len(), 1);
        assert_eq!(report.findings[0].rule, "duplicate");
        assert!(!report.blocks());
    }
}
