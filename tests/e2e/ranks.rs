//! The undisturbed job, and ranks that fail.

use std::{fs, io::ErrorKind, path::Path, time::Duration};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{
    Test,
    job::{Job, Launch, STEPS},
    lab::{Lab, figure, now_ms, until, within},
    seen::assert_golden,
};

pub(crate) const TESTS: &[Test] = &[
    ("digits_on_two_nodes_end_with_the_bits_of_one_rank", digits),
    ("a_killed_rank_is_restarted_in_its_pod", killed),
    ("a_stopped_rank_is_found_and_restarted", stopped),
    ("a_loss_that_is_not_finite_fails_the_job_for_good", not_finite),
    ("a_disk_that_stays_full_fails_the_job", disk_full),
    ("a_missing_image_is_named", image_missing),
];

fn digits(lab: &Lab) {
    let mut job = Job::digits("digits").launch(lab, LAUNCH);
    let said = job.assert_undisturbed();
    assert_golden!("digits", said.story());
    assert_golden!("digits-status", lab.qvl(&["status", "digits", "--cluster"]).text);
    assert_verdict(&job);
    let row = lab.cluster.run("get ftj digits --no-headers");
    let cells: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(cells[..4], ["digits", "Complete", "0/4", "100%"], "{row}");
    let steps: Vec<u64> = job.steps().iter().map(|step| step.number).collect();
    assert_eq!(steps, (1..=STEPS).collect::<Vec<_>>());
}

/// The doctor's verdict came along with the job, and its status keeps it.
fn assert_verdict(job: &Launch<'_>) {
    let left = job.field("/metadata/annotations/qvl.dev~1doctor");
    let left: Value = serde_json::from_str(left.as_str().unwrap()).unwrap();
    let kept = job.field("/status/doctor");
    assert_eq!(kept, left);
    let rules = qvl::doctor::rules_digest();
    assert_eq!((&kept["rules"], &kept["counts"]["fail"]), (&json!(rules), &json!(0)));
    assert_eq!(kept["allowedUnknown"], json!(["node-missing"]));
}

/// Options of a launch here: the node agents say nothing about these nodes.
pub(crate) const LAUNCH: &[&str] = &["--allow-unknown", "node-missing"];

fn killed(lab: &Lab) {
    let mut job = Job::digits("killed").launch(lab, LAUNCH);
    job.wait_for_step(12);
    let pods = [job.pod(0), job.pod(1)];
    let killed = now_ms();
    job.signal(2, Signal::SIGKILL);
    let limit = Duration::from_secs(15);
    within(limit, "the death of a rank is reported", || {
        (job.field("/status/lastFailure/rank") == 2).then_some(())
    });
    figure("death of a rank to its report", now_ms() - killed);
    let said = job.assert_undisturbed();
    assert_golden!("killed", said.story());
    assert_golden!("killed-explain", lab.qvl(&["explain", "killed", "--cluster"]).text);
    assert_culprit(&job, 2, "crash");
    assert_eq!([job.pod(0), job.pod(1)], pods, "the pods are the same");
    let again = job.steps().into_iter().find(|step| step.epoch == 2).unwrap();
    figure("death of a rank to the first step of all ranks", again.time_ms - killed);
    assert_eq!(job.field("/status/attempt"), 1);
    assert_eq!(job.field("/status/restarts/counted"), 1);
}

fn stopped(lab: &Lab) {
    let mut job = Job::digits("stopped").launch(lab, LAUNCH);
    job.wait_for_step(12);
    let stopped = job.rank(1);
    let since = now_ms();
    job.signal(1, Signal::SIGSTOP);
    // The floor of the watchdog, and what a loaded machine adds.
    within(Duration::from_secs(60), "the silent rank is reported", || {
        (job.field("/status/lastFailure/exitCode") == 86).then_some(())
    });
    figure("silence of a rank to its report", now_ms() - since);
    let said = job.assert_undisturbed();
    assert_golden!("stopped", said.story());
    assert_culprit(&job, 1, "passing");
    let gone = || nix::sys::signal::kill(stopped, None).is_err().then_some(());
    until("the stopped process is gone", gone);
}

fn not_finite(lab: &Lab) {
    let rate = json!(1.0e30);
    let job = Job::digits("nan").with("optimizer.learningRate", rate);
    let mut job = job.with("optimizer.maxGradNorm", json!(0.0)).launch(lab, LAUNCH);
    let said = job.end();
    assert_eq!(said.code, 100, "{said}");
    // All ranks see it in the same step.
    let rank = job.field("/status/lastFailure/rank");
    let anonymous = |text: String| text.replace(&format!("rank {rank}"), "rank [r]");
    assert_golden!("nan", anonymous(said.story()));
    assert_golden!("nan-explain", anonymous(of_itself(lab, "nan")));
    assert_eq!(job.field("/status/lastFailure/exitCode"), 82);
    assert_eq!(job.field("/status/restarts/total"), 0);
}

fn disk_full(lab: &Lab) {
    let job = Job::digits("full").with("output", json!("/dev/shm/run"));
    let job = job.with("failure", json!({"maxRestarts": 1}));
    let mut job = job.with("cluster.shm", json!("640Mi")).launch(lab, LAUNCH);
    job.wait_for_step(1);
    // Somebody else fills it: the test before the start has seen enough room.
    let process = Path::new("/proc").join(job.rank(0).to_string());
    let filler = process.join("root").join("dev/shm/filler");
    let full = fs::write(filler, vec![0; 640 << 20]).unwrap_err();
    assert_eq!(full.kind(), ErrorKind::StorageFull);
    let said = job.end();
    assert_eq!(said.code, 100, "{said}");
    assert_golden!("full", said.story());
    assert_eq!(job.field("/status/lastFailure/exitCode"), 74);
    assert_eq!(job.field("/status/lastFailure/rank"), 0, "only rank 0 writes");
    assert_eq!(job.field("/status/restarts/counted"), 1, "there might have been room again");
}

fn image_missing(lab: &Lab) {
    // Nobody listens there: the pull fails at once.
    let job = Job::digits("image").with("cluster.image", json!("127.0.0.1:9/absent:1"));
    let job = job.with("cluster.startTimeoutSeconds", json!(20));
    let mut job = job.launch(lab, LAUNCH);
    let explain = || lab.qvl(&["explain", "image", "--cluster"]).text;
    // Asked while the pods are there: they go when the job has failed.
    let explained = until("the image is named", || {
        Some(explain()).filter(|text| text.contains("cannot pull image 127.0.0.1:9/absent:1"))
    });
    assert!(explained.contains("hint: is spec.cluster.image right"), "{explained}");
    let said = job.end();
    assert_eq!(said.code, 100, "{said}");
    assert_golden!("image", said.story());
    assert_golden!("image-explain", of_itself(lab, "image"));
}

/// How a job that has ended is explained, without its pods, which may be gone by now or not.
fn of_itself(lab: &Lab, name: &str) -> String {
    let explained = lab.qvl(&["explain", name, "--cluster"]).text;
    let own = explained.lines().filter(|line| !line.starts_with("  Pod/"));
    let object = format!("  FineTuneJob/{name}");
    // The column is as wide as the longest name.
    let own = own.map(|line| match line.strip_prefix(&object) {
        Some(rest) => format!("{object}  {}\n", rest.trim_start()),
        None => format!("{line}\n"),
    });
    own.collect()
}

/// The job blames this rank, on the node where it ran.
#[track_caller]
pub(crate) fn assert_culprit(job: &Launch<'_>, rank: u32, class: &str) {
    let failure = job.field("/status/lastFailure");
    assert_eq!(failure["rank"], rank, "{failure}");
    assert_eq!(failure["class"], class, "{failure}");
    assert_eq!(failure["node"], job.pod(rank / 2).1.as_str(), "{failure}");
}
