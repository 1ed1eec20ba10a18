//! Lines of many ranks in the order of their times.
//!
//! Lines arrive in bursts, a rank's lines in order, the ranks at different delays. Each line waits
//! for a short while, and leaves in the order of the times that the pods gave them. The wait is
//! counted from the arrival, so that wrong clocks disturb the order but delay nothing.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    time::Duration,
};

/// Where a line stands among all: time in milliseconds, rank, number of the arrival.
type Place = (u64, u32, u64);

/// A window within which lines are put into order.
#[derive(Debug)]
pub struct Reorder<T> {
    window: Duration,
    arrived: u64,
    heap: BinaryHeap<Reverse<Place>>,
    waiting: BTreeMap<u64, (Duration, T)>,
}

impl<T> Reorder<T> {
    /// Lines wait so long.
    pub fn new(window: Duration) -> Self {
        Reorder { window, arrived: 0, heap: BinaryHeap::new(), waiting: BTreeMap::new() }
    }

    /// A line has arrived; `now` is any clock that only grows.
    pub fn push(&mut self, now: Duration, time_ms: u64, rank: u32, line: T) {
        self.heap.push(Reverse((time_ms, rank, self.arrived)));
        self.waiting.insert(self.arrived, (now, line));
        self.arrived += 1;
    }

    /// Lines that have waited long enough, with all that belong before them.
    pub fn ready(&mut self, now: Duration) -> Vec<T> {
        let mut lines = Vec::new();
        while let Some((_arrival, (since, _line))) = self.waiting.first_key_value() {
            if now < *since + self.window {
                break;
            }
            lines.extend(self.first());
        }
        lines
    }

    /// All lines that are left: nothing more will come.
    pub fn finish(&mut self) -> Vec<T> {
        std::iter::from_fn(|| self.first()).collect()
    }

    fn first(&mut self) -> Option<T> {
        let Reverse((_time, _rank, arrival)) = self.heap.pop()?;
        Some(self.waiting.remove(&arrival)?.1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WINDOW: Duration = Duration::from_millis(100);

    #[test]
    fn a_late_line_within_the_window_takes_its_place() {
        let mut reorder = Reorder::new(WINDOW);
        let at = Duration::from_millis;
        reorder.push(at(0), 20, 0, "b");
        reorder.push(at(50), 10, 1, "a");
        assert_eq!(reorder.ready(at(99)), Vec::<&str>::new());
        assert_eq!(reorder.ready(at(100)), ["a", "b"]);
        reorder.push(at(110), 5, 1, "too late, but not lost");
        assert_eq!(reorder.finish(), ["too late, but not lost"]);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_no_line_waits_beyond_the_window(
            lines in prop::collection::vec((0_u64..300, 0_u64..1000, 0_u32..4), 0..50)
        ) {
            let mut reorder = Reorder::new(WINDOW);
            let (mut now, mut out, mut arrivals) = (Duration::ZERO, Vec::new(), Vec::new());
            for (i, (pause, time, rank)) in lines.iter().enumerate() {
                now += Duration::from_millis(*pause);
                reorder.push(now, *time, *rank, i);
                arrivals.push(now);
                out.extend(reorder.ready(now));
                for (line, arrival) in arrivals.iter().enumerate() {
                    prop_assert!(out.contains(&line) || now < *arrival + WINDOW);
                }
            }
            out.extend(reorder.finish());
            out.sort_unstable();
            prop_assert_eq!(out, (0..lines.len()).collect::<Vec<_>>());
        }
    }
}
