//! What the operator counts, in the text format of Prometheus.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use kube::runtime::reflector::Store;

use crate::api::job::FineTuneJob;

/// All counters.
#[derive(Default)]
pub(super) struct Metrics {
    pub(super) reconciles: Counter,
    pub(super) conflicts: Counter,
    /// Calls of the API server by operation, those of watches and the lease left out.
    pub(super) calls: Family,
    /// Failed calls by operation.
    pub(super) failures: Family,
    leads: AtomicBool,
    jobs: OnceLock<Store<FineTuneJob>>,
}

/// A number that only grows.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Counters by a label of few values.
#[derive(Debug, Default)]
pub(super) struct Family(Mutex<BTreeMap<&'static str, u64>>);

impl Family {
    pub(super) fn add(&self, label: &'static str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(label).or_default() += 1;
    }
}

impl Metrics {
    /// This operator leads from now on.
    pub(super) fn lead(&self) {
        self.leads.store(true, Ordering::Relaxed);
    }

    /// Where the jobs are counted.
    pub(super) fn watch(&self, jobs: Store<FineTuneJob>) {
        // A second store would be that of the same jobs.
        let _first = self.jobs.set(jobs);
    }

    /// All of it as text.
    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        let mut counter = |name: &str, help: &str, value: u64, kind: &str| {
            let head = format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
            let _never = writeln!(out, "{head}{name} {value}");
        };
        let leads = u64::from(self.leads.load(Ordering::Relaxed));
        counter("qvl_operator_leader", "1 if this operator leads.", leads, "gauge");
        let reconciles = self.reconciles.0.load(Ordering::Relaxed);
        counter("qvl_operator_reconciles_total", "Looks at a job.", reconciles, "counter");
        let conflicts = self.conflicts.0.load(Ordering::Relaxed);
        counter("qvl_operator_conflicts_total", "Writes that came too late.", conflicts, "counter");
        let calls = self.calls.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let calls = calls.into_iter().map(|(name, count)| (name.to_owned(), count));
        family(
            &mut out,
            ["qvl_operator_calls_total", "Calls of the API server.", "counter", "operation"],
            calls,
        );
        let failures = self.failures.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let failures = failures.into_iter().map(|(name, count)| (name.to_owned(), count));
        family(
            &mut out,
            ["qvl_operator_failures_total", "Calls that failed.", "counter", "operation"],
            failures,
        );
        family(&mut out, ["qvl_jobs", "Jobs by state.", "gauge", "state"], self.states());
        out
    }

    fn states(&self) -> BTreeMap<String, u64> {
        let mut states = BTreeMap::new();
        for job in self.jobs.get().into_iter().flat_map(Store::state) {
            let state = job.status.as_ref().map(|status| status.summary.state).unwrap_or_default();
            *states.entry(format!("{state:?}")).or_default() += 1;
        }
        states
    }
}

fn family(
    out: &mut String,
    [name, help, kind, label]: [&str; 4],
    values: impl IntoIterator<Item = (String, u64)>,
) {
    let _never = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    for (value, count) in values {
        let _never = writeln!(out, "{name}{{{label}=\"{value}\"}} {count}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_in_the_format_of_prometheus() {
        let metrics = Metrics::default();
        metrics.reconciles.add();
        metrics.calls.add("create");
        metrics.failures.add("create");
        metrics.failures.add("create");
        metrics.lead();
        insta::assert_snapshot!(metrics.text(), @r#"
        # HELP qvl_operator_leader 1 if this operator leads.
        # TYPE qvl_operator_leader gauge
        qvl_operator_leader 1
        # HELP qvl_operator_reconciles_total Looks at a job.
        # TYPE qvl_operator_reconciles_total counter
        qvl_operator_reconciles_total 1
        # HELP qvl_operator_conflicts_total Writes that came too late.
        # TYPE qvl_operator_conflicts_total counter
        qvl_operator_conflicts_total 0
        # HELP qvl_operator_calls_total Calls of the API server.
        # TYPE qvl_operator_calls_total counter
        qvl_operator_calls_total{operation="create"} 1
        # HELP qvl_operator_failures_total Calls that failed.
        # TYPE qvl_operator_failures_total counter
        qvl_operator_failures_total{operation="create"} 2
        # HELP qvl_jobs Jobs by state.
        # TYPE qvl_jobs gauge
        "#);
    }
}
