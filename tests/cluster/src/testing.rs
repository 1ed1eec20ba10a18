//! For tests: a cluster that ends with the test, and calls that fail it.

use std::{error::Error as _, fs::File, ops::Deref, thread, time::Duration};

use nix::fcntl::Flock;

use crate::{Cluster, Error, Options, Topology, lock, places::Places, tools};

/// How long [`TestCluster::wait_for`] waits.
const LIMIT: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(200);

/// A cluster for one test. It ends with the test, whatever happens, and nothing may be left of it.
#[derive(Debug)]
pub struct TestCluster {
    cluster: Cluster,
    _reservation: Reservation,
}

/// Others on this machine who want a cluster of this name wait until it is dropped.
#[derive(Debug)]
pub struct Reservation(#[expect(dead_code, reason = "held, not read")] Flock<File>);

impl TestCluster {
    /// Builds the programs if need be, and brings up two nodes with two GPUs each. Tests that run at
    /// the same time need different names.
    pub fn up(name: &str) -> TestCluster {
        TestCluster::with(name, Topology::default())
    }

    /// The same with other nodes.
    pub fn with(name: &str, topology: Topology) -> TestCluster {
        let reservation = reserve(name);
        let cluster = must(Cluster::up(Options { name: name.to_owned(), topology }));
        TestCluster { cluster, _reservation: reservation }
    }

    /// kubectl with these words, which must succeed.
    #[track_caller]
    pub fn run(&self, words: &str) -> String {
        must(self.kubectl(&split(words)))
    }

    /// Applies objects, which must succeed.
    #[track_caller]
    pub fn create(&self, yaml: &str) {
        must(self.apply(yaml));
    }

    /// Waits until kubectl's answer, or its error, contains a text.
    #[track_caller]
    pub fn wait_for(&self, words: &str, expected: &str) {
        let mut last = String::new();
        for _attempt in 0..LIMIT.as_millis() / PAUSE.as_millis() {
            last = self.kubectl(&split(words)).unwrap_or_else(|error| error.to_string());
            if last.contains(expected) {
                return;
            }
            thread::sleep(PAUSE);
        }
        panic!("expected `{expected}` of `kubectl {words}`, found `{last}`");
    }
}

impl Deref for TestCluster {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

impl Drop for TestCluster {
    fn drop(&mut self) {
        let ended = Cluster::down(self.name());
        if !thread::panicking() {
            must(ended);
            let remains = must(Cluster::remains(self.name()));
            assert!(remains.is_empty(), "left behind: {remains:?}");
        }
    }
}

/// Builds the cluster's programs, which usually are there, and reserves a name.
pub fn reserve(name: &str) -> Reservation {
    let places = must(Places::new(name));
    // Which programs were built is of no interest here.
    must(tools::build(&places, &mut |_line| {}));
    Reservation(must(lock::hold(&places.use_lock())))
}

/// The value, or a test that fails with the error, its causes and its hint.
#[track_caller]
pub fn must<T>(result: Result<T, Error>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => {
            let cause = error.source().map(ToString::to_string).unwrap_or_default();
            panic!("{error}: {cause}\nhint: {}", error.hint().unwrap_or_default())
        }
    }
}

fn split(words: &str) -> Vec<&str> {
    words.split(' ').collect()
}

/// Spreads a number over all bits (splitmix64): what a seed chooses.
pub fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    number ^ (number >> 31)
}
