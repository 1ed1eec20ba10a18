//! The evaluations as a table for a terminal.

use std::io::{self, Write};

use super::input::{Measured, SetReport};
use crate::wire::{EvalMetrics, Interval};

/// Writes each measurement of each set on a line, with 95 % confidence intervals.
pub fn table(sets: &[SetReport], out: &mut impl Write) -> io::Result<()> {
    let labels = sets.iter().flat_map(|set| &set.measured).map(|m| m.label.chars().count() + 2);
    let names = sets.iter().map(|set| set.name.chars().count());
    let width = labels.chain(names).max().unwrap_or(0);
    let head = format!(
        "{:<width$}  samples  {:<19}  {:<19}  {:<19}  {:>6}",
        "", "Acc@0.5", "mean IoU", "exact match", "loss"
    );
    writeln!(out, "{head}")?;
    for set in sets {
        writeln!(out, "{}", set.name)?;
        for Measured { label, metrics } in &set.measured {
            writeln!(out, "{}", line(label, metrics, width))?;
        }
    }
    writeln!(out, "in brackets: 95 % confidence intervals")
}

fn line(label: &str, metrics: &EvalMetrics, width: usize) -> String {
    let loss = metrics.loss.map_or_else(|| "-".to_owned(), |loss| format!("{loss:.3}"));
    let [first, second, third] =
        [metrics.acc_at_50, metrics.mean_iou, metrics.exact_match].map(share);
    format!(
        "{:<width$}  {:>7}  {first:<19}  {second:<19}  {third:<19}  {loss:>6}",
        format!("  {label}"),
        metrics.samples
    )
}

fn share(value: Option<Interval>) -> String {
    value.map_or_else(|| "-".to_owned(), |interval| interval.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measurements_stand_under_their_heads() {
        let known = |value| Some(Interval { value, low: value - 0.1, high: value + 0.1 });
        let grounding = EvalMetrics {
            samples: 200,
            loss: Some(0.7),
            acc_at_50: known(0.9),
            mean_iou: known(0.75),
            ..EvalMetrics::default()
        };
        let caption =
            EvalMetrics { samples: 20, exact_match: known(0.5), ..EvalMetrics::default() };
        let set = |name: &str, label: &str, metrics: &EvalMetrics| SetReport {
            name: name.to_owned(),
            measured: vec![Measured { label: label.to_owned(), metrics: metrics.clone() }],
            gains: Vec::new(),
        };
        let sets =
            [set("held-out", "after step 1200", &grounding), set("words", "before", &caption)];
        let mut out = Vec::new();
        table(&sets, &mut out).expect("a vector takes everything");
        insta::assert_snapshot!(String::from_utf8(out).expect("text"), @r"
                           samples  Acc@0.5              mean IoU             exact match            loss
        held-out
          after step 1200      200  0.900 (0.800-1.000)  0.750 (0.650-0.850)  -                     0.700
        words
          before                20  -                    -                    0.500 (0.400-0.600)       -
        in brackets: 95 % confidence intervals
        ");
    }
}
