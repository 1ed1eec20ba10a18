//! Carries out one step: at most one call of the API server, and none that a crash before or
//! after it could make wrong.

use std::{error::Error, fmt::Debug, sync::PoisonError, time::Instant};

use jiff::Timestamp;

use k8s_openapi::{
    NamespaceResourceScope,
    api::{batch::v1::Job, core::v1::Pod, events::v1::Event},
};
use kube::{
    Api, Resource,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
};
use serde::{Serialize, de::DeserializeOwned};
use tracing::warn;

use super::{Context, build, news::News, observe::key, plan::Action};
use crate::api::{
    job::{FineTuneJob, JobStatus},
    labels,
};

/// A call that the API server refused, or did not answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApplyError {
    #[error("failed to write the status of job `{job}`")]
    Status { job: String, source: kube::Error },
    #[error("failed to apply {kind} `{name}`")]
    Apply { kind: &'static str, name: String, source: kube::Error },
    #[error("failed to create Job `{name}`")]
    Create { name: String, source: kube::Error },
    #[error("failed to delete {kind} `{name}`")]
    Delete { kind: &'static str, name: String, source: kube::Error },
}

impl ApplyError {
    /// What the API server said.
    pub(super) fn source(&self) -> &kube::Error {
        match self {
            ApplyError::Status { source, .. }
            | ApplyError::Apply { source, .. }
            | ApplyError::Create { source, .. }
            | ApplyError::Delete { source, .. } => source,
        }
    }

    /// Code of the answer, if there was one.
    fn code(&self) -> Option<u16> {
        if let kube::Error::Api(status) = self.source() { Some(status.code) } else { None }
    }

    /// Somebody else wrote at the same time: the next plan sees what.
    pub(super) fn is_conflict(&self) -> bool {
        self.code() == Some(409)
    }

    /// Whether the same call will be refused again.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self.code(), Some(400 | 403 | 422))
    }

    /// Name of the operation, for metrics.
    pub(super) fn operation(&self) -> &'static str {
        match self {
            ApplyError::Status { .. } => "status",
            ApplyError::Apply { .. } => "apply",
            ApplyError::Create { .. } => "create",
            ApplyError::Delete { .. } => "delete",
        }
    }
}

/// Does what a step says to a job as it was observed.
pub(super) async fn apply(
    context: &Context,
    job: &FineTuneJob,
    action: &Action,
) -> Result<(), ApplyError> {
    match action {
        Action::Tell(news) => {
            tell(context, job, news).await;
            Ok(())
        }
        Action::WriteStatus(status) => write_status(context, job, status).await,
        Action::ApplyAccount => patch(context, job, "ServiceAccount", &build::account(job)).await,
        Action::ApplyService => patch(context, job, "Service", &build::service(job)).await,
        Action::ApplyGroup => patch(context, job, "PodGroup", &build::pod_group(job)).await,
        Action::ApplySpec { attempt } => {
            patch(context, job, "ConfigMap", &build::spec(job, *attempt)).await
        }
        Action::CreateJob { attempt } => create(context, job, *attempt).await,
        Action::DeleteJob { name, uid } => {
            delete::<Job>(context, job, "Job", name, DeleteParams::background(), uid).await
        }
        Action::ForceDeletePod { name, uid } => {
            let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
            delete::<Pod>(context, job, "Pod", name, now, uid).await
        }
        Action::RegisterGang(spec) => {
            let mut gangs = context.gangs.lock().unwrap_or_else(PoisonError::into_inner);
            gangs.register(key(job), *spec);
            drop(gangs);
            context.remember(&key(job), |memory| {
                if memory.registered != Some(spec.attempt) {
                    memory.registered = Some(spec.attempt);
                    memory.registered_at = Some(Instant::now());
                }
            });
            Ok(())
        }
        Action::AskStop => {
            let mut gangs = context.gangs.lock().unwrap_or_else(PoisonError::into_inner);
            gangs.ask_stop(&key(job));
            Ok(())
        }
        Action::ForgetGang => {
            context.forget(&key(job));
            Ok(())
        }
    }
}

/// An Event that cannot be written holds nothing up: the next look tries again. That it is there
/// already is fine: another operator told of it.
async fn tell(context: &Context, job: &FineTuneJob, news: &News) {
    context.metrics.calls.add("event");
    let api: Api<Event> = Api::namespaced(context.client.clone(), job.namespace());
    let event = build::event(job, news, &context.identity, Timestamp::now());
    match api.create(&PostParams::default(), &event).await {
        Ok(_created) => {}
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        Err(error) => {
            context.metrics.failures.add("event");
            let (namespace, name) = key(job);
            warn!(
                namespace,
                job = name,
                reason = news.reason,
                error = &error as &dyn Error,
                "event"
            );
            return;
        }
    }
    context.remember(&key(job), |memory| {
        memory.told.insert(news.key.clone());
    });
}

/// The version that the plan was made from must still be the newest, or two changes of mind
/// could mix.
async fn write_status(
    context: &Context,
    job: &FineTuneJob,
    status: &JobStatus,
) -> Result<(), ApplyError> {
    context.metrics.calls.add("status");
    let api: Api<FineTuneJob> = Api::namespaced(context.client.clone(), job.namespace());
    let patch = serde_json::json!({
        "apiVersion": FineTuneJob::api_version(&()),
        "kind": FineTuneJob::KIND,
        "metadata": {"name": job.name(), "resourceVersion": job.metadata.resource_version},
        "status": status,
    });
    let parameters = PatchParams::apply(labels::OPERATOR).force();
    let written = api.patch_status(job.name(), &parameters, &Patch::Apply(&patch)).await;
    written.map_err(|source| ApplyError::Status { job: job.name().to_owned(), source })?;
    context.remember(&key(job), |memory| memory.progress_written = Some(Instant::now()));
    Ok(())
}

async fn patch<K>(
    context: &Context,
    job: &FineTuneJob,
    kind: &'static str,
    object: &K,
) -> Result<(), ApplyError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    K: Clone + DeserializeOwned + Debug + Serialize,
{
    context.metrics.calls.add("apply");
    let api: Api<K> = Api::namespaced(context.client.clone(), job.namespace());
    let name = object.meta().name.clone().unwrap_or_default();
    let parameters = PatchParams::apply(labels::OPERATOR).force();
    let applied = api.patch(&name, &parameters, &Patch::Apply(object)).await;
    applied.map_err(|source| ApplyError::Apply { kind, name, source })?;
    Ok(())
}

async fn create(context: &Context, job: &FineTuneJob, attempt: u32) -> Result<(), ApplyError> {
    context.metrics.calls.add("create");
    let api: Api<Job> = Api::namespaced(context.client.clone(), job.namespace());
    let object = build::job(job, attempt, &context.settings());
    let parameters =
        PostParams { field_manager: Some(labels::OPERATOR.to_owned()), ..PostParams::default() };
    match api.create(&parameters, &object).await {
        Ok(_created) => Ok(()),
        Err(source) => {
            Err(ApplyError::Create { name: build::job_name(job.name(), attempt), source })
        }
    }
}

/// Deletes the very object that was observed. That it is gone already is fine.
async fn delete<K>(
    context: &Context,
    job: &FineTuneJob,
    kind: &'static str,
    name: &str,
    parameters: DeleteParams,
    uid: &str,
) -> Result<(), ApplyError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    K: Clone + DeserializeOwned + Debug,
{
    context.metrics.calls.add("delete");
    let api: Api<K> = Api::namespaced(context.client.clone(), job.namespace());
    let preconditions = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
    let parameters = parameters.preconditions(preconditions);
    match api.delete(name, &parameters).await {
        Ok(_deleted) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(source) => Err(ApplyError::Delete { kind, name: name.to_owned(), source }),
    }
}
