//! What a plan needs to know, from memory or from the API server itself.

use std::{
    fmt::Debug,
    sync::PoisonError,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::NamespaceResourceScope;
use kube::{Api, Resource, api::ListParams};
use serde::de::DeserializeOwned;

use super::{
    Context,
    gang::{GangPhase, GangView, Key},
    observed::{AttemptFact, Observed, PodFact},
};
use crate::{
    api::{job::FineTuneJob, labels},
    job::{self, pod_paths},
};

/// Shortest time between two writes of numbers that change with every step.
const NUMBERS_EVERY: Duration = Duration::from_secs(5);

/// Time in which all pods of a gang have spoken to a broker that has just begun.
const HEARING: Duration = Duration::from_secs(5);

/// Objects of one answer of the API server. A pod has about 10 KB, and a page is in memory whole.
pub(super) const PAGE: u32 = 100;

/// Why the API server could not be asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum ObserveError {
    #[error("failed to read job `{job}`")]
    Job { job: String, source: kube::Error },
    #[error("failed to list the children of job `{job}`")]
    Children { job: String, source: kube::Error },
}

/// From memory: cheap, and perhaps a moment old.
pub(super) fn cached(context: &Context, job: &FineTuneJob) -> Observed {
    let key = key(job);
    let attempts = context.index.attempts(&key);
    let pods = context.index.pods(&key);
    gather(context, job.clone(), attempts, pods)
}

/// From the API server; `None` if the job is gone or another of the same name took its place.
pub(super) async fn fresh(
    context: &Context,
    job: &FineTuneJob,
) -> Result<Option<Observed>, ObserveError> {
    let (namespace, name) = key(job);
    let api: Api<FineTuneJob> = Api::namespaced(context.client.clone(), &namespace);
    context.metrics.calls.add("read");
    let now = api
        .get_opt(&name)
        .await
        .map_err(|source| ObserveError::Job { job: name.clone(), source })?;
    let Some(now) = now.filter(|now| now.metadata.uid == job.metadata.uid) else {
        return Ok(None);
    };
    // Pods first: a Job that deletes its pods says why before it does so.
    let pods = children(context, &namespace, &name, PodFact::of).await?;
    let attempts = children(context, &namespace, &name, AttemptFact::of).await?;
    Ok(Some(gather(context, now, attempts, pods)))
}

/// What the children of a job tell, page by page: whole pods are large.
async fn children<K, F>(
    context: &Context,
    namespace: &str,
    job: &str,
    fact: impl Fn(&K) -> Option<F>,
) -> Result<Vec<F>, ObserveError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    K: Clone + DeserializeOwned + Debug,
{
    let api: Api<K> = Api::namespaced(context.client.clone(), namespace);
    let selector = format!("{}={job}", labels::JOB);
    let mut page = ListParams::default().labels(&selector).limit(PAGE);
    let mut facts = Vec::new();
    loop {
        context.metrics.calls.add("read");
        let list = api.list(&page).await;
        let list = list.map_err(|source| ObserveError::Children { job: job.to_owned(), source })?;
        facts.extend(list.items.iter().filter_map(&fact));
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page.continue_token = Some(token),
            None => return Ok(facts),
        }
    }
}

fn gather(
    context: &Context,
    job: FineTuneJob,
    mut attempts: Vec<AttemptFact>,
    mut pods: Vec<PodFact>,
) -> Observed {
    let key = key(&job);
    attempts.sort_by_key(|fact| fact.attempt);
    pods.sort_by(|a, b| (a.attempt, a.index, &a.name).cmp(&(b.attempt, b.index, &b.name)));
    let now = Instant::now();
    let attempt = job.status.as_ref().map_or(0, |status| status.attempt);
    let gangs = context.gangs.lock().unwrap_or_else(PoisonError::into_inner);
    let memory = context.memory.lock().unwrap_or_else(PoisonError::into_inner);
    let remembered = memory.get(&key);
    // The gang of an earlier attempt says nothing about this one.
    let registered = remembered.is_some_and(|memory| memory.registered == Some(attempt));
    let gang = registered.then(|| gangs.view(&key, now)).flatten();
    // An operator that has just begun has not heard of anyone: that is no news about the pods.
    let young = remembered
        .and_then(|memory| memory.registered_at)
        .is_some_and(|at| now.duration_since(at) < HEARING);
    let early = |gang: &GangView| gang.phase == GangPhase::Waiting || gang.is_unheard();
    let gang = gang.filter(|gang| !(young && early(gang)));
    let written = remembered.and_then(|memory| memory.progress_written);
    Observed {
        now: Timestamp::now(),
        problems: problems(&job),
        fault: remembered.and_then(|memory| memory.fault.clone()),
        numbers_due: written.is_none_or(|at| NUMBERS_EVERY <= now.duration_since(at)),
        told: remembered.map(|memory| memory.told.clone()).unwrap_or_default(),
        looked: remembered.is_some_and(|memory| memory.looked),
        first_failure: remembered.and_then(|memory| memory.first_failure),
        job,
        pod_groups: context.settings.pod_groups,
        attempts,
        pods,
        gang,
    }
}

/// What is wrong with a job that the schema of its kind let pass.
fn problems(job: &FineTuneJob) -> Vec<String> {
    let problems = job::problems(&job.file()).into_iter();
    let told = problems.map(|problem| format!("{}: {}", problem.path, problem.what));
    let homeless = pod_paths::homeless(&job.spec).into_iter().map(|path| {
        format!("path `{path}` is relative, but the job has no spec.cluster.volumes to look in")
    });
    told.chain(homeless).collect()
}

/// Namespace and name of a job.
pub(super) fn key(job: &FineTuneJob) -> Key {
    (job.namespace().to_owned(), job.name().to_owned())
}
