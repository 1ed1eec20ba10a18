//! The largest job that fits into a GPU: samples at a time, and tokens of a sample.

use super::{MemoryPlan, RESERVE_PERCENT, official::CONTEXT_BYTES};

/// No plan looks beyond this many samples at a time, or tokens of one sample (the model's own
/// limit is 8192: `seq_length` of its configuration).
pub const MOST_SAMPLES: u64 = 1024;
/// See [`MOST_SAMPLES`].
pub const MOST_TOKENS: u64 = 8192;

/// What a GPU must have for a rank that needs `bytes` for its tensors: a CUDA context and a
/// reserve for fragmentation beside.
pub fn with_reserve(bytes: u64) -> u64 {
    let all = bytes.saturating_add(CONTEXT_BYTES);
    all.saturating_add(all / 100 * RESERVE_PERCENT)
}

/// The largest of `1..=most` whose plan fits into `usable` bytes; `None` if not even 1 does. A plan
/// must not shrink when its argument grows.
pub fn largest(usable: u64, most: u64, plan: impl Fn(u64) -> MemoryPlan) -> Option<u64> {
    let fits = |value: u64| with_reserve(plan(value).total()) <= usable;
    if most < 1 || !fits(1) {
        return None;
    }
    // `low` fits, `high` does not.
    let (mut low, mut high) = (1, most + 1);
    while 1 < high - low {
        let middle = low + (high - low) / 2;
        if fits(middle) { low = middle } else { high = middle }
    }
    Some(low)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::memory::Component;

    fn tokens(count: u64) -> MemoryPlan {
        let bytes = (10 << 30) + count * (2 << 20);
        MemoryPlan { components: vec![Component { name: "all", bytes, from: String::new() }] }
    }

    /// The last that fits, the first that does not, and both ends.
    #[test]
    fn the_largest_fits_and_one_more_does_not() {
        for usable in [12_u64 << 30, 16 << 30, 24 << 30] {
            let found = largest(usable, 100_000, tokens).unwrap();
            assert!(with_reserve(tokens(found).total()) <= usable);
            assert!(usable < with_reserve(tokens(found + 1).total()));
        }
        assert_eq!(largest(10 << 30, 100, tokens), None);
        assert_eq!(largest(80 << 30, 100, tokens), Some(100));
        assert_eq!(largest(80 << 30, 0, tokens), None);
    }
}
