//! What active tests found: they write, compute and send, so they are made only when asked for.

use serde::{Deserialize, Serialize};

use super::{Fact, Place};
use crate::wire::{gputest::GpuTests, pairs::Way};

/// Results of the active tests of a machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ActiveFacts {
    /// Folders that are written, one after another.
    pub storage: Fact<Vec<StorageTest>>,
    /// Memory of the host.
    pub memory: Fact<Ended<MemoryTest>>,
    /// Arithmetic of each processor.
    pub compute: Fact<Ended<ComputeTest>>,
    /// GPUs; made by `qvl-train gputest`.
    pub gpus: Fact<Ended<GpuTests>>,
    /// Ways to other hosts; `None` if no host was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Fact<Ended<NetworkTest>>>,
}

/// How a test in a process of its own ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ended<T> {
    /// With a result.
    Done(T),
    /// It did not come back in time and was killed.
    Hung {
        /// What it did last.
        step: String,
        /// How long it was silent, or took in all.
        after_ms: u64,
    },
    /// It died.
    Crashed {
        /// How, and in which step.
        message: String,
    },
}

/// The test of one folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StorageTest {
    /// What the folder is for; `None` if it was named for this test.
    pub place: Option<Place>,
    /// The folder that was written to.
    pub path: String,
    /// What was found.
    pub ended: Ended<StorageResult>,
}

/// Speed and truth of a folder.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StorageResult {
    /// The first operation that failed, with the words of the kernel; what follows it is 0.
    pub error: Option<String>,
    /// Bytes that were written.
    pub bytes: u64,
    /// Seconds to write them, with the fsync at the end.
    pub write_seconds: f64,
    /// Seconds to read them.
    pub read_seconds: f64,
    /// Bytes that came back different.
    pub wrong_bytes: u64,
    /// Median time to write 4 KiB and fsync, in microseconds.
    pub fsync_median_us: u64,
    /// The longest.
    pub fsync_longest_us: u64,
    /// Time to rename a file and fsync its folder, in microseconds.
    pub rename_us: u64,
    /// Bytes that this user may still write, after the test.
    pub free_bytes: u64,
}

/// Bandwidth of the host's memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemoryTest {
    /// By NUMA node; one with number 0 where the kernel names none.
    pub nodes: Vec<NumaBandwidth>,
}

/// A STREAM triad, `a = b + s * c`, on the processors and the memory of one NUMA node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NumaBandwidth {
    /// NUMA node.
    pub node: u32,
    /// Threads, one for each processor.
    pub threads: u32,
    /// Bytes of the three arrays.
    pub bytes: u64,
    /// Best of some runs: three arrays by time, as STREAM counts, in bytes per second.
    pub bytes_per_second: f64,
}

/// One matrix product, again and again, on each processor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ComputeTest {
    /// CRC-32C of the right product.
    pub expected: u32,
    /// The processors that this process may use.
    pub cores: Vec<CoreTest>,
}

/// One processor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CoreTest {
    /// Its number.
    pub cpu: u32,
    /// Products that were made.
    pub runs: u32,
    /// CRC-32C of each product that is not the expected one.
    pub wrong: Vec<u32>,
    /// Floating-point operations per second of the fastest product.
    pub flops: f64,
}

/// Every pair of some hosts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetworkTest {
    /// The hosts; the first one is this machine.
    pub hosts: Vec<String>,
    /// Rounds of pairs that were tested at the same time.
    pub rounds: u32,
    /// Pairs of hosts, by index, each once.
    pub pairs: Vec<PairTest>,
    /// Pairs that were not tested, with the reason: neither host could be asked to.
    pub untested: Vec<(usize, usize, String)>,
}

/// One pair.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PairTest {
    /// The host that tested.
    pub from: usize,
    /// The host that answered.
    pub to: usize,
    /// What it found.
    pub way: Way,
}
