//! Plans for jobs in each situation.

use jiff::SignedDuration;

use super::*;
use crate::{
    api::job::State,
    operator::{
        gang::{GangPhase, GangView},
        observed::{JobEnd, PodFact},
        testing,
    },
    wire::{DoctorVerdict, VERDICT_ANNOTATION},
};

/// The steps in short but for news, after the state that the first of them writes.
fn steps(observed: &Observed) -> Vec<String> {
    let short = |step: Step| match step.action {
        Action::WriteStatus(status) => {
            let text = format!("{:?} a{}", status.summary.state, status.attempt);
            if status.summary.reason.is_empty() {
                text
            } else {
                format!("{text} {}", status.summary.reason)
            }
        }
        Action::RegisterGang(spec) => format!("RegisterGang a{}", spec.attempt),
        Action::DeleteJob { name, .. } => format!("DeleteJob {name}"),
        Action::ForceDeletePod { name, .. } => format!("ForceDeletePod {name}"),
        action @ (Action::Tell(_)
        | Action::ApplyAccount
        | Action::ApplyService
        | Action::ApplyGroup
        | Action::ApplySpec { .. }
        | Action::CreateJob { .. }
        | Action::AskStop
        | Action::ForgetGang) => format!("{action:?}"),
    };
    let steps = plan(observed).into_iter();
    steps.filter(|step| !matches!(step.action, Action::Tell(_))).map(short).collect()
}

/// Writes what the first step says into the observation.
fn write(observed: &mut Observed) {
    let actions = plan(observed).into_iter().map(|step| step.action);
    let first = actions.into_iter().find(|action| !matches!(action, Action::Tell(_)));
    let Some(Action::WriteStatus(status)) = first else { panic!("no status in {first:?}") };
    observed.job.status = Some(*status);
}

fn pod(attempt: u32, phase: PodPhase) -> PodFact {
    PodFact {
        name: format!("digits-a{attempt}-0"),
        uid: "uid-of-pod".to_owned(),
        attempt,
        index: 0,
        node: (phase != PodPhase::Pending).then(|| "n1".to_owned()),
        phase,
        waiting: None,
        exit_code: None,
        last_words: None,
        disruption: None,
        deleted: None,
        deadline: None,
    }
}

fn gang(phase: GangPhase) -> GangView {
    GangView {
        phase,
        epoch: 1,
        restarts: 0,
        progress: crate::api::job::Progress {
            step: 4,
            total_steps: 10,
            step_seconds: Some(2.0),
            loss: Some(0.5),
            checkpoint_step: None,
        },
        nodes: vec!["n1".to_owned()],
        last_failure: None,
        notes: Vec::new(),
        silent_pods: Vec::new(),
        running_ranks: 1,
    }
}

/// A job whose first attempt runs.
fn running() -> Observed {
    let mut observed = testing::observed();
    write(&mut observed);
    let mut fact = testing::attempt(&observed.job, 1);
    fact.started = Some(observed.now);
    observed.attempts.push(fact);
    observed.pods.push(pod(1, PodPhase::Running));
    observed.gang = Some(gang(GangPhase::Running));
    write(&mut observed);
    assert!(steps(&observed).is_empty());
    observed
}

#[test]
fn the_first_words_come_before_the_first_object() {
    let mut observed = testing::observed();
    assert_eq!(steps(&observed), ["Scheduling a1 Creating"]);
    write(&mut observed);
    assert_eq!(
        steps(&observed)[1..],
        [
            "RegisterGang a1",
            "ApplyAccount",
            "ApplyService",
            "ApplySpec { attempt: 1 }",
            "CreateJob { attempt: 1 }",
        ]
    );
}

/// What the launcher left is in the first status; what is edited later is not, nor is nonsense.
#[test]
fn the_verdict_of_the_launch_is_kept_as_it_was() {
    let verdict = |digest: &str| DoctorVerdict {
        digest: digest.to_owned(),
        nodes: vec!["n1".to_owned()],
        nodes_total: 1,
        ..DoctorVerdict::default()
    };
    let leave = |observed: &mut Observed, text: &str| {
        let annotations = observed.job.metadata.annotations.get_or_insert_default();
        annotations.insert(VERDICT_ANNOTATION.to_owned(), text.to_owned());
    };
    let text = |digest| serde_json::to_string(&verdict(digest)).unwrap();
    let mut observed = testing::observed();
    leave(&mut observed, &text("sha256:1"));
    write(&mut observed);
    assert_eq!(observed.status().doctor, Some(verdict("sha256:1")));
    leave(&mut observed, &text("sha256:2"));
    let later = status::status(&observed, &decide(&observed));
    assert_eq!(later.doctor, Some(verdict("sha256:1")));
    for nonsense in ["", "yes", "{}", &"x".repeat(1 << 20)] {
        let mut observed = testing::observed();
        leave(&mut observed, nonsense);
        write(&mut observed);
        assert_eq!(observed.status().doctor, None);
    }
}

#[test]
fn a_running_job_shows_how_far_it_is() {
    let observed = running();
    let summary = &observed.status().summary;
    assert_eq!(summary.state, State::Running);
    let shown = [&summary.ranks, &summary.progress, &summary.eta, &summary.loss, &summary.reason];
    assert_eq!(shown, ["1/1", "40% 4/10", "12s", "0.500", ""]);
    assert_eq!(observed.status().placement.nodes, ["n1"]);
}

#[test]
fn an_unschedulable_pod_says_why_and_then_gives_way() {
    let mut observed = running();
    observed.gang = None;
    observed.pods = vec![PodFact {
        waiting: Some(("Unschedulable".to_owned(), "0/2 nodes are available".to_owned())),
        ..pod(1, PodPhase::Pending)
    }];
    assert_eq!(
        steps(&observed),
        ["Scheduling a1 Unschedulable: 0/2 nodes are available", "RegisterGang a1"]
    );
    observed.now += SignedDuration::from_secs(600);
    assert_eq!(
        steps(&observed),
        [
            "Restarting a1 StartTimeout: not all pods were running after 600 s: 0/2 nodes are available"
        ]
    );
    write(&mut observed);
    assert_eq!(steps(&observed), ["DeleteJob digits-a1"]);
    observed.attempts.clear();
    observed.pods.clear();
    assert!(steps(&observed).is_empty(), "it waits");
    observed.now += SignedDuration::from_secs(60);
    assert_eq!(steps(&observed), ["Scheduling a2 Creating"]);
    write(&mut observed);
    assert_eq!(observed.status().restarts.counted, 0);
}

#[test]
fn a_missing_image_is_final_after_the_start_timeout() {
    let mut observed = running();
    observed.pods = vec![PodFact {
        waiting: Some(("ImagePullBackOff".to_owned(), "not found".to_owned())),
        ..pod(1, PodPhase::Pending)
    }];
    observed.gang = None;
    observed.now += SignedDuration::from_secs(601);
    assert_eq!(steps(&observed), ["Failed a1 ImageUnavailable: ImagePullBackOff: not found"]);
    write(&mut observed);
    assert_eq!(steps(&observed), ["DeleteJob digits-a1"]);
}

#[test]
fn a_lost_node_is_avoided_by_the_next_attempt() {
    let mut observed = running();
    observed.pods[0].disruption = Some("DeletionByTaintManager".to_owned());
    observed.pods[0].deadline = Some(observed.now + SignedDuration::from_secs(60));
    assert_eq!(
        steps(&observed),
        ["Restarting a1 NodeLost: pod 0 on n1 is lost: its node does not answer"]
    );
    write(&mut observed);
    assert_eq!(observed.status().placement.excluded[0].name, "n1");
    assert_eq!(observed.status().restarts.counted, 1);
    assert_eq!(steps(&observed), ["DeleteJob digits-a1"]);
    observed.attempts.clear();
    observed.now += SignedDuration::from_secs(65);
    assert!(steps(&observed).is_empty(), "the broker hears it: its ranks may still save");
    observed.now += SignedDuration::from_secs(10);
    assert_eq!(steps(&observed), ["Scheduling a2 Creating"]);
}

#[test]
fn numbers_alone_are_not_written_at_every_change() {
    let mut observed = running();
    observed.job.spec.world.gpus = 2;
    observed.job.spec.cluster.gpus_per_node = Some(1);
    observed.gang = None;
    observed.pods[0].phase = PodPhase::Pending;
    observed.pods.push(PodFact { index: 1, ..pod(1, PodPhase::Pending) });
    write(&mut observed);
    observed.numbers_due = false;
    observed.pods[0].phase = PodPhase::Running;
    let writes = |observed: &Observed| {
        plan(observed).iter().any(|step| matches!(step.action, Action::WriteStatus(_)))
    };
    assert!(!writes(&observed), "one pod of two runs");
    observed.numbers_due = true;
    assert!(writes(&observed), "it is told some seconds later");
    observed.numbers_due = false;
    observed.pods[1].phase = PodPhase::Running;
    assert!(writes(&observed), "that all of them run is told at once");
}

#[test]
fn a_pod_that_nobody_hears_is_not_given_time_to_end() {
    let mut observed = running();
    observed.pods[0].disruption = Some("DeletionByTaintManager".to_owned());
    observed.pods[0].deleted = Some(observed.now);
    observed.pods[0].deadline = Some(observed.now + SignedDuration::from_secs(60));
    observed.gang = Some(GangView { silent_pods: vec![0], ..gang(GangPhase::Lost) });
    write(&mut observed);
    observed.attempts.clear();
    observed.now += SignedDuration::from_secs(5);
    assert!(steps(&observed).is_empty(), "its node may come back");
    observed.now += SignedDuration::from_secs(10);
    assert_eq!(steps(&observed), ["Scheduling a2 Creating"]);
}

#[test]
fn a_permanent_exit_is_the_end_and_nothing_comes_back() {
    let mut observed = running();
    observed.gang = None;
    observed.pods[0].phase = PodPhase::Failed;
    observed.pods[0].exit_code = Some(65);
    observed.attempts[0].end =
        Some(JobEnd::Failed { reason: "PodFailurePolicy".to_owned(), message: String::new() });
    assert_eq!(steps(&observed)[0], "Failed a1 NonRetryable: pod 0 ended with exit code 65");
    write(&mut observed);
    observed.attempts.clear();
    observed.pods.clear();
    observed.job.spec.suspend = true;
    assert!(steps(&observed).is_empty());
    observed.job.spec.suspend = false;
    observed.now += SignedDuration::from_secs(1_000_000);
    assert!(steps(&observed).is_empty());
}

#[test]
fn pods_that_the_job_deletes_after_a_failure_are_not_to_blame() {
    let mut observed = running();
    observed.gang = None;
    (observed.pods[0].phase, observed.pods[0].exit_code) = (PodPhase::Failed, Some(65));
    let deadline = Some(observed.now + SignedDuration::from_secs(60));
    observed.pods.push(PodFact { index: 1, deadline, ..pod(1, PodPhase::Running) });
    let text = steps(&observed).join("\n");
    assert!(!text.contains("PodDeleted"), "{text}");
    let end = JobEnd::Failed { reason: "PodFailurePolicy".into(), message: String::new() };
    observed.attempts[0].end = Some(end);
    let text = steps(&observed).join("\n");
    assert!(text.contains("Failed a1 NonRetryable"), "{text}");
}

#[test]
fn suspend_asks_the_ranks_first() {
    let mut observed = running();
    observed.job.spec.suspend = true;
    let said = "Suspending a1 Stopping: the ranks save a checkpoint and stop";
    assert_eq!(steps(&observed), [said, "AskStop"]);
    write(&mut observed);
    observed.gang = Some(gang(GangPhase::Stopped));
    assert_eq!(steps(&observed).last().unwrap(), "DeleteJob digits-a1");
    observed.attempts.clear();
    observed.pods.clear();
    assert_eq!(steps(&observed), ["Suspended a1 UserRequested: no pod runs; spec.suspend is true"]);
    write(&mut observed);
    assert!(steps(&observed).is_empty());
    observed.job.spec.suspend = false;
    assert_eq!(steps(&observed), ["Scheduling a2 Creating"]);
    write(&mut observed);
    assert_eq!(observed.status().restarts.total, 0);
}

#[test]
fn pods_that_never_spoke_are_not_waited_for() {
    let mut observed = running();
    observed.job.spec.suspend = true;
    write(&mut observed);
    observed.gang = Some(gang(GangPhase::Stopping));
    assert_eq!(steps(&observed).last().unwrap(), "AskStop");
    observed.gang.as_mut().unwrap().nodes = vec![String::new()];
    assert_eq!(steps(&observed).last().unwrap(), "DeleteJob digits-a1");
}

#[test]
fn resuming_while_the_pods_go_is_no_failure() {
    let mut observed = running();
    observed.job.spec.suspend = true;
    write(&mut observed);
    observed.attempts.clear();
    observed.pods[0].deadline = Some(observed.now + SignedDuration::from_secs(60));
    observed.job.spec.suspend = false;
    assert!(steps(&observed).is_empty());
    observed.pods.clear();
    write(&mut observed);
    assert_eq!(observed.status().summary.state, State::Suspended);
    assert_eq!(steps(&observed), ["Scheduling a2 Creating"]);
    write(&mut observed);
    assert_eq!(observed.status().restarts.total, 0);
}

#[test]
fn a_refused_object_is_told_in_the_status() {
    let mut observed = testing::observed();
    write(&mut observed);
    let message = "failed to create Job `digits-a1`: exceeded quota".to_owned();
    observed.fault = Some(observed::Fault { message, refused: true });
    assert_eq!(
        steps(&observed)[0],
        "Scheduling a1 failed to create Job `digits-a1`: exceeded quota"
    );
}

#[test]
fn a_job_of_an_earlier_life_is_removed_first() {
    let mut observed = testing::observed();
    let mut old = testing::attempt(&observed.job, 1);
    "another".clone_into(&mut old.owner);
    old.end = Some(JobEnd::Complete);
    observed.attempts.push(old);
    write(&mut observed);
    assert_eq!(steps(&observed).last().unwrap(), "DeleteJob digits-a1");
}
