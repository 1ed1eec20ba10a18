//! Kueue decides when a job runs.

use crate::{
    Test,
    job::Job,
    lab::{Lab, until},
    ranks::LAUNCH,
    seen::assert_golden,
};

pub(crate) const TESTS: &[Test] =
    &[("a_queue_admits_preempts_and_readmits_a_job", queued_preempted_resumed)];

/// Room for one job of four ranks, and two priorities.
const QUEUE: &str = "
apiVersion: kueue.x-k8s.io/v1beta2
kind: ClusterQueue
metadata: {name: gpus}
spec:
  namespaceSelector: {}
  preemption: {withinClusterQueue: LowerPriority}
  resourceGroups:
  - coveredResources: [nvidia.com/gpu, cpu, memory]
    flavors:
    - name: default
      resources:
      - {name: nvidia.com/gpu, nominalQuota: 4}
      - {name: cpu, nominalQuota: 64}
      - {name: memory, nominalQuota: 64Gi}
---
apiVersion: kueue.x-k8s.io/v1beta2
kind: LocalQueue
metadata: {name: team, namespace: default}
spec: {clusterQueue: gpus}
---
apiVersion: scheduling.k8s.io/v1
kind: PriorityClass
metadata: {name: urgent}
value: 1000
";

const GPUS: &str = "/apis/kueue.x-k8s.io/v1beta2/clusterqueues/gpus";

fn queued_preempted_resumed(lab: &Lab) {
    lab.cluster.kueue(&[]).unwrap();
    lab.cluster.create(QUEUE);
    let queue = [LAUNCH, &["--queue", "team"]].concat();
    let mut first = Job::digits("first").launch(lab, &queue);
    first.wait_for_step(12);
    assert_eq!(used(lab), "4", "the quota of four ranks");

    let urgent = Job::digits("urgent").with("cluster.priorityClass", "urgent".into());
    let mut urgent = urgent.launch(lab, &queue);
    until("the first job makes room", || {
        let state = first.field("/status/summary/state");
        ["Queued", "Restarting", "Suspended"].iter().any(|word| state == *word).then_some(())
    });
    let explained = lab.qvl(&["explain", "first", "--cluster"]).text;
    assert!(explained.contains("Preempted") || explained.contains("preempted"), "{explained}");
    urgent.assert_undisturbed();
    // The first one goes on from its checkpoint and ends as if nothing had happened.
    let said = first.assert_undisturbed();
    assert_golden!("queued", said.story());
    assert_eq!(first.field("/status/restarts/counted"), 0, "a preemption is nobody's fault");
    until("the quota is free again", || (used(lab) == "0").then_some(()));
}

/// GPUs of the quota that are used.
fn used(lab: &Lab) -> String {
    let usage = lab.field(GPUS, "/status/flavorsUsage/0/resources");
    let gpus = usage.as_array().into_iter().flatten().find(|r| r["name"] == "nvidia.com/gpu");
    gpus.map_or("?".to_owned(), |gpus| gpus["total"].as_str().unwrap_or("0").to_owned())
}
