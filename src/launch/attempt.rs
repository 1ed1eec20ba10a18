//! One attempt: all ranks as child processes, watched until the last of them has ended.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    net::TcpListener,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::ladder::RankEnd;
use crate::wire::{Event, Record, TrainerExit, env};

/// How long the others may take to notice that a rank has ended, before they are killed.
const SWEEP_AFTER: Duration = Duration::from_secs(10);
/// How often the ranks are looked at.
const TICK: Duration = Duration::from_millis(50);
/// No step counts as late before this.
const STALL_FLOOR: Duration = Duration::from_secs(30);
/// A step that takes this multiple of the median is worth a warning.
const STALL_WARNING: f64 = 3.0;

/// What to start.
#[derive(Clone, Debug)]
pub struct Plan {
    pub trainer: PathBuf,
    pub job: PathBuf,
    pub world: u32,
    pub attempt: u32,
    pub threads: u32,
    pub peer_timeout_seconds: u32,
    pub stall_multiplier: f64,
    pub startup: Duration,
}

/// What the watcher tells while an attempt runs.
#[derive(Debug)]
pub enum News {
    /// A rank is up, with its process id.
    Spawned { rank: u32, pid: u32 },
    /// A typed event of a rank.
    Event(Box<Record>),
    /// A line of a rank's log.
    Line { rank: u32, text: String },
    /// A step takes long.
    Slow { rank: u32, seconds: f64, median: f64 },
    /// A rank has ended.
    Ended(RankEnd),
}

/// What the watcher is told by the outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    Nothing,
    /// Checkpoint and stop.
    Stop,
    /// Stop at once.
    Kill,
}

enum Input {
    Event(u32, Box<Record>),
    Line(u32, String),
}

struct Running {
    rank: u32,
    child: Child,
    end: Option<RankEnd>,
    last: Option<Event>,
}

/// Runs an attempt to its end; returns how each rank ended, first to last. `news` is called for
/// everything that happens, `request` is asked many times a second.
pub fn run(
    plan: &Plan,
    mut news: impl FnMut(News),
    mut request: impl FnMut() -> Request,
) -> io::Result<Vec<RankEnd>> {
    let (sender, receiver) = channel();
    let mut ranks = spawn_all(plan, &sender, &mut news)?;
    drop(sender);
    let mut ends: Vec<RankEnd> = Vec::new();
    let mut pulse = Pulse::new(plan);
    let mut sweep: Option<Instant> = None;
    let mut asked = Request::Nothing;
    while ends.len() < ranks.len() {
        take(&receiver, TICK, &mut ranks, &mut pulse, &mut news);
        let wanted = request();
        if wanted != asked {
            asked = wanted;
            let signal = if wanted == Request::Kill { Signal::SIGKILL } else { Signal::SIGTERM };
            signal_all(&ranks, signal);
        }
        for running in &mut ranks {
            let ended = running.end.is_none().then(|| running.child.try_wait()).transpose()?;
            if let Some(Some(status)) = ended {
                // What the rank said last is still in the pipe.
                take_rest(&receiver, running, &mut pulse, &mut news);
                let end = end_of(
                    running,
                    status,
                    sweep.is_some_and(|at| at <= Instant::now()),
                    pulse.stalled == Some(running.rank),
                );
                if end.exit != Some(TrainerExit::Success) {
                    sweep.get_or_insert(Instant::now() + SWEEP_AFTER);
                }
                running.end = Some(end.clone());
                ends.push(end.clone());
                news(News::Ended(end));
            }
        }
        if sweep.is_some_and(|at| at <= Instant::now()) {
            signal_all(&ranks, Signal::SIGKILL);
        }
        if let Some(rank) = pulse.stalled_rank(&mut news) {
            signal_one(&ranks, rank, Signal::SIGKILL);
        }
    }
    Ok(ends)
}

fn spawn_all(
    plan: &Plan,
    sender: &Sender<Input>,
    news: &mut impl FnMut(News),
) -> io::Result<Vec<Running>> {
    let (port, token) = (free_port()?, random_token()?);
    let mut ranks: Vec<Running> = Vec::new();
    for rank in 0..plan.world {
        match spawn(plan, rank, port, &token, sender) {
            Ok(running) => {
                news(News::Spawned { rank, pid: running.child.id() });
                ranks.push(running);
            }
            Err(error) => {
                signal_all(&ranks, Signal::SIGKILL);
                return Err(error);
            }
        }
    }
    Ok(ranks)
}

fn spawn(
    plan: &Plan,
    rank: u32,
    port: u16,
    token: &str,
    sender: &Sender<Input>,
) -> io::Result<Running> {
    let mut child = Command::new(&plan.trainer)
        .arg("run")
        .arg("--job")
        .arg(&plan.job)
        .env(env::RANK, rank.to_string())
        .env(env::LOCAL_RANK, rank.to_string())
        .env(env::WORLD_SIZE, plan.world.to_string())
        .env(env::MASTER_ADDR, "127.0.0.1")
        .env(env::MASTER_PORT, port.to_string())
        .env(env::ATTEMPT, plan.attempt.to_string())
        .env(env::TOKEN, token)
        .env(env::PEER_TIMEOUT, plan.peer_timeout_seconds.to_string())
        .env(env::THREADS, plan.threads.to_string())
        .env("RAYON_NUM_THREADS", plan.threads.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A group of its own: Ctrl-C reaches the supervisor alone, which passes it on.
        .process_group(0)
        .spawn()?;
    let stdout = child.stdout.take().expect("stdout is piped");
    let stderr = child.stderr.take().expect("stderr is piped");
    let (events, lines) = (sender.clone(), sender.clone());
    thread::spawn(move || {
        forward(stdout, |text| match serde_json::from_str::<Record>(&text) {
            Ok(record) if record.v == Record::VERSION => {
                events.send(Input::Event(rank, Box::new(record))).is_ok()
            }
            Ok(_) | Err(_) => events.send(Input::Line(rank, text)).is_ok(),
        });
    });
    thread::spawn(move || forward(stderr, |text| lines.send(Input::Line(rank, text)).is_ok()));
    Ok(Running { rank, child, end: None, last: None })
}

/// Passes on every line, the last one too if it has no end; bytes that are no text are kept as
/// replacement characters.
fn forward(pipe: impl Read, mut each: impl FnMut(String) -> bool) {
    let mut reader = BufReader::new(pipe);
    let mut bytes = Vec::new();
    while reader.read_until(b'\n', &mut bytes).is_ok_and(|read| 0 < read) {
        let text = String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\r']).to_owned();
        if !each(text) {
            return;
        }
        bytes.clear();
    }
}

fn take(
    receiver: &Receiver<Input>,
    wait: Duration,
    ranks: &mut [Running],
    pulse: &mut Pulse,
    news: &mut impl FnMut(News),
) {
    let mut next = receiver.recv_timeout(wait);
    loop {
        match next {
            Ok(Input::Event(rank, record)) => {
                if let Some(running) = ranks.iter_mut().find(|running| running.rank == rank) {
                    running.last = Some(record.event.clone());
                }
                pulse.beat(rank, &record.event);
                news(News::Event(record));
            }
            Ok(Input::Line(rank, text)) => news(News::Line { rank, text }),
            Err(RecvTimeoutError::Timeout) => return,
            Err(RecvTimeoutError::Disconnected) => {
                thread::sleep(wait);
                return;
            }
        }
        next = receiver.recv_timeout(Duration::ZERO);
    }
}

/// Reads on until the pipes of an ended rank are silent.
fn take_rest(
    receiver: &Receiver<Input>,
    running: &mut Running,
    pulse: &mut Pulse,
    news: &mut impl FnMut(News),
) {
    take(receiver, Duration::from_millis(100), std::slice::from_mut(running), pulse, news);
}

fn end_of(running: &Running, status: ExitStatus, swept: bool, stalled: bool) -> RankEnd {
    let (mut message, mut hint, mut peer) = (None, None, None);
    if let Some(Event::Failed { message: said, hint: advice, peer: blamed, .. }) = &running.last {
        (message, hint, peer) = (Some(said.clone()), advice.clone(), *blamed);
    }
    RankEnd {
        rank: running.rank,
        exit: status.code().and_then(TrainerExit::from_code),
        signal: status.signal(),
        code: status.code(),
        swept,
        stalled,
        message,
        hint,
        peer,
    }
}

fn signal_all(ranks: &[Running], signal: Signal) {
    ranks.iter().for_each(|running| signal_running(running, signal));
}

fn signal_one(ranks: &[Running], rank: u32, signal: Signal) {
    ranks
        .iter()
        .filter(|running| running.rank == rank)
        .for_each(|running| signal_running(running, signal));
}

fn signal_running(running: &Running, signal: Signal) {
    if running.end.is_none()
        && let Ok(pid) = i32::try_from(running.child.id())
    {
        // The process may have ended in this moment; then there is nothing to signal.
        let _sent = kill(Pid::from_raw(pid), signal);
    }
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn random_token() -> io::Result<String> {
    let mut bytes = [0_u8; 16];
    File::open(Path::new("/dev/urandom"))?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Notices that steps stop coming.
struct Pulse {
    multiplier: f64,
    startup: Duration,
    seconds: Vec<f64>,
    /// By rank: when it last did something, and whether it is within the training loop.
    seen: Vec<(Instant, bool)>,
    warned: bool,
    stalled: Option<u32>,
}

impl Pulse {
    fn new(plan: &Plan) -> Self {
        Pulse {
            multiplier: plan.stall_multiplier,
            startup: plan.startup,
            seconds: Vec::new(),
            seen: vec![(Instant::now(), false); plan.world as usize],
            warned: false,
            stalled: None,
        }
    }

    fn beat(&mut self, rank: u32, event: &Event) {
        let in_loop = matches!(event, Event::Step(_));
        if let Some(seen) = self.seen.get_mut(rank as usize) {
            *seen = (Instant::now(), in_loop);
        }
        if let (0, Event::Step(step)) = (rank, event) {
            self.seconds.push(step.seconds);
            self.warned = false;
        }
    }

    fn median(&self) -> f64 {
        let mut recent = self.seconds[self.seconds.len().saturating_sub(51)..].to_vec();
        recent.sort_by(f64::total_cmp);
        recent.get(recent.len() / 2).copied().unwrap_or(0.0)
    }

    /// The rank that has been silent for longest, once that is too long. In the loop the limit
    /// follows the step time; loading, saving and measuring have the start-up limit.
    fn stalled_rank(&mut self, news: &mut impl FnMut(News)) -> Option<u32> {
        let (index, (last, in_loop)) =
            self.seen.iter().enumerate().min_by_key(|(_rank, (last, _in_loop))| *last)?;
        let (silent, median) = (last.elapsed(), self.median());
        let late = STALL_FLOOR.max(Duration::from_secs_f64(self.multiplier * median));
        let limit = if *in_loop { late } else { self.startup.max(late) };
        let rank = u32::try_from(index).unwrap_or(0);
        if limit <= silent && self.stalled.is_none() {
            self.stalled = Some(rank);
            return Some(rank);
        }
        let slow = *in_loop && STALL_WARNING * median + 1.0 < silent.as_secs_f64();
        if slow && !self.warned {
            self.warned = true;
            news(News::Slow { rank, seconds: silent.as_secs_f64(), median });
        }
        None
    }
}
