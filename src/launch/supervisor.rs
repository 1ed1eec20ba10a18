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
    ladder::{self, Action, Class, History, RankEnd},
    logs::RankLog,
    process::ProcessId,
    state::{Incident, RankState, RunState, Status},
};
use crate::{
    job::FineTuneJob,
    telemetry::{curve, metrics, metrics::Metrics},
    wire::{
        EvalMetrics, Event, Record, Source, StepMetrics, SupervisorEvent, SupervisorRecord,
        TrainerExit,
    },
};

/// How often `state.json` follows the steps.
const STATE_EVERY: Duration = Duration::from_millis(500);

/// How long the others may take to notice that a rank has failed, before they are killed.
const SWEEP_AFTER: Duration = Duration::from_secs(10);

/// What a person or a program should see of a run.
#[derive(Debug)]
pub enum Notice {
    /// A rank reports.
    Record(Box<Record>),
    /// The supervisor reports.
    Supervisor(SupervisorRecord),
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Ending {
    pub state: RunState,
    pub last_step: Option<StepMetrics>,
    /// Last result of each evaluation set, and the first one if there are several.
    pub evaluations: BTreeMap<String, (EvalMetrics, Option<EvalMetrics>)>,
    pub seconds: f64,
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

struct Supervisor<'a, N> {
    launch: &'a Launch,
    notice: N,
    state: RunState,
    metrics: Metrics,
    logs: Vec<RankLog>,
    written: Instant,
    last_step: Option<StepMetrics>,
    checkpoint_step: Option<u64>,
    evaluations: BTreeMap<String, (EvalMetrics, Option<EvalMetrics>)>,
    /// Whether trouble with the disk was told in this attempt.
    troubled: bool,
}

/// Runs the job until it succeeds, fails for good or is stopped.
pub fn supervise(
    launch: &Launch,
    first_attempt: u32,
    notice: impl FnMut(Notice),
    mut request: impl FnMut() -> Request,
) -> io::Result<Ending> {
    let began = Instant::now();
    let mut supervisor = Supervisor::new(launch, notice, first_attempt)?;
    let max_restarts = launch.job.spec.failure.max_restarts;
    let mut history = History { max_restarts, ..History::default() };
    let mut last: Option<(Class, u64)> = None;
    loop {
        let ends = supervisor.attempt(&mut request)?;
        let stopping = request() != Request::Nothing;
        let failure = ladder::culprit(&ends).map(|end| (ladder::class(end), supervisor.state.step));
        history.repeats = if failure == last { history.repeats + 1 } else { 0 };
        last = failure;
        match ladder::decide(&ends, history, stopping) {
            Action::Succeed => return Ok(supervisor.end(Status::Succeeded, None, began)),
            Action::Stop => return Ok(supervisor.end(Status::Stopped, None, began)),
            Action::Fail { why } => {
                supervisor.incident(&ends, false);
                return Ok(supervisor.end(Status::Failed, Some(why.to_owned()), began));
            }
            Action::Restart { after } => {
                supervisor.incident(&ends, true);
                let checkpoint_step = supervisor.checkpoint_step;
                let after_seconds = after.as_secs();
                supervisor.tell(SupervisorEvent::Restarting { after_seconds, checkpoint_step });
                if !wait(after, &mut request) {
                    return Ok(supervisor.end(Status::Stopped, None, began));
                }
                history.restarts += 1;
                supervisor.begin(supervisor.state.attempt + 1)?;
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

impl<'a, N: FnMut(Notice)> Supervisor<'a, N> {
    fn new(launch: &'a Launch, notice: N, attempt: u32) -> io::Result<Self> {
        let output = launch.output.clone();
        let earlier = RunState::read(&output).ok();
        let mine = ProcessId::of(std::process::id());
        let fresh = RunState::new(&launch.job.metadata.name, &output, now_ms());
        let state = RunState {
            status: Status::Running,
            supervisor: mine.pid,
            supervisor_start: mine.start,
            output: output.clone(),
            updated_ms: now_ms(),
            result: None,
            why: None,
            ..earlier.unwrap_or(fresh)
        };
        let mut supervisor = Supervisor {
            launch,
            notice,
            metrics: Metrics::open(&output, attempt, now_ms() / 1000)?,
            logs: Vec::new(),
            state,
            written: Instant::now(),
            last_step: None,
            checkpoint_step: None,
            evaluations: BTreeMap::new(),
            troubled: false,
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
        self.troubled = false;
        self.state.write()
    }

    fn tell(&mut self, event: SupervisorEvent) {
        (self.notice)(Notice::Supervisor(SupervisorRecord {
            v: Record::VERSION,
            time_ms: now_ms(),
            attempt: self.state.attempt,
            source: Source::Supervisor,
            event,
        }));
    }

    fn attempt(&mut self, request: &mut impl FnMut() -> Request) -> io::Result<Vec<RankEnd>> {
        let spec = &self.launch.job.spec;
        let plan = Plan {
            trainer: self.launch.trainer.clone(),
            job: self.launch.job_path.clone(),
            world: spec.world.gpus,
            first: 0,
            ranks: spec.world.gpus,
            meeting: None,
            sweep_after: SWEEP_AFTER,
            attempt: self.state.attempt,
            threads: self.launch.threads,
            peer_timeout_seconds: spec.world.peer_timeout_seconds,
            stall_multiplier: spec.failure.stall_multiplier,
            startup: Duration::from_secs(u64::from(spec.failure.startup_seconds)),
            env: spec.env.clone(),
        };
        self.tell(SupervisorEvent::AttemptStarted { world: plan.world });
        attempt::run(
            &plan,
            |news| {
                // A full disk must not end the training of hours.
                if let Err(error) = self.take(news)
                    && !self.troubled
                {
                    self.troubled = true;
                    let folder = self.launch.output.display();
                    let what = format!("logs and metrics in `{folder}` have gaps: {error}");
                    self.tell(SupervisorEvent::Trouble { what });
                }
            },
            request,
        )
    }

    fn take(&mut self, news: News) -> io::Result<()> {
        match news {
            News::Spawned { rank, pid } => {
                let start = ProcessId::of(pid).start;
                let phase = "starting".to_owned();
                self.state.ranks.push(RankState { rank, pid, start, phase });
                self.state.write()
            }
            News::Line { rank, text } => self.log(rank, &text),
            News::Slow(silence) => {
                self.tell(SupervisorEvent::Slow {
                    suspect: silence.rank,
                    seconds: silence.seconds,
                    median_seconds: silence.median,
                });
                Ok(())
            }
            News::Signalled(request) => {
                self.tell(SupervisorEvent::Stopping { kill: request != Request::Stop });
                Ok(())
            }
            News::Stopped { rank } => {
                self.log(rank, &format!("[supervisor] rank {rank} was stopped by a signal"))
            }
            News::Ended(end) => self.ended(&end),
            News::Event(record) => self.event(record),
        }
    }

    fn ended(&mut self, end: &RankEnd) -> io::Result<()> {
        let what = match end.exit {
            Some(TrainerExit::Success) => "ended well".to_owned(),
            _ if end.swept => "was killed, because another rank had ended".to_owned(),
            _ => ladder::describe(end),
        };
        self.log(end.rank, &format!("[supervisor] rank {} {what}", end.rank))
    }

    fn event(&mut self, record: Box<Record>) -> io::Result<()> {
        self.follow(&record);
        let kept = self.metrics.keep(&record);
        let line = serde_json::to_string(&record.event).expect("events are plain data");
        let logged = self.log(record.rank, &line);
        (self.notice)(Notice::Record(record));
        kept.and(logged).and(self.write_now_and_then())
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
        if let Event::CheckpointSaved { step, path, .. } = &record.event {
            self.state.checkpoint = Some(path.clone());
            self.checkpoint_step = Some(*step);
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

    fn incident(&mut self, ends: &[RankEnd], restarted: bool) {
        let culprit = ladder::culprit(ends);
        let stalled = culprit.is_some_and(|end| end.stalled.is_some());
        let exit = culprit.and_then(|end| end.exit);
        let incident = Incident {
            attempt: self.state.attempt,
            culprit: culprit.map_or(0, |end| end.rank),
            exit: if stalled { Some(TrainerExit::Stalled) } else { exit },
            what: culprit.map_or_else(String::new, ladder::describe),
            hint: culprit.and_then(ladder::hint),
            step: self.state.step,
            restarted,
        };
        self.state.incidents.push(incident.clone());
        let Incident { culprit, exit, what, hint, step, restarted, .. } = incident;
        self.tell(SupervisorEvent::Culprit { culprit, exit, what, hint, step, restarted });
    }

    fn end(mut self, status: Status, why: Option<String>, began: Instant) -> Ending {
        self.state.status = status;
        self.state.why.clone_from(&why);
        self.state.updated_ms = now_ms();
        self.state.ranks.clear();
        // A run that failed because the disk is full ends with its own reason, not with this.
        if let Err(error) = self.state.write().and_then(|()| write_curve(&self.launch.output)) {
            let folder = self.launch.output.display();
            let what = format!("the end of the run is not written in `{folder}`: {error}");
            self.tell(SupervisorEvent::Trouble { what });
        }
        let state = serde_json::to_value(&self.state).expect("plain data");
        let status = state["status"].as_str().unwrap_or_default().to_owned();
        self.tell(SupervisorEvent::Ended { status, why, state });
        Ending {
            state: self.state,
            last_step: self.last_step,
            evaluations: self.evaluations,
            seconds: began.elapsed().as_secs_f64(),
        }
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
