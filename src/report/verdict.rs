//! A saved report as a permission to launch: read, checked, and refused if it does not hold.

use std::{collections::BTreeSet, time::Duration};

use serde::Deserialize;
use serde_json::Value;

use crate::{doctor, facts::NodeName};

/// What a launch is about to do.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'w> {
    /// Digest of the job, from [`doctor::job_digest`].
    pub job: &'w str,
    /// Nodes that will run it.
    pub nodes: &'w BTreeSet<NodeName>,
    /// Whether nodes that will not run it may be in the report.
    pub others_allowed: bool,
    /// Now, in seconds since the Unix epoch.
    pub unix_seconds: i64,
    /// How old the report may be.
    pub max_age: Duration,
}

/// Why a report is no permission.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is another kind of file.
    #[error("it is no report of `qvl doctor --format json`: {why}")]
    NoReport {
        /// What is missing.
        why: String,
    },
    /// It has no digests.
    #[error("it is not sealed: an older qvl wrote it")]
    NoSeal,
    /// It was edited.
    #[error("it was changed after it was written: its digest is {found}, it says {said}")]
    Changed {
        /// What it says.
        said: String,
        /// What it is.
        found: String,
    },
    /// It does not allow a launch.
    #[error("its verdict is `{verdict}`, not `ready`")]
    NotReady {
        /// The verdict.
        verdict: String,
    },
    /// Its rules are not those of this program.
    #[error("another version of qvl wrote it: its rules are {found}, those of this program {own}")]
    OtherRules {
        /// Digest of the report's rules.
        found: String,
        /// Digest of this program's rules.
        own: String,
    },
    /// It is about another job.
    #[error("it is about another job, or another version of it: {found}, this one is {own}")]
    OtherJob {
        /// Digest of the report's job.
        found: String,
        /// Digest of this job.
        own: String,
    },
    /// It is about other nodes.
    #[error("it is about the nodes {found}, and the job runs on {own}")]
    OtherNodes {
        /// Nodes of the report.
        found: String,
        /// Nodes of the launch.
        own: String,
    },
    /// It does not say when it was made.
    #[error("it has no time: it was made with --reproducible")]
    NoTime,
    /// It is too old.
    #[error("it is {age} s old, the limit is {limit} s")]
    TooOld {
        /// Its age in seconds.
        age: i64,
        /// The limit in seconds.
        limit: u64,
    },
    /// It is from the future.
    #[error("it was made {ahead} s from now: the clocks differ")]
    FromTheFuture {
        /// Seconds from now.
        ahead: i64,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Saved {
    verdict: String,
    nodes: Vec<String>,
    missing_nodes: Vec<String>,
    seal: Option<Seal>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Seal {
    rules: String,
    job: Option<String>,
    unix_seconds: Option<i64>,
    digest: String,
}

/// How far clocks of two machines may be apart, in seconds.
const CLOCKS: i64 = 60;

/// Whether the report in `text` allows this launch.
pub fn accept(text: &str, wanted: &Wanted<'_>) -> Result<(), Refusal> {
    let no_report = |error: serde_json::Error| Refusal::NoReport { why: error.to_string() };
    let mut value: Value = serde_json::from_str(text).map_err(no_report)?;
    let saved: Saved = serde_json::from_value(value.clone()).map_err(no_report)?;
    let seal = saved.seal.ok_or(Refusal::NoSeal)?;
    if let Some(fields) = value.get_mut("seal").and_then(Value::as_object_mut) {
        fields.remove("digest");
    }
    let found = doctor::digest(&value);
    if found != seal.digest {
        return Err(Refusal::Changed { said: seal.digest, found });
    }
    let own = doctor::rules_digest();
    if seal.rules != own {
        return Err(Refusal::OtherRules { found: seal.rules, own });
    }
    let job = seal.job.unwrap_or_else(|| "none".to_owned());
    if job != wanted.job {
        return Err(Refusal::OtherJob { found: job, own: wanted.job.to_owned() });
    }
    same_nodes(&saved.nodes, &saved.missing_nodes, wanted)?;
    in_time(seal.unix_seconds, wanted)?;
    if saved.verdict != "ready" {
        return Err(Refusal::NotReady { verdict: saved.verdict });
    }
    Ok(())
}

/// The digest that a report says it has.
pub fn digest_of(text: &str) -> Option<String> {
    let value: Value = serde_json::from_str(text).ok()?;
    Some(value.pointer("/seal/digest")?.as_str()?.to_owned())
}

fn same_nodes(nodes: &[String], missing: &[String], wanted: &Wanted<'_>) -> Result<(), Refusal> {
    let found: BTreeSet<NodeName> = nodes.iter().cloned().map(NodeName).collect();
    let others = !wanted.others_allowed && found != *wanted.nodes;
    if missing.is_empty() && found.is_superset(wanted.nodes) && !others {
        return Ok(());
    }
    let mut found: Vec<&str> = nodes.iter().map(String::as_str).collect();
    let gone: Vec<String> = missing.iter().map(|name| format!("{name} (did not report)")).collect();
    found.extend(gone.iter().map(String::as_str));
    let own: Vec<&str> = wanted.nodes.iter().map(|name| name.0.as_str()).collect();
    Err(Refusal::OtherNodes { found: found.join(", "), own: own.join(", ") })
}

fn in_time(made: Option<i64>, wanted: &Wanted<'_>) -> Result<(), Refusal> {
    let age = wanted.unix_seconds - made.ok_or(Refusal::NoTime)?;
    let limit = wanted.max_age.as_secs();
    if age < -CLOCKS {
        return Err(Refusal::FromTheFuture { ahead: -age });
    }
    if u64::try_from(age).is_ok_and(|age| limit < age) {
        return Err(Refusal::TooOld { age, limit });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        doctor::{Demand, Seal as DoctorSeal, Stack, diagnose},
        facts::{FactsFile, Snapshot},
        report::{View, json},
    };

    const MADE: i64 = 1_795_000_000;
    const JOB: &str = "sha256:job";

    /// The report on a healthy node, sealed for a job.
    fn report(reproducible: bool) -> String {
        let text = include_str!("../../tests/facts/healthy-8xh100.json");
        let file: FactsFile = serde_json::from_str(text).unwrap();
        let nodes = [(file.node, file.facts)].into();
        let snapshot = Snapshot { nodes, ..Snapshot::default() };
        let demand = Demand { ranks: Some(8), ..Demand::default() };
        let time = (!reproducible).then_some(MADE);
        let seal = DoctorSeal {
            job: Some(JOB.to_owned()),
            ..DoctorSeal::of(&snapshot, None, Stack::Own, time)
        };
        let allowed = BTreeSet::new();
        let view = View {
            strict: false,
            allowed: &allowed,
            elapsed_ms: None,
            color: false,
            width: 80,
            seal: Some(&seal),
        };
        json(&diagnose(&snapshot, &demand), &view)
    }

    fn nodes(names: &[&str]) -> BTreeSet<NodeName> {
        names.iter().map(|name| NodeName((*name).to_owned())).collect()
    }

    fn asked(text: &str, job: &str, names: &[&str], after: i64) -> Result<(), Refusal> {
        let nodes = nodes(names);
        let wanted = Wanted {
            job,
            nodes: &nodes,
            others_allowed: false,
            unix_seconds: MADE + after,
            max_age: Duration::from_secs(3600),
        };
        accept(text, &wanted)
    }

    #[test]
    fn a_fresh_verdict_on_this_job_and_node_is_accepted() {
        assert_eq!(asked(&report(false), JOB, &["gpu-1"], 3600), Ok(()));
    }

    #[test]
    fn everything_else_is_refused() {
        let good = report(false);
        let refused =
            |text: &str, job, names: &[&str], after| asked(text, job, names, after).unwrap_err();
        assert!(matches!(refused("{}", JOB, &["gpu-1"], 0), Refusal::NoReport { .. }));
        let edited = good.replace("\"job\": \"sha256:job\"", "\"job\": \"sha256:other\"");
        assert_ne!(good, edited);
        assert!(matches!(refused(&edited, "sha256:other", &["gpu-1"], 0), Refusal::Changed { .. }));
        let blocked = good.replace("\"verdict\": \"ready\"", "\"verdict\": \"blocked\"");
        assert!(matches!(refused(&blocked, JOB, &["gpu-1"], 0), Refusal::Changed { .. }));
        assert!(matches!(refused(&good, "sha256:other", &["gpu-1"], 0), Refusal::OtherJob { .. }));
        assert!(matches!(refused(&good, JOB, &["gpu-2"], 0), Refusal::OtherNodes { .. }));
        assert!(matches!(refused(&good, JOB, &["gpu-1", "gpu-2"], 0), Refusal::OtherNodes { .. }));
        assert_eq!(
            refused(&good, JOB, &["gpu-1"], 3601),
            Refusal::TooOld { age: 3601, limit: 3600 }
        );
        assert_eq!(refused(&good, JOB, &["gpu-1"], -61), Refusal::FromTheFuture { ahead: 61 });
        assert_eq!(refused(&report(true), JOB, &["gpu-1"], 0), Refusal::NoTime);
    }

    #[test]
    fn a_verdict_on_a_fleet_holds_for_a_part_of_it() {
        let text = report(false);
        let none = BTreeSet::new();
        let wanted = |others_allowed| Wanted {
            job: JOB,
            nodes: &none,
            others_allowed,
            unix_seconds: MADE,
            max_age: Duration::from_secs(1),
        };
        assert_eq!(accept(&text, &wanted(true)), Ok(()));
        assert!(accept(&text, &wanted(false)).is_err());
    }
}
