//! One rank as a child process: its start, its pipes, and its certain end.

use std::{
    fmt,
    io::{self, BufRead, BufReader, Read},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::Sender,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use super::{ladder::RankEnd, pulse::Silence};
use crate::{
    job::RankEnv,
    wire::{Event, Record, TrainerExit, env},
};

/// How long the pipes of an ended rank are read on: a grandchild may hold them open for ever.
const DRAIN: Duration = Duration::from_millis(500);

/// What to start.
#[derive(Clone, Debug)]
pub struct Plan {
    pub trainer: PathBuf,
    pub job: PathBuf,
    /// Ranks of the whole job.
    pub world: u32,
    /// First rank of this machine, and how many it has.
    pub first: u32,
    pub ranks: u32,
    /// Where the ranks meet; `None` if all of them are here and any free port will do.
    pub meeting: Option<Meeting>,
    /// How long the others may take to notice that a rank has failed, before they are killed.
    pub sweep_after: Duration,
    pub attempt: u32,
    pub threads: u32,
    pub peer_timeout_seconds: u32,
    pub stall_multiplier: f64,
    pub startup: Duration,
    /// Variables of the job. What the launcher sets itself stands above them.
    pub env: RankEnv,
}

/// Where the ranks of one attempt meet.
#[derive(Clone, PartialEq, Eq)]
pub struct Meeting {
    /// Address of the machine that runs rank 0.
    pub address: String,
    pub port: u16,
    /// What the ranks show each other.
    pub token: String,
}

impl fmt::Debug for Meeting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.address, self.port)
    }
}

/// What comes out of the pipes of a rank.
#[derive(Debug)]
pub(super) enum Said {
    Event(Box<Record>),
    Line(String),
    /// A pipe is closed.
    Closed,
}

/// A rank that was started.
#[derive(Debug)]
pub(super) struct RankProcess {
    pub rank: u32,
    child: Child,
    /// Pipes that are still open.
    open: u8,
    /// Its last event of the kind `failed`.
    failed: Option<Event>,
    exited: Option<(ExitStatus, Instant)>,
    /// It was killed because it, or another rank, made no step.
    pub stalled: Option<Silence>,
    /// It was killed because another rank had ended.
    pub swept: bool,
    /// Whether its end was told.
    pub over: bool,
}

impl RankProcess {
    /// Starts the process in a group of its own: Ctrl-C reaches the supervisor alone, which
    /// passes it on.
    pub(super) fn start(
        plan: &Plan,
        rank: u32,
        meeting: &Meeting,
        sender: &Sender<(u32, Said)>,
    ) -> io::Result<Self> {
        let mut command = Command::new(&plan.trainer);
        plan.env.unset.iter().for_each(|name| {
            command.env_remove(name);
        });
        let mut child = command
            .envs(&plan.env.set)
            .arg("run")
            .arg("--job")
            .arg(&plan.job)
            .env(env::RANK, rank.to_string())
            .env(env::LOCAL_RANK, (rank - plan.first).to_string())
            .env(env::WORLD_SIZE, plan.world.to_string())
            .env(env::MASTER_ADDR, &meeting.address)
            .env(env::MASTER_PORT, meeting.port.to_string())
            .env(env::ATTEMPT, plan.attempt.to_string())
            .env(env::TOKEN, &meeting.token)
            .env(env::PEER_TIMEOUT, plan.peer_timeout_seconds.to_string())
            .env(env::THREADS, plan.threads.to_string())
            .env("RAYON_NUM_THREADS", plan.threads.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let stdout = child.stdout.take().expect("stdout is piped");
        let stderr = child.stderr.take().expect("stderr is piped");
        let local = rank - plan.first;
        follow(local, stdout, sender.clone(), event_or_line);
        follow(local, stderr, sender.clone(), Said::Line);
        Ok(RankProcess {
            rank,
            child,
            open: 2,
            failed: None,
            exited: None,
            stalled: None,
            swept: false,
            over: false,
        })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Keeps what its end will be explained by.
    pub(super) fn hear(&mut self, said: &Said) {
        match said {
            Said::Event(record) if matches!(record.event, Event::Failed { .. }) => {
                self.failed = Some(record.event.clone());
            }
            Said::Event(_) | Said::Line(_) => {}
            Said::Closed => self.open = self.open.saturating_sub(1),
        }
    }

    /// Whether it has ended and all that it said is known.
    pub(super) fn has_ended(&mut self, now: Instant) -> io::Result<bool> {
        if self.exited.is_none() {
            self.exited = self.child.try_wait()?.map(|status| (status, now));
        }
        let silent = |at: Instant| self.open == 0 || DRAIN <= now.saturating_duration_since(at);
        Ok(self.exited.is_some_and(|(_status, at)| silent(at)))
    }

    /// Signals the process and its own children. It may have ended in this moment; then there
    /// is nothing to signal.
    pub(super) fn signal(&self, signal: Signal) {
        if self.exited.is_none()
            && let Ok(pid) = i32::try_from(self.child.id())
        {
            let _sent = killpg(Pid::from_raw(pid), signal);
        }
    }

    /// How it ended. `memory_kills` is how many processes the kernel killed for want of memory
    /// while the attempt ran.
    pub(super) fn end(&self, memory_kills: Option<u64>) -> RankEnd {
        let (mut message, mut hint, mut peer) = (None, None, None);
        if let Some(Event::Failed { message: said, hint: advice, peer: blamed, .. }) = &self.failed
        {
            (message, hint, peer) = (Some(said.clone()), advice.clone(), *blamed);
        }
        let status = self.exited.map(|(status, _at)| status);
        let code = status.and_then(|status| status.code());
        RankEnd {
            rank: self.rank,
            exit: code.and_then(TrainerExit::from_code),
            signal: status.and_then(|status| status.signal()),
            code,
            swept: self.swept,
            stalled: self.stalled,
            memory_kills,
            message,
            hint,
            peer,
        }
    }
}

/// No way out of the supervisor leaves a rank behind.
impl Drop for RankProcess {
    fn drop(&mut self) {
        if self.exited.is_none() {
            self.signal(Signal::SIGKILL);
            let _reaped = self.child.wait();
        }
    }
}

fn event_or_line(text: String) -> Said {
    match serde_json::from_str::<Record>(&text) {
        Ok(record) if record.v == Record::VERSION => Said::Event(Box::new(record)),
        Ok(_) | Err(_) => Said::Line(text),
    }
}

/// Passes on every line, the last one too if it has no end; bytes that are no text are kept as
/// replacement characters.
fn follow(
    rank: u32,
    pipe: impl Read + Send + 'static,
    sender: Sender<(u32, Said)>,
    said: impl Fn(String) -> Said + Send + 'static,
) {
    thread::spawn(move || {
        let mut reader = BufReader::new(pipe);
        let mut bytes = Vec::new();
        while reader.read_until(b'\n', &mut bytes).is_ok_and(|read| 0 < read) {
            let text = String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\r']).to_owned();
            if sender.send((rank, said(text))).is_err() {
                return;
            }
            bytes.clear();
        }
        // The supervisor may be gone already; nobody waits for this then.
        let _told = sender.send((rank, Said::Closed));
    });
}
