//! Shows what happens to a job of a cluster, as it happens.

use std::{
    io::{IsTerminal, Write},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::record::{ClusterRecord, Source, Told};
use crate::{cli::launch::Output, launch::supervisor};

/// Without a terminal, progress is told this many times over the run.
const LINES_PER_RUN: u64 = 20;

/// A bar on a terminal, a line for each change otherwise, or JSON.
pub(crate) struct Show {
    output: Output,
    bar: Option<ProgressBar>,
    namespace: String,
    job: String,
    /// Step that was told last, without a terminal.
    step: u64,
}

impl Show {
    pub(crate) fn new(output: Output, namespace: &str, job: &str) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = (output == Output::Text && terminal).then(|| {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix}  {wide_msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        let (namespace, job) = (namespace.to_owned(), job.to_owned());
        Show { output, bar, namespace, job, step: 0 }
    }

    /// Tells one event.
    pub(crate) fn tell(&mut self, attempt: u32, told: Told) -> std::io::Result<()> {
        if self.output == Output::Json {
            let record = ClusterRecord {
                v: 1,
                time_ms: supervisor::now_ms(),
                source: Source::Cluster,
                namespace: self.namespace.clone(),
                job: self.job.clone(),
                attempt,
                event: told,
            };
            let mut out = std::io::stdout();
            writeln!(out, "{}", serde_json::to_string(&record).expect("plain data"))?;
            return out.flush();
        }
        if let Told::Progress { step, total_steps, .. } = &told {
            return self.progress(*step, *total_steps, &told);
        }
        if let (Some(bar), Told::State { .. }) = (&self.bar, &told) {
            bar.set_prefix(told.headline(&self.job));
            bar.set_message("");
        }
        told.text(&self.job).iter().try_for_each(|line| self.line(line))
    }

    fn progress(&mut self, step: u64, total: u64, told: &Told) -> std::io::Result<()> {
        if let Some(bar) = &self.bar {
            if let Ok(style) =
                ProgressStyle::with_template("{prefix} {bar:24} {percent}% {wide_msg}")
            {
                bar.set_style(style.progress_chars("█▉▊▋▌▍▎▏░"));
            }
            bar.set_length(total);
            bar.set_position(step);
            bar.set_prefix(self.job.clone());
            bar.set_message(told.numbers());
            return Ok(());
        }
        let apart = (total / LINES_PER_RUN).max(1);
        let restarted = step < self.step;
        if !restarted && step != total && step < self.step + apart {
            return Ok(());
        }
        self.step = step;
        told.text(&self.job).iter().try_for_each(|line| self.line(line))
    }

    /// Prints a line above the bar, if there is one.
    pub(crate) fn line(&self, text: &str) -> std::io::Result<()> {
        let print = || writeln!(anstream::stderr(), "{text}");
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    /// Takes the bar away.
    pub(crate) fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
