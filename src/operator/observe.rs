//! What a plan needs to know, from memory or from the API server itself.

use std::{
    fmt::Debug,
    sync::PoisonError,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use k8s_openapi::{
    NamespaceResourceScope,
    api::{batch::v1::Job, core::v1::Pod},
};
use kube::{Api, Resource, api::ListParams};
use serde::de::DeserializeOwned;

use super::{
    Context,
    gang::{GangPhase, Key},
    observed::{AttemptFact, Observed, PodFact},
};
use crate::{
    api::{job::FineTuneJob, labels},
    job::{self, pod_paths},
};

/// Shortest time between two writes of numbers that change with every step.
const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// Time in which all pods of a gang have spoken to a broker that has just begun.
const HEARING: Duration = Duration::from_secs(5);

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
    let now = api
        .get_opt(&name)
        .await
        .map_err(|source| ObserveError::Job { job: name.clone(), source })?;
    let Some(now) = now.filter(|now| now.metadata.uid == job.metadata.uid) else {
        return Ok(None);
    };
    let jobs: Vec<Job> = children(context, &namespace, &name).await?;
    let pods: Vec<Pod> = children(context, &namespace, &name).await?;
    let attempts = jobs.iter().filter_map(AttemptFact::of).collect();
    let pods = pods.iter().filter_map(PodFact::of).collect();
    Ok(Some(gather(context, now, attempts, pods)))
}

async fn children<K>(context: &Context, namespace: &str, job: &str) -> Result<Vec<K>, ObserveError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    K: Clone + DeserializeOwned + Debug,
{
    let api: Api<K> = Api::namespaced(context.client.clone(), namespace);
    let selector = ListParams::default().labels(&format!("{}={job}", labels::JOB));
    let list = api.list(&selector).await;
    let list = list.map_err(|source| ObserveError::Children { job: job.to_owned(), source })?;
    Ok(list.items)
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
    let gang = gang.filter(|gang| !(young && gang.phase == GangPhase::Waiting));
    let written = remembered.and_then(|memory| memory.progress_written);
    Observed {
        now: Timestamp::now(),
        problems: problems(&job),
        fault: remembered.and_then(|memory| memory.fault.clone()),
        progress_due: written.is_none_or(|at| PROGRESS_EVERY <= now.duration_since(at)),
        job,
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
