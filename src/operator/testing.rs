//! Objects for tests.

use std::collections::BTreeSet;

use k8s_openapi::api::batch::v1::Job;

use super::{
    build::{self, Settings},
    observed::{AttemptFact, Observed},
};
use crate::api::job::FineTuneJob;

/// A job of one rank, as the API server would give it.
pub(super) fn job() -> FineTuneJob {
    let text = "apiVersion: qvl.dev/v1alpha1
kind: FineTuneJob
metadata: {name: digits}
spec:
  model: {path: base}
  data: {train: [{name: t, path: /elsewhere/train.json, task: grounding}]}
  stages: [{name: s, steps: 10}]
  output: out
  cluster: {volumes: [{name: data, mountPath: /data, persistentVolumeClaim: shared}]}
";
    let mut job = FineTuneJob::of(crate::job::parse(text, "job.yaml").unwrap());
    job.metadata.namespace = Some("team".to_owned());
    job.metadata.uid = Some("uid-of-job".to_owned());
    job.metadata.generation = Some(1);
    job
}

/// A job that nothing was done for yet.
pub(super) fn observed() -> Observed {
    Observed {
        now: "2026-01-01T00:00:00Z".parse().unwrap(),
        job: job(),
        problems: Vec::new(),
        attempts: Vec::new(),
        pods: Vec::new(),
        gang: None,
        fault: None,
        numbers_due: true,
        told: BTreeSet::new(),
        looked: false,
        first_failure: None,
        pod_groups: false,
    }
}

/// What the operator reads of the Job that it has made.
pub(super) fn attempt(job: &FineTuneJob, attempt: u32) -> AttemptFact {
    let settings = Settings {
        image: "i".to_owned(),
        broker_url: "b".to_owned(),
        collector_url: None,
        ca: None,
        pod_groups: false,
    };
    let mut child: Job = build::job(job, attempt, &settings);
    child.metadata.uid = Some(format!("uid-of-attempt-{attempt}"));
    AttemptFact::of(&child).unwrap()
}
