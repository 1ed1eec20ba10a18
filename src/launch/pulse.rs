//! Notices that steps stop coming. Time is an argument.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::wire::Event;

/// No step counts as late before this.
const FLOOR: Duration = Duration::from_secs(30);
/// A step that takes this multiple of the median is worth a warning.
const WARN_AT: f64 = 3.0;
/// A warning is not worth it before this.
const WARN_FLOOR: f64 = 2.0;
/// Step times that the median is taken of.
const WINDOW: usize = 51;

/// How long is too long.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Multiple of the median step time.
    pub multiplier: f64,
    /// For loading and the first step.
    pub startup: Duration,
}

/// What the watch says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    Fine,
    /// A step takes long; said once a step.
    Slow(Silence),
    /// It takes too long.
    Stalled(Silence),
}

/// A silence, in seconds, and the rank that is to blame by all that is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Silence {
    pub rank: u32,
    pub seconds: f64,
    pub median: f64,
    pub limit: f64,
}

#[derive(Clone, Copy, Debug)]
struct Beat {
    last: Instant,
    /// Within the training loop: a step comes next.
    in_loop: bool,
    /// How far it is.
    progress: Progress,
    over: bool,
}

/// What all ranks go through in the same order, so that the one that is behind can be told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Progress {
    step: u64,
    milestone: u8,
}

impl Progress {
    fn after(self, event: &Event) -> Self {
        let reached = |milestone| Progress { milestone: self.milestone.max(milestone), ..self };
        match event {
            Event::Started { .. } => reached(1),
            Event::Phase { name } => match name.as_str() {
                "load-model" => reached(2),
                "load-data" => reached(4),
                "rendezvous" => reached(5),
                _ => self,
            },
            Event::ModelLoaded { .. } => reached(3),
            Event::Ready { .. } => reached(6),
            Event::Step(step) => Progress { step: step.step, ..reached(7) },
            Event::Finished { .. } => reached(8),
            // Only some ranks say these.
            Event::Evaluated { .. }
            | Event::CheckpointSaved { .. }
            | Event::Exported { .. }
            | Event::Warning { .. }
            | Event::Failed { .. } => self,
        }
    }
}

/// The last sign of life of each rank, and the usual time of a step.
#[derive(Debug)]
pub struct Pulse {
    limits: Limits,
    recent: VecDeque<f64>,
    ranks: Vec<Beat>,
    warned: bool,
}

impl Pulse {
    /// A watch over `world` ranks that start now.
    pub fn new(limits: Limits, world: u32, now: Instant) -> Self {
        let beat = Beat { last: now, in_loop: false, progress: Progress::default(), over: false };
        Pulse { limits, recent: VecDeque::new(), ranks: vec![beat; world as usize], warned: false }
    }

    /// Takes an event as a sign of life.
    pub fn beat(&mut self, rank: u32, event: &Event, now: Instant) {
        let in_loop = match event {
            Event::Step(_) => true,
            // Measured or saved: what comes next is a step.
            Event::Phase { name } => name == "train",
            Event::Started { .. }
            | Event::ModelLoaded { .. }
            | Event::Ready { .. }
            | Event::Evaluated { .. }
            | Event::CheckpointSaved { .. }
            | Event::Exported { .. }
            | Event::Warning { .. }
            | Event::Failed { .. }
            | Event::Finished { .. } => false,
        };
        if let Some(beat) = self.ranks.get_mut(rank as usize) {
            let progress = beat.progress.after(event);
            *beat = Beat { last: now, in_loop, progress, over: beat.over };
        }
        if let (0, Event::Step(step)) = (rank, event) {
            self.recent.push_back(step.seconds);
            if WINDOW < self.recent.len() {
                self.recent.pop_front();
            }
            self.warned = false;
        }
    }

    /// A rank that has ended is not missed.
    pub fn over(&mut self, rank: u32) {
        if let Some(beat) = self.ranks.get_mut(rank as usize) {
            beat.over = true;
        }
    }

    fn median(&self) -> f64 {
        let mut sorted: Vec<f64> = self.recent.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
    }

    /// Judges by the rank that has been silent for longest, and suspects the one that is behind
    /// the others: they wait for it. Within the loop the limit follows the step time; before the
    /// first step it is the start-up time, and measuring and saving may take the longer of both.
    pub fn judge(&mut self, now: Instant) -> Verdict {
        let running = || self.ranks.iter().enumerate().filter(|(_rank, beat)| !beat.over);
        let behind = running().min_by_key(|(_rank, beat)| (beat.progress, beat.last));
        let silent = running().min_by_key(|(_rank, beat)| beat.last);
        let (Some((index, _behind)), Some((_rank, beat))) = (behind, silent) else {
            return Verdict::Fine;
        };
        let median = self.median();
        let late = FLOOR.as_secs_f64().max(self.limits.multiplier * median);
        let startup = self.limits.startup.as_secs_f64();
        let limit = match (beat.in_loop, self.recent.is_empty()) {
            (_, true) => startup,
            (true, false) => late,
            (false, false) => startup.max(late),
        };
        let seconds = now.saturating_duration_since(beat.last).as_secs_f64();
        let rank = u32::try_from(index).unwrap_or(u32::MAX);
        let silence = Silence { rank, seconds, median, limit };
        if limit <= seconds {
            return Verdict::Stalled(silence);
        }
        let usual_is_known = !self.recent.is_empty();
        if beat.in_loop
            && usual_is_known
            && !self.warned
            && WARN_FLOOR.max(WARN_AT * median) < seconds
        {
            self.warned = true;
            return Verdict::Slow(silence);
        }
        Verdict::Fine
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::wire::StepMetrics;

    fn step(seconds: f64) -> Event {
        Event::Step(StepMetrics {
            step: 1,
            total_steps: 9,
            epoch: 0.0,
            stage: "a".to_owned(),
            loss: 1.0,
            tasks: BTreeMap::new(),
            learning_rate: 0.0,
            grad_norm: 0.0,
            samples: 1,
            tokens: 1,
            seconds,
            reduce_seconds: 0.0,
        })
    }

    fn pulse(now: Instant) -> Pulse {
        let limits = Limits { multiplier: 10.0, startup: Duration::from_secs(100) };
        Pulse::new(limits, 2, now)
    }

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn loading_and_the_first_step_have_the_startup_time() {
        let start = Instant::now();
        let mut pulse = pulse(start);
        pulse.beat(0, &Event::Phase { name: "train".to_owned() }, start);
        assert_eq!(pulse.judge(at(start, 99)), Verdict::Fine);
        assert!(matches!(pulse.judge(at(start, 100)), Verdict::Stalled(_)));
    }

    #[test]
    fn a_slow_step_warns_once_at_three_times_the_median_and_stalls_at_ten() {
        let start = Instant::now();
        let mut pulse = pulse(start);
        for rank in [0, 1] {
            (0..5).for_each(|_| pulse.beat(rank, &step(4.0), start));
        }
        assert_eq!(pulse.judge(at(start, 12)), Verdict::Fine);
        let slow = Silence { rank: 0, seconds: 13.0, median: 4.0, limit: 40.0 };
        assert_eq!(pulse.judge(at(start, 13)), Verdict::Slow(slow));
        assert_eq!(pulse.judge(at(start, 14)), Verdict::Fine);
        pulse.beat(0, &step(14.0), at(start, 14));
        assert_eq!(
            pulse.judge(at(start, 39)),
            Verdict::Slow(Silence { rank: 1, seconds: 39.0, ..slow })
        );
        assert_eq!(
            pulse.judge(at(start, 40)),
            Verdict::Stalled(Silence { rank: 1, seconds: 40.0, ..slow })
        );
    }

    #[test]
    fn short_steps_have_a_floor_of_thirty_seconds() {
        let start = Instant::now();
        let mut pulse = pulse(start);
        [0, 1].into_iter().for_each(|rank| pulse.beat(rank, &step(0.01), start));
        assert!(matches!(pulse.judge(at(start, 29)), Verdict::Slow(_)));
        assert!(matches!(pulse.judge(at(start, 30)), Verdict::Stalled(_)));
    }

    #[test]
    fn saving_may_take_longer_than_a_step_and_ended_ranks_are_not_missed() {
        let start = Instant::now();
        let mut pulse = pulse(start);
        [0, 1].into_iter().for_each(|rank| pulse.beat(rank, &step(0.01), start));
        let phase = |name: &str| Event::Phase { name: name.to_owned() };
        pulse.beat(0, &phase("save"), start);
        pulse.over(1);
        assert_eq!(pulse.judge(at(start, 99)), Verdict::Fine);
        pulse.beat(0, &phase("train"), at(start, 99));
        assert!(matches!(pulse.judge(at(start, 129)), Verdict::Stalled(_)));
        pulse.over(0);
        assert_eq!(pulse.judge(at(start, 1000)), Verdict::Fine);
    }

    #[test]
    fn the_rank_that_is_behind_is_suspected_not_the_one_that_waits_for_it() {
        let start = Instant::now();
        let mut pulse = pulse(start);
        let phase = |name: &str| Event::Phase { name: name.to_owned() };
        for name in ["load-model", "load-data", "rendezvous"] {
            pulse.beat(0, &phase(name), start);
        }
        // Rank 1 began later and has been silent for less.
        pulse.beat(1, &phase("load-model"), at(start, 1));
        let Verdict::Stalled(silence) = pulse.judge(at(start, 100)) else { panic!("not stalled") };
        assert_eq!((silence.rank, silence.seconds), (1, 100.0));
    }
}
