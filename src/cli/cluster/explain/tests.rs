//! One saved state of a job per test, the whole answer compared.

use serde_json::json;

use super::*;

/// Explains objects as they would be read.
fn explained(objects: Value) -> String {
    let objects: Objects = serde_json::from_value(objects).unwrap();
    let mut out = Vec::new();
    let now = "2026-05-01T12:10:00Z".parse().unwrap();
    print(&chain(&objects, now), &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[expect(clippy::needless_pass_by_value, reason = "calls read better")]
fn job(status: Value) -> Value {
    json!({"kind": "FineTuneJob", "metadata": {"name": "digits"}, "spec": {}, "status": status})
}

fn condition(kind: &str, status: &str, reason: &str, message: &str) -> Value {
    json!({"type": kind, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": "2026-05-01T12:07:00Z"})
}

#[expect(clippy::needless_pass_by_value, reason = "calls read better")]
fn pod(index: u32, node: &str, status: Value) -> Value {
    json!({"kind": "Pod", "metadata": {"name": format!("digits-a1-{index}-x"),
        "labels": {"qvl.dev/attempt": "1"}}, "spec": {"nodeName": node}, "status": status})
}

fn warning(kind: &str, name: &str, reason: &str, message: &str) -> Value {
    json!({"type": "Warning", "reason": reason, "message": message, "count": 4,
        "involvedObject": {"kind": kind, "name": name}, "lastTimestamp": "2026-05-01T12:08:00Z"})
}

#[test]
fn a_healthy_job_reports_no_problem() {
    let running = json!({"summary": {"state": "Running"},
        "conditions": [condition("PodsScheduled", "True", "Scheduled", "")]});
    // A warning about a pod that runs by now explains nothing.
    let stale = warning("Pod", "digits-a1-0-x", "FailedScheduling", "0/2 nodes are available");
    let up = json!({"phase": "Running", "containerStatuses": [{"state": {"running": {}}}]});
    let objects = json!({"job": job(running), "pods": [pod(0, "n1", up)], "events": [stale]});
    insta::assert_snapshot!(explained(objects), @r"
    digits is running, last change 3m0s ago
      no object of the job reports a problem
    ");
}

#[test]
fn what_the_doctor_said_before_the_start_is_told() {
    let digest = |digit: &str| format!("sha256:{}", digit.repeat(64));
    let status = json!({"summary": {"state": "Running"},
        "conditions": [condition("PodsScheduled", "True", "Scheduled", "")],
        "doctor": {"digest": digest("a"), "rules": digest("b"), "facts": digest("c"),
            "job": digest("d"), "unixSeconds": 1_777_637_000, "nodes": ["n1", "n2"], "nodesTotal": 2,
            "counts": {"pass": 120, "warn": 2, "fail": 0, "unknown": 1, "skipped": 30},
            "allowedUnknown": ["link-errors"]}});
    insta::assert_snapshot!(explained(json!({"job": job(status)})), @r"
    digits is running, last change 3m0s ago
      no object of the job reports a problem
    doctor: passed 6m40s ago on n1, n2: 120 pass, 2 warn, 1 unknown (allowed: link-errors); sha256:aaaaaaaaaaaa
    ");
}

#[test]
fn pods_without_a_node_are_told_once() {
    let message = "0/2 nodes are available: 2 Insufficient nvidia.com/gpu.";
    let status = json!({"summary": {"state": "Scheduling"}, "conditions":
        [condition("PodsScheduled", "False", "Unschedulable", "2 pods wait for a node"),
         condition("PreflightPassed", "False", "Waiting", "no pod runs")]});
    let unscheduled = || {
        json!({"phase": "Pending",
        "conditions": [condition("PodScheduled", "False", "Unschedulable", message)]})
    };
    let objects = json!({"job": job(status),
        "jobs": [{"metadata": {"name": "digits-a1", "labels": {"qvl.dev/attempt": "1"}}, "spec": {}}],
        "pods": [pod(0, "", unscheduled()), pod(1, "", unscheduled())],
        "events": [warning("Pod", "digits-a1-0-x", "FailedScheduling", message)],
        "not_read": ["permission denied: user `eve` may not list nodes in the whole cluster"]});
    insta::assert_snapshot!(explained(objects), @r"
    digits is scheduling, last change 3m0s ago
      FineTuneJob/digits  PodsScheduled is False (Unschedulable): 2 pods wait for a node
      Pod/digits-a1-0-x   finds no node: 0/2 nodes are available: 2 Insufficient nvidia.com/gpu. (and one pod more)
    not looked at: permission denied: user `eve` may not list nodes in the whole cluster
    hint: `qvl top` shows what is free and who uses the rest
    ");
}

#[test]
fn an_image_that_cannot_be_pulled_names_it() {
    let status = json!({"summary": {"state": "Scheduling"},
        "conditions": [condition("PodsScheduled", "False", "ImagePull", "pods wait for their image")]});
    let waiting = json!({"phase": "Pending", "containerStatuses": [{"name": "trainer",
        "image": "qvl.test/none:1", "state": {"waiting": {"reason": "ErrImagePull",
            "message": "not found"}}}]});
    let objects = json!({"job": job(status), "pods": [pod(0, "n1", waiting)],
        "events": [warning("Pod", "digits-a1-0-x", "Failed", "Error: ErrImagePull")]});
    insta::assert_snapshot!(explained(objects), @r"
    digits is scheduling, last change 3m0s ago
      FineTuneJob/digits  PodsScheduled is False (ImagePull): pods wait for their image
      Pod/digits-a1-0-x   on n1 cannot pull image qvl.test/none:1 (ErrImagePull): not found
      Pod/digits-a1-0-x   event Failed (x4): Error: ErrImagePull
    hint: is spec.cluster.image right, and does spec.cluster.imagePullSecrets let the node pull it?
    ");
}

#[test]
fn pods_that_are_being_deleted_are_no_trouble() {
    let failed = condition("Failed", "True", "ImageUnavailable", "ImagePullBackOff: not found");
    let status = json!({"summary": {"state": "Failed"}, "conditions": [failed]});
    let going = |mut pod: Value| {
        pod["metadata"]["deletionTimestamp"] = json!("2026-05-01T12:07:00Z");
        pod
    };
    let waiting = json!({"phase": "Pending", "containerStatuses": [{"name": "trainer",
        "image": "qvl.test/none:1", "state": {"waiting": {"reason": "ErrImagePull",
            "message": "not found"}}}]});
    let unscheduled = json!({"phase": "Pending",
        "conditions": [condition("PodScheduled", "False", "Unschedulable", "no node")]});
    let bound = json!({"phase": "Pending"});
    let pods = [pod(0, "n1", waiting), pod(1, "", unscheduled), pod(2, "n1", bound)].map(going);
    let objects = json!({"job": job(status), "pods": pods});
    insta::assert_snapshot!(explained(objects), @r"
    digits failed, last change 3m0s ago
      FineTuneJob/digits  Failed is True (ImageUnavailable): ImagePullBackOff: not found
    hint: is spec.cluster.image right, and does spec.cluster.imagePullSecrets let the node pull it?
    ");
}

#[test]
fn a_lost_node_is_the_end_of_the_chain() {
    let status = json!({"summary": {"state": "Restarting", "reason": "node n2 is lost"},
        "conditions": [condition("Restarting", "True", "NodeLost", "attempt 1 ended")],
        "lastFailure": {"class": "Infra", "rank": 2, "node": "n2", "what": "rank 2 was lost with its node",
            "tail": "step 7\n", "step": 7, "epoch": 1}});
    let lost = json!({"phase": "Running",
        "conditions": [condition("DisruptionTarget", "True", "DeletionByTaintManager", "node is gone")]});
    let node = json!({"metadata": {"name": "n2"}, "spec": {"unschedulable": true}, "status":
        {"conditions": [condition("Ready", "Unknown", "NodeStatusUnknown", "Kubelet stopped posting"),
            condition("MemoryPressure", "False", "", "")]}});
    let report = json!({"metadata": {"name": "n2"}, "spec": {"summary": {"problems": "xid-seen"}}});
    let objects = json!({"job": job(status), "pods": [pod(1, "n2", lost)], "nodes": [node],
        "reports": [report]});
    insta::assert_snapshot!(explained(objects), @r"
    digits is restarting: node n2 is lost, last change 3m0s ago
      FineTuneJob/digits  Restarting is True (NodeLost): attempt 1 ended
      FineTuneJob/digits  the culprit: rank 2 on n2 was lost with its node, after step 7
      FineTuneJob/digits  its last words: step 7
      Pod/digits-a1-1-x   on n2 was taken away (DeletionByTaintManager): node is gone
      Node/n2             is cordoned
      Node/n2             is not ready for 3m0s: Kubelet stopped posting
      NodeReport/n2       problems: xid-seen
    hint: `qvl doctor --cluster` tells what to do about the nodes' problems
    ");
}

#[test]
fn a_failed_job_tells_what_its_exit_codes_mean() {
    let status = json!({"summary": {"state": "Failed"},
        "conditions": [condition("Failed", "True", "NonRetryable", "rank 1 found bad data")],
        "lastFailure": {"class": "App", "rank": 1, "node": "n1", "what": "rank 1 ended with code 65 (data)",
            "hint": "`qvl data lint` shows the sample", "tail": "", "step": 0, "epoch": 1}});
    let ended = |code: i64, message: &str| {
        json!({"phase": "Failed", "containerStatuses":
        [{"name": "trainer", "state": {"terminated": {"exitCode": code, "message": message}}}]})
    };
    let job_failed = json!({"metadata": {"name": "digits-a1", "labels": {"qvl.dev/attempt": "1"}},
        "status": {"conditions": [condition("Failed", "True", "PodFailurePolicy", "exit code 65")]}});
    let objects = json!({"job": job(status), "jobs": [job_failed], "pods": [
        pod(0, "n1", ended(65, "{\"what\": \"sample 7 has no picture\"}")),
        pod(1, "n2", ended(137, "killed"))]});
    insta::assert_snapshot!(explained(objects), @r"
    digits failed, last change 3m0s ago
      FineTuneJob/digits  Failed is True (NonRetryable): rank 1 found bad data
      FineTuneJob/digits  the culprit: rank 1 on n1 ended with code 65 (data), after step 0
      Job/digits-a1       failed (PodFailurePolicy): exit code 65
      Pod/digits-a1-0-x   on n1 ended with code 65 (data): sample 7 has no picture
      Pod/digits-a1-1-x   on n2 ended with code 137 (signal 9): killed
    hint: `qvl data lint` shows the sample
    ");
}

#[test]
fn a_queued_job_tells_its_queue() {
    let status = json!({"summary": {"state": "Queued"},
        "conditions": [condition("QuotaReserved", "False", "Queued", "waits in queue team")]});
    let child = json!({"metadata": {"name": "digits-a1", "labels": {"qvl.dev/attempt": "1"}},
        "spec": {"suspend": true}});
    let workload = json!({"metadata": {"name": "job-digits-a1-f00"}, "spec": {"queueName": "team"},
        "status": {"conditions": [condition("QuotaReserved", "False", "Pending",
            "couldn't assign flavors: insufficient quota for nvidia.com/gpu")]}});
    let noise = warning("Workload", "job-digits-a1-f00", "ErrWorkloadCompose", "again");
    let objects =
        json!({"job": job(status), "jobs": [child], "workloads": [workload], "events": [noise]});
    insta::assert_snapshot!(explained(objects), @r"
    digits is queued, last change 3m0s ago
      FineTuneJob/digits          QuotaReserved is False (Queued): waits in queue team
      Job/digits-a1               is suspended: its queue has not admitted it
      Workload/job-digits-a1-f00  waits in queue team: couldn't assign flavors: insufficient quota for nvidia.com/gpu
    hint: `kubectl describe localqueue team` shows its quota and who waits
    ");
}

#[test]
fn a_job_that_nobody_looks_at_points_to_the_operator() {
    let objects = json!({"job": job(Value::Null)});
    insta::assert_snapshot!(explained(objects), @r"
    digits is pending: the operator has not looked at it yet
      no object of the job reports a problem
    hint: does the operator run? `kubectl -n qvl-system get deploy qvl-operator`
    ");
}
