//! One attempt: all ranks as child processes, watched until the last of them has ended.

use std::{
    fs::File,
    io::{self, Read},
    net::TcpListener,
    path::Path,
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

pub use super::rank::{Meeting, Plan};
use super::{
    ladder::RankEnd,
    process,
    pulse::{Limits, Pulse, Silence, Verdict},
    rank::{RankProcess, Said},
};
use crate::wire::{Record, TrainerExit};

/// How often the ranks are looked at.
const TICK: Duration = Duration::from_millis(50);

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
    Slow(Silence),
    /// A rank that is about to be killed was stopped by a signal or a debugger.
    Stopped { rank: u32 },
    /// A rank has ended.
    Ended(RankEnd),
    /// The ranks were told to stop: to save first, or at once.
    Signalled(Request),
}

/// What the watcher is told by the outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    Nothing,
    /// Checkpoint and stop.
    Stop,
    /// Stop at once.
    Kill,
    /// The same, because a rank of another machine has ended: those of this one are victims.
    Sweep,
}

struct Attempt {
    first: u32,
    sweep_after: Duration,
    ranks: Vec<RankProcess>,
    receiver: Receiver<(u32, Said)>,
    pulse: Pulse,
    asked: Request,
    /// When the ranks that are left are killed.
    sweep: Option<Instant>,
    memory_kills: Option<u64>,
    ends: Vec<RankEnd>,
}

/// Runs an attempt to its end; returns how each rank ended, first to last. `news` is called for
/// everything that happens, `request` is asked many times a second.
pub fn run(
    plan: &Plan,
    mut news: impl FnMut(News),
    mut request: impl FnMut() -> Request,
) -> io::Result<Vec<RankEnd>> {
    let mut attempt = Attempt::start(plan, &mut news)?;
    while attempt.ends.len() < attempt.ranks.len() {
        attempt.listen(&mut news);
        attempt.pass_on(request(), &mut news);
        attempt.collect(&mut news)?;
        attempt.watch(&mut news);
    }
    Ok(attempt.ends)
}

impl Attempt {
    fn start(plan: &Plan, news: &mut impl FnMut(News)) -> io::Result<Self> {
        let (sender, receiver) = channel();
        let meeting = if let Some(meeting) = &plan.meeting {
            meeting.clone()
        } else {
            let address = "127.0.0.1".to_owned();
            Meeting { address, port: free_port()?, token: random_token()? }
        };
        let mut ranks = Vec::new();
        for rank in plan.first..plan.first + plan.ranks {
            let rank = RankProcess::start(plan, rank, &meeting, &sender)?;
            news(News::Spawned { rank: rank.rank, pid: rank.pid() });
            ranks.push(rank);
        }
        let limits = Limits { multiplier: plan.stall_multiplier, startup: plan.startup };
        Ok(Attempt {
            first: plan.first,
            sweep_after: plan.sweep_after,
            ranks,
            receiver,
            pulse: Pulse::new(limits, plan.ranks, Instant::now()),
            asked: Request::Nothing,
            sweep: None,
            memory_kills: process::memory_kills(),
            ends: Vec::new(),
        })
    }

    /// Takes what the ranks said, and waits one tick for it.
    fn listen(&mut self, news: &mut impl FnMut(News)) {
        let mut next = self.receiver.recv_timeout(TICK);
        loop {
            match next {
                Ok((rank, said)) => self.hear(rank, said, news),
                Err(RecvTimeoutError::Timeout) => return,
                Err(RecvTimeoutError::Disconnected) => {
                    thread::sleep(TICK);
                    return;
                }
            }
            next = self.receiver.recv_timeout(Duration::ZERO);
        }
    }

    /// `local` counts the ranks of this machine.
    fn hear(&mut self, local: u32, said: Said, news: &mut impl FnMut(News)) {
        if let Some(rank) = self.ranks.get_mut(local as usize) {
            rank.hear(&said);
        }
        match said {
            Said::Event(record) => {
                self.pulse.beat(local, &record.event, Instant::now());
                news(News::Event(record));
            }
            Said::Line(text) => news(News::Line { rank: self.first + local, text }),
            Said::Closed => {}
        }
    }

    fn pass_on(&mut self, wanted: Request, news: &mut impl FnMut(News)) {
        if wanted == self.asked {
            return;
        }
        self.asked = wanted;
        match wanted {
            Request::Nothing => return,
            Request::Stop => self.signal(Signal::SIGTERM),
            Request::Kill => self.signal(Signal::SIGKILL),
            Request::Sweep => self.sweep_up(None, news),
        }
        news(News::Signalled(wanted));
    }

    fn signal(&self, signal: Signal) {
        self.ranks.iter().for_each(|rank| rank.signal(signal));
    }

    /// Takes leave of ranks that have ended.
    fn collect(&mut self, news: &mut impl FnMut(News)) -> io::Result<()> {
        let now = Instant::now();
        for rank in &mut self.ranks {
            if rank.over || !rank.has_ended(now)? {
                continue;
            }
            rank.over = true;
            self.pulse.over(rank.rank - self.first);
            let before = self.memory_kills;
            let kills = process::memory_kills();
            let end = rank.end(before.zip(kills).map(|(before, now)| now.saturating_sub(before)));
            // On request ranks leave when they are done: one of them may still be saving.
            let wanted = self.asked != Request::Nothing && end.exit == Some(TrainerExit::Preempted);
            if end.exit != Some(TrainerExit::Success) && !wanted {
                self.sweep.get_or_insert(now + self.sweep_after);
            }
            self.ends.push(end.clone());
            news(News::Ended(end));
        }
        if self.sweep.is_some_and(|at| at <= now) {
            self.sweep_up(None, news);
        }
        Ok(())
    }

    /// Kills what is left.
    fn sweep_up(&mut self, stalled: Option<Silence>, news: &mut impl FnMut(News)) {
        for rank in self.ranks.iter_mut().filter(|rank| !rank.over) {
            if !rank.swept && process::is_stopped(rank.pid()) {
                news(News::Stopped { rank: rank.rank });
            }
            match stalled {
                Some(silence) if silence.rank == rank.rank => rank.stalled = stalled,
                Some(_) | None => rank.swept = rank.stalled.is_none(),
            }
            rank.signal(Signal::SIGKILL);
        }
    }

    fn watch(&mut self, news: &mut impl FnMut(News)) {
        // Ranks that are being killed are silent too, and the one to blame is known by then.
        if self.ranks.iter().any(|rank| rank.stalled.is_some()) {
            return;
        }
        let here = |silence: Silence| Silence { rank: self.first + silence.rank, ..silence };
        match self.pulse.judge(Instant::now()) {
            Verdict::Fine => {}
            Verdict::Slow(silence) => news(News::Slow(self.accuse(here(silence)))),
            Verdict::Stalled(silence) => {
                let silence = self.accuse(here(silence));
                self.sweep_up(Some(silence), news);
            }
        }
    }

    /// All ranks fall silent when one does; a process that was stopped is the one to blame.
    fn accuse(&self, silence: Silence) -> Silence {
        let stopped = self.ranks.iter().find(|rank| !rank.over && process::is_stopped(rank.pid()));
        Silence { rank: stopped.map_or(silence.rank, |rank| rank.rank), ..silence }
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
