//! Which requests a gang listens to.

use super::{
    GangSpec, Refusal,
    round::{Gang, epoch_of},
};
use crate::wire::sync::{PodPhase, SyncRequest};

/// No job has had so many epochs: a pod that claims it does not tell the truth.
const EPOCH_LIMIT: u32 = 1 << 30;

impl Gang {
    /// Whether the request belongs to this gang and makes sense.
    pub(super) fn admit(&self, request: &SyncRequest) -> Result<(), Refusal> {
        let GangSpec { attempt: current, pods, .. } = self.spec;
        let SyncRequest { v, attempt: got, index, .. } = *request;
        if v != 1 {
            return Err(Refusal::Version { got: v });
        }
        if got < current {
            return Err(Refusal::Late { got, current });
        }
        if current < got {
            return Err(Refusal::Early { got, current });
        }
        if pods <= index {
            return Err(Refusal::Index { index, pods });
        }
        if self.retired.contains(&request.pod_uid) {
            return Err(Refusal::Replaced { index });
        }
        if request.address.parse::<core::net::IpAddr>().is_err() {
            let what = "not an IP address".to_owned();
            return Err(Refusal::Field { field: "address", what });
        }
        if EPOCH_LIMIT < epoch_of(&request.phase).unwrap_or(0).max(request.last_epoch) {
            let what = "the epoch is not possible".to_owned();
            return Err(Refusal::Field { field: "phase", what });
        }
        let first = index * self.spec.ranks_per_pod;
        let own = first..first + self.spec.ranks_per_pod;
        if let PodPhase::Ended { ends, .. } = &request.phase
            && let Some(other) = ends.iter().find(|end| !own.contains(&end.rank))
        {
            let what = format!("rank {} is not one of pod {index}", other.rank);
            return Err(Refusal::Field { field: "phase", what });
        }
        Ok(())
    }

    /// Whether a request came late, or twice.
    pub(super) fn check_sequence(&self, request: &SyncRequest) -> Result<(), Refusal> {
        let SyncRequest { index, sequence: got, .. } = *request;
        let Some(pod) = self.pods.get(&index) else { return Ok(()) };
        let newest = pod.request.sequence;
        if pod.request.pod_uid == request.pod_uid && got != 0 && got <= newest {
            return Err(Refusal::Stale { index, got, newest });
        }
        Ok(())
    }
}
