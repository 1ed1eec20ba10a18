//! Pods and nodes that go away.

use serde_json::json;

use crate::{
    Test,
    job::Job,
    lab::{Lab, PODS, system, until},
    ranks::LAUNCH,
    seen::assert_golden,
};

pub(crate) const TESTS: &[Test] = &[
    ("a_deleted_pod_costs_an_attempt", pod_deleted),
    ("a_drained_node_is_left_with_a_checkpoint", drained),
    ("a_lost_node_is_avoided", node_lost),
    ("a_kubelet_that_dies_is_a_lost_node", kubelet_dead),
    ("a_suspended_job_goes_on_from_its_checkpoint", suspended),
    ("what_does_not_fit_is_not_submitted", does_not_fit),
];

fn pod_deleted(lab: &Lab) {
    let mut job = Job::digits("deleted").launch(lab, LAUNCH);
    job.wait_for_step(12);
    let (pod, node, _uid) = job.pod(1);
    lab.cluster.run(&format!("delete pod {pod} --grace-period=0 --force --wait=false"));
    let said = job.assert_undisturbed();
    assert_golden!("deleted", said.story());
    assert!(said.text.contains(&format!("pod 1 on {node} is lost: somebody deleted it")), "{said}");
    assert!(job.field("/status/lastFailure").is_null(), "no rank has failed");
    assert_eq!(job.field("/status/attempt"), 2);
    assert_eq!(job.field("/status/placement/excluded"), json!([]));
}

fn drained(lab: &Lab) {
    let mut job = Job::digits("drained").launch(lab, LAUNCH);
    job.wait_for_step(12);
    let (_pod, node, _uid) = job.pod(1);
    lab.cluster.drain(&node).unwrap();
    let said = job.assert_undisturbed();
    lab.cluster.uncordon(&node).unwrap();
    assert_golden!("drained", said.story());
    assert!(said.text.contains(&format!("pod 1 on {node} is lost: it was evicted")), "{said}");
    // The ranks saved on request, between two regular checkpoints: nothing was made twice.
    let steps = job.steps();
    assert!(steps.windows(2).all(|pair| pair[1].number == pair[0].number + 1), "{steps:?}");
    assert_eq!(job.field("/status/restarts/counted"), 0, "a drain is nobody's fault");
}

fn node_lost(lab: &Lab) {
    // Not that of the collector: pods that end while it is away take their lines along.
    let other = lab.field(&system("pods/qvl-collector-0"), "/spec/nodeName");
    let other = other.as_str().unwrap();
    lab.cluster.run(&format!("cordon {other}"));
    let mut job = Job::digits("lost").launch(lab, LAUNCH);
    job.wait_for_step(12);
    lab.cluster.run(&format!("uncordon {other}"));
    let (_pod, node, _uid) = job.pod(1);
    lab.cluster.kill_node(&node).unwrap();
    let said = job.end();
    lab.cluster.start_node(&node).unwrap();
    assert_eq!(said.code, 0, "{said}");
    // Whoever notices first: the operator, which hears nothing, or the cluster.
    let told = [format!("pod 1 on {node} is lost"), "culprit: pod 1".to_owned()];
    assert!(told.iter().any(|words| said.text.contains(words)), "{said}");
    assert!(job.weights() == lab.reference(), "the weights differ");
    assert_eq!(job.field("/status/placement/excluded/0/name"), node.as_str());
    // The death may fall upon a checkpoint: then nothing is made again.
    job.assert_no_saved_step_is_made_again();
}

fn kubelet_dead(lab: &Lab) {
    let mut job = Job::digits("kubelet").launch(lab, LAUNCH);
    job.wait_for_step(12);
    let (_pod, node, _uid) = job.pod(0);
    lab.cluster.stop_kubelet(&node).unwrap();
    let said = job.end();
    lab.cluster.start_kubelet(&node).unwrap();
    assert_eq!(said.code, 0, "{said}");
    assert!(job.weights() == lab.reference(), "the weights differ");
    until("the node is ready again", || {
        let conditions = lab.field(&format!("/api/v1/nodes/{node}"), "/status/conditions");
        let mut conditions = conditions.as_array()?.iter();
        conditions.any(|c| c["type"] == "Ready" && c["status"] == "True").then_some(())
    });
}

fn suspended(lab: &Lab) {
    let mut job = Job::digits("paused").launch(lab, LAUNCH);
    job.wait_for_step(12);
    let said = lab.qvl(&["suspend", "paused", "--cluster"]);
    assert_eq!(said.code, 0, "{said}");
    job.wait_for_state("Suspended");
    let said = job.end();
    assert_eq!(said.code, 103, "{said}");
    assert_golden!("paused", said.story());
    let pods = format!("{PODS}?labelSelector=qvl.dev/job=paused");
    until("the GPUs are free", || lab.is_empty(&pods).then_some(()));
    let said = lab.qvl(&["resume", "paused", "--cluster"]);
    assert_eq!(said.code, 0, "{said}");
    let said = lab.qvl(&["wait", "paused", "--cluster", "--timeout", "2m"]);
    assert_eq!(said.code, 0, "{said}");
    assert!(job.weights() == lab.reference(), "the weights differ");
    let steps = job.steps();
    assert!(steps.windows(2).all(|pair| pair[1].number == pair[0].number + 1), "{steps:?}");
}

fn does_not_fit(lab: &Lab) {
    let mut job = Job::digits("large").launch(lab, &["-j", "1x4"]);
    let said = job.end();
    assert_eq!(said.code, 4, "{said}");
    assert_golden!("large", said.text);
    assert!(job.field("/metadata/name").is_null());
}
