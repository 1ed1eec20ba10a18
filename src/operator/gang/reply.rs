//! What the pods of a gang are told.

use std::time::{Duration, Instant};

use super::{
    GangPhase,
    blame::Account,
    round::{Gang, Outcome, REPORTS, Round, epoch_of},
};
use crate::wire::{
    TrainerExit,
    sync::{PodPhase, SyncReply},
};

/// Pods whose ranks run on are let alone for so long if only victims have reported: the culprit
/// may be about to say what is wrong.
const VICTIMS_ONLY: Duration = Duration::from_secs(2);
/// The same if only stalls were reported: each pod sees its own ranks, and all fall silent together.
const STALLS_ONLY: Duration = Duration::from_secs(3);

impl Gang {
    /// What a pod is to do now.
    pub(super) fn reply(&self, now: Instant, index: u32) -> SyncReply {
        let (Some(pod), Some(round)) = (self.pods.get(&index), &self.round) else {
            return SyncReply::Continue;
        };
        let epoch = epoch_of(&pod.request.phase);
        let current = epoch == Some(self.epoch);
        match (round, &pod.request.phase) {
            (Round::Over(Outcome { phase, code }), _) => {
                SyncReply::Exit { success: *phase == GangPhase::Succeeded, code: *code }
            }
            (_, PodPhase::Preflight) if pod.request.door.is_some() => {
                self.peers(index).map_or(SyncReply::Continue, |peers| SyncReply::Meet { peers })
            }
            (_, PodPhase::Preflight | PodPhase::Refused { .. }) => SyncReply::Continue,
            (Round::Live { start: Some(start) }, PodPhase::Joining) => SyncReply::Start {
                epoch: self.epoch,
                master_address: start.address.clone(),
                master_port: start.port,
                token: start.token.clone(),
            },
            (_, PodPhase::Joining) => SyncReply::Continue,
            (_, PodPhase::Running { .. } | PodPhase::Ended { .. }) if self.has_lost(now) => {
                SyncReply::Exit { success: false, code: TrainerExit::PeerLost.code() }
            }
            (Round::Live { .. }, PodPhase::Running { .. }) if current => self.save_or_go_on(),
            (Round::Ending { since }, PodPhase::Running { .. }) if current => {
                self.end_or_wait(now.saturating_duration_since(*since))
            }
            (Round::Live { .. } | Round::Ending { .. }, _) if current => SyncReply::Continue,
            (Round::Gathering { .. } | Round::Live { .. } | Round::Ending { .. }, _) => {
                SyncReply::Rejoin
            }
        }
    }

    /// Whether all trainers have to save and stop: on request, or because a pod leaves its node.
    fn wants_end(&self) -> bool {
        self.stopping || self.pods.values().any(|pod| pod.request.leaving)
    }

    fn save_or_go_on(&self) -> SyncReply {
        if self.wants_end() { SyncReply::Stop } else { SyncReply::Continue }
    }

    /// For a pod whose trainers run on although others have ended.
    fn end_or_wait(&self, waited: Duration) -> SyncReply {
        let all = || self.pods.values().flat_map(|pod| &pod.accounts);
        let preempted = |account: &Account| {
            matches!(account.report.exit, Some(TrainerExit::Preempted | TrainerExit::Success))
        };
        let victim = |account: &Account| account.is_victim() || preempted(account);
        let stalled = |account: &Account| account.report.stalled_seconds.is_some();
        if all().all(preempted) {
            // They save and stop, and may need their time for it.
            return if self.wants_end() { SyncReply::Stop } else { wait(waited, REPORTS) };
        }
        if all().all(victim) {
            return wait(waited, VICTIMS_ONLY);
        }
        if all().any(stalled) && all().all(|account| victim(account) || stalled(account)) {
            return wait(waited, STALLS_ONLY);
        }
        SyncReply::Rejoin
    }
}

fn wait(waited: Duration, limit: Duration) -> SyncReply {
    if waited < limit { SyncReply::Continue } else { SyncReply::Rejoin }
}
