//! The answer for a person.

use std::io::Write;

use super::{
    judge::{Compared, Parity},
    runs::Run,
};
use crate::cli::view::count;

/// Tells that a run begins: a large model takes its time.
pub(super) fn begin(ranks: u32, steps: u64) -> std::io::Result<()> {
    let steps = count(u32::try_from(steps).unwrap_or(u32::MAX), "step");
    writeln!(anstream::stderr(), "parity  {steps} on {}", count(ranks, "rank"))
}

pub(super) fn text(parity: &Parity, runs: &[Run], out: &mut impl Write) -> std::io::Result<()> {
    let heads = parity.ranks.iter().map(|ranks| count(*ranks, "rank"));
    line("the whole job", heads, "", out)?;
    for row in &parity.planned {
        let remark = match (row.is_equal(), row.note) {
            (true, _) => "equal",
            (false, Some(note)) => note,
            (false, None) => "DIFFERENT",
        };
        line(row.name, row.values.iter().cloned(), remark, out)?;
    }
    let heads = parity.ranks.iter().map(|_ranks| "loss".to_owned());
    line("what was run", heads, "", out)?;
    let steps = runs.iter().map(|run| run.steps.len()).min().unwrap_or(0);
    for index in 0..steps {
        let losses = || runs.iter().map(|run| run.steps[index].loss);
        let same = losses().all(|loss| loss.to_bits() == runs[0].steps[index].loss.to_bits());
        let remark = if same { "same bits" } else { "DIFFERENT" };
        let name = format!("step {}", runs[0].steps[index].step);
        line(&name, losses().map(|loss| format!("{loss:.9}")), remark, out)?;
    }
    parity.compared.iter().try_for_each(|compared| verdict(parity, compared, out))
}

fn line(
    name: &str,
    values: impl Iterator<Item = String>,
    remark: &str,
    out: &mut impl Write,
) -> std::io::Result<()> {
    let cells: String = values.map(|value| format!("{value:<16}")).collect();
    writeln!(out, "{}", format!("  {name:<27}{cells}{remark}").trim_end())
}

fn verdict(parity: &Parity, compared: &Compared, out: &mut impl Write) -> std::io::Result<()> {
    let [one, other] = compared.ranks.map(|ranks| count(ranks, "rank"));
    let Some(difference) = &compared.difference else {
        let Compared { numbers, tensors, .. } = compared;
        let steps = count(u32::try_from(parity.steps).unwrap_or(u32::MAX), "step");
        return writeln!(
            out,
            "parity  {}: {one} and {other} are the same, bit by bit: {numbers} numbers and {tensors} \
             tensors of {steps}",
            parity.job
        );
    };
    let [a, b] = &difference.values;
    writeln!(out, "parity  {}: {one} and {other} part in step {}", parity.job, difference.step)?;
    writeln!(out, "        what       {}", difference.what)?;
    writeln!(out, "        values     {a} on {one}, {b} on {other}")?;
    writeln!(out, "        points to  {}", difference.points_to)
}
