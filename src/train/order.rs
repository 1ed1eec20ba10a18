//! Which samples make which step: a function of (seed, epoch) only, never of rank or world.

use std::ops::Range;

use super::rng::Stream;

/// The endless stream of samples of a stage: epoch after epoch, each in its own order.
///
/// Steps cut the stream into batches of equal size, so a batch may span two epochs and no
/// rank ever has a short one.
#[derive(Clone, Debug)]
pub struct Order {
    seed: u64,
    samples: usize,
    /// Permutations of the epochs that the last batch touched.
    cached: Vec<(u64, Vec<usize>)>,
}

impl Order {
    /// An order over `samples` samples, at least one.
    pub fn new(seed: u64, samples: usize) -> Self {
        assert!(0 < samples, "a stage has at least one sample");
        Order { seed, samples, cached: Vec::new() }
    }

    /// Sample indices of the batch that begins at position `start` of the stream.
    pub fn batch(&mut self, start: u64, size: usize) -> Vec<usize> {
        let samples = self.samples as u64;
        let (first, last) = (start / samples, (start + size as u64 - 1) / samples);
        self.cached.retain(|(epoch, _order)| (first..=last).contains(epoch));
        (start..start + size as u64)
            .map(|position| {
                let within = usize::try_from(position % samples).expect("less than `samples`");
                self.epoch(position / samples)[within]
            })
            .collect()
    }

    fn epoch(&mut self, epoch: u64) -> &[usize] {
        let found = self.cached.iter().position(|(known, _order)| *known == epoch);
        let at = found.unwrap_or_else(|| {
            self.cached.push((epoch, permutation(self.seed, epoch, self.samples)));
            self.cached.len() - 1
        });
        &self.cached[at].1
    }
}

/// Fisher-Yates with random numbers that depend on (seed, epoch, position) alone.
fn permutation(seed: u64, epoch: u64, samples: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..samples).collect();
    let stream = Stream::new(seed).child(epoch);
    for i in (1..samples).rev() {
        order.swap(i, stream.below(i as u64, i + 1));
    }
    order
}

/// The units of `rank` when `units` units are dealt to `world` ranks in contiguous ranges.
pub fn units_of_rank(units: usize, rank: usize, world: usize) -> Range<usize> {
    units * rank / world..units * (rank + 1) / world
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_shows_every_sample_once_in_another_order() {
        let mut order = Order::new(7, 10);
        let first = order.batch(0, 10);
        let second = order.batch(10, 10);
        for epoch in [&first, &second] {
            let mut sorted = epoch.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..10).collect::<Vec<_>>());
        }
        assert_ne!(first, second);
        assert_ne!(first, Order::new(8, 10).batch(0, 10));
    }

    #[test]
    fn batches_do_not_depend_on_where_one_starts_to_read() {
        let mut all = Order::new(1, 7);
        let stream: Vec<usize> = (0..6).flat_map(|i| all.batch(i * 4, 4)).collect();
        assert_eq!(Order::new(1, 7).batch(8, 16), stream[8..24]);
        assert_eq!(Order::new(1, 7).batch(5, 1), stream[5..6]);
    }

    #[test]
    fn ranks_share_out_all_units() {
        for world in 1..6 {
            let all: Vec<usize> =
                (0..world).flat_map(|rank| units_of_rank(13, rank, world)).collect();
            assert_eq!(all, (0..13).collect::<Vec<_>>());
        }
    }
}
