//! Everything in a cluster that belongs to a job, as JSON, for `explain`, `events` and `bundle`.

use std::collections::BTreeSet;

use kube::{
    Api,
    api::{ApiResource, DynamicObject, GroupVersionKind, ListParams},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    Call, Cluster, observe,
    trouble::{Denied, JOBS, REPORTS},
};
use crate::{
    api::{GROUP, VERSION, labels},
    cli::CliError,
};

/// The objects of one job. What could not be read is named.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Objects {
    /// The FineTuneJob.
    pub job: Value,
    /// Child Jobs, one for each attempt.
    pub jobs: Vec<Value>,
    pub pods: Vec<Value>,
    pub services: Vec<Value>,
    pub config_maps: Vec<Value>,
    /// Workloads of Kueue.
    pub workloads: Vec<Value>,
    /// Events about any of these.
    pub events: Vec<Value>,
    /// Nodes that the job's pods were on, and their reports.
    pub nodes: Vec<Value>,
    pub reports: Vec<Value>,
    /// What may not be read, one sentence each.
    pub not_read: Vec<String>,
}

/// Text of a field; empty if there is none.
pub(crate) fn text<'v>(object: &'v Value, pointer: &str) -> &'v str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// Members of a list; none if there is no list.
pub(crate) fn items<'v>(object: &'v Value, pointer: &str) -> impl Iterator<Item = &'v Value> {
    object.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

pub(crate) fn name(object: &Value) -> &str {
    text(object, "/metadata/name")
}

/// Collects them; only the job itself must be there.
pub(crate) async fn collect(cluster: &Cluster, job: &str) -> Result<Objects, CliError> {
    let call = Call::one("get", JOBS, &cluster.namespace, job);
    let object = cluster.call(call, cluster.jobs().get(job)).await?;
    let mut objects = Objects { job: json(object), ..Objects::default() };
    let mut reader = Reader { cluster, not_read: Vec::new() };
    let of_job = ListParams::default().labels(&format!("{}={job}", labels::JOB));
    let all = ListParams::default();
    objects.jobs = reader.list("jobs.batch", &of_job).await?;
    objects.pods = reader.list("pods", &of_job).await?;
    objects.services = reader.list("services", &of_job).await?;
    objects.config_maps = reader.list("configmaps", &of_job).await?;
    objects.workloads = reader.list("workloads.kueue.x-k8s.io", &all).await?;
    objects.events = reader.list("events", &all).await?;
    objects.nodes = reader.list("nodes", &all).await?;
    objects.reports = reader.list(REPORTS, &all).await?;
    objects.not_read = reader.not_read;
    keep_own(&mut objects);
    Ok(objects)
}

/// Keeps what belongs to the job of lists that hold more.
fn keep_own(objects: &mut Objects) {
    let jobs: BTreeSet<String> = objects.jobs.iter().map(|job| name(job).to_owned()).collect();
    objects.workloads.retain(|workload| {
        items(workload, "/metadata/ownerReferences")
            .any(|owner| jobs.contains(text(owner, "/name")))
    });
    let mut own = jobs;
    own.insert(name(&objects.job).to_owned());
    own.extend(objects.pods.iter().chain(&objects.workloads).map(|o| name(o).to_owned()));
    let job = name(&objects.job).to_owned();
    objects.events.retain(|event| {
        let about = text(event, "/involvedObject/name");
        // Pods and Jobs that are gone already are known by their names.
        let child = about.strip_prefix(job.as_str()).and_then(|rest| rest.strip_prefix("-a"));
        own.contains(about)
            || child.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    });
    let mut nodes: BTreeSet<String> = items(&objects.job, "/status/placement/nodes")
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    nodes.extend(objects.pods.iter().map(|pod| text(pod, "/spec/nodeName").to_owned()));
    nodes.extend([text(&objects.job, "/status/lastFailure/node").to_owned()]);
    objects.nodes.retain(|node| nodes.contains(name(node)));
    objects.reports.retain(|report| nodes.contains(name(report)));
}

struct Reader<'c> {
    cluster: &'c Cluster,
    not_read: Vec<String>,
}

impl Reader<'_> {
    /// A list; empty if this user may not read it, or the cluster has no such kind.
    async fn list(&mut self, resource: &str, params: &ListParams) -> Result<Vec<Value>, CliError> {
        let (kind, plural, namespaced) = kind(resource);
        let resource_type = ApiResource::from_gvk_with_plural(&kind, plural);
        let (client, namespace) = (self.cluster.client.clone(), self.cluster.namespace.as_str());
        let api: Api<DynamicObject> = if namespaced {
            Api::namespaced_with(client, namespace, &resource_type)
        } else {
            Api::all_with(client, &resource_type)
        };
        let call = Call::many("list", resource, namespaced.then_some(namespace));
        match observe::all(self.cluster, &api, call, params.clone()).await {
            // A list does not repeat the kind in each of its objects.
            Ok(list) => Ok(list
                .into_iter()
                .map(|object| {
                    let mut value = json(object);
                    value["apiVersion"] = kind.api_version().into();
                    value["kind"] = kind.kind.clone().into();
                    value
                })
                .collect()),
            Err(_absent) if resource.ends_with("kueue.x-k8s.io") => Ok(Vec::new()),
            Err(error) if error.is::<Denied>() => {
                self.not_read.push(error.line());
                Ok(Vec::new())
            }
            Err(error) => Err(error),
        }
    }
}

/// Type, plural, and whether it lives in a namespace.
fn kind(resource: &str) -> (GroupVersionKind, &'static str, bool) {
    let core = |kind| GroupVersionKind::gvk("", "v1", kind);
    match resource {
        "jobs.batch" => (GroupVersionKind::gvk("batch", "v1", "Job"), "jobs", true),
        "services" => (core("Service"), "services", true),
        "configmaps" => (core("ConfigMap"), "configmaps", true),
        "events" => (core("Event"), "events", true),
        "nodes" => (core("Node"), "nodes", false),
        REPORTS => (GroupVersionKind::gvk(GROUP, VERSION, "NodeReport"), "nodereports", false),
        "workloads.kueue.x-k8s.io" => {
            (GroupVersionKind::gvk("kueue.x-k8s.io", "v1beta1", "Workload"), "workloads", true)
        }
        _ => (core("Pod"), "pods", true),
    }
}

/// The object without the server's book-keeping.
fn json(mut object: DynamicObject) -> Value {
    object.metadata.managed_fields = None;
    serde_json::to_value(object).expect("plain data")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_belongs_to_the_job_is_kept() {
        let named = |name: &str| json!({"metadata": {"name": name}});
        let event = |about: &str| json!({"involvedObject": {"name": about}});
        let owned =
            |by: &str| json!({"metadata": {"name": "w", "ownerReferences": [{"name": by}]}});
        let mut objects = Objects {
            job: json!({"metadata": {"name": "a"}, "status": {"placement": {"nodes": ["n1"]}}}),
            jobs: vec![named("a-a1")],
            pods: vec![json!({"metadata": {"name": "a-a1-0-x"}, "spec": {"nodeName": "n2"}})],
            workloads: vec![owned("a-a1"), owned("b-a1")],
            events: ["a", "a-a1", "a-a1-0-x", "a-a1-1-gone", "b", "a-another"].map(event).to_vec(),
            nodes: ["n1", "n2", "n3"].map(named).to_vec(),
            reports: ["n1", "n3"].map(named).to_vec(),
            ..Objects::default()
        };
        keep_own(&mut objects);
        assert_eq!(objects.workloads, [owned("a-a1")]);
        let about: Vec<&str> =
            objects.events.iter().map(|event| text(event, "/involvedObject/name")).collect();
        assert_eq!(about, ["a", "a-a1", "a-a1-0-x", "a-a1-1-gone"]);
        assert_eq!(objects.nodes, ["n1", "n2"].map(named));
        assert_eq!(objects.reports, [named("n1")]);
    }
}
