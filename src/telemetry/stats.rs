//! Confidence intervals of evaluation results.

use crate::wire::Interval;

/// Two-sided 95 % quantile of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;
/// Resamples of a bootstrap.
const RESAMPLES: u64 = 1000;

/// A share of `hits` in `trials` with Wilson's score interval (E. B. Wilson, 1927), which stays
/// inside 0..1 and is honest for shares near its ends.
pub fn proportion(hits: u64, trials: u64) -> Interval {
    if trials == 0 {
        return Interval { value: f64::NAN, low: 0.0, high: 1.0 };
    }
    let (n, p) = (trials as f64, hits as f64 / trials as f64);
    let centre = (p + Z * Z / (2.0 * n)) / (1.0 + Z * Z / n);
    let half = Z / (1.0 + Z * Z / n) * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    Interval { value: p, low: (centre - half).max(0.0), high: (centre + half).min(1.0) }
}

/// The mean of `values` with a percentile bootstrap interval; the same values give the same one.
pub fn mean(values: &[f64]) -> Interval {
    if values.is_empty() {
        return Interval { value: f64::NAN, low: f64::NAN, high: f64::NAN };
    }
    let n = values.len() as u64;
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|resample| {
            let draws = (0..n).map(|i| values[draw(resample, i, n)]);
            draws.sum::<f64>() / n as f64
        })
        .collect();
    means.sort_by(f64::total_cmp);
    let value = values.iter().sum::<f64>() / n as f64;
    Interval { value, low: means[24], high: means[974] }
}

/// The mean of `after − before` of the same samples, with its interval: a gain is real when zero
/// lies outside.
pub fn paired_difference(before: &[f64], after: &[f64]) -> Interval {
    let differences: Vec<f64> = after.iter().zip(before).map(|(a, b)| a - b).collect();
    mean(&differences)
}

/// A number below `n`: `SplitMix64` of (resample, i).
fn draw(resample: u64, i: u64, n: u64) -> usize {
    let mut x = (resample << 32 ^ i).wrapping_add(0x9e37_79b9_7f4a_7c15);
    for _round in 0..2 {
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
    }
    usize::try_from((u128::from(x) * u128::from(n)) >> 64).expect("below n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wilson_intervals_of_known_shares() {
        // 8 of 10: 0.490 to 0.943 (R: binom::binom.wilson).
        let interval = proportion(8, 10);
        assert!((interval.low - 0.490_162).abs() < 1e-5, "{interval:?}");
        assert!((interval.high - 0.943_318).abs() < 1e-5, "{interval:?}");
        assert_eq!(proportion(0, 10).low, 0.0);
        assert!((proportion(10, 10).high - 1.0).abs() < 1e-12);
    }

    #[test]
    fn bootstrap_covers_the_mean_and_is_repeatable() {
        let values: Vec<f64> = (0..100).map(|i| f64::from(i % 10)).collect();
        let interval = mean(&values);
        assert!((interval.value - 4.5).abs() < 1e-12);
        assert!(3.7 < interval.low && interval.low < 4.1, "{interval:?}");
        assert!(4.9 < interval.high && interval.high < 5.3, "{interval:?}");
        assert_eq!(mean(&values), interval);
    }

    #[test]
    fn a_constant_gain_has_no_width() {
        let gain = paired_difference(&[0.1, 0.2, 0.9], &[0.2, 0.3, 1.0]);
        assert!((gain.low - 0.1).abs() < 1e-9 && (gain.high - 0.1).abs() < 1e-9);
    }
}
