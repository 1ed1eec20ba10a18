//! One gang from request to request.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use super::{
    GangPhase, GangSpec, Refusal,
    blame::{self, Account, Verdict},
    pairs::Network,
};
use crate::{
    api::job::{LastFailure, Progress},
    launch::ladder::{Class, History},
    wire::{
        TrainerExit,
        sync::{PodPhase, SyncRequest},
    },
};

/// Reports of an ended epoch are waited for so long.
pub(super) const REPORTS: Duration = Duration::from_secs(10);
/// The same as long as only victims have reported: one that has not is to blame.
const VICTIMS_REPORTS: Duration = Duration::from_secs(60);
/// If nobody was heard for longer than this, the broker itself was deaf: its process or its machine
/// stood still.
const DEAF: Duration = Duration::from_secs(6);
/// Steps whose median is the step time.
const WINDOW: usize = 51;

/// The last that was heard of a pod.
#[derive(Clone, Debug)]
pub(super) struct Pod {
    pub request: SyncRequest,
    pub heard: Instant,
    /// Newest epoch in which its trainers ran.
    pub ran: Option<u32>,
    /// Accounts of the epoch that is ending.
    pub accounts: Vec<Account>,
    /// Whether it has spoken since the epoch began to end: until then it may have been started.
    pub spoke: bool,
}

/// What was handed out for an epoch.
#[derive(Clone, Debug)]
pub(super) struct Start {
    pub address: String,
    pub port: u16,
    pub token: String,
}

/// How it ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outcome {
    pub phase: GangPhase,
    pub code: u8,
}

#[derive(Clone, Debug)]
pub(super) enum Round {
    /// All pods have to join, and not before this.
    Gathering {
        not_before: Instant,
    },
    /// The trainers of the epoch are wanted. `None` if the epoch was adopted: its token is unknown.
    Live {
        start: Option<Start>,
    },
    /// A trainer of the epoch has ended; the others have to.
    Ending {
        since: Instant,
    },
    Over(Outcome),
}

#[derive(Debug)]
pub(super) struct Gang {
    pub spec: GangSpec,
    pub stopping: bool,
    /// Newest epoch.
    pub epoch: u32,
    /// Whether an epoch was started or adopted.
    pub started: bool,
    pub restarts: u32,
    pub pods: BTreeMap<u32, Pod>,
    pub round: Option<Round>,
    pub progress: Progress,
    pub last_failure: Option<LastFailure>,
    pub notes: Vec<String>,
    pub first_heard: Option<Instant>,
    /// Since when silence of a pod means something.
    pub listening: Option<Instant>,
    /// When a step was reported last that is newer than those before.
    pub stepped: Option<Instant>,
    /// Pods that were replaced.
    pub retired: BTreeSet<String>,
    recent: VecDeque<f64>,
    history: Option<(Class, u64)>,
    repeats: u32,
}

impl Gang {
    pub(super) fn new(spec: GangSpec) -> Self {
        Gang {
            spec,
            stopping: false,
            epoch: spec.epoch_floor,
            started: false,
            restarts: spec.restarts,
            pods: BTreeMap::new(),
            round: None,
            progress: Progress::default(),
            last_failure: None,
            notes: Vec::new(),
            first_heard: None,
            listening: None,
            stepped: None,
            retired: BTreeSet::new(),
            recent: VecDeque::new(),
            history: None,
            repeats: 0,
        }
    }

    /// Keeps what a pod says.
    pub(super) fn record(&mut self, now: Instant, request: &SyncRequest) -> Result<(), Refusal> {
        self.check_sequence(request)?;
        self.first_heard.get_or_insert(now);
        let newest = self.pods.values().map(|pod| pod.heard).max();
        if newest.is_none_or(|newest| DEAF < now.saturating_duration_since(newest)) {
            self.listening = Some(now);
        }
        self.round.get_or_insert(Round::Gathering { not_before: now });
        let old = self.pods.remove(&request.index);
        let same = old.as_ref().is_none_or(|pod| pod.request.pod_uid == request.pod_uid);
        let mut ran = old.as_ref().and_then(|pod| pod.ran);
        let left = !same && old.as_ref().is_some_and(|pod| pod.request.leaving);
        let mut accounts = old.map_or_else(Vec::new, |pod| {
            if !same {
                self.retired.insert(pod.request.pod_uid);
            }
            pod.accounts
        });
        let again = matches!(request.phase, PodPhase::Preflight | PodPhase::Joining);
        let live = matches!(self.round, Some(Round::Live { .. } | Round::Ending { .. }));
        if again && live && ran == Some(self.epoch) && accounts.is_empty() {
            let rank = request.index * self.spec.ranks_per_pod;
            let step = self.progress.step;
            // One that was asked to leave may not have had the time to say how its ranks ended.
            let report = if left && self.spec.replaces {
                blame::departed(rank, step)
            } else {
                blame::unsupervised(rank, step)
            };
            accounts.push(Account::new(report, now, &request.node));
        }
        if let PodPhase::Ended { epoch, ends } = &request.phase
            && accounts.is_empty()
            && self.epoch <= *epoch
        {
            let account = |report| Account::new(report, now, &request.node);
            accounts = ends.iter().cloned().map(account).collect();
        }
        ran = ran.max(epoch_of(&request.phase));
        self.follow(now, request);
        let pod = Pod { request: request.clone(), heard: now, ran, accounts, spoke: true };
        self.pods.insert(request.index, pod);
        Ok(())
    }

    fn follow(&mut self, now: Instant, request: &SyncRequest) {
        if let Some(step) = &request.checkpoint_step {
            self.progress.checkpoint_step = self.progress.checkpoint_step.max(Some(*step));
        }
        let Some(step) = &request.step else { return };
        let new = |pod: &Pod| pod.request.step.as_ref().is_none_or(|old| old.step < step.step);
        let first = self.pods.values().all(new) && self.progress.step != step.step;
        if !first {
            return;
        }
        self.stepped = Some(now);
        self.recent.push_back(step.seconds);
        if WINDOW < self.recent.len() {
            self.recent.pop_front();
        }
        let mut sorted: Vec<f64> = self.recent.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        self.progress.step = step.step;
        self.progress.total_steps = step.total_steps;
        self.progress.loss = Some(step.loss);
        self.progress.step_seconds = sorted.get(sorted.len() / 2).copied();
    }

    /// Goes on with what is known now.
    pub(super) fn advance(&mut self, now: Instant, tokens: &mut dyn FnMut() -> String) {
        if matches!(self.round, Some(Round::Over(_))) {
            return;
        }
        self.adopt();
        if self.refuse() {
            return;
        }
        match self.round.clone() {
            Some(Round::Live { start }) => self.live(now, start.is_some()),
            Some(Round::Gathering { not_before }) => self.gather(now, not_before, tokens),
            Some(Round::Ending { .. } | Round::Over(_)) | None => {}
        }
        if let Some(Round::Ending { since }) = self.round {
            self.judge(now, since);
        }
    }

    /// Takes over an epoch that another operator has started.
    fn adopt(&mut self) {
        let last = self.pods.values().map(|pod| pod.request.last_epoch).max().unwrap_or(0);
        let newest = self.pods.values().filter_map(|pod| epoch_of(&pod.request.phase)).max();
        if matches!(self.round, Some(Round::Gathering { .. })) {
            self.epoch = self.epoch.max(last);
        }
        let Some(newest) = newest else { return };
        if self.epoch < newest || (!self.started && self.epoch == newest) {
            self.epoch = newest;
            self.started = true;
            self.round = Some(Round::Live { start: None });
        }
    }

    /// Ends the gang if a machine has failed its test.
    fn refuse(&mut self) -> bool {
        let refused = self.pods.iter().find_map(|(index, pod)| match &pod.request.phase {
            PodPhase::Refused { what, checks, exit } => {
                Some((*index, pod, (what, checks, exit.unwrap_or(TrainerExit::Preflight))))
            }
            PodPhase::Preflight
            | PodPhase::Joining
            | PodPhase::Running { .. }
            | PodPhase::Ended { .. }
            | PodPhase::Done { .. } => None,
        });
        let Some((index, pod, (what, checks, exit))) = refused else { return false };
        let rank = index * self.spec.ranks_per_pod;
        let step = self.progress.step;
        let node = &pod.request.node;
        let failure = blame::refused(rank, node, what, checks, exit);
        self.last_failure = Some(failure.at(self.epoch, step));
        self.over(GangPhase::Failed, exit.code());
        true
    }

    fn over(&mut self, phase: GangPhase, code: u8) {
        self.round = Some(Round::Over(Outcome { phase, code }));
    }

    fn all_are(&self, wanted: impl Fn(&PodPhase) -> bool) -> bool {
        self.pods.len() == self.spec.pods as usize
            && self.pods.values().all(|pod| wanted(&pod.request.phase))
    }

    /// Whether trainers of a pod may be running.
    fn any_runs(&self) -> bool {
        self.pods.values().any(|pod| matches!(pod.request.phase, PodPhase::Running { .. }))
    }

    fn live(&mut self, now: Instant, token_known: bool) {
        let epoch = self.epoch;
        if self.all_are(|phase| *phase == PodPhase::Done { epoch }) {
            return self.over(GangPhase::Succeeded, 0);
        }
        let failed = |pod: &Pod| {
            let ended = matches!(pod.request.phase, PodPhase::Ended { epoch: e, .. } if e == epoch);
            ended || !pod.accounts.is_empty()
        };
        if self.pods.values().any(failed) {
            self.pods.values_mut().for_each(|pod| pod.spoke = pod.heard == now && failed(pod));
            self.round = Some(Round::Ending { since: now });
            return;
        }
        let joining = |pod: &Pod| pod.request.phase == PodPhase::Joining;
        if !token_known && self.pods.values().any(joining) {
            // The token of the epoch went away with the operator that made it.
            self.round = Some(Round::Gathering { not_before: now });
            return;
        }
        let idle = |pod: &Pod| epoch_of(&pod.request.phase).is_none();
        if self.stopping && self.pods.values().all(idle) {
            self.over(GangPhase::Stopped, TrainerExit::Preempted.code());
        }
    }

    fn gather(&mut self, now: Instant, not_before: Instant, tokens: &mut dyn FnMut() -> String) {
        if self.stopping {
            if !self.any_runs() {
                self.over(GangPhase::Stopped, TrainerExit::Preempted.code());
            }
            return;
        }
        let leaving = self.pods.values().any(|pod| pod.request.leaving);
        if leaving || now < not_before || !self.all_are(|phase| *phase == PodPhase::Joining) {
            return;
        }
        let Network { failure, notes } = self.network();
        self.notes.extend(notes);
        if let Some(failure) = failure {
            self.last_failure = Some(failure);
            return self.over(GangPhase::Failed, TrainerExit::Transient.code());
        }
        let Some(master) = self.pods.get(&0) else { return };
        let address = master.request.address.clone();
        let start = Start { address, port: master.request.port, token: tokens() };
        self.epoch += 1;
        self.started = true;
        self.pods.values_mut().for_each(|pod| pod.accounts.clear());
        self.round = Some(Round::Live { start: Some(start) });
    }

    /// Decides about an epoch that is ending, once all is known that will be.
    fn judge(&mut self, now: Instant, since: Instant) {
        let waits = |pod: &Pod| match pod.request.phase {
            PodPhase::Running { .. } => true,
            PodPhase::Preflight | PodPhase::Joining => !pod.spoke,
            PodPhase::Ended { .. } | PodPhase::Done { .. } | PodPhase::Refused { .. } => false,
        };
        let known = self.pods.len() == self.spec.pods as usize;
        let missing: Vec<&Pod> = self.pods.values().filter(|pod| waits(pod)).collect();
        let waited = now.saturating_duration_since(since);
        let quiet = missing
            .iter()
            .any(|pod| Duration::from_secs(3) < now.saturating_duration_since(pod.heard));
        let complete = known && missing.is_empty();
        let limit = if self.pods.values().flat_map(|pod| &pod.accounts).all(Account::is_victim) {
            VICTIMS_REPORTS
        } else {
            REPORTS
        };
        if !complete && (waited < limit || quiet || !known) {
            return; // A pod that stays silent is lost; the operator sees to that.
        }
        let leaving = self.pods.values().any(|pod| pod.request.leaving);
        if leaving && !self.stopping && !self.spec.replaces {
            return; // Another attempt is needed, which the operator makes.
        }
        self.sentence(now);
    }

    fn sentence(&mut self, now: Instant) {
        let accounts: Vec<Account> =
            self.pods.values().flat_map(|pod| pod.accounts.iter().cloned()).collect();
        let sorted = blame::sorted(accounts);
        let step = sorted.iter().map(|account| account.report.step).max().unwrap_or(0);
        let failure = blame::class(&sorted).map(|class| (class, step));
        let repeats =
            if failure.is_some() && failure == self.history { self.repeats + 1 } else { 0 };
        let saved = |account: &Account| account.has_saved() || account.is_victim();
        if !self.stopping && sorted.iter().any(Account::has_saved) && sorted.iter().all(saved) {
            // The queue took their room and has given it back: nobody has failed, and nothing counts.
            self.round = Some(Round::Gathering { not_before: now });
            self.pods.values_mut().for_each(|pod| pod.accounts.clear());
            return;
        }
        let max_restarts = self.spec.max_restarts;
        let history = History { restarts: self.restarts, repeats, max_restarts };
        match blame::judge(&sorted, history, self.stopping) {
            Verdict::Stop => self.over(GangPhase::Stopped, TrainerExit::Preempted.code()),
            Verdict::Nothing => self.round = Some(Round::Gathering { not_before: now }),
            Verdict::Restart { after, failure: last } => {
                (self.repeats, self.history) = (repeats, failure);
                self.last_failure = Some(last.at(self.epoch, step));
                self.restarts += 1;
                self.round = Some(Round::Gathering { not_before: now + after });
            }
            Verdict::Fail { code, failure: last } => {
                self.last_failure = Some(last.at(self.epoch, step));
                self.over(GangPhase::Failed, code);
            }
        }
        self.pods.values_mut().for_each(|pod| pod.accounts.clear());
    }
}

pub(super) fn epoch_of(phase: &PodPhase) -> Option<u32> {
    match phase {
        PodPhase::Running { epoch } | PodPhase::Ended { epoch, .. } | PodPhase::Done { epoch } => {
            Some(*epoch)
        }
        PodPhase::Preflight | PodPhase::Joining | PodPhase::Refused { .. } => None,
    }
}
