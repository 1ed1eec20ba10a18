//! Functions of one f32 that a compiler can turn into vector code, and sums in a fixed order.
//!
//! No fused multiply-add is used, so that every machine gets the same bits.
#![expect(clippy::inline_always, reason = "only inlined code is compiled for the vector unit")]

/// Partial sums of a row.
const LANES: usize = 16;

/// eˣ to about one unit in the last place; x is cut to ±87.
///
/// x = n·ln 2 + r with |r| ≤ ½ ln 2, and eʳ is its Taylor series to r⁷.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Adding this number leaves the nearest whole number in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts; the first has few bits, so that its product with n is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 87.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    let mut series = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        series = series * r + coefficient;
    }
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0_f32.to_bits()));
    series * power
}

/// 1/(1 + e⁻ˣ).
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Φ(x) and φ(x) of the standard normal distribution; Φ to about 1e-7.
///
/// With t = 1/(1 + 0.4·|x|), the tail 1 − Φ(|x|) is φ(x) times a smooth function of t, here a
/// polynomial fitted by iterated least squares to `erfc` in f64 (largest error 8e-9).
#[inline(always)]
pub(super) fn normal(x: f32) -> (f32, f32) {
    const FIT: [f32; 7] = [
        -0.009_110_727,
        0.098_201_31,
        -0.333_814_32,
        0.418_673_75,
        -0.030_635_663,
        0.201_522_6,
        0.155_163_05,
    ];
    #[expect(clippy::excessive_precision, reason = "1/√(2π)")]
    const INV_SQRT_TAU: f32 = 0.398_942_28;
    let bell = exp(-0.5 * x * x);
    let t = 1.0 / (1.0 + 0.4 * x.abs());
    let mut fit = 0.0;
    for coefficient in FIT {
        fit = fit * t + coefficient;
    }
    let tail = fit * t * bell;
    let cdf = if x < 0.0 { tail } else { 1.0 - tail };
    (cdf, bell * INV_SQRT_TAU)
}

/// Σ f(a, b) over a row.
#[inline(always)]
pub(super) fn sum(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for i in 0..LANES {
            lanes[i] += f(a[i], b[i]);
        }
    }
    let mut total = halve(lanes);
    for (a, b) in a_rest.iter().zip(b_rest) {
        total += f(*a, *b);
    }
    total
}

/// Largest number of a row that is not empty.
#[inline(always)]
pub(super) fn max(row: &[f32]) -> f32 {
    let (chunks, rest) = row.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = if lanes[i] < chunk[i] { chunk[i] } else { lanes[i] };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |max, x| if max < *x { *x } else { max })
}

#[inline(always)]
fn halve(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while 0 < half {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_right_to_the_last_place_or_so() {
        for i in -8700..=8700 {
            #[expect(clippy::cast_possible_truncation, reason = "a test point")]
            let x = (f64::from(i) * 0.01) as f32;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error < 2e-7, "exp({x}) is off by {error:e}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(-1e9) < 1e-37 && exp(1e9).is_finite());
    }

    /// The exact form, not its tanh approximation: they differ by up to 4.7e-4 near 2.7.
    #[test]
    fn the_normal_distribution_is_exact() {
        // Φ(0.5), Φ(1), Φ(2), Φ(2.7) and Φ(4) from tables with ten digits.
        let table = [
            (0.0, 0.5),
            (0.5, 0.691_462_461_3),
            (1.0, 0.841_344_746_1),
            (2.0, 0.977_249_868_1),
            (2.7, 0.996_533_026_2),
            (4.0, 0.999_968_328_8),
        ];
        for (x, exact) in table {
            let (cdf, density) = normal(x);
            assert!((f64::from(cdf) - exact).abs() < 1.5e-7, "Φ({x}) = {cdf}");
            assert!((f64::from(normal(-x).0) - (1.0 - exact)).abs() < 1.5e-7);
            let phi = (-0.5 * f64::from(x).powi(2)).exp() / std::f64::consts::TAU.sqrt();
            assert!((f64::from(density) - phi).abs() < 1e-7);
        }
    }

    #[test]
    fn sums_and_maxima_see_every_place() {
        for n in [1, 15, 16, 17, 33, 100] {
            let row: Vec<f32> = (0..n).map(|i: u16| f32::from(i) - 5.0).collect();
            let expected: f32 = row.iter().sum();
            assert_eq!(sum(&row, &row, |a, _b| a), expected);
            assert_eq!(max(&row), row[row.len() - 1]);
            let falling: Vec<f32> = row.iter().map(|x| -x).collect();
            assert_eq!(max(&falling), 5.0);
        }
    }
}
