//! The first process of a rank pod: tests the machine, meets the other pods through the broker,
//! starts the trainers of this pod and watches them.
//!
//! The broker decides when an epoch begins and what follows a failure; this side only says what
//! happens and obeys. Nothing here waits for the broker while trainers run, so they train on
//! when it is away.

mod dialogue;
mod ending;
mod init;
mod ledger;
mod meet;
mod wanted;

use std::{
    io::{self, Write},
    net::TcpListener,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use self::{
    dialogue::{Answer, Dialogue},
    ending::give_up,
    init::Reaper,
    ledger::Ledger,
    wanted::Wanted,
};
use crate::{
    job::RankEnv,
    launch::attempt::{self, Meeting, News, Plan, Request},
    probe::way::OpenDoor,
    tls::Roots,
    wire::{
        TrainerExit,
        sync::{PodPhase, SyncReply, SyncRequest},
    },
};

/// How often this process looks at what happens while it has no trainers.
const TICK: Duration = Duration::from_millis(50);
/// Ranks of the same pod notice that one has failed within this time, or are killed: the pods of
/// the others wait for the report.
const SWEEP_AFTER: Duration = Duration::from_secs(2);
/// The place of this pod, and what it starts.
#[derive(Clone, Debug)]
pub struct Pod {
    pub namespace: String,
    pub job: String,
    pub attempt: u32,
    pub index: u32,
    pub pods: u32,
    /// Ranks of this pod.
    pub ranks: u32,
    /// URL of the broker.
    pub broker: String,
    pub token_file: PathBuf,
    /// Whom to believe to be the broker; none of them if it speaks plain HTTP.
    pub roots: Option<Roots>,
    pub node: String,
    pub pod_uid: String,
    /// Address of this pod for the others.
    pub address: String,
    /// Where the last failure is left for whoever asks the kubelet.
    pub termination_log: PathBuf,
    pub job_file: PathBuf,
    pub trainer: PathBuf,
    pub threads: u32,
    pub peer_timeout_seconds: u32,
    pub stall_multiplier: f64,
    pub startup: Duration,
    /// Variables of the job.
    pub env: RankEnv,
    /// A pod without trainers ends when it has not heard the broker for so long: its GPUs are of
    /// use to others. An operator is replaced sooner, and then a restart in place costs seconds.
    pub alone: Duration,
    /// The ways to other pods are tested before the first epoch.
    pub test_network: bool,
}

/// What the test before the start found.
#[derive(Clone, Debug)]
pub struct Refused {
    pub what: String,
    /// Ids of the checks.
    pub checks: Vec<String>,
    /// `Preflight` if the machine is to blame, else what a trainer would end with.
    pub exit: TrainerExit,
}

/// Takes every line of every rank: rank, epoch, text.
pub type Lines<'a> = &'a mut dyn FnMut(u32, u32, &str);

/// Why the supervisor could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to watch for signals")]
    Signals { source: io::Error },
    #[error("failed to speak HTTP to the broker")]
    Http { source: reqwest::Error },
    #[error("failed to start the thread that speaks to the broker")]
    Thread { source: io::Error },
    #[error("failed to start `{trainer}`")]
    Trainer { trainer: String, source: io::Error },
    #[error("no free port for the ranks to meet at")]
    Port { source: io::Error },
}

/// Runs the pod to its end and returns the code for the container.
pub fn run(
    pod: &Pod,
    test: impl FnOnce() -> Result<(), Refused>,
    lines: Lines<'_>,
) -> Result<u8, Error> {
    let leaving = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&leaving))
            .map_err(|source| Error::Signals { source })?;
    }
    let dialogue = Dialogue::start(pod, first_words(pod))?;
    let mut supervisor = Supervisor {
        pod,
        dialogue,
        leaving,
        reaper: Reaper::new(),
        ledger: Ledger::new(pod),
        epoch: 0,
        open: None,
    };
    if let Err(refused) = test() {
        return Ok(supervisor.refuse(refused));
    }
    if let Err(code) = supervisor.meet(lines) {
        return Ok(code);
    }
    supervisor.serve(lines)
}

fn first_words(pod: &Pod) -> SyncRequest {
    SyncRequest {
        v: 1,
        attempt: pod.attempt,
        index: pod.index,
        pod_uid: pod.pod_uid.clone(),
        node: pod.node.clone(),
        address: pod.address.clone(),
        port: 0,
        sequence: 0,
        phase: PodPhase::Preflight,
        last_epoch: 0,
        ready: false,
        leaving: false,
        slow_seconds: None,
        step: None,
        checkpoint_step: None,
        door: None,
        pairs: Vec::new(),
        notes: Vec::new(),
    }
}

/// What follows the trainers of an epoch.
enum Next {
    Join,
    Exit(u8),
}

struct Supervisor<'p> {
    pod: &'p Pod,
    dialogue: Dialogue,
    /// The pod was asked to end.
    leaving: Arc<AtomicBool>,
    reaper: Reaper,
    ledger: Ledger,
    epoch: u32,
    /// Until the first epoch.
    open: Option<OpenDoor>,
}

impl Supervisor<'_> {
    fn serve(&mut self, lines: Lines<'_>) -> Result<u8, Error> {
        loop {
            let meeting = match self.join()? {
                Ok(meeting) => meeting,
                Err(code) => return Ok(code),
            };
            let phase = self.train(meeting, lines)?;
            if let Some(code) = phase {
                return Ok(code);
            }
            match self.after_epoch() {
                Next::Join => {}
                Next::Exit(code) => return Ok(code),
            }
        }
    }

    fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    fn say(&self, phase: PodPhase) {
        self.dialogue.change(|request| {
            request.phase = phase;
            request.leaving = self.is_leaving();
            request.last_epoch = self.epoch;
            (request.ready, request.slow_seconds) = (false, None);
            // The last step of an epoch is worth knowing until the next one begins.
            if !matches!(request.phase, PodPhase::Ended { .. } | PodPhase::Done { .. }) {
                request.step = None;
            }
        });
    }

    /// Waits until the broker starts an epoch; an exit code if there will be none.
    fn join(&mut self) -> Result<Result<Meeting, u8>, Error> {
        let port = free_port().map_err(|source| Error::Port { source })?;
        self.dialogue.change(|request| request.port = port);
        self.say(PodPhase::Joining);
        let mut heard = Instant::now();
        loop {
            self.reaper.reap();
            if self.is_leaving() {
                self.say(PodPhase::Joining);
                return Ok(Err(self.farewell(TrainerExit::Preempted.code())));
            }
            if self.pod.alone <= heard.elapsed() {
                return Ok(Err(give_up(self.pod)));
            }
            match self.dialogue.answer() {
                Some(Answer::Reply(SyncReply::Start {
                    epoch,
                    master_address,
                    master_port,
                    token,
                })) => {
                    heard = Instant::now();
                    if self.epoch < epoch {
                        self.epoch = epoch;
                        self.close_door();
                        return Ok(Ok(Meeting {
                            address: master_address,
                            port: master_port,
                            token,
                        }));
                    }
                }
                Some(Answer::Reply(SyncReply::Exit { code, .. })) => return Ok(Err(code)),
                Some(Answer::Superseded) => return Ok(Err(TrainerExit::Transient.code())),
                Some(Answer::Reply(
                    SyncReply::Continue
                    | SyncReply::Meet { .. }
                    | SyncReply::Rejoin
                    | SyncReply::Stop,
                )) => heard = Instant::now(),
                None => {}
            }
            thread::sleep(TICK);
        }
    }

    /// Runs the trainers of an epoch; an exit code if the pod must end at once.
    fn train(&mut self, meeting: Meeting, lines: Lines<'_>) -> Result<Option<u8>, Error> {
        let epoch = self.epoch;
        self.say(PodPhase::Running { epoch });
        let plan = self.plan(meeting);
        let (pod, dialogue, leaving) = (self.pod, &self.dialogue, &self.leaving);
        let (ledger, reaper) = (&mut self.ledger, &self.reaper);
        ledger.begin(epoch);
        let mut pids = Vec::new();
        let mut wanted = Wanted::default();
        let ended = attempt::run(
            &plan,
            |news| {
                if let News::Spawned { pid, .. } = &news {
                    pids.push(*pid);
                    reaper.spare(&pids);
                }
                ledger.take(&news, |rank, text| {
                    say_line(rank, text);
                    lines(rank, epoch, text);
                });
                dialogue.change(|request| ledger.show(request));
            },
            || {
                reaper.reap();
                if leaving.load(Ordering::Relaxed) {
                    dialogue.change(|request| request.leaving = true);
                    wanted.at_least(Request::Stop);
                }
                wanted.hear(dialogue.answer().as_ref(), epoch);
                wanted.request
            },
        );
        self.reaper.spare(&[]);
        let trainer = || pod.trainer.display().to_string();
        ended.map_err(|source| Error::Trainer { trainer: trainer(), source })?;
        Ok(wanted.exit)
    }

    fn plan(&self, meeting: Meeting) -> Plan {
        Plan {
            trainer: self.pod.trainer.clone(),
            job: self.pod.job_file.clone(),
            world: self.pod.pods * self.pod.ranks,
            first: self.pod.index * self.pod.ranks,
            ranks: self.pod.ranks,
            meeting: Some(meeting),
            sweep_after: SWEEP_AFTER,
            attempt: self.epoch,
            threads: self.pod.threads,
            peer_timeout_seconds: self.pod.peer_timeout_seconds,
            stall_multiplier: self.pod.stall_multiplier,
            startup: self.pod.startup,
            env: self.pod.env.clone(),
        }
    }
}

/// A line for `kubectl logs`. If nobody reads it the training goes on.
fn say_line(rank: u32, text: &str) {
    let mut out = io::stdout().lock();
    let _written = writeln!(out, "[rank {rank}] {text}").and_then(|()| out.flush());
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind("0.0.0.0:0")?.local_addr()?.port())
}
