//! Pods whose messages are lost, late and out of order, trainers that crash at any moment, and
//! operators that are replaced: what must hold whatever happens.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{
    tests::{SPEC, key, killed, said, swept, tokens, victim},
    *,
};
use crate::wire::sync::{PodPhase, RankReport};

/// What happens next.
#[derive(Clone, Debug)]
enum Happening {
    /// A pod speaks; its words, or the answer, may be lost, or its words may come later.
    Speaks {
        pod: u32,
        heard: bool,
        answered: bool,
        late: bool,
    },
    /// The oldest of the late words arrives.
    Arrives,
    /// A trainer of a pod dies.
    Crash {
        pod: u32,
    },
    /// A pod whose trainers wait for a dead one notices.
    Notices {
        pod: u32,
    },
    /// Its trainers are done, if nobody has crashed.
    Done {
        pod: u32,
    },
    Time {
        millis: u64,
    },
    /// A new operator, whose status is `behind` epochs old.
    Replaced {
        behind: u32,
    },
}

fn happening() -> impl Strategy<Value = Happening> {
    let pod = 0..SPEC.pods;
    let speaks = (pod.clone(), prop::bool::weighted(0.9), prop::bool::weighted(0.9), 0..10)
        .prop_map(|(pod, heard, answered, late)| Happening::Speaks {
            pod,
            heard,
            answered,
            late: late == 0,
        });
    prop_oneof![
        20 => speaks,
        1 => Just(Happening::Arrives),
        1 => pod.clone().prop_map(|pod| Happening::Crash { pod }),
        2 => pod.clone().prop_map(|pod| Happening::Notices { pod }),
        1 => pod.prop_map(|pod| Happening::Done { pod }),
        6 => (0_u64..4000).prop_map(|millis| Happening::Time { millis }),
        1 => (0_u32..2).prop_map(|behind| Happening::Replaced { behind }),
    ]
}

struct Pod {
    phase: PodPhase,
    /// Newest epoch that it was started with.
    epoch: u32,
    sequence: u64,
}

struct World {
    gangs: Gangs,
    now: Instant,
    pods: Vec<Pod>,
    late: Vec<SyncRequest>,
    /// Ranks that died by themselves, by epoch.
    crashed: BTreeMap<u32, BTreeSet<u32>>,
    tokens: BTreeMap<u32, String>,
    over: Option<bool>,
    /// It is over because the words of a pod were lost for too long.
    silence: bool,
}

impl World {
    fn new() -> Self {
        let mut gangs = tokens();
        gangs.register(key(), GangSpec { max_restarts: 1000, ..SPEC });
        let pod = |_| Pod { phase: PodPhase::Joining, epoch: 0, sequence: 0 };
        World {
            gangs,
            now: Instant::now(),
            pods: (0..SPEC.pods).map(pod).collect(),
            late: Vec::new(),
            crashed: BTreeMap::new(),
            tokens: BTreeMap::new(),
            over: None,
            silence: false,
        }
    }

    fn happens(&mut self, happening: &Happening) {
        match *happening {
            Happening::Speaks { pod, heard, answered, late } => {
                self.speaks(pod, heard, answered, late);
            }
            Happening::Arrives if self.late.is_empty() => {}
            Happening::Arrives => {
                let request = self.late.remove(0);
                match self.gangs.sync(self.now, &key(), &request) {
                    Ok(_) | Err(Refusal::Stale { .. }) => self.check(),
                    Err(other) => panic!("{other}"),
                }
            }
            Happening::Crash { pod } => {
                self.end(
                    pod,
                    |rank, other| {
                        if rank % 2 == 0 { killed(rank) } else { victim(rank, other) }
                    },
                );
            }
            Happening::Notices { pod } => {
                let epoch = self.pods[pod as usize].epoch;
                let first = self.crashed.get(&epoch).and_then(|ranks| ranks.first().copied());
                if let Some(culprit) = first {
                    self.end(pod, |rank, _other| victim(rank, culprit));
                }
            }
            Happening::Done { pod } => {
                let Pod { phase, epoch, .. } = &mut self.pods[pod as usize];
                if *phase == (PodPhase::Running { epoch: *epoch })
                    && !self.crashed.contains_key(epoch)
                {
                    *phase = PodPhase::Done { epoch: *epoch };
                }
            }
            Happening::Time { millis } => self.now += Duration::from_millis(millis),
            Happening::Replaced { behind } => {
                let epoch = self.gangs.view(&key(), self.now).unwrap().epoch;
                let newest = self.pods.iter().map(|pod| pod.epoch).max().unwrap_or(0);
                // The status is written before the pods of an epoch can know it, or they tell.
                let epoch_floor = epoch.saturating_sub(behind).min(newest);
                self.gangs.forget(&key());
                self.gangs.register(key(), GangSpec { epoch_floor, max_restarts: 1000, ..SPEC });
                self.late.clear();
            }
        }
    }

    fn end(&mut self, pod: u32, report: impl Fn(u32, u32) -> RankReport) {
        let Pod { phase, epoch, .. } = &mut self.pods[pod as usize];
        if *phase != (PodPhase::Running { epoch: *epoch }) {
            return;
        }
        let first = pod * SPEC.ranks_per_pod;
        let ends: Vec<RankReport> =
            (first..first + SPEC.ranks_per_pod).map(|rank| report(rank, first)).collect();
        let own = ends.iter().filter(|end| end.signal.is_some() && !end.swept).map(|end| end.rank);
        self.crashed.entry(*epoch).or_default().extend(own);
        *phase = PodPhase::Ended { epoch: *epoch, ends };
    }

    fn speaks(&mut self, index: u32, heard: bool, answered: bool, late: bool) {
        let pod = &mut self.pods[index as usize];
        pod.sequence += 1;
        let (sequence, last_epoch) = (pod.sequence, pod.epoch);
        let request = SyncRequest { sequence, last_epoch, ..said(index, pod.phase.clone()) };
        if late {
            self.late.push(request);
            return;
        }
        if !heard {
            return;
        }
        let reply = self.gangs.sync(self.now, &key(), &request).unwrap();
        self.check();
        if answered {
            self.obey(index, reply);
        }
    }

    fn obey(&mut self, index: u32, reply: SyncReply) {
        let running = |pod: &Pod| matches!(pod.phase, PodPhase::Running { .. });
        match reply {
            SyncReply::Continue => {}
            SyncReply::Start { epoch, token, .. } => {
                assert_eq!(self.pods[index as usize].phase, PodPhase::Joining);
                assert!(self.pods[index as usize].epoch < epoch, "epochs only grow");
                let known = self.tokens.entry(epoch).or_insert_with(|| token.clone());
                assert_eq!(*known, token, "one epoch, one token");
                let others = self.pods.iter().filter(|pod| running(pod));
                assert!(others.clone().all(|pod| pod.epoch == epoch), "two epochs at once");
                let pod = &mut self.pods[index as usize];
                (pod.epoch, pod.phase) = (epoch, PodPhase::Running { epoch });
            }
            SyncReply::Rejoin if running(&self.pods[index as usize]) => {
                self.end(index, |rank, _other| swept(rank));
            }
            SyncReply::Rejoin => self.pods[index as usize].phase = PodPhase::Joining,
            SyncReply::Stop | SyncReply::Meet { .. } => panic!("nobody asked for it"),
            SyncReply::Exit { success, .. } => {
                self.over = Some(success);
                let view = self.gangs.view(&key(), self.now).unwrap();
                self.silence = view.phase == GangPhase::Lost;
            }
        }
    }

    /// Whoever is blamed has died by itself in that epoch.
    fn check(&self) {
        let view = self.gangs.view(&key(), self.now).unwrap();
        let failure = view.last_failure.filter(|failure| failure.class != "lost");
        if let Some(failure) = failure {
            let crashed = self.crashed.get(&failure.epoch);
            let own = crashed.is_some_and(|ranks| ranks.contains(&failure.rank));
            assert!(own, "{failure:?} but these crashed: {crashed:?}");
        }
    }

    /// With time and a network that works, all trainers run together or have ended.
    fn settles(&mut self) {
        self.late.clear();
        for _ in 0..600 {
            self.now += Duration::from_millis(250);
            for pod in 0..SPEC.pods {
                self.happens(&Happening::Notices { pod });
                if self.over.is_none() {
                    self.speaks(pod, true, true, false);
                }
            }
            if self.over.is_some() {
                return;
            }
        }
        let epoch = self.pods[0].epoch;
        let good = |pod: &Pod| {
            pod.phase == PodPhase::Running { epoch } || pod.phase == PodPhase::Done { epoch }
        };
        let phases: Vec<&PodPhase> = self.pods.iter().map(|pod| &pod.phase).collect();
        assert!(self.pods.iter().all(good), "never together: {phases:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn epochs_grow_tokens_are_one_and_victims_are_not_blamed(
        happenings in prop::collection::vec(happening(), 1..120),
    ) {
        let mut world = World::new();
        for happening in &happenings {
            if world.over.is_none() {
                world.happens(happening);
            }
        }
        if world.over.is_none() {
            world.settles();
        }
        prop_assert!(
            world.over.is_none_or(|success| success || world.silence || !world.crashed.is_empty()),
            "it failed although nothing had"
        );
    }
}
