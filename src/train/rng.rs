//! Random numbers as a pure function of a key: `SplitMix64` applied to a counter (Steele, Lea,
//! Flood: Fast splittable pseudorandom number generators, 2014).
//!
//! candle's CPU generator cannot be seeded. Here recompute, resume and another number of ranks
//! see the same numbers, because nothing depends on how many were drawn before.

use sha2::{Digest, Sha256};

/// A stream of random numbers addressed by index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream(u64);

impl Stream {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        Stream(mix(seed))
    }

    /// A stream of its own for `key`.
    #[must_use]
    pub fn child(self, key: u64) -> Self {
        Stream(mix(self.0 ^ mix(key)))
    }

    /// A stream of its own for a name.
    #[must_use]
    pub fn named(self, name: &str) -> Self {
        let digest = Sha256::digest(name.as_bytes());
        let head: [u8; 8] = digest[..8].try_into().expect("a digest has 32 bytes");
        self.child(u64::from_le_bytes(head))
    }

    /// 64 random bits at `index`.
    pub fn bits(self, index: u64) -> u64 {
        mix(self.0.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    /// Uniform in `[0, 1)` at `index`, with 53 random bits.
    pub fn uniform(self, index: u64) -> f64 {
        (self.bits(index) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Uniform in `0..bound`, by multiply and shift.
    pub fn below(self, index: u64, bound: usize) -> usize {
        let product = u128::from(self.bits(index)) * bound as u128;
        usize::try_from(product >> 64).expect("less than `bound`")
    }

    /// Standard normal at `index` (Box and Muller).
    pub fn normal(self, index: u64) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform(2 * index)).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform(2 * index + 1)).cos()
    }
}

fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_look_uniform_and_normal() {
        let stream = Stream::new(1).named("x");
        let n = 20_000;
        let mean = (0..n).map(|i| stream.uniform(i)).sum::<f64>() / n as f64;
        let square = (0..n).map(|i| stream.normal(i).powi(2)).sum::<f64>() / n as f64;
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
        assert!((square - 1.0).abs() < 0.03, "{square}");
        assert!((0..n).all(|i| stream.below(i, 7) < 7));
    }

    #[test]
    fn streams_differ_by_seed_key_and_name() {
        let stream = Stream::new(1);
        let others = [Stream::new(2), stream.child(0), stream.child(1), stream.named("a")];
        for (i, a) in others.iter().enumerate() {
            assert_ne!(a.bits(0), stream.bits(0));
            assert!(others[i + 1..].iter().all(|b| b.bits(0) != a.bits(0)));
        }
    }
}
