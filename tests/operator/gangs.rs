//! Gangs, where the API server serves pod groups: its scheduler places all pods of a job, or none.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use qvl_cluster::{Topology, testing::TestCluster};
use serde_json::Value;

use crate::{install, process::Operator};

/// Longest wait for anything that should happen soon.
const LIMIT: Duration = Duration::from_secs(120);
/// What Kubernetes 1.37 needs to serve pod groups and to obey them.
const TOPOLOGY: &str = "
nodes: [{name: n1}]
featureGates: {GenericWorkload: true}
apis: [scheduling.k8s.io/v1beta1]
";
/// Each pod takes all GPUs of a node.
const JOB: &str = "
apiVersion: qvl.dev/v1alpha1
kind: FineTuneJob
metadata: {name: NAME, namespace: default}
spec:
  model: {path: /data/base}
  data: {train: [{name: t, path: /data/train.json, task: grounding}]}
  stages: [{name: s, steps: 10}]
  output: /data/run
  world: {gpus: 16, compute: cuda}
  batch: {global: 16, unit: 1}
  cluster: {gpusPerNode: 8, nodeSelector: {type: kwok}}
";

#[test]
fn the_scheduler_places_all_pods_of_a_job_or_none() {
    let topology = Topology::parse(TOPOLOGY, Path::new("nodes.yaml")).unwrap();
    let cluster = TestCluster::with("gangs", topology);
    install(&cluster, 3);
    let folder = tempfile::tempdir().unwrap();
    let operator = Operator::with(None, cluster.kubeconfig(), folder.path());
    let stage = Stage { cluster: &cluster, operator: &operator };
    // Three nodes: the second job finds one free, which a pod of it alone must not take.
    stage.submit("first");
    stage.until("the first job runs", || stage.placed("first", "a1") == 2);
    stage.submit("second");
    stage.until("both pods of the second job wait", || stage.waiting("second") == 2);
    let group = stage.get("podgroup second");
    assert_eq!(group.pointer("/spec/schedulingPolicy/gang/minCount"), Some(&2.into()), "{group}");
    assert_eq!(stage.placed("second", "a1"), 0, "half of a gang holds a node");
    cluster.run("delete ftj first --wait=false");
    stage.until("the second job runs", || stage.placed("second", "a1") == 2);
    // The group serves the next attempt too.
    cluster.run(
        "delete pod -l qvl.dev/job=second,batch.kubernetes.io/job-completion-index=0 --wait=false",
    );
    stage.until("the next attempt runs", || stage.placed("second", "a2") == 2);
    cluster.run("delete ftj second --wait=false");
    stage.until("the group goes with its job", || {
        cluster.kubectl(&["get", "podgroup", "-o", "name"]).unwrap().is_empty()
    });
}

struct Stage<'s> {
    cluster: &'s TestCluster,
    operator: &'s Operator,
}

impl Stage<'_> {
    fn submit(&self, name: &str) {
        self.cluster.create(&JOB.replace("NAME", name));
    }

    fn get(&self, what: &str) -> Value {
        serde_json::from_str(&self.cluster.run(&format!("get {what} -o json"))).unwrap()
    }

    /// Pods of a job for which something holds.
    fn pods(&self, job: &str, holds: impl Fn(&Value) -> bool) -> usize {
        let list = self.get(&format!("pods -l qvl.dev/job={job}"));
        list["items"].as_array().unwrap().iter().filter(|pod| holds(pod)).count()
    }

    /// Pods of an attempt that have a node.
    fn placed(&self, job: &str, attempt: &str) -> usize {
        let of = format!("{job}-{attempt}-");
        self.pods(job, |pod| {
            let name = pod["metadata"]["name"].as_str().unwrap();
            name.starts_with(&of) && pod["spec"]["nodeName"].is_string()
        })
    }

    /// Pods that the scheduler has looked at and could not place.
    fn waiting(&self, job: &str) -> usize {
        self.pods(job, |pod| {
            let conditions = pod["status"]["conditions"].as_array();
            conditions.into_iter().flatten().any(|condition| {
                condition["type"] == "PodScheduled" && condition["reason"] == "Unschedulable"
            })
        })
    }

    fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let begin = Instant::now();
        while !holds() {
            let pods = self.cluster.run("get pods,podgroups,ftj -o wide");
            let words = self.operator.last_words();
            assert!(begin.elapsed() < LIMIT, "{what}:\n{pods}\n{words}");
            thread::sleep(Duration::from_millis(200));
        }
    }
}
