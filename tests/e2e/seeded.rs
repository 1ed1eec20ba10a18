//! Ranks that fail as a seed says: which one, how, and when. Whoever failed first is blamed, and
//! the weights are those of an undisturbed run.
//!
//!     QVL_SEED=7 cargo test --release --test e2e -- seeds      # one seed again
//!     QVL_SOAK=1 cargo test --release --test e2e -- seeds      # many

use std::{env, fmt, io::Write as _, thread, time::Duration};

use nix::sys::signal::{Signal, kill};
use qvl_cluster::testing::mix;
use serde_json::json;

use crate::{
    Test,
    job::{Job, Launch},
    lab::{Lab, within},
    ranks::LAUNCH,
};

pub(crate) const TESTS: &[Test] = &[("seeds_choose_the_faults_and_their_ranks_are_blamed", seeds)];

/// Seeds in `make test`, and in `make soak`.
const FEW: u64 = 1;
const MANY: u64 = 20;
/// Ranks of the job.
const RANKS: u32 = 4;
/// The watchdog's floor of 30 s, and what a loaded machine adds.
const REPORT: Duration = Duration::from_secs(90);
/// Signals that end a rank as a crash does. Of SIGSEGV the Rust runtime swallows the first.
const CRASHES: [Signal; 3] = [Signal::SIGKILL, Signal::SIGABRT, Signal::SIGILL];

fn seeds(lab: &Lab) {
    let given = env::var("QVL_SEED").ok().map(|seed| seed.parse::<u64>().unwrap());
    let is_soak = env::var("QVL_SOAK").is_ok_and(|value| value == "1");
    let count = if is_soak { MANY } else { FEW };
    let seeds = given.map_or(1..=count, |seed| seed..=seed);
    for seed in seeds {
        one(lab, seed);
        lab.clean();
    }
}

/// What happens to a rank.
#[derive(Clone, Copy)]
enum Fault {
    Crash {
        rank: u32,
        signal: Signal,
    },
    Stop {
        rank: u32,
    },
    /// Two ranks die so shortly one after the other that the second one has hardly noticed.
    Pair {
        first: u32,
        second: u32,
        gap: Duration,
    },
}

impl Fault {
    /// Stops are for the first epoch: a rank that loads its model may be silent for much longer.
    fn draw(dice: &mut Dice, may_stop: bool) -> Fault {
        let rank = dice.below(RANKS);
        let signal = *dice.choose(&CRASHES);
        match dice.below(if may_stop { 4 } else { 3 }) {
            0 | 1 => Fault::Crash { rank, signal },
            2 => {
                let second = (rank + 1 + dice.below(RANKS - 1)) % RANKS;
                let gap = Duration::from_millis(u64::from(20 + dice.below(80)));
                Fault::Pair { first: rank, second, gap }
            }
            _ => Fault::Stop { rank },
        }
    }

    fn culprit(self) -> u32 {
        match self {
            Fault::Crash { rank, .. } | Fault::Stop { rank } | Fault::Pair { first: rank, .. } => {
                rank
            }
        }
    }

    fn happen(self, job: &Launch<'_>) {
        match self {
            Fault::Crash { rank, signal } => kill(job.rank(rank), signal).unwrap(),
            Fault::Stop { rank } => kill(job.rank(rank), Signal::SIGSTOP).unwrap(),
            Fault::Pair { first, second, gap } => {
                let (first, second) = (job.rank(first), job.rank(second));
                kill(first, Signal::SIGKILL).unwrap();
                thread::sleep(gap);
                // It may have ended as a victim already.
                let _gone = kill(second, Signal::SIGKILL);
            }
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Crash { rank, signal } => write!(out, "rank {rank} gets {signal}"),
            Fault::Stop { rank } => write!(out, "rank {rank} is stopped"),
            Fault::Pair { first, second, gap } => {
                write!(out, "rank {first} is killed and rank {second} {} ms later", gap.as_millis())
            }
        }
    }
}

fn one(lab: &Lab, seed: u64) {
    let mut dice = Dice(seed);
    let name = format!("seed-{seed}");
    let job = Job::digits(&name).with("failure", json!({"maxRestarts": 5}));
    let mut job = job.launch(lab, LAUNCH);
    for (epoch, begin) in [(1, 8), (2, 25)] {
        let fault = Fault::draw(&mut dice, epoch == 1);
        job.wait_for_step(begin + u64::from(dice.below(8)));
        std::io::stderr().write_all(format!("seed {seed}: {fault}\n").as_bytes()).unwrap();
        fault.happen(&job);
        let failure = within(REPORT, "the failure is reported", || {
            let failure = job.field("/status/lastFailure");
            (failure["epoch"] == epoch).then_some(failure)
        });
        let culprit = fault.culprit();
        assert_eq!(failure["rank"], culprit, "seed {seed}: {fault}: {failure}");
        let node = job.pod(culprit / 2).1;
        assert_eq!(failure["node"], node.as_str(), "seed {seed}: {fault}: {failure}");
    }
    job.assert_undisturbed();
}

/// Numbers that a seed chooses.
struct Dice(u64);

impl Dice {
    fn choose<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(u32::try_from(items.len()).unwrap()) as usize]
    }

    fn below(&mut self, limit: u32) -> u32 {
        self.0 = mix(self.0);
        u32::try_from(self.0 % u64::from(limit)).unwrap()
    }
}
