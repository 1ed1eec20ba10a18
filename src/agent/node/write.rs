//! Writes the report of the node.

use std::{
    collections::hash_map::RandomState,
    error::Error as _,
    hash::{BuildHasher, Hasher},
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::{api::core::v1::Node, apimachinery::pkg::apis::meta::v1::OwnerReference};
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams},
};
use tracing::{info, warn};

use super::{Newest, Observation, Shared, judge};
use crate::{
    api::{
        labels,
        node::{NodeReport, NodeReportSpec},
    },
    facts::{NodeFacts, NodeName},
};

/// A report is written at least so often while the node is looked at.
const HEARTBEAT: Duration = Duration::from_secs(300);
/// Longest time for one call of the API server.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// Pauses after failures, doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Why a report was not written.
#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error("the report would have {size} bytes, at most {} are written", judge::LARGEST)]
    TooLarge { size: usize },
    #[error("no answer within {} s", ANSWER_WITHIN.as_secs())]
    Late,
    #[error("node {node} does not exist")]
    NoNode { node: NodeName },
    #[error("failed to read node {node}")]
    Node { node: NodeName, source: kube::Error },
    #[error("failed to write the report of {node}")]
    Report { node: NodeName, source: kube::Error },
}

/// What the last report said.
struct Written {
    lasting: NodeFacts,
    problems: (String, String),
    at: Instant,
}

/// Writes for ever, whenever there is a reason.
pub(super) async fn write(client: Client, node: NodeName, mut newest: Newest, shared: Arc<Shared>) {
    let mut written: Option<Written> = None;
    let mut pause = None;
    loop {
        match pause {
            // Trouble is worth another try at once, but an API server that is away is not asked
            // more often because of it.
            Some(pause) => tokio::time::sleep(jitter(pause)).await,
            None if newest.changed().await.is_err() => return,
            None => {}
        }
        let Some(observation) = newest.borrow_and_update().clone() else { continue };
        let judged = judge::judge(&node, &observation.facts);
        let problems = (judged.summary.problems.clone(), judged.summary.warnings.clone());
        let lasting = judge::lasting(&observation.facts);
        if written.as_ref().is_some_and(|written| !is_news(written, &lasting, &problems)) {
            pause = None;
            continue;
        }
        let spec = NodeReportSpec {
            observed_at: observation.at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            summary: judged.summary,
            facts: String::new(),
        };
        match one(&client, &node, &observation, spec).await {
            Ok(bytes) => {
                if pause.is_some() || written.is_none() {
                    info!(%node, bytes, problems = problems.0, "the report is written");
                }
                shared.change(|numbers| {
                    numbers.written = Some(observation.instant);
                    numbers.metrics.writes += 1;
                    numbers.metrics.report_bytes = bytes;
                });
                written = Some(Written { lasting, problems, at: Instant::now() });
                pause = None;
            }
            Err(error) => {
                let cause = error.source().map(cause_of);
                warn!(%error, cause, "the report is not written");
                shared.change(|numbers| numbers.metrics.failures += 1);
                pause = Some(pause.map_or(FIRST_PAUSE, |pause| LONGEST_PAUSE.min(pause * 2)));
            }
        }
    }
}

fn is_news(written: &Written, lasting: &NodeFacts, problems: &(String, String)) -> bool {
    HEARTBEAT <= written.at.elapsed()
        || written.lasting != *lasting
        || written.problems != *problems
}

/// The innermost cause says what happened.
fn cause_of(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// Agents of a whole cluster must not come back at the same moment.
fn jitter(pause: Duration) -> Duration {
    let random = RandomState::new().build_hasher().finish() % 1000;
    pause.mul_f64(0.5 + random as f64 / 2000.0)
}

/// Writes one report. Says how large its facts are.
async fn one(
    client: &Client,
    node: &NodeName,
    observation: &Observation,
    spec: NodeReportSpec,
) -> Result<u64, WriteError> {
    let facts = judge::facts_text(node, observation.facts.clone())
        .map_err(|size| WriteError::TooLarge { size })?;
    let bytes = facts.len() as u64;
    let calls = async {
        let owner = owner(client, node).await?;
        let metadata = ObjectMeta {
            name: Some(node.0.clone()),
            owner_references: owner.map(|owner| vec![owner]),
            ..ObjectMeta::default()
        };
        let report = NodeReport { metadata, spec: NodeReportSpec { facts, ..spec } };
        let api: Api<NodeReport> = Api::all(client.clone());
        let params = PatchParams::apply(labels::AGENT).force();
        let sent = api.patch_metadata(&node.0, &params, &Patch::Apply(&report)).await;
        sent.map_err(|source| WriteError::Report { node: node.clone(), source })
    };
    tokio::time::timeout(ANSWER_WITHIN, calls).await.map_err(|_elapsed| WriteError::Late)??;
    Ok(bytes)
}

/// The node owns its report: when it is deleted, the report goes too. Without the right to look
/// at nodes the report has no owner, and stays.
async fn owner(client: &Client, node: &NodeName) -> Result<Option<OwnerReference>, WriteError> {
    let api: Api<Node> = Api::all(client.clone());
    let found = match api.get_metadata_opt(&node.0).await {
        Err(kube::Error::Api(status)) if status.code == 403 => return Ok(None),
        found => found.map_err(|source| WriteError::Node { node: node.clone(), source })?,
    };
    let found = found.ok_or_else(|| WriteError::NoNode { node: node.clone() })?;
    Ok(found.metadata.uid.map(|uid| OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node.0.clone(),
        uid,
        ..OwnerReference::default()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_differ_and_stay_near_their_length() {
        let pauses: Vec<Duration> = (0..50).map(|_| jitter(Duration::from_secs(10))).collect();
        assert!(pauses.iter().all(|pause| (5.0..=10.0).contains(&pause.as_secs_f64())));
        assert!(pauses.iter().any(|pause| *pause != pauses[0]));
    }
}
