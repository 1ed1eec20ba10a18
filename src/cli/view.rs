//! What `qvl launch` shows while a job runs, and its last words.

use std::{io::Write, time::Duration};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::launch::Output;
use crate::{
    job::FineTuneJob,
    launch::{
        state::Status,
        supervisor::{Ending, Notice},
    },
    wire::{EvalMetrics, Event, Interval, Record, StepMetrics, SupervisorEvent, SupervisorRecord},
};

/// Without a terminal, a step is told this many times over the run.
const LINES_PER_RUN: u64 = 20;
/// Weight of the newest step in the smoothed step time.
const NEWEST: f64 = 0.1;

/// Shows notices as they come.
pub(super) struct View {
    output: Output,
    bar: Option<ProgressBar>,
    name: String,
    ranks: u32,
    ready: u32,
    checkpoint: Option<u64>,
    /// Smoothed seconds of a step.
    seconds: Option<f64>,
}

impl View {
    /// A bar if the output is text and goes to a terminal.
    pub(super) fn new(output: Output, terminal: bool, job: &FineTuneJob) -> Self {
        let bar = (output == Output::Text && terminal).then(|| {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
            let style = "{prefix} {bar:24} {pos}/{len} {percent}% {wide_msg}";
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style.progress_chars("█▉▊▋▌▍▎▏░"));
            }
            bar.set_prefix("starting");
            bar
        });
        View {
            output,
            bar,
            name: job.metadata.name.clone(),
            ranks: job.spec.world.gpus,
            ready: 0,
            checkpoint: None,
            seconds: None,
        }
    }

    /// Shows one notice.
    pub(super) fn show(&mut self, notice: &Notice) {
        match (self.output, notice) {
            (Output::Json, Notice::Record(record)) => json_line(record),
            (Output::Json, Notice::Supervisor(record)) => json_line(record),
            (Output::Text, Notice::Record(record)) => self.record(record),
            (Output::Text, Notice::Supervisor(record)) => self.supervisor(record),
        }
    }

    fn supervisor(&mut self, record: &SupervisorRecord) {
        match &record.event {
            SupervisorEvent::AttemptStarted { world } => {
                self.ready = 0;
                self.prefix("starting");
                let (name, attempt) = (&self.name, record.attempt);
                self.say(&format!("{name}: attempt {attempt}, {}", count(*world, "rank")));
            }
            SupervisorEvent::Slow { suspect, seconds, median_seconds } => self.say(&format!(
                "warning: no step for {seconds:.0} s, a step takes {median_seconds:.2} s; rank \
                 {suspect} has been silent for longest"
            )),
            SupervisorEvent::Culprit { culprit, what, hint, step, .. } => {
                self.say(&format!("culprit: rank {culprit} {what}, after step {step}"));
                if let Some(hint) = hint {
                    self.say(&format!(
                        "hint: {}",
                        hint.replace(" JOB", &format!(" {}", self.name))
                    ));
                }
            }
            SupervisorEvent::Restarting { after_seconds, checkpoint_step } => {
                let from = checkpoint_step
                    .map_or("its newest checkpoint, if there is one".to_owned(), |step| {
                        format!("the checkpoint of step {step}")
                    });
                self.say(&format!("restarting all ranks from {from} in {after_seconds} s"));
            }
            SupervisorEvent::Stopping { kill: false } => {
                self.prefix("stopping");
                self.say("stopping: the ranks save a checkpoint; once more kills them");
            }
            SupervisorEvent::Stopping { kill: true } => self.say("killed all ranks"),
            SupervisorEvent::Trouble { what } => self.say(&format!("warning: {what}")),
            SupervisorEvent::Ended { .. } => {}
        }
    }

    fn prefix(&self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_prefix(text.to_owned());
            bar.tick();
        }
    }

    fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| print_line(text)),
            None => print_line(text),
        }
    }

    fn record(&mut self, record: &Record) {
        if let Event::Warning { message } = &record.event {
            self.say(&format!("warning: rank {}: {message}", record.rank));
        }
        if let Event::Ready { step, total_steps, resumed_from } = &record.event {
            self.ready(*step, *total_steps, resumed_from.is_some());
        }
        if record.rank != 0 {
            return;
        }
        if let Event::Phase { name } = &record.event {
            self.prefix(name);
        }
        if let Event::Step(step) = &record.event {
            self.step(step);
        }
        if let Event::CheckpointSaved { step, best, bytes, .. } = &record.event {
            self.checkpoint = Some(*step);
            if self.bar.is_none() {
                let best = if *best { ", the best so far" } else { "" };
                let size = super::plan::human(*bytes);
                self.say(&format!("step {step}: checkpoint saved ({size}){best}"));
            }
        }
        if let Event::Evaluated { step, set, metrics } = &record.event {
            self.say(&format!("step {step}: {set}: {}", summary(metrics)));
        }
    }

    fn ready(&mut self, step: u64, total: u64, resumed: bool) {
        self.ready += 1;
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(step);
        }
        if self.ready == self.ranks {
            let from = if resumed { format!(", goes on after step {step}") } else { String::new() };
            let ranks = count(self.ranks, "rank");
            self.say(&format!("{ranks} ready: {total} steps{from}"));
        }
    }

    fn step(&mut self, step: &StepMetrics) {
        let old = self.seconds.unwrap_or(step.seconds);
        let seconds = old + NEWEST * (step.seconds - old);
        self.seconds = Some(seconds);
        let tasks: String =
            step.tasks.iter().map(|(task, loss)| format!(" {task} {:.3}", loss.loss)).collect();
        let left = step.total_steps.saturating_sub(step.step) as f64 * seconds;
        let pace = format!("{} eta {}", rate(seconds), clock(left));
        if let Some(bar) = &self.bar {
            let checkpoint = self.checkpoint.map_or(String::new(), |step| format!(" ckpt@{step}"));
            bar.set_prefix(step.stage.clone());
            bar.set_position(step.step);
            bar.set_message(format!("loss {:.3}{tasks} {pace}{checkpoint}", step.loss));
            return;
        }
        let every = (step.total_steps / LINES_PER_RUN).max(1);
        if step.step == 1 || step.step.is_multiple_of(every) || step.step == step.total_steps {
            let (done, total, rate) = (step.step, step.total_steps, step.learning_rate);
            let loss = step.loss;
            self.say(&format!("step {done}/{total}: loss {loss:.3}{tasks}, lr {rate:.1e}, {pace}"));
        }
    }

    /// The last words: what came out, where it is, what to do next.
    pub(super) fn finish(&self, ending: &Ending) -> std::io::Result<()> {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        if self.output == Output::Json {
            return Ok(());
        }
        let mut out = anstream::stdout();
        let state = &ending.state;
        let word = match state.status {
            Status::Succeeded => "succeeded",
            Status::Stopped => "stopped",
            Status::Failed | Status::Running => "failed",
        };
        let (name, took) = (&state.name, clock(ending.seconds));
        writeln!(
            out,
            "\n{name} {word} after {took} at step {} of {}",
            state.step, state.total_steps
        )?;
        let names = ending.evaluations.keys().map(String::len);
        let width = names.max().unwrap_or(0).max("loss curve".len());
        let mut row = |name: &str, value: String| writeln!(out, "  {name:<width$}  {value}");
        if let Some(why) = &state.why {
            row("why", why.clone())?;
        }
        if let Some(loss) = state.loss {
            row("loss", format!("{loss:.4}"))?;
        }
        for (set, (last, first)) in &ending.evaluations {
            if let Some(first) = first {
                row(set, format!("before: {}", summary(first)))?;
                row("", format!("now:    {}", summary(last)))?;
            } else {
                row(set, summary(last))?;
            }
        }
        let restarts = state.incidents.iter().filter(|incident| incident.restarted).count();
        if 0 < restarts {
            row("restarts", restarts.to_string())?;
        }
        if let Some(result) = &state.result {
            row("result", result.clone())?;
        }
        if let Some(checkpoint) = &state.checkpoint {
            row("checkpoint", checkpoint.clone())?;
        }
        let curve = state.output.join("loss.svg");
        if curve.exists() {
            row("loss curve", curve.display().to_string())?;
        }
        row("logs", format!("{} (`qvl logs {name}`)", state.output.join("logs").display()))?;
        if state.status != Status::Succeeded {
            let from = match &state.checkpoint {
                Some(_path) => "goes on from the newest checkpoint",
                None => "begins again: no checkpoint was saved",
            };
            writeln!(out, "\nhint: `qvl resume {name}` {from}")?;
        }
        Ok(())
    }
}

/// A reader that went away is no reason to stop a training.
fn print_line(text: &str) {
    let _written = writeln!(anstream::stdout(), "{text}");
}

fn json_line(record: &impl serde::Serialize) {
    print_line(&serde_json::to_string(record).expect("records are plain data"));
}

/// `1 rank`, `2 ranks`.
pub(super) fn count(number: u32, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{plural}")
}

/// Steps a second, or seconds a step, whichever is above one.
pub(super) fn rate(seconds: f64) -> String {
    if seconds < 1.0 {
        return format!("{:.1} it/s", 1.0 / seconds.max(1e-6));
    }
    format!("{seconds:.1} s/it")
}

/// `42s`, `3m05s`, `1h12m`, `2d04h`.
pub(super) fn clock(seconds: f64) -> String {
    let whole = Duration::try_from_secs_f64(seconds.round()).unwrap_or_default().as_secs();
    let (days, hours, minutes) = (whole / 86_400, whole / 3600 % 24, whole / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{whole}s"),
        (0, 0, _) => format!("{minutes}m{:02}s", whole % 60),
        (0, _, _) => format!("{hours}h{minutes:02}m"),
        _ => format!("{days}d{hours:02}h"),
    }
}

/// The numbers of an evaluation in one line.
pub(super) fn summary(metrics: &EvalMetrics) -> String {
    let share =
        |name: &str, value: Option<Interval>| value.map(|interval| format!("{name} {interval}"));
    let parts = [
        share("Acc@0.5", metrics.acc_at_50),
        share("IoU", metrics.mean_iou),
        share("exact", metrics.exact_match),
        metrics.loss.map(|loss| format!("loss {loss:.3}")),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// An event in one line for a person, for logs.
pub(super) fn event(event: &Event) -> String {
    match event {
        Event::Started { pid, world, version } => {
            format!("started: process {pid}, {}, version {version}", count(*world, "rank"))
        }
        Event::Phase { name } => format!("phase {name}"),
        Event::ModelLoaded { parameters, trainable, dtype, seconds } => format!(
            "model loaded in {seconds:.1} s: {parameters} parameters in {dtype}, {trainable} trained"
        ),
        Event::Ready { step, total_steps, resumed_from } => match resumed_from {
            Some(path) => format!("ready after step {step} of {total_steps}, from {path}"),
            None => format!("ready: {total_steps} steps"),
        },
        Event::Step(step) => format!(
            "step {}/{}: loss {:.4}, lr {:.2e}, gradient {:.3}, {:.2} s",
            step.step,
            step.total_steps,
            step.loss,
            step.learning_rate,
            step.grad_norm,
            step.seconds
        ),
        Event::Evaluated { step, set, metrics } => {
            format!("step {step}: {set}: {}", summary(metrics))
        }
        Event::CheckpointSaved { step, path, seconds, best, .. } => {
            let best = if *best { ", the best so far" } else { "" };
            format!("step {step}: checkpoint {path} in {seconds:.1} s{best}")
        }
        Event::Exported { path, kind } => format!("wrote the {kind} {path}"),
        Event::Warning { message } => format!("warning: {message}"),
        Event::Failed { message, hint, .. } => {
            let hint = hint.as_ref().map_or(String::new(), |hint| format!(" (hint: {hint})"));
            format!("failed: {message}{hint}")
        }
        Event::Finished { step, seconds, .. } => {
            format!("finished at step {step} after {}", clock(*seconds))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_rates_are_short() {
        let cases = [
            (0.4, "0s"),
            (59.6, "1m00s"),
            (185.0, "3m05s"),
            (4320.0, "1h12m"),
            (187_200.0, "2d04h"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(clock(seconds), expected);
        }
        assert_eq!(clock(f64::NAN), "0s");
        assert_eq!(rate(0.25), "4.0 it/s");
        assert_eq!(rate(12.0), "12.0 s/it");
        assert_eq!(count(1, "rank"), "1 rank");
        assert_eq!(count(2, "rank"), "2 ranks");
    }
}
