//! What `qvl launch` shows while a job runs, and its last words.

use std::io::Write;

use indicatif::{ProgressBar, ProgressStyle};

use super::launch::Output;
use crate::{
    job::FineTuneJob,
    launch::{
        state::Status,
        supervisor::{Ending, Notice},
    },
    wire::{EvalMetrics, Event, Interval, Record, StepMetrics},
};

/// Without a terminal, a step is told this many times over the run.
const LINES_PER_RUN: u64 = 20;

/// Shows notices as they come.
pub(super) struct View {
    output: Output,
    bar: Option<ProgressBar>,
    name: String,
    ranks: u32,
    ready: u32,
    checkpoint: Option<u64>,
}

impl View {
    /// A bar if the output is text and goes to a terminal.
    pub(super) fn new(output: Output, terminal: bool, job: &FineTuneJob) -> Self {
        let style = "  {prefix} [{bar:28}] {pos}/{len} {msg}";
        let bar = (output == Output::Text && terminal).then(|| {
            let bar = ProgressBar::new(0);
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar
        });
        View {
            output,
            bar,
            name: job.metadata.name.clone(),
            ranks: job.spec.world.gpus,
            ready: 0,
            checkpoint: None,
        }
    }

    /// Shows one notice.
    pub(super) fn show(&mut self, notice: &Notice) {
        if self.output == Output::Json {
            if let Notice::Record(record) = notice {
                let line = serde_json::to_string(record).expect("records are plain data");
                let _written = writeln!(anstream::stdout(), "{line}");
            }
            return;
        }
        match notice {
            Notice::Attempt { attempt, world } => {
                self.ready = 0;
                self.say(&format!("\n{}: attempt {attempt}, {world} ranks", self.name));
            }
            Notice::Record(record) => self.record(record),
            Notice::Slow { rank, seconds, median } => self.say(&format!(
                "warning: rank {rank} is silent for {seconds:.0} s; a step takes {median:.2} s"
            )),
            Notice::Incident(incident) => {
                self.say(&format!("culprit: rank {} {}", incident.culprit, incident.what));
                if let Some(hint) = &incident.hint {
                    self.say(&format!("hint: {hint}"));
                }
            }
            Notice::Retry { after } => self.say(&format!(
                "restarting all ranks from {} in {} s",
                self.checkpoint.map_or("the beginning".to_owned(), |step| format!(
                    "the checkpoint of step {step}"
                )),
                after.as_secs()
            )),
            Notice::Stopping => self.say("stopped on request; the ranks saved a checkpoint"),
        }
    }

    fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => {
                let _written = writeln!(anstream::stdout(), "{text}");
            }
        }
    }

    fn record(&mut self, record: &Record) {
        if let Event::Warning { message } = &record.event {
            self.say(&format!("warning: rank {}: {message}", record.rank));
        }
        if let Event::Ready { step, total_steps, resumed_from } = &record.event {
            self.ready += 1;
            if self.ready == self.ranks {
                let from = match resumed_from {
                    Some(_path) => format!(", goes on at step {step}"),
                    None => String::new(),
                };
                self.say(&format!("all {} ranks are ready: {total_steps} steps{from}", self.ranks));
            }
            if let Some(bar) = &self.bar {
                bar.set_length(*total_steps);
                bar.set_position(*step);
            }
        }
        if record.rank != 0 {
            return;
        }
        if let Event::Step(step) = &record.event {
            self.step(step);
        }
        if let Event::CheckpointSaved { step, best, .. } = &record.event {
            self.checkpoint = Some(*step);
            if self.bar.is_none() {
                let best = if *best { ", the best so far" } else { "" };
                self.say(&format!("step {step}: checkpoint saved{best}"));
            }
        }
        if let Event::Evaluated { step, set, metrics } = &record.event {
            self.say(&format!("step {step}: {set}: {}", summary(metrics)));
        }
    }

    fn step(&self, step: &StepMetrics) {
        let rate = step.samples as f64 / step.seconds.max(1e-9);
        let left = (step.total_steps - step.step) as f64 * step.seconds;
        let tasks: String = step
            .tasks
            .iter()
            .map(|(task, loss)| format!(" {task} {:.3}", loss.content_loss))
            .collect();
        if let Some(bar) = &self.bar {
            let checkpoint = self.checkpoint.map_or(String::new(), |step| format!(" ckpt@{step}"));
            bar.set_prefix(step.stage.clone());
            bar.set_position(step.step);
            bar.set_message(format!(
                "loss {:.3}{tasks} {rate:.0} samples/s eta {left:.0} s{checkpoint}",
                step.loss
            ));
            return;
        }
        let every = (step.total_steps / LINES_PER_RUN).max(1);
        if step.step == 1 || step.step.is_multiple_of(every) || step.step == step.total_steps {
            self.say(&format!(
                "step {}/{}: loss {:.3}{tasks}, lr {:.1e}, {rate:.0} samples/s",
                step.step, step.total_steps, step.loss, step.learning_rate
            ));
        }
    }

    /// The last words: what came out, where it is, what to do next.
    pub(super) fn finish(&self, ending: &Ending) -> std::io::Result<()> {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let mut out = anstream::stdout();
        let state = &ending.state;
        if self.output == Output::Json {
            return writeln!(
                out,
                "{}",
                serde_json::json!({"v": 1, "event": "ended", "state": state})
            );
        }
        let word = match state.status {
            Status::Succeeded => "succeeded",
            Status::Stopped => "stopped",
            Status::Failed | Status::Running => "failed",
        };
        writeln!(out, "\n{} {word} at step {} of {}", state.name, state.step, state.total_steps)?;
        if let Some(why) = &ending.why {
            writeln!(out, "  why          {why}")?;
        }
        if let Some(loss) = state.loss {
            writeln!(out, "  loss         {loss:.4}")?;
        }
        for (set, (last, first)) in &ending.evaluations {
            if let Some(first) = first {
                writeln!(out, "  {set:<20} before: {}", summary(first))?;
            }
            writeln!(out, "  {set:<20} now:    {}", summary(last))?;
        }
        if !state.incidents.is_empty() {
            writeln!(
                out,
                "  restarts     {}",
                state.incidents.iter().filter(|i| i.restarted).count()
            )?;
        }
        if let Some(result) = &state.result {
            writeln!(out, "  result       {result}")?;
        }
        writeln!(out, "  loss curve   {}", state.output.join("loss.svg").display())?;
        writeln!(out, "  logs         qvl logs {}", state.name)?;
        if state.status != Status::Succeeded {
            writeln!(
                out,
                "\nhint: `qvl resume {}` goes on from the newest checkpoint",
                state.name
            )?;
        }
        Ok(())
    }
}

/// The numbers of an evaluation in one line.
pub(super) fn summary(metrics: &EvalMetrics) -> String {
    let share = |name: &str, value: Option<Interval>| {
        value.map(|Interval { value, low, high }| format!("{name} {value:.3} ({low:.3}-{high:.3})"))
    };
    let parts = [
        share("Acc@0.5", metrics.acc_at_50),
        share("IoU", metrics.mean_iou),
        share("exact", metrics.exact_match),
        metrics.loss.map(|loss| format!("loss {loss:.3}")),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}
