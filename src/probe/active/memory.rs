//! Bandwidth of the host's memory: a triad as in STREAM, on each NUMA node alone.

use std::{
    collections::BTreeSet,
    fs,
    sync::{Arc, Barrier},
    thread,
    time::{Duration, Instant},
};

use super::compute::{allowed, pin};
use crate::{
    facts::{MemoryTest, NumaBandwidth},
    probe::{Options, Progress, host, ranges},
};

/// What this test is called in evidence.
pub(super) const FROM: &str = "triad a = b + s c, as in STREAM";
/// STREAM's rule: each array is at least so many times as large as all caches together.
const CACHES: u64 = 4;
/// One array, at least and at most.
const LEAST: u64 = 64 << 20;
const MOST: u64 = 1 << 30;
/// The three arrays may take this part of the memory that is free.
const SHARE: u64 = 8;
/// A node is measured for so long, and at least so often; the first time fills the pages.
const TIME: Duration = Duration::from_millis(400);
const RUNS: u32 = 3;

/// Measures one node after another.
pub(super) fn test(progress: &Progress) -> MemoryTest {
    let nodes = nodes();
    let measured =
        nodes.into_iter().filter(|(_node, cpus)| !cpus.is_empty()).map(|(node, cpus)| {
            progress.begin(format!("triad on NUMA node {node} with {} threads", cpus.len()));
            bandwidth(node, &cpus)
        });
    MemoryTest { nodes: measured.collect() }
}

/// NUMA nodes with the processors of theirs that this process may use.
fn nodes() -> Vec<(u32, Vec<u32>)> {
    let allowed = allowed();
    let read = |path: &str| fs::read_to_string(path).ok().and_then(|text| ranges::parse(&text));
    let Some(online) = read("/sys/devices/system/node/online") else { return vec![(0, allowed)] };
    let nodes: Vec<(u32, Vec<u32>)> = online
        .into_iter()
        .flat_map(|(first, last)| first..=last)
        .filter_map(|node| {
            let cpus = read(&format!("/sys/devices/system/node/node{node}/cpulist"))?;
            let has = |cpu: &&u32| cpus.iter().any(|(a, b)| (a..=b).contains(cpu));
            Some((node, allowed.iter().filter(has).copied().collect()))
        })
        .collect();
    if nodes.iter().all(|(_node, cpus)| cpus.is_empty()) { vec![(0, allowed)] } else { nodes }
}

fn bandwidth(node: u32, cpus: &[u32]) -> NumaBandwidth {
    let array = (CACHES * caches(cpus)).clamp(LEAST, MOST).min(free() / SHARE / 3).max(1 << 20);
    let each = usize::try_from(array / 8).unwrap_or(0) / cpus.len();
    let barrier = Arc::new(Barrier::new(cpus.len()));
    let threads: Vec<_> = cpus
        .iter()
        .map(|cpu| {
            let (cpu, barrier) = (*cpu, Arc::clone(&barrier));
            thread::spawn(move || measure(cpu, each, &barrier))
        })
        .collect();
    let times = threads.into_iter().filter_map(|thread| thread.join().ok());
    // All begin and end each run together, so any of them has the time of it.
    let best = times.fold(f64::INFINITY, f64::min);
    let bytes = 3 * 8 * each * cpus.len();
    let threads = u32::try_from(cpus.len()).unwrap_or(u32::MAX);
    NumaBandwidth {
        node,
        threads,
        bytes: bytes as u64,
        bytes_per_second: if best.is_finite() && 0.0 < best { bytes as f64 / best } else { 0.0 },
    }
}

/// Seconds of the fastest run, as this thread saw it. Each thread touches its pages first, so they
/// lie in the memory of its node.
fn measure(cpu: u32, length: usize, barrier: &Barrier) -> f64 {
    pin(cpu);
    let mut a = vec![0.0_f64; length];
    let (b, c) = (vec![1.5_f64; length], vec![2.25_f64; length]);
    let runs = loops(length);
    let mut best = f64::INFINITY;
    for run in 0..=runs {
        barrier.wait();
        let begin = Instant::now();
        triad(&mut a, &b, &c, f64::from(run));
        barrier.wait();
        if 0 < run {
            best = best.min(begin.elapsed().as_secs_f64());
        }
    }
    best
}

/// Runs in the time of the test, if a thread moves a gigabyte each second: the number must be the
/// same for all threads, so it is not measured.
fn loops(length: usize) -> u32 {
    let nanoseconds = 24 * length.max(1) as u128;
    u32::try_from(TIME.as_nanos() / nanoseconds).unwrap_or(u32::MAX).clamp(RUNS, 20)
}

fn triad(a: &mut [f64], b: &[f64], c: &[f64], s: f64) {
    for ((a, b), c) in a.iter_mut().zip(b).zip(c) {
        *a = b + s * c;
    }
    std::hint::black_box(a);
}

/// Bytes of the last caches of these processors.
fn caches(cpus: &[u32]) -> u64 {
    let mut seen = BTreeSet::new();
    let mut sum = 0;
    for cpu in cpus {
        let last = (0..5).rev().find_map(|index| {
            let file = |name: &str| {
                let path = format!("/sys/devices/system/cpu/cpu{cpu}/cache/index{index}/{name}");
                fs::read_to_string(path).ok()
            };
            Some((file("shared_cpu_list")?, kib(&file("size")?)?))
        });
        if let Some((shared, bytes)) = last
            && seen.insert(shared)
        {
            sum += bytes;
        }
    }
    sum
}

/// `32768K` in bytes.
fn kib(text: &str) -> Option<u64> {
    Some(text.trim().strip_suffix('K')?.parse::<u64>().ok()? << 10)
}

/// Memory that may be taken: what the machine has free, and the control group allows.
fn free() -> u64 {
    let memory = host::memory(&Options::default());
    let machine = memory.available_bytes.value().copied().unwrap_or(LEAST * SHARE);
    let group = memory.cgroup.value().and_then(|group| {
        Some(group.memory_max_bytes?.saturating_sub(group.memory_used_bytes.unwrap_or(0)))
    });
    machine.min(group.unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_memory_that_moves() {
        let found = test(&Progress::default());
        assert!(!found.nodes.is_empty());
        for node in &found.nodes {
            assert!(0 < node.threads && 1e8 < node.bytes_per_second, "{node:?}");
        }
    }

    #[test]
    fn sizes_of_caches_are_read() {
        assert_eq!(kib("32768K\n"), Some(32 << 20));
        assert_eq!(kib("1M"), None);
    }
}
