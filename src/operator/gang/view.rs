//! A gang as the operator sees it.

use std::time::{Duration, Instant};

use super::{
    GangPhase, GangView, SILENT,
    round::{Gang, Pod, Round, epoch_of},
};
use crate::{api::job::LastFailure, wire::sync::PodPhase};

/// Steps that are reported so long after a pod was heard last need its ranks.
const MARGIN: Duration = Duration::from_secs(3);

impl Gang {
    pub(super) fn view(&self, now: Instant) -> GangView {
        let silent_pods = self.silent_pods(now);
        let phase = self.phase(now, &silent_pods);
        let lost = (phase == GangPhase::Lost).then(|| self.lost(now, &silent_pods)).flatten();
        let node = |index| self.pods.get(&index).map_or("", |pod| &pod.request.node);
        let runs = |pod: &&Pod| pod.request.phase == PodPhase::Running { epoch: self.epoch };
        let running = self.pods.values().filter(runs).count();
        GangView {
            phase,
            epoch: self.epoch,
            restarts: self.restarts,
            progress: self.progress.clone(),
            nodes: (0..self.spec.pods).map(|index| node(index).to_owned()).collect(),
            last_failure: lost.or_else(|| self.last_failure.clone()),
            notes: self.notes.clone(),
            silent_pods,
            running_ranks: u32::try_from(running).unwrap_or(u32::MAX) * self.spec.ranks_per_pod,
        }
    }

    fn is_over(&self) -> bool {
        matches!(self.round, Some(Round::Over(_)))
    }

    /// Pods that are silent for too long, or that leave and have no trainers any more. A pod
    /// whose ranks still take part in steps is not lost, only its word is.
    fn silent_pods(&self, now: Instant) -> Vec<u32> {
        if self.is_over() {
            return Vec::new();
        }
        let silent = |since: Instant| {
            let since = self.listening.map_or(since, |listening| listening.max(since));
            SILENT <= now.saturating_duration_since(since)
        };
        let takes_part =
            |pod: &Pod| self.stepped.is_some_and(|at| pod.heard + MARGIN < at && !silent(at));
        let gone = |index: u32| match self.pods.get(&index) {
            Some(pod) if pod.request.leaving => {
                !self.spec.replaces
                    && !matches!(
                        pod.request.phase,
                        PodPhase::Running { .. } | PodPhase::Done { .. }
                    )
            }
            Some(pod) => silent(pod.heard) && !takes_part(pod),
            // Others run, so it must have been there.
            None => self.started && self.first_heard.is_some_and(silent),
        };
        (0..self.spec.pods).filter(|index| gone(*index)).collect()
    }

    fn phase(&self, now: Instant, silent_pods: &[u32]) -> GangPhase {
        let heard = |pod: &Pod| now.saturating_duration_since(pod.heard) < SILENT;
        let leaves = |pod: &Pod| pod.request.leaving;
        let any = |wanted: &dyn Fn(&Pod) -> bool| self.pods.values().any(wanted);
        if let Some(Round::Over(outcome)) = &self.round {
            return outcome.phase;
        }
        if !silent_pods.is_empty() && (any(&heard) || any(&leaves)) {
            return GangPhase::Lost;
        }
        if self.stopping {
            return GangPhase::Stopping;
        }
        match self.round {
            Some(Round::Live { .. }) => self.live_phase(),
            Some(Round::Ending { .. }) => GangPhase::Restarting,
            Some(Round::Gathering { .. } | Round::Over(_)) | None if self.started => {
                GangPhase::Restarting
            }
            Some(Round::Gathering { .. } | Round::Over(_)) | None => {
                let tests = |pod: &Pod| pod.request.phase == PodPhase::Preflight;
                match self.pods.len() == self.spec.pods as usize {
                    false => GangPhase::Waiting,
                    true if any(&tests) => GangPhase::Preflight,
                    true => GangPhase::Rendezvous,
                }
            }
        }
    }

    fn live_phase(&self) -> GangPhase {
        let takes_part = |pod: &Pod| {
            let current = epoch_of(&pod.request.phase) == Some(self.epoch);
            let ready = pod.request.ready || pod.request.step.is_some();
            current && (ready || matches!(pod.request.phase, PodPhase::Done { .. }))
        };
        let all = self.pods.len() == self.spec.pods as usize;
        if !all || !self.pods.values().all(takes_part) {
            return GangPhase::Rendezvous;
        }
        if self.pods.values().any(|pod| pod.request.slow_seconds.is_some()) {
            return GangPhase::Stalled;
        }
        GangPhase::Running
    }

    /// Whether a pod fell silent that was not asked to leave: the ranks of the others wait for it in
    /// vain, and have nothing to save without it.
    pub(super) fn has_lost(&self, now: Instant) -> bool {
        let silent = self.silent_pods(now);
        let lost = self.phase(now, &silent) == GangPhase::Lost;
        lost && self.lost(now, &silent).is_some()
    }

    /// The failure of a gang that has lost a pod. A pod that was asked to leave has not failed: why
    /// it was asked, the cluster knows.
    fn lost(&self, now: Instant, silent_pods: &[u32]) -> Option<LastFailure> {
        let leaves = |index: &u32| self.pods.get(index).is_some_and(|pod| pod.request.leaving);
        let index = *silent_pods.iter().find(|index| !leaves(index))?;
        let rank = index * self.spec.ranks_per_pod;
        let pod = self.pods.get(&index);
        let node = pod.map_or("", |pod| &pod.request.node).to_owned();
        let since = pod.map(|pod| pod.heard).or(self.first_heard)?;
        let seconds = now.saturating_duration_since(since).as_secs();
        // A leader that is new may never have heard it.
        let place = if node.is_empty() { String::new() } else { format!(" on {node}") };
        let what = format!("pod {index}{place} has said nothing for {seconds} s");
        let hint = "its node or its network may be down: `kubectl get nodes`";
        Some(LastFailure {
            class: "lost".to_owned(),
            rank,
            node,
            exit_code: None,
            what,
            hint: Some(hint.to_owned()),
            tail: String::new(),
            epoch: self.epoch,
            step: self.progress.step,
        })
    }
}
