//! The tables of evaluations and of losses per task.

use std::{collections::BTreeMap, fmt::Write as _};

use super::{
    input::{Measured, SetReport},
    render::escape,
};
use crate::{
    telemetry::answers::Gain,
    wire::{EvalMetrics, Event, Interval, Record, StepMetrics, TaskLoss},
};

/// Measurements of all sets, before and after side by side.
pub(super) fn evaluations(sets: &[SetReport]) -> String {
    let mut out = "<div class=scroll><table><thead><tr><th>model<th class=n>samples<th>Acc@0.5\
        <th>mean IoU<th>exact match<th>parsed<th class=n>loss<tbody>"
        .to_owned();
    for set in sets {
        let _ = write!(out, "<tr class=set><th colspan=7>{}", escape(&set.name));
        for Measured { label, metrics } in &set.measured {
            let _ = write!(out, "<tr><th>{}<td class=n>{}", escape(label), metrics.samples);
            for value in shares(metrics) {
                let _ = write!(out, "<td>{}", cell(value));
            }
            let loss = metrics.loss.map_or("–".to_owned(), |loss| format!("{loss:.3}"));
            let _ = write!(out, "<td class=n>{loss}");
        }
        if !set.gains.is_empty() {
            out += "<tr><th>gain<td>";
            for metric in ["Acc@0.5", "mean IoU", "exact match"] {
                let gain = set.gains.iter().find(|gain| gain.metric == metric);
                let _ = write!(out, "<td>{}", gain.map_or("–".to_owned(), change));
            }
            out += "<td><td>";
        }
    }
    out += "</table></div><p class=note>Small numbers and whiskers: 95 % confidence intervals, Wilson's for \
        shares, bootstrap for means. A gain is taken sample by sample (paired bootstrap); it is real \
        when its interval does not hold zero.";
    out
}

fn shares(metrics: &EvalMetrics) -> [Option<Interval>; 4] {
    [metrics.acc_at_50, metrics.mean_iou, metrics.exact_match, metrics.parse_rate]
}

fn cell(value: Option<Interval>) -> String {
    let Some(interval) = value else { return "–".to_owned() };
    let Interval { value, low, high } = interval;
    format!("{value:.3} {}<br><small>{low:.3} to {high:.3}</small>", whisker(interval))
}

fn change(gain: &Gain) -> String {
    let Interval { value, low, high } = gain.change;
    let tone = match (0.0 < low, high < 0.0) {
        (true, _) => "good",
        (_, true) => "bad",
        (false, false) => "note",
    };
    format!("<b class={tone}>{value:+.3}</b><br><small>{low:+.3} to {high:+.3}</small>")
}

/// The interval on a line from 0 to 1.
fn whisker(interval: Interval) -> String {
    let [value, low, high] =
        [interval.value, interval.low, interval.high].map(|x| 4.0 + 64.0 * x.clamp(0.0, 1.0));
    format!(
        "<svg class=interval width=72 height=12 aria-hidden=true><path d=\"M4 6H68\" stroke=\"currentColor\" \
         opacity=\".25\"/><path d=\"M{low:.1} 6H{high:.1}\" stroke=\"currentColor\" stroke-width=\"5\" \
         opacity=\".4\"/><circle cx=\"{value:.1}\" cy=\"6\" r=\"2.5\" fill=\"currentColor\"/></svg>"
    )
}

/// Loss of each task over the first and the last twentieth of the run.
pub(super) fn tasks(records: &[Record]) -> Option<String> {
    let steps: Vec<&StepMetrics> = records
        .iter()
        .filter_map(|record| if let Event::Step(step) = &record.event { Some(step) } else { None })
        .collect();
    let window = (steps.len() / 20).max(1);
    let (first, last) = (means(steps.get(..window)?), means(&steps[steps.len() - window..]));
    let mut out =
        "<div class=scroll><table><thead><tr><th>task<th class=n>loss at first<th class=n>at last\
        <th class=n>content loss at first<th class=n>at last<tbody>"
            .to_owned();
    for (task, new) in &last {
        let old = first.get(task).copied().unwrap_or_default();
        let _ = write!(out, "<tr><th>{}", escape(task));
        for value in [old.loss, new.loss, old.content_loss, new.content_loss] {
            let _ = write!(out, "<td class=n>{value:.3}");
        }
    }
    let _ = write!(
        out,
        "</table></div><p class=note>Means over {window} steps, in nats per token. Content: words and \
         coordinates only, without the template and the structure of boxes, which are learned first."
    );
    Some(out)
}

/// Means over steps, each step with its number of tokens.
fn means(steps: &[&StepMetrics]) -> BTreeMap<String, TaskLoss> {
    let mut sums: BTreeMap<String, TaskLoss> = BTreeMap::new();
    for (task, loss) in steps.iter().flat_map(|step| &step.tasks) {
        let sum = sums.entry(task.clone()).or_default();
        sum.loss += loss.loss * loss.tokens as f64;
        sum.content_loss += loss.content_loss * loss.tokens as f64;
        sum.tokens += loss.tokens;
    }
    for sum in sums.values_mut() {
        sum.loss /= sum.tokens.max(1) as f64;
        sum.content_loss /= sum.tokens.max(1) as f64;
    }
    sums
}
