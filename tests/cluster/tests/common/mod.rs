//! What the tests of the cluster share.

use std::{thread, time::Duration};

use qvl_cluster::{Cluster, Options, Topology, places::Places, tools};

/// A cluster for one test, which ends with it, whatever happens.
pub(crate) struct Own(pub(crate) Cluster);

impl Own {
    /// Builds the programs if need be, and brings the cluster up.
    pub(crate) fn up(name: &str) -> Own {
        build(name);
        let options = Options { name: name.to_owned(), topology: Topology::default() };
        Own(Cluster::up(options).unwrap_or_else(|error| fail(&error)))
    }

    /// kubectl, which must succeed.
    #[track_caller]
    pub(crate) fn kubectl(&self, words: &str) -> String {
        let words: Vec<&str> = words.split(' ').collect();
        self.0.kubectl(&words).unwrap_or_else(|error| fail(&error))
    }

    /// Applies objects, which must succeed.
    #[track_caller]
    pub(crate) fn apply(&self, yaml: &str) {
        self.0.apply(yaml).unwrap_or_else(|error| fail(&error));
    }

    /// Waits until kubectl's answer contains a text.
    #[track_caller]
    pub(crate) fn wait_for(&self, words: &str, expected: &str) {
        let words: Vec<&str> = words.split(' ').collect();
        let mut last = String::new();
        for _attempt in 0..600 {
            last = self.0.kubectl(&words).unwrap_or_else(|error| error.to_string());
            if last.contains(expected) {
                return;
            }
            thread::sleep(Duration::from_millis(200));
        }
        panic!("expected `{expected}` of `kubectl {}`, found `{last}`", words.join(" "));
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let ended = Cluster::down(self.0.name());
        if !thread::panicking() {
            ended.unwrap_or_else(|error| fail(&error));
            let remains = Cluster::remains(self.0.name()).unwrap_or_else(|error| fail(&error));
            assert!(remains.is_empty(), "left behind: {remains:?}");
        }
    }
}

/// Builds the cluster's programs; usually they are there.
pub(crate) fn build(name: &str) {
    let places = Places::new(name).unwrap_or_else(|error| fail(&error));
    // Which programs were built is of no interest here.
    tools::build(&places, &mut |_line| {}).unwrap_or_else(|error| fail(&error));
}

#[track_caller]
pub(crate) fn fail(error: &qvl_cluster::Error) -> ! {
    panic!(
        "{error}: {:?}\nhint: {}",
        std::error::Error::source(error).map(ToString::to_string),
        error.hint().unwrap_or_default()
    )
}
