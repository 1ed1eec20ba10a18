//! One leader among several operators: a Lease that is renewed, and written only if it is still
//! the version that was read.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease as LeaseObject, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::sync::watch;
use tracing::{info, warn};

use super::{LeaseOptions, broker::Leader};

/// Name of the lease.
const NAME: &str = "qvl-operator";
/// A lease that did not change for so long is free.
const LASTS: Duration = Duration::from_secs(15);
/// Time between two renewals.
const RENEW: Duration = Duration::from_secs(4);
/// A leader that could not renew for so long steps back, well before another may lead.
const STEP_BACK: Duration = Duration::from_secs(10);

/// The lease, as seen from one operator.
#[derive(Debug)]
pub(super) struct Lease {
    api: Api<LeaseObject>,
    /// `identity@address` of this operator.
    holder: String,
    leader: watch::Sender<Leader>,
    /// Version of the lease and when it was first seen, by this machine's clock alone.
    seen: Option<(String, Instant)>,
    /// How replicas reach each other.
    scheme: &'static str,
}

/// What to do about a lease.
#[derive(Debug, PartialEq, Eq)]
enum Claim {
    Renew,
    TakeOver,
    Leave,
}

fn claim(held_by: &str, own: &str, unchanged_for: Duration) -> Claim {
    if held_by == own {
        Claim::Renew
    } else if held_by.is_empty() || LASTS <= unchanged_for {
        Claim::TakeOver
    } else {
        Claim::Leave
    }
}

impl Lease {
    pub(super) fn new(
        client: Client,
        options: &LeaseOptions,
        identity: &str,
        leader: watch::Sender<Leader>,
    ) -> Self {
        let holder = format!("{identity}@{}", options.address);
        let api = Api::namespaced(client, &options.namespace);
        let scheme = if options.tls { "https" } else { "http" };
        Lease { api, holder, leader, seen: None, scheme }
    }

    /// Waits until this operator leads; `None` if the shutdown came first.
    pub(super) async fn acquire(mut self, shutdown: impl Future<Output = ()>) -> Option<Self> {
        tokio::pin!(shutdown);
        loop {
            match self.attempt().await {
                Ok(true) => {
                    self.leader.send_replace(Leader::Me);
                    info!(holder = self.holder, "this operator leads");
                    return Some(self);
                }
                Ok(false) => {}
                Err(error) => warn!(error = &error as &dyn std::error::Error, "lease"),
            }
            tokio::select! {
                () = &mut shutdown => return None,
                () = tokio::time::sleep(RENEW / 2) => {}
            }
        }
    }

    /// Renews until that fails for too long, or another holds it.
    pub(super) async fn keep(&mut self) {
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(RENEW).await;
            // A call that hangs must not outlive the lease.
            match tokio::time::timeout(RENEW, self.attempt()).await {
                Ok(Ok(true)) => renewed = Instant::now(),
                Ok(Ok(false)) => break,
                Ok(Err(error)) => warn!(error = &error as &dyn std::error::Error, "lease"),
                Err(_elapsed) => warn!("the API server does not answer, the lease is not renewed"),
            }
            if STEP_BACK <= renewed.elapsed() {
                break;
            }
        }
        self.leader.send_replace(Leader::Unknown);
    }

    /// Gives it back, so that another need not wait.
    pub(super) async fn release(self) {
        let Ok(Some(mut lease)) = self.api.get_opt(NAME).await else { return };
        if let Some(spec) = &mut lease.spec
            && spec.holder_identity.as_deref() == Some(&self.holder)
        {
            spec.holder_identity = None;
            if let Err(error) = self.api.replace(NAME, &PostParams::default(), &lease).await {
                warn!(error = &error as &dyn std::error::Error, "the lease runs out by itself");
            }
        }
    }

    /// Reads, and renews or takes over. A write in between makes ours fail.
    async fn attempt(&mut self) -> Result<bool, kube::Error> {
        let Some(lease) = self.api.get_opt(NAME).await? else {
            let created = self.api.create(&PostParams::default(), &self.mine(None)).await;
            return settled(created.map(|_lease| ()));
        };
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let since = match &self.seen {
            Some((seen, at)) if *seen == version => *at,
            Some(_) | None => Instant::now(),
        };
        self.seen = Some((version, since));
        let spec = lease.spec.clone().unwrap_or_default();
        let held_by = spec.holder_identity.unwrap_or_default();
        match claim(&held_by, &self.holder, since.elapsed()) {
            Claim::Renew | Claim::TakeOver => {
                let mine = self.mine(Some(&lease));
                let written = self.api.replace(NAME, &PostParams::default(), &mine).await;
                settled(written.map(|_lease| ()))
            }
            Claim::Leave => {
                let address = held_by.rsplit_once('@').map(|(_name, address)| address);
                let scheme = self.scheme;
                let url = address.map(|address| Leader::Other(format!("{scheme}://{address}")));
                self.leader.send_replace(url.unwrap_or(Leader::Unknown));
                Ok(false)
            }
        }
    }

    fn mine(&self, old: Option<&LeaseObject>) -> LeaseObject {
        let spec = old.and_then(|old| old.spec.clone()).unwrap_or_default();
        let renews = spec.holder_identity.as_deref() == Some(&self.holder);
        let now = MicroTime(Timestamp::now());
        let seconds = i32::try_from(LASTS.as_secs()).unwrap_or(15);
        LeaseObject {
            metadata: old.map_or_else(
                || ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() },
                |old| old.metadata.clone(),
            ),
            spec: Some(LeaseSpec {
                acquire_time: if renews { spec.acquire_time } else { Some(now.clone()) },
                holder_identity: Some(self.holder.clone()),
                lease_duration_seconds: Some(seconds),
                lease_transitions: Some(spec.lease_transitions.unwrap_or(0) + i32::from(!renews)),
                renew_time: Some(now),
                ..spec
            }),
        }
    }
}

/// Somebody else was faster: that is an answer, not an error.
fn settled(written: Result<(), kube::Error>) -> Result<bool, kube::Error> {
    match written {
        Ok(()) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_taken_only_if_it_is_free_or_stale() {
        let fresh = Duration::from_secs(1);
        assert_eq!(claim("a@1", "a@1", LASTS), Claim::Renew);
        assert_eq!(claim("", "a@1", fresh), Claim::TakeOver);
        assert_eq!(claim("b@2", "a@1", fresh), Claim::Leave);
        assert_eq!(claim("b@2", "a@1", LASTS), Claim::TakeOver);
        assert!(STEP_BACK + RENEW < LASTS, "a leader stops before another begins");
    }
}
