//! A run from its first attempt to its end: watch, keep, restart, tell.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::{
    attempt::{self, News, Plan, Request},
    ladder::{self, Action, RankEnd},
    logs::RankLog,
    state::{Incident, RankState, RunState, Status, process_start},
};
use crate::{
    job::FineTuneJob,
    telemetry::{curve, metrics, metrics::Metrics},
    wire::{EvalMetrics, Event, Record, StepMetrics},
};

/// How often `state.json` follows the steps.
const STATE_EVERY: Duration = Duration::from_millis(500);

/// What a person or a program should see of a run.
#[derive(Debug)]
pub enum Notice {
    Attempt { attempt: u32, world: u32 },
    Record(Box<Record>),
    Slow { rank: u32, seconds: f64, median: f64 },
    Incident(Incident),
    Retry { after: Duration },
    Stopping,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Ending {
    pub state: RunState,
    /// Why it failed, if it did.
    pub why: Option<String>,
    pub last_step: Option<StepMetrics>,
    /// Last result of each evaluation set, and the first one if there are several.
    pub evaluations: BTreeMap<String, (EvalMetrics, Option<EvalMetrics>)>,
}

/// Where the parts of a run are.
#[derive(Clone, Debug)]
pub struct Launch {
    pub job: FineTuneJob,
    /// The job file that the ranks read.
    pub job_path: PathBuf,
    pub output: PathBuf,
    pub trainer: PathBuf,
    pub threads: u32,
}

struct Supervisor<'a> {
    launch: &'a Launch,
    state: RunState,
    metrics: Metrics,
    logs: Vec<RankLog>,
    written: Instant,
    last_step: Option<StepMetrics>,
    evaluations: BTreeMap<String, (EvalMetrics, Option<EvalMetrics>)>,
}

/// Runs the job until it succeeds, fails for good or is stopped.
pub fn supervise(
    launch: &Launch,
    first_attempt: u32,
    mut notice: impl FnMut(Notice),
    mut request: impl FnMut() -> Request,
) -> io::Result<Ending> {
    let mut attempt = first_attempt;
    let mut restarts = 0;
    let mut supervisor = Supervisor::new(launch, attempt)?;
    loop {
        notice(Notice::Attempt { attempt, world: launch.job.spec.world.gpus });
        let ends = supervisor.attempt(attempt, &mut notice, &mut request)?;
        let stopping = request() != Request::Nothing;
        let action =
            ladder::decide(&ends, restarts, launch.job.spec.failure.max_restarts, stopping);
        let restarted = matches!(action, Action::Restart { .. });
        if action != Action::Succeed && action != Action::Stop {
            let incident = supervisor.incident(&ends, attempt, restarted);
            notice(Notice::Incident(incident));
        }
        match action {
            Action::Succeed => return supervisor.end(Status::Succeeded, None),
            Action::Stop => return supervisor.end(Status::Stopped, None),
            Action::Fail { why } => return supervisor.end(Status::Failed, Some(why.to_owned())),
            Action::Restart { after } => {
                notice(Notice::Retry { after });
                if !wait(after, &mut request) {
                    return supervisor.end(Status::Stopped, None);
                }
                restarts += 1;
                attempt += 1;
                supervisor.begin(attempt)?;
            }
        }
    }
}

/// Sleeps, unless the user asks to stop.
fn wait(time: Duration, request: &mut impl FnMut() -> Request) -> bool {
    let until = Instant::now() + time;
    while Instant::now() < until {
        if request() != Request::Nothing {
            return false;
        }
        thread::sleep(Duration::from_millis(50));
    }
    true
}

impl<'a> Supervisor<'a> {
    fn new(launch: &'a Launch, attempt: u32) -> io::Result<Self> {
        let output = launch.output.clone();
        let earlier = RunState::read(&output).ok();
        let supervisor = std::process::id();
        let state = RunState {
            name: launch.job.metadata.name.clone(),
            output: output.clone(),
            status: Status::Running,
            supervisor,
            supervisor_start: process_start(supervisor).unwrap_or(0),
            started_ms: now_ms(),
            updated_ms: now_ms(),
            attempt,
            ranks: Vec::new(),
            step: earlier.as_ref().map_or(0, |state| state.step),
            total_steps: 0,
            loss: None,
            checkpoint: earlier.as_ref().and_then(|state| state.checkpoint.clone()),
            result: None,
            incidents: earlier.map_or_else(Vec::new, |state| state.incidents),
        };
        let mut supervisor = Supervisor {
            launch,
            metrics: Metrics::open(&output, attempt, now_ms() / 1000)?,
            logs: Vec::new(),
            state,
            written: Instant::now(),
            last_step: None,
            evaluations: BTreeMap::new(),
        };
        supervisor.begin(attempt)?;
        Ok(supervisor)
    }

    fn begin(&mut self, attempt: u32) -> io::Result<()> {
        let world = self.launch.job.spec.world.gpus;
        let logs = (0..world).map(|rank| RankLog::create(&self.launch.output, attempt, rank));
        self.logs = logs.collect::<io::Result<_>>()?;
        self.state.attempt = attempt;
        self.state.ranks.clear();
        self.state.write()
    }

    fn attempt(
        &mut self,
        attempt: u32,
        notice: &mut impl FnMut(Notice),
        request: &mut impl FnMut() -> Request,
    ) -> io::Result<Vec<RankEnd>> {
        let spec = &self.launch.job.spec;
        let plan = Plan {
            trainer: self.launch.trainer.clone(),
            job: self.launch.job_path.clone(),
            world: spec.world.gpus,
            attempt,
            threads: self.launch.threads,
            peer_timeout_seconds: spec.world.peer_timeout_seconds,
            stall_multiplier: spec.failure.stall_multiplier,
            startup: Duration::from_secs(u64::from(spec.failure.startup_seconds)),
        };
        let mut broken: Option<io::Error> = None;
        let mut told_to_stop = false;
        let ends = attempt::run(
            &plan,
            |news| {
                if let Err(error) = self.take(news, notice) {
                    broken.get_or_insert(error);
                }
            },
            || {
                let wanted = request();
                told_to_stop |= wanted != Request::Nothing;
                wanted
            },
        );
        if told_to_stop {
            notice(Notice::Stopping);
        }
        // A full disk must not end the training of hours; it is told once the attempt is over.
        broken.map_or(ends, Err)
    }

    fn take(&mut self, news: News, notice: &mut impl FnMut(Notice)) -> io::Result<()> {
        match news {
            News::Spawned { rank, pid } => {
                self.state.ranks.push(RankState { rank, pid, phase: "starting".to_owned() });
                self.state.write()
            }
            News::Line { rank, text } => self.log(rank, &text),
            News::Slow { rank, seconds, median } => {
                notice(Notice::Slow { rank, seconds, median });
                Ok(())
            }
            News::Ended(end) => {
                let what = if end.exit == Some(crate::wire::TrainerExit::Success) {
                    "ended well".to_owned()
                } else {
                    ladder::describe(&end)
                };
                self.log(end.rank, &format!("[supervisor] rank {} {what}", end.rank))
            }
            News::Event(record) => {
                self.follow(&record);
                let kept = self.metrics.keep(&record);
                let line = serde_json::to_string(&record.event).expect("events are plain data");
                let logged = self.log(record.rank, &line);
                notice(Notice::Record(record));
                kept.and(logged).and(self.write_now_and_then())
            }
        }
    }

    fn log(&mut self, rank: u32, text: &str) -> io::Result<()> {
        self.logs.get_mut(rank as usize).map_or(Ok(()), |log| log.push(now_ms(), text))
    }

    fn follow(&mut self, record: &Record) {
        if let Event::Phase { name } = &record.event
            && let Some(rank) = self.state.ranks.iter_mut().find(|rank| rank.rank == record.rank)
        {
            rank.phase.clone_from(name);
        }
        if record.rank != 0 {
            return;
        }
        if let Event::Ready { step, total_steps, .. } = &record.event {
            (self.state.step, self.state.total_steps) = (*step, *total_steps);
        }
        if let Event::Step(step) = &record.event {
            self.state.step = step.step;
            self.state.loss = Some(step.loss);
            self.last_step = Some(step.clone());
        }
        if let Event::CheckpointSaved { path, .. } = &record.event {
            self.state.checkpoint = Some(path.clone());
        }
        if let Event::Exported { path, .. } = &record.event {
            self.state.result = Some(path.clone());
        }
        if let Event::Evaluated { set, metrics, .. } = &record.event {
            let old = self.evaluations.remove(set);
            let first = old.map(|(last, first)| first.unwrap_or(last));
            self.evaluations.insert(set.clone(), (metrics.clone(), first));
        }
    }

    fn write_now_and_then(&mut self) -> io::Result<()> {
        if self.written.elapsed() < STATE_EVERY {
            return Ok(());
        }
        self.written = Instant::now();
        self.state.updated_ms = now_ms();
        self.state.write()
    }

    fn incident(&mut self, ends: &[RankEnd], attempt: u32, restarted: bool) -> Incident {
        let culprit = ladder::culprit(ends);
        let incident = Incident {
            attempt,
            culprit: culprit.map_or(0, |end| end.rank),
            exit: culprit.and_then(|end| end.exit),
            what: culprit.map_or_else(String::new, ladder::describe),
            hint: culprit.and_then(|end| end.hint.clone()),
            step: self.state.step,
            restarted,
        };
        self.state.incidents.push(incident.clone());
        incident
    }

    fn end(mut self, status: Status, why: Option<String>) -> io::Result<Ending> {
        self.state.status = status;
        self.state.updated_ms = now_ms();
        self.state.ranks.clear();
        self.state.write()?;
        write_curve(&self.launch.output)?;
        Ok(Ending {
            state: self.state,
            why,
            last_step: self.last_step,
            evaluations: self.evaluations,
        })
    }
}

fn write_curve(output: &Path) -> io::Result<()> {
    let records = metrics::read(output)?;
    curve::write(&output.join("loss.svg"), &records)
}

/// Milliseconds since the Unix epoch.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
