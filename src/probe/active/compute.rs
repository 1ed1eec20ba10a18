//! One matrix product on each processor, again and again: its bits must always be the same.
//!
//! Products and sums of IEEE 754 are exactly defined, and their order is fixed here, so every
//! processor must give the same bits, whatever its make. One that does not corrupts a training
//! without a word.

use std::{
    thread,
    time::{Duration, Instant},
};

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

use crate::{
    facts::{ComputeTest, CoreTest},
    probe::Progress,
};

/// What this test is called in evidence.
pub(super) const FROM: &str = "f32 matrix product on each processor";
/// Rows and columns.
const N: usize = 160;
/// Each processor multiplies for so long, and at least so often.
const TIME: Duration = Duration::from_millis(400);
const LEAST: u32 = 4;
/// CRC-32C of the product, little-endian, row by row; NumPy gives the same.
const EXPECTED: u32 = 0x9e97_8179;

/// CRC-32C that every processor must give.
pub const fn expected_product() -> u32 {
    EXPECTED
}

/// All processors at the same time: heat and load are part of the test.
pub(super) fn test(progress: &Progress) -> ComputeTest {
    let cpus = allowed();
    progress.begin(format!("products on {} processors", cpus.len()));
    let threads: Vec<_> = cpus.into_iter().map(|cpu| thread::spawn(move || core(cpu))).collect();
    let cores = threads.into_iter().filter_map(|thread| thread.join().ok()).collect();
    ComputeTest { expected: EXPECTED, cores }
}

/// Processors that this process may use.
pub(super) fn allowed() -> Vec<u32> {
    let all = 0..u32::try_from(CpuSet::count()).unwrap_or(0);
    let Ok(set) = sched_getaffinity(Pid::from_raw(0)) else { return vec![0] };
    all.filter(|cpu| set.is_set(*cpu as usize).unwrap_or(false)).collect()
}

/// Keeps the calling thread on one processor. Where that fails it runs anywhere: the bits are to
/// be the same all the same.
pub(super) fn pin(cpu: u32) {
    let mut set = CpuSet::new();
    if set.set(cpu as usize).is_ok() {
        let _pinned = sched_setaffinity(Pid::from_raw(0), &set);
    }
}

fn core(cpu: u32) -> CoreTest {
    pin(cpu);
    let (a, b) = (numbers(1), numbers(2));
    let mut c = vec![0.0; N * N];
    let mut test = CoreTest { cpu, runs: 0, wrong: Vec::new(), flops: 0.0 };
    let begin = Instant::now();
    while test.runs < LEAST || begin.elapsed() < TIME {
        let start = Instant::now();
        multiply(&a, &b, &mut c);
        let flops = 2.0 * (N * N * N) as f64 / start.elapsed().as_secs_f64();
        test.flops = test.flops.max(flops);
        test.runs += 1;
        let digest = digest(&c);
        if digest != EXPECTED {
            test.wrong.push(digest);
        }
    }
    test
}

/// `c = a b`. Each element is summed in the order of `k`, without fused operations: Rust never
/// makes `a * b + c` one rounding.
fn multiply(a: &[f32], b: &[f32], c: &mut [f32]) {
    c.fill(0.0);
    for (row_a, row_c) in a.chunks_exact(N).zip(c.chunks_exact_mut(N)) {
        for (x, row_b) in row_a.iter().zip(b.chunks_exact(N)) {
            for (sum, y) in row_c.iter_mut().zip(row_b) {
                *sum += x * y;
            }
        }
    }
}

/// Numbers between -1 and 1, always the same.
fn numbers(seed: u64) -> Vec<f32> {
    let number = |i: u64| (mix((seed << 32) | i) >> 40) as f32 / (1_u64 << 23) as f32 - 1.0;
    (0..(N * N) as u64).map(number).collect()
}

/// The generator splitmix64 as a function of its counter.
pub(super) fn mix(counter: u64) -> u64 {
    let mut z = counter.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn digest(c: &[f32]) -> u32 {
    c.iter().fold(0, |crc, x| crc32c::crc32c_append(crc, &x.to_le_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same sums in the same order, one element at a time and in no loop that a compiler could
    /// make wider.
    fn plain(a: &[f32], b: &[f32]) -> Vec<f32> {
        let element = |i: usize, j: usize| {
            (0..N).fold(0.0_f32, |sum, k| sum + std::hint::black_box(a[i * N + k] * b[k * N + j]))
        };
        (0..N * N).map(|at| element(at / N, at % N)).collect()
    }

    #[test]
    fn the_expected_bits_are_those_of_plain_arithmetic() {
        let (a, b) = (numbers(1), numbers(2));
        let mut c = vec![0.0; N * N];
        multiply(&a, &b, &mut c);
        let plain = plain(&a, &b);
        assert!(c.iter().zip(&plain).all(|(x, y)| x.to_bits() == y.to_bits()));
        assert_eq!(digest(&plain), EXPECTED);
        // One bit of one factor shows.
        let mut bent = a;
        bent[77] = f32::from_bits(bent[77].to_bits() ^ 1);
        multiply(&bent, &b, &mut c);
        assert_ne!(digest(&c), EXPECTED);
    }

    #[test]
    fn every_processor_of_this_machine_is_right() {
        let found = test(&Progress::default());
        assert_eq!(found.cores.len(), allowed().len());
        for core in &found.cores {
            assert!(LEAST <= core.runs && core.wrong.is_empty() && 0.0 < core.flops, "{core:?}");
        }
    }
}
