//! The objects of a job. Pure and infallible: whether the job is fit was checked before.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod pod;

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        batch::v1::{
            Job, JobSpec, PodFailurePolicy, PodFailurePolicyOnExitCodesRequirement,
            PodFailurePolicyOnPodConditionsPattern, PodFailurePolicyRule,
        },
        core::v1::{ConfigMap, ObjectReference, Service, ServiceAccount, ServiceSpec},
        events::v1::Event,
        scheduling::v1beta1::{
            AllDisruptionMode, DisruptionMode, GangSchedulingPolicy, PodGroup,
            PodGroupSchedulingPolicy, PodGroupSpec,
        },
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, OwnerReference},
};
use kube::{Resource, api::ObjectMeta};

use super::{conditions::shorten, news::News, observed};
use crate::{
    api::{job::FineTuneJob, labels},
    job::{self, pod_paths},
    wire::TrainerExit,
};

/// Longest note of an Event that the API server takes.
const LONGEST_NOTE: usize = 1024;
/// Who tells of a job.
const REPORTER: &str = "qvl.dev/operator";

/// What the operator was told about its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Image of jobs that name none.
    pub image: String,
    /// Where pods find the broker.
    pub broker_url: String,
    /// Where pods send their logs, if anywhere.
    pub collector_url: Option<String>,
    /// CA certificates in PEM that pods check both with.
    pub ca: Option<String>,
    /// The API server serves pod groups: its scheduler places all pods of a gang, or none.
    pub pod_groups: bool,
}

/// Name of the Job of an attempt.
pub fn job_name(job: &str, attempt: u32) -> String {
    format!("{job}-a{attempt}")
}

/// Name of the ConfigMap of an attempt.
pub fn spec_name(job: &str, attempt: u32) -> String {
    format!("{job}-spec-a{attempt}")
}

/// The service account of the pods: it may do nothing, and says which job they are of.
pub fn account(job: &FineTuneJob) -> ServiceAccount {
    ServiceAccount {
        metadata: metadata(job, job.name().to_owned(), None),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

/// Gives the pod of rank 0 a name, by which others find the job; one for all attempts, and also before it is
/// ready. Ranks meet by addresses. With all pods in it, its list would be written anew for each of them.
pub fn service(job: &FineTuneJob) -> Service {
    Service {
        metadata: metadata(job, job.name().to_owned(), None),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".to_owned()),
            publish_not_ready_addresses: Some(true),
            selector: Some(BTreeMap::from([
                (labels::JOB.to_owned(), job.name().to_owned()),
                (labels::INDEX.to_owned(), "0".to_owned()),
            ])),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// Makes the scheduler place all pods of the job or none, and take away all or none; one for all
/// attempts, of which only one has pods. A queue does the first itself.
pub fn pod_group(job: &FineTuneJob) -> PodGroup {
    let pods = i32::try_from(observed::pods(job)).unwrap_or(i32::MAX);
    PodGroup {
        metadata: metadata(job, job.name().to_owned(), None),
        spec: PodGroupSpec {
            disruption_mode: Some(DisruptionMode {
                all: Some(AllDisruptionMode(serde_json::json!({}))),
                single: None,
            }),
            priority_class_name: job.spec.cluster.priority_class.clone(),
            scheduling_policy: PodGroupSchedulingPolicy {
                basic: None,
                gang: Some(GangSchedulingPolicy { min_count: pods }),
            },
            ..PodGroupSpec::default()
        },
        ..PodGroup::default()
    }
}

/// The job file that the pods of an attempt read.
pub fn spec(job: &FineTuneJob, attempt: u32) -> ConfigMap {
    let text = serde_saphyr::to_string(&resolved(job)).expect("a job is plain data");
    ConfigMap {
        metadata: metadata(job, spec_name(job.name(), attempt), Some(attempt)),
        immutable: Some(true),
        data: Some(BTreeMap::from([("job.yaml".to_owned(), text)])),
        ..ConfigMap::default()
    }
}

/// The job with absolute paths: there is no folder of a job file in a pod.
pub fn resolved(job: &FineTuneJob) -> job::FineTuneJob {
    let mut file = job.file();
    file.spec = pod_paths::resolved(&file.spec);
    file
}

/// The Job of an attempt.
pub fn job(job: &FineTuneJob, attempt: u32, settings: &Settings) -> Job {
    let queue = job.spec.cluster.queue.clone();
    let mut metadata = metadata(job, job_name(job.name(), attempt), Some(attempt));
    if let (Some(labels), Some(queue)) = (&mut metadata.labels, &queue) {
        labels.insert(labels::QUEUE.to_owned(), queue.clone());
    }
    let pods = i32::try_from(observed::pods(job)).unwrap_or(i32::MAX);
    Job {
        metadata,
        spec: Some(JobSpec {
            completion_mode: Some("Indexed".to_owned()),
            completions: Some(pods),
            parallelism: Some(pods),
            // A queue would take a new Job for a new request and could give the quota to
            // another: there one Job lives on and replaces its lost pods.
            backoff_limit: Some(if queue.is_some() { i32::MAX } else { 0 }),
            pod_failure_policy: Some(failure_policy(queue.is_some())),
            pod_replacement_policy: Some("Failed".to_owned()),
            suspend: queue.map(|_queue| true),
            template: pod::template(job, attempt, settings),
            ..JobSpec::default()
        }),
        ..Job::default()
    }
}

/// An Event about a job. Its name is that of the happening, so that nobody tells of it twice.
pub fn event(job: &FineTuneJob, news: &News, identity: &str, now: Timestamp) -> Event {
    let uid = job.metadata.uid.clone().unwrap_or_default();
    let (life, _rest) = uid.split_once('-').unwrap_or((&uid, ""));
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.{life}.{}", job.name(), news.key)),
            namespace: job.metadata.namespace.clone(),
            ..ObjectMeta::default()
        },
        action: Some(news.reason.clone()),
        event_time: Some(MicroTime(now)),
        note: Some(shorten(&news.note, LONGEST_NOTE)),
        reason: Some(news.reason.clone()),
        regarding: Some(ObjectReference {
            api_version: Some(FineTuneJob::api_version(&()).into_owned()),
            kind: Some(FineTuneJob::KIND.to_owned()),
            name: Some(job.name().to_owned()),
            namespace: job.metadata.namespace.clone(),
            uid: Some(uid),
            ..ObjectReference::default()
        }),
        reporting_controller: Some(REPORTER.to_owned()),
        reporting_instance: Some(shorten(identity, 128)),
        type_: Some(if news.warning { "Warning" } else { "Normal" }.to_owned()),
        ..Event::default()
    }
}

/// Order matters: the first rule that fits counts.
fn failure_policy(keeps_job: bool) -> PodFailurePolicy {
    let exits = |operator: &str, values: Vec<i32>| PodFailurePolicyRule {
        action: "FailJob".to_owned(),
        on_exit_codes: Some(PodFailurePolicyOnExitCodesRequirement {
            container_name: Some(labels::CONTAINER.to_owned()),
            operator: operator.to_owned(),
            values,
        }),
        on_pod_conditions: None,
    };
    let permanent = [
        TrainerExit::Usage,
        TrainerExit::Data,
        TrainerExit::InputMissing,
        TrainerExit::Config,
        TrainerExit::Diverged,
    ];
    let permanent = exits("In", permanent.map(|exit| i32::from(exit.code())).to_vec());
    let disrupted = PodFailurePolicyRule {
        action: if keeps_job { "Ignore" } else { "FailJob" }.to_owned(),
        on_exit_codes: None,
        on_pod_conditions: Some(vec![PodFailurePolicyOnPodConditionsPattern {
            type_: "DisruptionTarget".to_owned(),
            status: Some("True".to_owned()),
        }]),
    };
    // The operator tells classes apart and counts; for the Job, one failed pod is the end.
    let others = (!keeps_job).then(|| exits("NotIn", vec![0]));
    PodFailurePolicy { rules: [permanent, disrupted].into_iter().chain(others).collect() }
}

fn metadata(job: &FineTuneJob, name: String, attempt: Option<u32>) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: job.metadata.namespace.clone(),
        labels: Some(labels_of(job, attempt)),
        owner_references: Some(vec![owner(job)]),
        ..ObjectMeta::default()
    }
}

fn labels_of(job: &FineTuneJob, attempt: Option<u32>) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::from([
        (labels::JOB.to_owned(), job.name().to_owned()),
        ("app.kubernetes.io/managed-by".to_owned(), labels::OPERATOR.to_owned()),
    ]);
    if let Some(attempt) = attempt {
        labels.insert(labels::ATTEMPT.to_owned(), attempt.to_string());
    }
    labels
}

fn owner(job: &FineTuneJob) -> OwnerReference {
    OwnerReference {
        api_version: FineTuneJob::api_version(&()).into_owned(),
        kind: FineTuneJob::KIND.to_owned(),
        name: job.name().to_owned(),
        uid: job.metadata.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

#[cfg(test)]
mod tests;
