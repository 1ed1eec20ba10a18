//! Simulated nodes and the queue beside real nodes.

use qvl_cluster::testing::{TestCluster, must};

const FILLS: &str = "
apiVersion: batch/v1
kind: Job
metadata: {name: many}
spec:
  completionMode: Indexed
  completions: 40
  parallelism: 40
  template:
    spec:
      restartPolicy: Never
      nodeSelector: {type: kwok}
      tolerations: [{key: kwok.x-k8s.io/node, operator: Exists}]
      containers:
      - {name: main, image: none, resources: {limits: {nvidia.com/gpu: '4'}}}
";

const QUEUE: &str = "
apiVersion: kueue.x-k8s.io/v1beta2
kind: ClusterQueue
metadata: {name: gpus}
spec:
  namespaceSelector: {}
  resourceGroups:
  - coveredResources: [nvidia.com/gpu]
    flavors: [{name: default, resources: [{name: nvidia.com/gpu, nominalQuota: 2}]}]
---
apiVersion: kueue.x-k8s.io/v1beta2
kind: LocalQueue
metadata: {name: gpus, namespace: default}
spec: {clusterQueue: gpus}
";

#[test]
fn simulated_nodes_run_many_pods_and_kueue_admits_one_job_after_the_other() {
    let cluster = TestCluster::up("peers");
    simulated_nodes_run_many_pods(&cluster);
    kueue_admits_one_job_after_the_other(&cluster);
}

fn simulated_nodes_run_many_pods(cluster: &TestCluster) {
    must(cluster.kwok(20));
    cluster.create(FILLS);
    cluster.wait_for("get job many -o jsonpath={.status.succeeded}.", "40.");
}

fn kueue_admits_one_job_after_the_other(cluster: &TestCluster) {
    must(cluster.kueue(&[]));
    cluster.create(QUEUE);
    cluster.create(&(job("a") + "---" + &job("b")));
    let states =
        "get workloads -o jsonpath={.items[*].status.conditions[?(@.type==\"Admitted\")].status}";
    // Both ask for all of the quota.
    cluster.wait_for(states, "True");
    assert_eq!(cluster.run(states).matches("True").count(), 1);
    for name in ["a", "b"] {
        let kind = format!("get job {name} -o jsonpath={{.status.conditions[*].type}}");
        cluster.wait_for(&kind, "Complete");
    }
}

fn job(name: &str) -> String {
    format!(
        "
apiVersion: batch/v1
kind: Job
metadata: {{name: {name}, namespace: default, labels: {{kueue.x-k8s.io/queue-name: gpus}}}}
spec:
  suspend: true
  template:
    spec:
      restartPolicy: Never
      containers:
      - {{name: main, image: 'qvl.test/busybox:1', args: [sleep, '5'], resources: {{limits: {{nvidia.com/gpu: '2'}}}}}}
"
    )
}
