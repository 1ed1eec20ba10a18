//! Answers of a model to an evaluation set: the file, the numbers, the pictures.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{contact_sheet::SheetItem, stats};
use crate::wire::{EvalMetrics, Interval};

/// One answer: a line of `eval/SET-step-NNNNNN.jsonl` in the output folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    pub id: String,
    pub question: String,
    pub reference: String,
    pub answer: String,
    /// Intersection over union with the reference's box; 0 without a box. `None` if the set's
    /// answers are no boxes.
    pub iou: Option<f64>,
    /// Whether a box could be read from the answer.
    pub parsed: Option<bool>,
    pub exact: bool,
    /// First picture of the question.
    pub image: Option<PathBuf>,
    /// Box of the reference: left, top, right, bottom as shares of width and height.
    #[serde(default)]
    pub expected: Option<[f64; 4]>,
    /// Box of the answer, in the same form.
    #[serde(default)]
    pub found: Option<[f64; 4]>,
    /// Sum of the cross-entropies of the reference's tokens, and their number.
    pub loss: f64,
    pub tokens: u64,
}

/// By how much one metric of the same samples changed, with its 95 % interval.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gain {
    /// As a person reads it: `Acc@0.5`.
    pub metric: String,
    pub change: Interval,
}

/// Why answers cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum AnswersError {
    #[error("failed to read answers `{}`", .path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("answers `{}`, line {line}: expected one JSON object per line, as `qvl-train eval --answers` writes", .path.display())]
    Line { path: PathBuf, line: usize, source: serde_json::Error },
}

/// Reads a file of answers.
pub fn read(path: &Path) -> Result<Vec<Answer>, AnswersError> {
    let text = fs::read_to_string(path)
        .map_err(|source| AnswersError::Read { path: path.to_owned(), source })?;
    let lines = text.lines().enumerate().map(|(i, line)| {
        serde_json::from_str(line).map_err(|source| AnswersError::Line {
            path: path.to_owned(),
            line: i + 1,
            source,
        })
    });
    lines.collect()
}

/// The numbers of a set with their 95 % intervals.
pub fn metrics(answers: &[Answer]) -> EvalMetrics {
    let share = |hit: &dyn Fn(&Answer) -> bool| {
        let hits = answers.iter().filter(|answer| hit(answer)).count();
        (!answers.is_empty()).then(|| stats::proportion(hits as u64, answers.len() as u64))
    };
    let tokens: u64 = answers.iter().map(|answer| answer.tokens).sum();
    let loss: f64 = answers.iter().map(|answer| answer.loss).sum();
    let mut metrics = EvalMetrics {
        samples: answers.len() as u64,
        loss: (0 < tokens).then(|| loss / tokens as f64),
        exact_match: share(&|answer| answer.exact),
        ..EvalMetrics::default()
    };
    if answers.iter().any(|answer| answer.iou.is_some()) {
        let ious: Vec<f64> = answers.iter().map(|answer| answer.iou.unwrap_or(0.0)).collect();
        metrics.parse_rate = share(&|answer| answer.parsed == Some(true));
        metrics.acc_at_50 = share(&|answer| is_hit(answer) == Some(true));
        metrics.mean_iou = Some(stats::mean(&ious));
    }
    metrics
}

/// A number that a single answer has, or has not.
type Measure<'m> = &'m dyn Fn(&Answer) -> Option<f64>;

/// The change from `before` to `after`, sample by sample. `None` if these are not the same
/// samples: then a difference of means says little.
pub fn gains(before: &[Answer], after: &[Answer]) -> Option<Vec<Gain>> {
    let (old, new) = paired(before, after, |answer| Some(answer.id.clone())).or_else(|| {
        // Another prompt for the same pictures has other ids.
        paired(before, after, |answer| Some(answer.image.as_ref()?.display().to_string()))
    })?;
    let share = |hit: bool| if hit { 1.0 } else { 0.0 };
    let measures: [(&str, Measure<'_>); 3] = [
        ("Acc@0.5", &|answer| is_hit(answer).map(share)),
        ("mean IoU", &|answer| answer.iou),
        ("exact match", &|answer| Some(share(answer.exact))),
    ];
    let change = |(name, measure): &(&str, Measure<'_>)| {
        let values = |answers: &[&Answer]| -> Option<Vec<f64>> {
            answers.iter().map(|answer| measure(answer)).collect()
        };
        let change = stats::paired_difference(&values(&old)?, &values(&new)?);
        Some(Gain { metric: (*name).to_owned(), change })
    };
    Some(measures.iter().filter_map(change).collect())
}

/// Both sides in the order of a key that tells samples apart; `None` if it does not, or if the
/// sides hold different samples.
fn paired<'a>(
    before: &'a [Answer],
    after: &'a [Answer],
    key: impl Fn(&Answer) -> Option<String>,
) -> Option<(Vec<&'a Answer>, Vec<&'a Answer>)> {
    let sorted = |answers: &'a [Answer]| -> Option<BTreeMap<String, &'a Answer>> {
        let sorted = answers.iter().map(|answer| Some((key(answer)?, answer)));
        let sorted: BTreeMap<_, _> = sorted.collect::<Option<_>>()?;
        (sorted.len() == answers.len() && !sorted.is_empty()).then_some(sorted)
    };
    let (old, new) = (sorted(before)?, sorted(after)?);
    old.keys().eq(new.keys()).then(|| (old.into_values().collect(), new.into_values().collect()))
}

/// Answers to questions with a picture, as items of a contact sheet.
pub fn sheet_items(answers: &[Answer]) -> Vec<SheetItem> {
    let item = |answer: &Answer| {
        Some(SheetItem {
            image: answer.image.clone()?,
            expected: answer.expected,
            found: answer.found,
            caption: match answer.iou {
                Some(_iou) if answer.parsed == Some(false) => "no box".to_owned(),
                Some(iou) => format!("IoU {iou:.2}"),
                None => answer.answer.clone(),
            },
            good: is_hit(answer).unwrap_or(answer.exact),
        })
    };
    answers.iter().filter_map(item).collect()
}

fn is_hit(answer: &Answer) -> Option<bool> {
    answer.iou.map(|iou| 0.5 <= iou)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(id: &str, iou: Option<f64>, exact: bool) -> Answer {
        Answer {
            id: id.to_owned(),
            question: "ground 7:".to_owned(),
            reference: "(1,2),(3,4)".to_owned(),
            answer: "(1,2),(3,4)".to_owned(),
            iou,
            parsed: iou.map(|iou| 0.0 < iou),
            exact,
            image: Some(PathBuf::from("a.png")),
            expected: None,
            found: None,
            loss: 2.0,
            tokens: 4,
        }
    }

    #[test]
    fn numbers_of_boxes_and_of_texts() {
        let boxes = [answer("a", Some(0.5), false), answer("b", Some(0.0), false)];
        let measured = metrics(&boxes);
        assert_eq!(measured.acc_at_50.unwrap().value, 0.5);
        assert_eq!(measured.mean_iou.unwrap().value, 0.25);
        assert_eq!(measured.parse_rate.unwrap().value, 0.5);
        assert_eq!(measured.loss, Some(0.5));
        let texts = metrics(&[answer("a", None, true)]);
        assert_eq!((texts.acc_at_50, texts.mean_iou), (None, None));
        assert_eq!(texts.exact_match.unwrap().value, 1.0);
        assert_eq!(metrics(&[]).exact_match, None);
    }

    #[test]
    fn a_gain_is_taken_sample_by_sample_and_only_of_the_same_samples() {
        let before = [answer("a", Some(0.1), false), answer("b", Some(0.6), false)];
        let after = [answer("b", Some(0.8), false), answer("a", Some(0.3), false)];
        let gains = gains(&before, &after).unwrap();
        let names: Vec<&str> = gains.iter().map(|gain| gain.metric.as_str()).collect();
        assert_eq!(names, ["Acc@0.5", "mean IoU", "exact match"]);
        assert!((gains[1].change.value - 0.2).abs() < 1e-12);
        assert!((gains[1].change.low - 0.2).abs() < 1e-9, "{:?}", gains[1]);
        let renamed = [answer("c", Some(0.8), false), answer("d", Some(0.3), false)];
        assert_eq!(super::gains(&before, &renamed), None, "one picture for two samples");
        assert_eq!(super::gains(&before, &after[..1]), None);
        let one = super::gains(&before[..1], &renamed[..1]).unwrap();
        assert!((one[1].change.value - 0.7).abs() < 1e-12, "paired by the picture: {one:?}");
        assert_eq!(super::gains(&[], &[]), None);
    }

    #[test]
    fn a_broken_line_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("answers.jsonl");
        let good = serde_json::to_string(&answer("a", None, true)).unwrap();
        fs::write(&path, format!("{good}\n{{\"id\":")).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("line 2"));
        fs::write(&path, format!("{good}\n")).unwrap();
        assert_eq!(read(&path).unwrap(), [answer("a", None, true)]);
    }
}
