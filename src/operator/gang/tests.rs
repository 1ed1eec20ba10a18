//! A gang of two pods with two ranks each, told step by step.

use std::collections::BTreeMap;

use super::*;
use crate::wire::{
    StepMetrics, TrainerExit,
    sync::{PodPhase, RankReport},
};

pub(super) const SPEC: GangSpec = GangSpec {
    attempt: 1,
    pods: 2,
    ranks_per_pod: 2,
    max_restarts: 3,
    restarts: 0,
    epoch_floor: 0,
    replaces: false,
};

pub(super) fn key() -> Key {
    ("team".to_owned(), "digits".to_owned())
}

pub(super) fn tokens() -> Gangs {
    let mut count = 0;
    Gangs::new(move || {
        count += 1;
        format!("token-{count}")
    })
}

pub(super) fn said(index: u32, phase: PodPhase) -> SyncRequest {
    SyncRequest {
        v: 1,
        attempt: 1,
        index,
        pod_uid: format!("uid-{index}"),
        node: format!("node-{index}"),
        address: format!("10.0.0.{index}"),
        port: 4000,
        sequence: 0,
        phase,
        last_epoch: 0,
        ready: false,
        leaving: false,
        slow_seconds: None,
        step: None,
        checkpoint_step: None,
        door: None,
        pairs: Vec::new(),
        notes: Vec::new(),
    }
}

pub(super) fn report(rank: u32, exit: TrainerExit) -> RankReport {
    RankReport {
        rank,
        exit: Some(exit),
        code: Some(i32::from(exit.code())),
        signal: None,
        peer: None,
        swept: false,
        stalled_seconds: None,
        stopped: false,
        memory_kill: false,
        message: None,
        hint: None,
        tail: "last words".to_owned(),
        step: 7,
        age_ms: 0,
    }
}

pub(super) fn killed(rank: u32) -> RankReport {
    RankReport { exit: None, code: None, signal: Some(9), ..report(rank, TrainerExit::Internal) }
}

pub(super) fn swept(rank: u32) -> RankReport {
    RankReport { swept: true, ..killed(rank) }
}

pub(super) fn victim(rank: u32, peer: u32) -> RankReport {
    RankReport { peer: Some(peer), ..report(rank, TrainerExit::PeerLost) }
}

fn metrics(step: u64) -> StepMetrics {
    StepMetrics {
        step,
        total_steps: 20,
        epoch: 0.0,
        stage: "main".to_owned(),
        loss: 1.5,
        tasks: BTreeMap::new(),
        learning_rate: 0.0,
        grad_norm: 0.0,
        samples: 1,
        tokens: 1,
        seconds: 0.5,
        reduce_seconds: 0.0,
    }
}

struct Told {
    gangs: Gangs,
    now: Instant,
}

impl Told {
    fn new() -> Self {
        let mut gangs = tokens();
        gangs.register(key(), SPEC);
        Told { gangs, now: Instant::now() }
    }

    /// Both pods run epoch 1.
    fn running() -> Self {
        let mut told = Told::new();
        told.say(0, PodPhase::Joining);
        told.say(1, PodPhase::Joining);
        told.say(0, PodPhase::Joining);
        told.say(0, PodPhase::Running { epoch: 1 });
        told.say(1, PodPhase::Running { epoch: 1 });
        told
    }

    fn wait(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    fn ask(&mut self, request: &SyncRequest) -> Result<SyncReply, Refusal> {
        self.gangs.sync(self.now, &key(), request)
    }

    fn say(&mut self, index: u32, phase: PodPhase) -> SyncReply {
        self.ask(&said(index, phase)).unwrap()
    }

    fn ended(&mut self, epoch: u32, ends: Vec<RankReport>) -> SyncReply {
        let index = ends.first().map_or(0, |end| end.rank / 2);
        self.say(index, PodPhase::Ended { epoch, ends })
    }

    fn view(&self) -> GangView {
        self.gangs.view(&key(), self.now).unwrap()
    }

    fn blamed(&self) -> (u32, String, String) {
        let last = self.view().last_failure.unwrap();
        (last.rank, last.node, last.class)
    }
}

fn start(epoch: u32) -> SyncReply {
    SyncReply::Start {
        epoch,
        master_address: "10.0.0.0".to_owned(),
        master_port: 4000,
        token: format!("token-{epoch}"),
    }
}

fn exit(success: bool, code: u8) -> SyncReply {
    SyncReply::Exit { success, code }
}

#[test]
fn all_pods_start_together_with_one_token_and_succeed() {
    let mut told = Told::new();
    assert_eq!(told.view().phase, GangPhase::Waiting);
    assert_eq!(told.say(0, PodPhase::Joining), SyncReply::Continue);
    assert_eq!(told.view().phase, GangPhase::Waiting);
    assert_eq!(told.say(1, PodPhase::Preflight), SyncReply::Continue);
    assert_eq!(told.view().phase, GangPhase::Preflight);
    assert_eq!(told.say(1, PodPhase::Joining), start(1));
    assert_eq!(told.say(1, PodPhase::Joining), start(1), "the answer may have been lost");
    assert_eq!(told.say(0, PodPhase::Joining), start(1));
    assert_eq!(told.view().phase, GangPhase::Rendezvous);
    for index in [0, 1] {
        let running = said(index, PodPhase::Running { epoch: 1 });
        let request = SyncRequest { ready: true, step: Some(metrics(3)), ..running };
        assert_eq!(told.ask(&request), Ok(SyncReply::Continue));
    }
    let view = told.view();
    assert_eq!((view.phase, view.epoch, view.running_ranks), (GangPhase::Running, 1, 4));
    assert_eq!(view.nodes, ["node-0", "node-1"]);
    assert_eq!((view.progress.step, view.progress.total_steps), (3, 20));
    assert_eq!((view.progress.loss, view.progress.step_seconds), (Some(1.5), Some(0.5)));
    assert_eq!(told.say(0, PodPhase::Done { epoch: 1 }), SyncReply::Continue);
    assert_eq!(told.say(1, PodPhase::Done { epoch: 1 }), exit(true, 0));
    assert_eq!(told.say(0, PodPhase::Done { epoch: 1 }), exit(true, 0));
    told.wait(1000);
    assert_eq!((told.view().phase, told.view().silent_pods), (GangPhase::Succeeded, vec![]));
}

#[test]
fn a_killed_rank_restarts_all_in_place_and_is_blamed() {
    let mut told = Told::running();
    // The victim's report comes first: the other pod may be about to tell what is wrong.
    assert_eq!(told.ended(1, vec![victim(0, 3), victim(1, 3)]), SyncReply::Continue);
    assert_eq!(told.view().phase, GangPhase::Restarting);
    assert_eq!(told.say(1, PodPhase::Running { epoch: 1 }), SyncReply::Continue);
    assert_eq!(told.ended(1, vec![swept(2), killed(3)]), SyncReply::Rejoin);
    assert_eq!(told.blamed(), (3, "node-1".to_owned(), "crash".to_owned()));
    assert_eq!(told.view().restarts, 1);
    assert_eq!(told.ended(1, vec![victim(0, 3), victim(1, 3)]), SyncReply::Rejoin);
    assert_eq!(told.say(0, PodPhase::Joining), SyncReply::Continue);
    assert_eq!(told.say(1, PodPhase::Joining), SyncReply::Continue, "the pause is not over");
    told.wait(1);
    assert_eq!(told.say(0, PodPhase::Joining), start(2));
    assert_eq!(told.say(1, PodPhase::Joining), start(2));
    let last = told.view().last_failure.unwrap();
    assert_eq!((last.epoch, last.step, last.exit_code), (1, 7, Some(137)));
    assert!(last.what.starts_with("rank 3 was killed (signal 9) by a person"), "{}", last.what);
    assert_eq!(last.tail, "last words");
}

#[test]
fn pods_whose_ranks_run_on_are_told_to_kill_them() {
    let mut told = Told::running();
    assert_eq!(told.ended(1, vec![killed(0), swept(1)]), SyncReply::Continue);
    assert_eq!(told.say(1, PodPhase::Running { epoch: 1 }), SyncReply::Rejoin);
    assert_eq!(told.ended(1, vec![swept(2), swept(3)]), SyncReply::Rejoin);
    assert_eq!(told.blamed().0, 0);
    // Only victims have reported, but two seconds are enough.
    let mut told = Told::running();
    told.ended(1, vec![victim(0, 3), victim(1, 3)]);
    told.wait(2);
    assert_eq!(told.say(1, PodPhase::Running { epoch: 1 }), SyncReply::Rejoin);
}

#[test]
fn a_verdict_does_not_wait_for_ever_for_a_pod_that_does_not_obey() {
    let mut told = Told::running();
    told.ended(1, vec![killed(0), swept(1)]);
    told.wait(9);
    told.say(1, PodPhase::Running { epoch: 1 });
    assert_eq!(told.view().restarts, 0);
    told.wait(1);
    assert_eq!(told.say(1, PodPhase::Running { epoch: 1 }), SyncReply::Rejoin);
    assert_eq!((told.view().restarts, told.blamed().0), (1, 0));
    assert_eq!(told.say(0, PodPhase::Joining), SyncReply::Continue, "two epochs never overlap");
}

#[test]
fn restarts_are_used_up_and_some_failures_are_not_worth_one() {
    let mut told = Told::running();
    for (epoch, pause) in [(1, 1), (2, 2), (3, 4)] {
        told.ended(epoch, vec![report(0, TrainerExit::Transient), swept(1)]);
        assert_eq!(told.ended(epoch, vec![swept(2), swept(3)]), SyncReply::Rejoin);
        told.say(0, PodPhase::Joining);
        told.say(1, PodPhase::Joining);
        told.wait(pause);
        assert_eq!(told.say(0, PodPhase::Joining), start(epoch + 1));
        told.say(0, PodPhase::Running { epoch: epoch + 1 });
        told.say(1, PodPhase::Running { epoch: epoch + 1 });
    }
    told.ended(4, vec![report(0, TrainerExit::Transient), swept(1)]);
    assert_eq!(told.ended(4, vec![swept(2), swept(3)]), exit(false, 75));
    assert_eq!((told.view().phase, told.view().restarts), (GangPhase::Failed, 3));
    let what = told.view().last_failure.unwrap().what;
    assert!(what.ends_with("all restarts of failure.maxRestarts are used up"), "{what}");

    let mut told = Told::running();
    told.ended(1, vec![report(0, TrainerExit::Data), swept(1)]);
    assert_eq!(told.ended(1, vec![swept(2), swept(3)]), exit(false, 65));
    assert_eq!(told.blamed().2, "input");
}

#[test]
fn a_crash_at_the_same_step_is_not_tried_for_ever() {
    let mut told = Told::running();
    for epoch in [1, 2] {
        told.ended(epoch, vec![killed(0), swept(1)]);
        assert_eq!(told.ended(epoch, vec![swept(2), swept(3)]), SyncReply::Rejoin);
        told.say(0, PodPhase::Joining);
        told.say(1, PodPhase::Joining);
        told.wait(4);
        assert_eq!(told.say(0, PodPhase::Joining), start(epoch + 1));
    }
    told.ended(3, vec![killed(0), swept(1)]);
    assert_eq!(told.ended(3, vec![swept(2), swept(3)]), exit(false, 137));
}

#[test]
fn of_ranks_that_stall_together_the_stopped_one_is_to_blame() {
    let silent = |rank| RankReport { stalled_seconds: Some(30.0), ..swept(rank) };
    let mut told = Told::running();
    assert_eq!(told.ended(1, vec![silent(0), swept(1)]), SyncReply::Continue);
    assert_eq!(told.say(1, PodPhase::Running { epoch: 1 }), SyncReply::Continue, "it may tell");
    let stopped = RankReport { stopped: true, ..silent(3) };
    assert_eq!(told.ended(1, vec![swept(2), stopped]), SyncReply::Rejoin);
    assert_eq!(told.blamed().0, 3);
    assert_eq!(told.view().last_failure.unwrap().exit_code, Some(86));
    // The one that is named by others, or is behind, comes next.
    let mut told = Told::running();
    told.ended(1, vec![silent(0), victim(1, 2)]);
    told.ended(1, vec![silent(2), victim(3, 2)]);
    assert_eq!(told.blamed().0, 2);
    let mut told = Told::running();
    told.ended(1, vec![silent(0), swept(1)]);
    told.ended(1, vec![RankReport { step: 6, ..silent(2) }, swept(3)]);
    assert_eq!(told.blamed().0, 2);
    // A rank that crashed long before the others fell silent has caused it.
    let mut told = Told::running();
    told.ended(1, vec![silent(0), swept(1)]);
    told.ended(1, vec![swept(2), RankReport { age_ms: 40_000, ..killed(3) }]);
    assert_eq!(told.blamed().0, 3);
}

#[test]
fn a_stop_saves_first() {
    let mut told = Told::running();
    told.gangs.ask_stop(&key());
    assert_eq!(told.view().phase, GangPhase::Stopping);
    let preempted = |rank| report(rank, TrainerExit::Preempted);
    for index in [0, 1] {
        assert_eq!(told.say(index, PodPhase::Running { epoch: 1 }), SyncReply::Stop);
    }
    assert_eq!(told.ended(1, vec![preempted(0), preempted(1)]), SyncReply::Continue);
    told.wait(5);
    assert_eq!(told.say(1, PodPhase::Running { epoch: 1 }), SyncReply::Stop, "it still saves");
    assert_eq!(told.ended(1, vec![preempted(2), preempted(3)]), exit(false, 85));
    assert_eq!((told.view().phase, told.view().restarts), (GangPhase::Stopped, 0));
    // Before anything runs there is nothing to save.
    let mut told = Told::new();
    told.gangs.ask_stop(&key());
    assert_eq!(told.say(0, PodPhase::Preflight), exit(false, 85));
    // All steps were done in this moment.
    let mut told = Told::running();
    told.gangs.ask_stop(&key());
    told.say(0, PodPhase::Done { epoch: 1 });
    assert_eq!(told.say(1, PodPhase::Done { epoch: 1 }), exit(true, 0));
}

#[test]
fn a_pod_that_leaves_lets_all_save_and_then_counts_as_lost() {
    let mut told = Told::running();
    let leaving = |phase| SyncRequest { leaving: true, ..said(1, phase) };
    assert_eq!(told.ask(&leaving(PodPhase::Running { epoch: 1 })), Ok(SyncReply::Stop));
    assert_eq!(told.say(0, PodPhase::Running { epoch: 1 }), SyncReply::Stop);
    assert_ne!(told.view().phase, GangPhase::Lost, "its ranks still save");
    let preempted = |rank| report(rank, TrainerExit::Preempted);
    let ends = vec![preempted(2), preempted(3)];
    assert_eq!(told.ask(&leaving(PodPhase::Ended { epoch: 1, ends })), Ok(SyncReply::Continue));
    assert_eq!(told.ended(1, vec![preempted(0), preempted(1)]), SyncReply::Continue);
    let view = told.view();
    assert_eq!((view.phase, view.silent_pods, view.restarts), (GangPhase::Lost, vec![1], 0));
    assert_eq!(view.last_failure, None, "nobody has failed");
}

/// A queue takes all pods away and gives room again much later.
#[test]
fn pods_that_come_back_after_a_preemption_start_again_and_nothing_counts() {
    let preempted = |rank| report(rank, TrainerExit::Preempted);
    let ends = |index: u32| vec![preempted(index * 2), preempted(index * 2 + 1)];
    // The second pod is too late to say how its ranks ended.
    for says_all in [true, false] {
        let mut told = Told::new();
        told.gangs.register(key(), GangSpec { attempt: 2, replaces: true, ..SPEC });
        let say = |told: &mut Told, uid: &str, index, leaving, phase| {
            let pod_uid = format!("{uid}-{index}");
            told.ask(&SyncRequest { attempt: 2, pod_uid, leaving, ..said(index, phase) }).unwrap()
        };
        for index in [0, 1, 0] {
            say(&mut told, "old", index, false, PodPhase::Joining);
        }
        for leaving in [false, true] {
            for index in [0, 1] {
                say(&mut told, "old", index, leaving, PodPhase::Running { epoch: 1 });
            }
        }
        say(&mut told, "old", 0, true, PodPhase::Ended { epoch: 1, ends: ends(0) });
        if says_all {
            say(&mut told, "old", 1, true, PodPhase::Ended { epoch: 1, ends: ends(1) });
        }
        for wait in [1, 20, 100] {
            told.wait(wait);
            assert_ne!(told.view().phase, GangPhase::Lost, "{says_all}, {wait} s");
        }
        let mut last = SyncReply::Continue;
        for index in [1, 0, 1, 0] {
            last = say(&mut told, "new", index, false, PodPhase::Joining);
        }
        assert!(matches!(last, SyncReply::Start { epoch: 2, .. }), "{says_all}: {last:?}");
        let view = told.view();
        assert_eq!((view.restarts, view.last_failure), (0, None), "{says_all}");
    }
}

#[test]
fn a_silent_pod_is_lost_after_fifteen_seconds() {
    let mut told = Told::running();
    for wait in [5, 5, 4] {
        told.wait(wait);
        assert_eq!(told.say(0, PodPhase::Running { epoch: 1 }), SyncReply::Continue);
        assert_ne!(told.view().phase, GangPhase::Lost);
    }
    told.wait(1);
    // Its ranks wait for those of the other pod, and nothing can be saved without them.
    let peer_lost = exit(false, TrainerExit::PeerLost.code());
    assert_eq!(told.say(0, PodPhase::Running { epoch: 1 }), peer_lost);
    assert_eq!(told.ended(1, vec![victim(0, 3), victim(1, 3)]), peer_lost);
    let view = told.view();
    assert_eq!((view.phase, view.silent_pods), (GangPhase::Lost, vec![1]));
    let last = view.last_failure.unwrap();
    assert_eq!((last.class.as_str(), last.rank, last.node.as_str()), ("lost", 2, "node-1"));
    assert_eq!(told.view().restarts, 0, "nobody alive is blamed");
    // It was only cut off, and comes back.
    told.wait(2);
    assert_eq!(told.say(1, PodPhase::Running { epoch: 1 }), SyncReply::Rejoin);
}

#[test]
fn a_broker_that_stood_still_takes_nobody_for_silent() {
    let mut told = Told::running();
    told.wait(40);
    told.say(0, PodPhase::Running { epoch: 1 });
    assert_ne!(told.view().phase, GangPhase::Lost, "nobody could be heard");
    for _ in 0..3 {
        told.wait(5);
        told.say(0, PodPhase::Running { epoch: 1 });
    }
    assert_eq!(told.view().phase, GangPhase::Lost);
}

#[test]
fn nobody_is_lost_if_all_are_silent_or_if_steps_go_on() {
    let mut told = Told::running();
    told.wait(60);
    let view = told.view();
    assert_eq!((view.phase, view.silent_pods), (GangPhase::Rendezvous, vec![0, 1]));
    let mut told = Told::running();
    for step in 1..60 {
        told.wait(1);
        let running = said(0, PodPhase::Running { epoch: 1 });
        told.ask(&SyncRequest { step: Some(metrics(step)), ..running }).unwrap();
        assert_ne!(told.view().phase, GangPhase::Lost, "steps need the ranks of pod 1");
    }
}

#[test]
fn a_failed_test_before_the_start_ends_the_attempt() {
    let mut told = Told::new();
    told.say(0, PodPhase::Joining);
    let what = "GPU 1 has uncorrectable memory errors".to_owned();
    let refused = PodPhase::Refused { what, checks: vec!["memory-errors".to_owned()], exit: None };
    assert_eq!(told.say(1, refused), exit(false, 84));
    assert_eq!(told.say(0, PodPhase::Joining), exit(false, 84));
    let last = told.view().last_failure.unwrap();
    assert_eq!((last.class.as_str(), last.node.as_str()), ("preflight", "node-1"));
    assert!(last.what.contains("(memory-errors): GPU 1 has"), "{}", last.what);
}

#[test]
fn a_job_that_is_wrong_fails_with_its_own_code_and_blames_no_node() {
    let mut told = Told::new();
    let refused = PodPhase::Refused {
        what: "`/data/base/config.json` does not exist".to_owned(),
        checks: vec!["plan".to_owned()],
        exit: Some(TrainerExit::InputMissing),
    };
    assert_eq!(told.say(0, refused), exit(false, 66));
    assert_eq!(told.say(1, PodPhase::Joining), exit(false, 66));
    let last = told.view().last_failure.unwrap();
    assert_eq!((last.class.as_str(), last.exit_code), ("input", Some(66)));
    assert!(last.what.starts_with("the job failed its test"), "{}", last.what);
}

#[test]
fn a_new_operator_adopts_what_runs() {
    let adopt = |floor| {
        let mut told = Told::new();
        told.gangs.forget(&key());
        told.gangs.register(key(), GangSpec { epoch_floor: floor, restarts: 1, ..SPEC });
        told
    };
    let mut told = adopt(3);
    assert_eq!(told.say(0, PodPhase::Running { epoch: 4 }), SyncReply::Continue);
    assert_eq!(told.say(1, PodPhase::Running { epoch: 4 }), SyncReply::Continue);
    assert_eq!((told.view().epoch, told.view().restarts), (4, 1));
    told.ended(4, vec![killed(0), swept(1)]);
    assert_eq!(told.ended(4, vec![swept(2), swept(3)]), SyncReply::Rejoin);
    assert_eq!((told.view().restarts, told.blamed().0), (2, 0));
    // One pod never got its start: the token is gone, so all meet again, and nobody is to blame.
    let mut told = adopt(4);
    assert_eq!(told.say(0, PodPhase::Running { epoch: 4 }), SyncReply::Continue);
    assert_eq!(told.say(1, PodPhase::Joining), SyncReply::Continue);
    assert_eq!(told.say(0, PodPhase::Running { epoch: 4 }), SyncReply::Rejoin);
    assert_eq!(told.ended(4, vec![swept(0), swept(1)]), SyncReply::Rejoin);
    told.say(0, PodPhase::Joining);
    let SyncReply::Start { epoch: 5, .. } = told.say(1, PodPhase::Joining) else {
        panic!("not started: {:?}", told.view());
    };
    assert_eq!(told.view().restarts, 1);
    // All had ended while nobody listened.
    let mut told = adopt(4);
    told.say(0, PodPhase::Done { epoch: 4 });
    assert_eq!(told.say(1, PodPhase::Done { epoch: 4 }), exit(true, 0));
    // A pod of the attempt that was there before is silent since this operator listens.
    let mut told = adopt(4);
    for _ in 0..4 {
        told.say(0, PodPhase::Running { epoch: 4 });
        told.wait(5);
    }
    told.say(0, PodPhase::Running { epoch: 4 });
    assert_eq!(told.view().silent_pods, [1]);
}

#[test]
fn requests_of_others_and_of_the_past_are_refused() {
    let mut told = Told::running();
    let running = || said(0, PodPhase::Running { epoch: 1 });
    let mut refused = |request: SyncRequest| told.ask(&request).unwrap_err();
    assert_eq!(refused(SyncRequest { v: 2, ..running() }), Refusal::Version { got: 2 });
    let early = refused(SyncRequest { attempt: 2, ..running() });
    assert_eq!((early.is_final(), early), (false, Refusal::Early { got: 2, current: 1 }));
    let late = refused(SyncRequest { attempt: 0, ..running() });
    assert_eq!((late.is_final(), late), (true, Refusal::Late { got: 0, current: 1 }));
    let index = refused(SyncRequest { index: 2, ..running() });
    assert_eq!(index, Refusal::Index { index: 2, pods: 2 });
    let address = refused(SyncRequest { address: "a; rm".to_owned(), ..running() });
    assert!(matches!(address, Refusal::Field { field: "address", .. }));
    let foreign = refused(said(0, PodPhase::Ended { epoch: 1, ends: vec![killed(2)] }));
    assert!(matches!(foreign, Refusal::Field { field: "phase", .. }));
    let epoch = refused(said(0, PodPhase::Running { epoch: u32::MAX }));
    assert!(matches!(epoch, Refusal::Field { field: "phase", .. }));
    let unknown = Gangs::new(String::new).sync(told.now, &key(), &running()).unwrap_err();
    assert!(matches!(unknown, Refusal::UnknownJob { .. }));
    assert_eq!(told.view().phase, GangPhase::Rendezvous, "nothing of it had an effect");
}

#[test]
fn a_replaced_pod_is_shut_out_and_the_gang_starts_again() {
    let mut told = Told::running();
    let new = |phase| SyncRequest { pod_uid: "uid-new".to_owned(), ..said(1, phase) };
    assert_eq!(told.ask(&new(PodPhase::Joining)), Ok(SyncReply::Continue));
    let old = said(1, PodPhase::Running { epoch: 1 });
    assert_eq!(told.ask(&old), Err(Refusal::Replaced { index: 1 }));
    assert_eq!(told.say(0, PodPhase::Running { epoch: 1 }), SyncReply::Rejoin);
    assert_eq!(told.ended(1, vec![swept(0), swept(1)]), SyncReply::Rejoin);
    assert_eq!(told.blamed().0, 2);
}

#[test]
fn a_late_request_changes_nothing() {
    let mut told = Told::running();
    let at = |sequence, phase| SyncRequest { sequence, ..said(0, phase) };
    told.ask(&at(5, PodPhase::Running { epoch: 1 })).unwrap();
    for got in [4, 5] {
        let stale = Refusal::Stale { index: 0, got, newest: 5 };
        assert_eq!(told.ask(&at(got, PodPhase::Joining)), Err(stale));
    }
    assert_eq!(told.view().running_ranks, 4);
}

#[test]
fn a_newer_attempt_replaces_an_older_one_and_its_epochs_go_on() {
    let mut told = Told::running();
    told.gangs.register(key(), GangSpec { attempt: 2, ..SPEC });
    assert_eq!((told.view().epoch, told.view().phase), (1, GangPhase::Waiting));
    told.gangs.register(key(), SPEC);
    let old = said(0, PodPhase::Running { epoch: 1 });
    assert_eq!(told.ask(&old), Err(Refusal::Late { got: 1, current: 2 }));
    let new = |index| SyncRequest { attempt: 2, ..said(index, PodPhase::Joining) };
    told.ask(&new(0)).unwrap();
    assert_eq!(told.ask(&new(1)), Ok(start(2)));
}

#[test]
fn a_slow_step_shows() {
    let mut told = Told::running();
    for index in [0, 1] {
        let running = said(index, PodPhase::Running { epoch: 1 });
        told.ask(&SyncRequest { ready: true, slow_seconds: Some(9.0), ..running }).unwrap();
    }
    assert_eq!(told.view().phase, GangPhase::Stalled);
}
