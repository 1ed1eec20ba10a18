//! The control plane and qvl itself fail while a job runs.

use std::fs;

use serde_json::json;

use crate::{
    Test,
    job::Job,
    lab::{Lab, SYSTEM, system, until},
    ranks::LAUNCH,
};

pub(crate) const TESTS: &[Test] = &[
    ("a_job_runs_on_without_the_operator", operator_away),
    ("another_operator_takes_over_from_one_that_is_killed", leader_killed),
    ("a_job_runs_on_without_the_api_server", apiserver_away),
    ("no_line_is_lost_without_the_collector", collector_away),
    ("without_dns_a_job_waits_and_says_so", dns_broken),
    ("an_upgrade_does_not_disturb_a_job", upgrade),
    ("helm_test_passes_and_uninstall_leaves_jobs_and_logs", test_and_uninstall),
];

fn operator_away(lab: &Lab) {
    let mut job = Job::digits("alone").launch(lab, LAUNCH);
    job.wait_for_step(5);
    lab.scale("deployments", "qvl-operator", 0);
    let result = lab.volume.join("demo/alone/adapter/adapter_model.safetensors");
    until("the training ends without the operator", || fs::metadata(&result).ok());
    lab.scale("deployments", "qvl-operator", 2);
    job.assert_undisturbed();
    assert_eq!(job.field("/status/restarts/total"), 0);
}

/// Both replicas run; the one that leads is killed without a word, and nothing is done twice.
fn leader_killed(lab: &Lab) {
    let leader = || {
        let lease = format!("/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases/qvl-operator");
        let holder = lab.field(&lease, "/spec/holderIdentity");
        let (pod, _address) = holder.as_str()?.split_once('@')?;
        Some(pod.to_owned())
    };
    let first = until("one operator leads", leader);
    let mut job = Job::digits("led").launch(lab, LAUNCH);
    job.wait_for_step(5);
    let kill = ["-n", SYSTEM, "delete", "pod", &first, "--grace-period=0", "--force"];
    lab.cluster.kubectl(&kill).unwrap();
    let second = until("another operator leads", || leader().filter(|name| *name != first));
    job.assert_undisturbed();
    assert_eq!(job.field("/status/restarts/total"), 0);
    assert_eq!(leader().as_ref(), Some(&second), "the lease changed hands once");
    let events = lab.qvl(&["events", "led", "--cluster"]).text;
    let begun = events.matches("AttemptStarted").count();
    assert_eq!(begun, 1, "told once: {events}");
}

fn apiserver_away(lab: &Lab) {
    let mut job = Job::digits("noapi").launch(lab, LAUNCH);
    job.wait_for_step(5);
    lab.cluster.stop_apiserver().unwrap();
    let result = lab.volume.join("demo/noapi/adapter/adapter_model.safetensors");
    until("the training ends without the API server", || fs::metadata(&result).ok());
    lab.cluster.start_apiserver().unwrap();
    let said = job.assert_undisturbed();
    assert!(said.text.contains("connection to the cluster"), "{said}");
    assert_eq!(job.field("/status/restarts/total"), 0);
}

fn collector_away(lab: &Lab) {
    let mut job = Job::digits("mute").launch(lab, LAUNCH);
    job.wait_for_step(5);
    lab.scale("statefulsets", "qvl-collector", 0);
    job.wait_for_step(25);
    lab.scale("statefulsets", "qvl-collector", 1);
    job.assert_undisturbed();
}

fn dns_broken(lab: &Lab) {
    lab.cluster.stop_dns().unwrap();
    let mut job = Job::digits("nameless").launch(lab, LAUNCH);
    let silent = || {
        let explained = lab.qvl(&["explain", "nameless", "--cluster"]).text;
        explained.contains("has not spoken yet").then_some(explained)
    };
    let explained = until("the job says that its pods are not heard", silent);
    assert!(explained.contains("network policy or DNS"), "{explained}");
    lab.cluster.start_dns().unwrap();
    job.assert_undisturbed();
    assert_eq!(job.field("/status/restarts/total"), 0);
}

fn upgrade(lab: &Lab) {
    let mut job = Job::digits("rolled").launch(lab, LAUNCH);
    job.wait_for_step(5);
    // Every program of the release starts anew.
    let anew = ["operator", "collector", "agent"];
    let anew = anew.map(|part| format!("{part}.podAnnotations.example\\.com/revision=two"));
    let mut sets: Vec<&str> = anew.iter().flat_map(|set| ["--set", set]).collect();
    let certificates = || lab.field(&system("secrets/qvl-tls"), "/data");
    let upgrade = ["upgrade", "qvl", "charts/qvl", "--reuse-values", "--wait"];
    let first = certificates();
    assert!(first["ca.crt"].is_string(), "the chart has made certificates");
    lab.helm(&[&upgrade[..], &sets].concat());
    assert_eq!(certificates(), first, "they are young");
    // The pods that run know the CA of before.
    sets.extend(["--set", "tls.renewAfterDays=0"]);
    lab.helm(&[&upgrade[..], &sets].concat());
    let second = certificates();
    assert_eq!((&second["ca.crt"], &second["ca.key"]), (&first["ca.crt"], &first["ca.key"]));
    assert_ne!(second["tls.crt"], first["tls.crt"], "a new one of the same CA");
    job.assert_undisturbed();
    assert_eq!(job.field("/status/restarts/total"), 0);
}

fn test_and_uninstall(lab: &Lab) {
    lab.helm(&["test", "qvl"]);
    let short = Job::digits("kept").with("stages.0.steps", json!(2));
    let mut job = short.with("schedule.warmupSteps", json!(1)).launch(lab, LAUNCH);
    let said = job.end();
    assert_eq!(said.code, 0, "{said}");
    let (status, lines) = (job.field("/status"), job.lines());
    assert!(!lines.is_empty());
    lab.helm(&["uninstall", "qvl", "--wait"]);
    assert_eq!(job.field("/status"), status);
    let claims = "persistentvolumeclaims?labelSelector=app.kubernetes.io/name=qvl";
    let claim = lab.field(&system(claims), "/items/0");
    assert_eq!(claim["status"]["phase"], "Bound", "{claim}");
    let authority = || lab.field(&system("secrets/qvl-tls"), "/data/ca.crt");
    let before = authority();
    lab.install();
    assert!(before.is_string() && before == authority(), "pods of before know the operator");
    assert_eq!(job.field("/status"), status);
    assert_eq!(job.lines(), lines);
}
