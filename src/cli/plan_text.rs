//! The plan of a job for a person.

use std::io::{Result, Write};

use super::{plan::Plan, view::count};
use crate::job::{
    Compute, memory,
    plan::{JobPlan, RatePoint, StagePlan},
};

/// Width and height of the learning-rate picture.
const COLUMNS: usize = 64;
const ROWS: usize = 5;
/// Width of the bar of the largest part of the memory.
const BAR: u64 = 24;
/// Usable memory of usual GPUs, in GiB.
const USUAL: [u64; 6] = [16, 24, 32, 40, 48, 80];
/// Steps of a list that are shown before and after the dots.
const SHOWN: usize = 4;

/// Prints everything that a plan says.
pub(super) fn print(plan: &Plan, out: &mut impl Write) -> Result<()> {
    let JobPlan { padding, warnings, stages, .. } = &plan.steps;
    let spec = &plan.job.spec;
    writeln!(out, "plan of {}", plan.job.metadata.name)?;
    row(out, "batch", &batch(plan))?;
    row(out, "", &official(plan))?;
    let trained = memory::trained_parameters(&plan.job, &plan.shape);
    let all = plan.shape.parameters();
    let share = 100.0 * trained as f64 / all as f64;
    let text = format!("{} of {} parameters ({share:.2} %)", thousands(trained), thousands(all));
    row(out, "trained", &text)?;
    for stage in stages {
        let (first, second) = stage_lines(stage);
        row(out, "stage", &first)?;
        row(out, "", &second)?;
    }
    let kept = match spec.checkpoint.keep {
        1 => "the newest".to_owned(),
        keep => format!("the newest {keep}"),
    };
    row(out, "saves", &format!("{}; {kept} and the best are kept", steps(&plan.steps.saves)))?;
    row(out, "measures", &measures(plan))?;
    if 0 < padding.max_tokens {
        let (mean, longest) = (padding.mean_tokens, padding.max_tokens);
        row(out, "tokens", &format!("{mean:.0} a sample, {longest} at most"))?;
        row(out, "padding", &padding_text(plan))?;
    }
    memory_table(plan, out)?;
    writeln!(out, "\nlearning rate over {} steps", plan.steps.total_steps)?;
    for line in chart(&plan.steps.learning_rate) {
        writeln!(out, "  {line}")?;
    }
    if !warnings.is_empty() {
        writeln!(out)?;
    }
    for warning in warnings {
        writeln!(out, "warning: {warning}")?;
    }
    Ok(())
}

fn row(out: &mut impl Write, name: &str, text: &str) -> Result<()> {
    writeln!(out, "  {name:<9} {text}")
}

fn batch(plan: &Plan) -> String {
    let batch = &plan.steps.batch;
    let unit = plan.job.spec.batch.unit;
    let units = match (batch.fewest_units, batch.most_units) {
        (fewest, most) if fewest == most => count(most, "unit"),
        (fewest, most) => format!("{fewest} to {most} units"),
    };
    let (here, ranks) = (batch.here, count(batch.gpus, "rank"));
    format!("{here} samples a step on any number of ranks; {ranks}, {units} of {unit} each")
}

fn official(plan: &Plan) -> String {
    let batch = &plan.steps.batch;
    let on_all = match batch.gpus {
        1 => String::new(),
        gpus => format!(", {} on {gpus} GPUs", batch.official_on_all),
    };
    format!(
        "official scripts: {} on 1 GPU{on_all}, at the same learning rate",
        batch.official_on_one
    )
}

fn stage_lines(stage: &StagePlan) -> (String, String) {
    let StagePlan { name, samples, steps, steps_per_epoch, epochs, warmup_steps, peak, last } =
        stage;
    let (steps_text, samples) = (thousands(*steps), thousands(*samples));
    (
        format!(
            "{name}: {steps_text} steps = {epochs:.2} epochs of {samples} samples, {steps_per_epoch} steps each"
        ),
        format!("learning rate up to {peak:.1e} in {warmup_steps} steps, {last:.1e} at the end"),
    )
}

fn padding_text(plan: &Plan) -> String {
    let padding = &plan.steps.padding;
    let here = match plan.job.spec.batch.unit {
        0 | 1 => "none, units are single samples".to_owned(),
        unit => format!("{:.0} % of a unit of {unit} at most", 100.0 * padding.here_at_most),
    };
    let (limit, official) = (plan.job.spec.data.max_length, 100.0 * padding.official);
    format!("{here}; the official trainer pads all to maxLength {limit}: {official:.0} %")
}

fn measures(plan: &Plan) -> String {
    let sets = plan.job.spec.data.eval.len();
    if sets == 0 {
        return "nothing: there is no evaluation set".to_owned();
    }
    let sets = count(u32::try_from(sets).unwrap_or(u32::MAX), "set");
    let later: Vec<u64> = plan.steps.evaluations.iter().copied().filter(|step| 0 < *step).collect();
    let before = if later.len() < plan.steps.evaluations.len() { "before step 1 and " } else { "" };
    format!("{sets} {before}{}", steps(&later))
}

/// `after steps 50, 100, 150, 200 .. 450, 500 (10 times)`.
fn steps(list: &[u64]) -> String {
    let words: Vec<String> = list.iter().map(u64::to_string).collect();
    match words.as_slice() {
        [] => "never".to_owned(),
        [one] => format!("after step {one}"),
        all if all.len() <= SHOWN + 2 => format!("after steps {}", all.join(", ")),
        all => {
            let (first, last) = (all[..SHOWN].join(", "), all[all.len() - 2..].join(", "));
            format!("after steps {first} .. {last} ({} times)", all.len())
        }
    }
}

fn memory_table(plan: &Plan, out: &mut impl Write) -> Result<()> {
    writeln!(out, "\nmemory of one rank, estimated")?;
    let parts = &plan.memory.components;
    let width = parts.iter().map(|part| part.name.chars().count()).max().unwrap_or(0);
    let largest = parts.iter().map(|part| part.bytes).max().unwrap_or(1).max(1);
    for part in parts {
        // A part that is there at all shows at least a sliver.
        let eighths = (u128::from(part.bytes) * u128::from(BAR) * 8).div_ceil(u128::from(largest));
        let bar = bar(usize::try_from(eighths).unwrap_or(0));
        let (name, bytes, from) = (part.name, human(part.bytes), &part.from);
        writeln!(out, "  {name:<width$} {bytes:>10}  {bar:<24}  {from}")?;
    }
    let total = human(plan.memory.total());
    let is_cpu = plan.job.spec.world.compute == Compute::Cpu;
    let beside = if is_cpu {
        "the largest resident set of its process (VmHWM)"
    } else {
        "and about 1 GiB for a CUDA context on a GPU"
    };
    writeln!(out, "  {:<width$} {total:>10}  {beside}", "total")?;
    if is_cpu { Ok(()) } else { largest_jobs(plan, out) }
}

/// The largest job on GPUs of usual sizes; `qvl doctor --job` says it for the GPUs that are there.
fn largest_jobs(plan: &Plan, out: &mut impl Write) -> Result<()> {
    writeln!(out, "\nlargest that fits, with a CUDA context and a reserve of 5 %")?;
    for gibibytes in USUAL {
        let usable = gibibytes << 30;
        let text = match (plan.most_samples(usable), plan.most_tokens(usable)) {
            (None, None) => "nothing".to_owned(),
            (samples, tokens) => {
                let of = format!("of {} tokens", thousands(plan.longest));
                let samples = samples.map_or_else(
                    || format!("no sample {of}"),
                    |unit| format!("batch.unit {unit} with samples {of}"),
                );
                let tokens = tokens.map_or("none".to_owned(), thousands);
                format!("{samples}; one sample of {tokens} tokens")
            }
        };
        writeln!(out, "  {gibibytes:>3} GiB  {text}")?;
    }
    Ok(())
}

/// A bar of so many eighths of a column.
fn bar(eighths: usize) -> String {
    let parts = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    "█".repeat(eighths / 8) + parts[eighths % 8]
}

/// The curve as columns of blocks, with the peak on the left and the steps below.
fn chart(points: &[RatePoint]) -> Vec<String> {
    let (Some(first), Some(last)) = (points.first(), points.last()) else { return Vec::new() };
    let columns = COLUMNS.min(points.len());
    // Each column shows its highest point, so that a short warm-up does not hide the peak.
    let rates: Vec<f64> = (0..columns)
        .map(|c| &points[c * points.len() / columns..(c + 1) * points.len() / columns])
        .map(|column| column.iter().map(|point| point.learning_rate).fold(0.0, f64::max))
        .collect();
    let peak = rates.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    let blocks = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let cell = |rate: f64, row: usize| {
        let height = rate / peak * (ROWS * 8) as f64;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a height in eighths"
        )]
        let eighths = height.round() as usize;
        blocks[eighths.saturating_sub((ROWS - 1 - row) * 8).min(8)]
    };
    let mut lines: Vec<String> = (0..ROWS)
        .map(|row| {
            let label = if row == 0 { format!("{peak:.1e}") } else { String::new() };
            let cells: String = rates.iter().map(|rate| cell(*rate, row)).collect();
            format!("{label:>8} {}", cells.trim_end())
        })
        .collect();
    let (first, last) = (first.step.to_string(), last.step.to_string());
    let gap = columns.saturating_sub(first.len());
    lines.push(format!("{:>8} {first}{last:>gap$}", "step"));
    lines
}

/// `9,656,935,168`.
pub(super) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if 0 < i && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Bytes in the unit that people read.
pub(super) fn human(bytes: u64) -> String {
    let units = [("GiB", 1_u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    for (name, size) in units {
        if size <= bytes {
            return format!("{:.1} {name}", bytes as f64 / size as f64);
        }
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        data::lint::LintReport,
        job::{self, Dtype, plan::SetFacts},
    };

    /// The official LoRA recipe on the official model, as a plan.
    fn plan() -> Plan {
        let text = "apiVersion: qvl.dev/v1alpha1
kind: FineTuneJob
metadata: {name: official}
spec:
  model: {path: m}
  data:
    train: [{name: t, path: t.json, task: grounding}]
    eval: [{name: e, path: e.json, task: grounding}]
  optimizer: {learningRate: 1.0e-5}
  batch: {global: 32}
  world: {gpus: 2}
  stages: [{name: main, epochs: 5}]
  evaluation: {atStart: true}
  output: out
";
        let job = job::parse(text, "j").unwrap();
        let shape = memory::QWEN_VL_CHAT;
        let sets = vec![SetFacts {
            name: "t".into(),
            samples: 5000,
            mean_tokens: 400.0,
            max_tokens: 1024,
        }];
        let memory = memory::plan(&job, &shape, 1024, Dtype::Bf16);
        let steps = job::plan::plan(&job, &sets);
        Plan {
            job,
            shape,
            memory,
            longest: 1024,
            dtype: Dtype::Bf16,
            data: LintReport::default(),
            steps,
        }
    }

    #[test]
    fn the_picture_of_a_plan() {
        let mut out = Vec::new();
        print(&plan(), &mut out).unwrap();
        insta::assert_snapshot!(String::from_utf8(out).unwrap(), @r"
        plan of official
          batch     32 samples a step on any number of ranks; 2 ranks, 16 units of 1 each
                    official scripts: 8 on 1 GPU, 32 on 2 GPUs, at the same learning rate
          trained   112,197,632 of 9,656,935,168 parameters (1.16 %)
          stage     main: 782 steps = 5.00 epochs of 5,000 samples, 157 steps each
                    learning rate up to 1.0e-5 in 8 steps, 4.1e-11 at the end
          saves     after steps 100, 200, 300, 400 .. 700, 782 (8 times); the newest 3 and the best are kept
          measures  1 set before step 1 and after step 782
          tokens    400 a sample, 1024 at most
          padding   none, units are single samples; the official trainer pads all to maxLength 2048: 80 %

        memory of one rank, estimated
          base weights                      18.0 GiB  ████████████████████████  9656935168 parameters x 2 bytes
          trained weights (f32)            428.0 MiB  ▋                         112197632 parameters x 4 bytes
          gradients (f32)                    1.3 GiB  █▊                        112197632 parameters x 4 bytes x 3 buffers
          AdamW moments (f32)              856.0 MiB  █▏                        112197632 parameters x 8 bytes
          activations, language model        6.3 GiB  ████████▍                 32 blocks, 1024 tokens
          logits of labelled tokens (f32)  192.0 MiB  ▍                         at most 64 MiB, with softmax and gradient
          activations, vision tower         90.0 MiB  ▏                         one block at a time, frozen
          total                             27.0 GiB  and about 1 GiB for a CUDA context on a GPU

        largest that fits, with a CUDA context and a reserve of 5 %
           16 GiB  nothing
           24 GiB  no sample of 1,024 tokens; one sample of 235 tokens
           32 GiB  batch.unit 1 with samples of 1,024 tokens; one sample of 1,307 tokens
           40 GiB  batch.unit 2 with samples of 1,024 tokens; one sample of 2,030 tokens
           48 GiB  batch.unit 3 with samples of 1,024 tokens; one sample of 2,615 tokens
           80 GiB  batch.unit 8 with samples of 1,024 tokens; one sample of 4,359 tokens

        learning rate over 782 steps
            1.0e-5  █████▇▇▇▆▆▅▅▄▄▃▂▂▁
                   ▆███████████████████▇▇▆▅▄▃▂▁
                   █████████████████████████████▇▆▅▄▄▂▁
                   ██████████████████████████████████████▆▅▄▄▃▂▁
                   ██████████████████████████████████████████████▇▇▆▅▅▄▃▃▂▂▁▁▁▁
              step 1                                                            782

        warning: one evaluation set only: a second one from another distribution tells learning from memory
        ");
    }

    #[test]
    fn numbers_are_for_people() {
        assert_eq!(thousands(9_656_935_168), "9,656,935,168");
        assert_eq!(thousands(12), "12");
        assert_eq!(human(3 << 20), "3.0 MiB");
        assert_eq!(steps(&[7]), "after step 7");
        let many: Vec<u64> = (1..=10).map(|i| i * 50).collect();
        assert_eq!(steps(&many), "after steps 50, 100, 150, 200 .. 450, 500 (10 times)");
        assert_eq!(bar(12), "█▌");
    }
}
