//! A small world in which plans are carried out while things go wrong, in every order.

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use super::{
    conditions::{self, COMPLETE, FAILED},
    gang::{GangPhase, GangView},
    observed::{AttemptFact, JobEnd, Observed, PodFact, PodPhase},
    plan::{Action, plan},
    testing,
};
use crate::api::job::Progress;

const PODS: u32 = 2;

#[derive(Clone, Debug)]
enum Happening {
    Time(i64),
    PodsStart,
    GangStarts,
    GangSucceeds,
    GangFailsInPlace,
    GangLosesPod(u32),
    PodEnds(u32, i32),
    NodeIsLost(u32),
    PodIsDeleted(u32),
    JobIsDeleted,
    SuspendIsToggled,
    StopIsHonoured,
    PodsLeave,
    OperatorRestarts,
    /// The operator dies after so many steps of its next plan.
    Crash(usize),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        3 => (1..90_i64).prop_map(Happening::Time),
        3 => Just(Happening::PodsStart),
        3 => Just(Happening::GangStarts),
        1 => Just(Happening::GangSucceeds),
        1 => Just(Happening::GangFailsInPlace),
        1 => (0..PODS).prop_map(Happening::GangLosesPod),
        1 => (0..PODS, prop::sample::select(vec![1, 65, 75, 81, 84, 85, 137]))
            .prop_map(|(pod, code)| Happening::PodEnds(pod, code)),
        1 => (0..PODS).prop_map(Happening::NodeIsLost),
        1 => (0..PODS).prop_map(Happening::PodIsDeleted),
        1 => Just(Happening::JobIsDeleted),
        1 => Just(Happening::SuspendIsToggled),
        2 => Just(Happening::StopIsHonoured),
        3 => Just(Happening::PodsLeave),
        1 => Just(Happening::OperatorRestarts),
        2 => (0..4_usize).prop_map(Happening::Crash),
    ]
}

struct World {
    seen: Observed,
    /// Gang of an attempt, as the broker keeps it.
    gang: Option<(u32, GangView)>,
    stopping: bool,
}

impl World {
    fn new() -> Self {
        let mut seen = testing::observed();
        seen.job.spec.world.gpus = PODS;
        seen.job.spec.cluster.gpus_per_node = Some(1);
        World { seen, gang: None, stopping: false }
    }

    fn attempt(&self) -> u32 {
        self.seen.status().attempt
    }

    fn is_terminal(&self) -> bool {
        let conditions = &self.seen.status().conditions;
        conditions::is_true(conditions, COMPLETE) || conditions::is_true(conditions, FAILED)
    }

    fn pod(&mut self, index: u32) -> Option<&mut PodFact> {
        let attempt = self.attempt();
        let mut pods = self.seen.pods.iter_mut();
        pods.find(|pod| pod.attempt == attempt && pod.index == index && pod.exit_code.is_none())
    }

    fn job_fails(&mut self) {
        let attempt = self.attempt();
        for job in self.seen.attempts.iter_mut().filter(|job| job.attempt == attempt) {
            let end = JobEnd::Failed { reason: "PodFailurePolicy".into(), message: String::new() };
            job.end.get_or_insert(end);
        }
        self.end_pods(attempt, 60);
    }

    /// The pods of an attempt are asked to end.
    fn end_pods(&mut self, attempt: u32, grace: i64) {
        let now = self.seen.now;
        for pod in self.seen.pods.iter_mut().filter(|pod| pod.attempt == attempt) {
            if matches!(pod.phase, PodPhase::Pending | PodPhase::Running) {
                delete(pod, now, grace);
            }
        }
    }

    #[expect(clippy::too_many_lines, reason = "one arm for each happening")]
    fn happen(&mut self, happening: &Happening) {
        match happening {
            Happening::Time(seconds) => {
                self.seen.now += SignedDuration::from_secs(*seconds);
                self.seen.numbers_due = 5 <= *seconds;
            }
            Happening::PodsStart => {
                for pod in &mut self.seen.pods {
                    if pod.phase == PodPhase::Pending && pod.deadline.is_none() {
                        pod.phase = PodPhase::Running;
                        pod.node = Some(format!("n{}", pod.index));
                    }
                }
            }
            Happening::GangStarts => {
                let attempt = self.attempt();
                let running = self.seen.pods_of(attempt);
                let running = running.filter(|pod| pod.phase == PodPhase::Running).count();
                if let Some((of, view)) = &mut self.gang
                    && *of == attempt
                    && view.phase == GangPhase::Waiting
                    && running == PODS as usize
                {
                    view.phase = GangPhase::Running;
                    view.epoch += 1;
                }
            }
            Happening::GangSucceeds => self.succeed(),
            Happening::GangFailsInPlace => {
                if let Some((_attempt, view)) = &mut self.gang
                    && view.phase == GangPhase::Running
                {
                    if view.restarts < 3 {
                        view.restarts += 1;
                        view.epoch += 1;
                    } else {
                        view.phase = GangPhase::Failed;
                    }
                }
            }
            Happening::GangLosesPod(pod) => {
                if let Some((_attempt, view)) = &mut self.gang
                    && view.phase == GangPhase::Running
                {
                    view.phase = GangPhase::Lost;
                    view.silent_pods = vec![*pod];
                }
            }
            Happening::PodEnds(index, code) => {
                if let Some(pod) = self.pod(*index).filter(|pod| pod.phase == PodPhase::Running) {
                    pod.phase = PodPhase::Failed;
                    pod.exit_code = Some(*code);
                    self.job_fails();
                }
            }
            Happening::NodeIsLost(index) => {
                let now = self.seen.now;
                if let Some(pod) = self.pod(*index).filter(|pod| pod.phase == PodPhase::Running) {
                    pod.disruption.get_or_insert("DeletionByTaintManager".to_owned());
                    delete(pod, now, 60);
                }
            }
            Happening::PodIsDeleted(index) => {
                let now = self.seen.now;
                if let Some(pod) = self.pod(*index) {
                    delete(pod, now, 60);
                }
            }
            Happening::JobIsDeleted => {
                let attempt = self.attempt();
                self.seen.attempts.retain(|job| job.attempt != attempt);
                self.end_pods(attempt, 60);
            }
            Happening::SuspendIsToggled => self.seen.job.spec.suspend ^= true,
            Happening::StopIsHonoured => {
                if let Some((_attempt, view)) = &mut self.gang
                    && self.stopping
                    && view.phase == GangPhase::Running
                {
                    view.phase = GangPhase::Stopped;
                }
            }
            Happening::PodsLeave => {
                self.seen.pods.retain(|pod| pod.deadline.is_none() || pod.on_lost_node());
            }
            Happening::OperatorRestarts => self.gang = None,
            Happening::Crash(steps) => {
                self.reconcile(*steps);
                self.gang = None;
            }
        }
    }

    fn succeed(&mut self) {
        let attempt = self.attempt();
        let Some((of, view)) = &mut self.gang else { return };
        if *of != attempt || view.phase != GangPhase::Running {
            return;
        }
        view.phase = GangPhase::Succeeded;
        let jobs = self.seen.attempts.iter_mut().filter(|job| job.attempt == attempt);
        jobs.for_each(|job| job.end = job.end.take().or(Some(JobEnd::Complete)));
        for pod in self.seen.pods.iter_mut().filter(|pod| pod.attempt == attempt) {
            (pod.phase, pod.exit_code) = (PodPhase::Succeeded, Some(0));
        }
    }

    /// Plans and carries out at most so many steps.
    fn reconcile(&mut self, limit: usize) -> usize {
        let attempt = self.attempt();
        let gang = self.gang.as_ref().filter(|(of, _view)| *of == attempt);
        self.seen.gang = gang.map(|(_of, view)| view.clone());
        let steps = plan(&self.seen);
        for step in steps.iter().take(limit) {
            self.carry_out(&step.action);
        }
        steps.len()
    }

    fn carry_out(&mut self, action: &Action) {
        match action {
            Action::WriteStatus(status) => {
                let before = self.is_terminal();
                let old = self.seen.status().clone();
                assert!(old.restarts.total <= status.restarts.total, "restarts are forgotten");
                assert!(old.attempt <= status.attempt, "an attempt is forgotten");
                self.seen.job.status = Some(status.as_ref().clone());
                assert!(!before || self.is_terminal(), "a terminal job became alive");
            }
            Action::CreateJob { attempt } => self.create(*attempt),
            Action::DeleteJob { uid, .. } => {
                let deleted = self.seen.attempts.iter().find(|job| job.uid == *uid);
                let deleted = deleted.expect("it was observed").attempt;
                self.seen.attempts.retain(|job| job.uid != *uid);
                self.end_pods(deleted, 60);
            }
            Action::RegisterGang(spec) => {
                self.stopping = false;
                let view = GangView {
                    phase: GangPhase::Waiting,
                    epoch: spec.epoch_floor,
                    restarts: spec.restarts,
                    progress: Progress::default(),
                    nodes: Vec::new(),
                    last_failure: None,
                    notes: Vec::new(),
                    silent_pods: Vec::new(),
                    running_ranks: 0,
                };
                self.gang = Some((spec.attempt, view));
            }
            Action::AskStop => self.stopping = true,
            Action::ForgetGang => self.gang = None,
            Action::ForceDeletePod { uid, .. } => self.seen.pods.retain(|pod| pod.uid != *uid),
            Action::Tell(news) => {
                assert!(self.seen.told.insert(news.key.clone()), "{} is told twice", news.key);
            }
            Action::ApplyAccount
            | Action::ApplyService
            | Action::ApplyGroup
            | Action::ApplySpec { .. } => {}
        }
    }

    /// One of a lost node was given up when the attempt was decided on, by what was heard of it then.
    fn may_compute(&self, pod: &PodFact) -> bool {
        let long_ago = |at: Timestamp| 10 < self.seen.now.as_second() - at.as_second();
        let given_up = pod.on_lost_node() && pod.deleted.is_some_and(long_ago);
        !(given_up || self.seen.is_over(pod))
    }

    fn create(&mut self, attempt: u32) {
        assert!(!self.is_terminal(), "attempt {attempt} of a job that is over");
        let live = |job: &AttemptFact| job.end.is_none();
        assert!(!self.seen.attempts.iter().any(live), "two live attempts: {:?}", self.seen);
        let now = self.seen.now;
        let computes = self.seen.pods.iter().find(|pod| self.may_compute(pod));
        assert_eq!(computes, None, "pods of two attempts at the same time");
        let mut fact = testing::attempt(&self.seen.job, attempt);
        fact.started = Some(now);
        self.seen.attempts.push(fact);
        self.seen.pods.extend((0..PODS).map(|index| PodFact {
            name: format!("digits-a{attempt}-{index}"),
            uid: format!("{attempt}-{index}-{now}"),
            attempt,
            index,
            node: None,
            phase: PodPhase::Pending,
            waiting: None,
            exit_code: None,
            last_words: None,
            disruption: None,
            deleted: None,
            deadline: None,
        }));
    }
}

/// As the API server does: a second deletion changes nothing.
fn delete(pod: &mut PodFact, now: Timestamp, grace: i64) {
    pod.deleted.get_or_insert(now);
    pod.deadline.get_or_insert(now + SignedDuration::from_secs(grace));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn whatever_happens_the_job_ends_once(happenings in prop::collection::vec(happening(), 0..40)) {
        let mut world = World::new();
        for happening in &happenings {
            world.happen(happening);
            world.reconcile(usize::MAX);
        }
        // From here on all is well.
        world.seen.job.spec.suspend = false;
        for _round in 0..200 {
            for happening in [
                Happening::PodsLeave,
                Happening::PodsStart,
                Happening::GangStarts,
                Happening::GangSucceeds,
                Happening::Time(20),
            ] {
                world.happen(&happening);
                world.reconcile(usize::MAX);
            }
        }
        prop_assert!(world.is_terminal(), "{:?}", world.seen);
        // Its time is over too: what is left goes, nothing comes back, and then all is quiet.
        world.happen(&Happening::Time(200_000));
        for _round in 0..5 {
            world.happen(&Happening::PodsLeave);
            world.reconcile(usize::MAX);
        }
        prop_assert_eq!(world.reconcile(0), 0);
        prop_assert!(world.seen.attempts.is_empty());
    }
}
