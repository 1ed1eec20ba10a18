//! The pods of an attempt.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        Affinity, Capabilities, ConfigMapVolumeSource, Container, EmptyDirVolumeSource, EnvVar,
        EnvVarSource, HostPathVolumeSource, LocalObjectReference, NodeAffinity, NodeSelector,
        NodeSelectorRequirement, NodeSelectorTerm, ObjectFieldSelector,
        PersistentVolumeClaimVolumeSource, PodAffinityTerm, PodAntiAffinity, PodSchedulingGroup,
        PodSecurityContext, PodSpec, PodTemplateSpec, ProjectedVolumeSource, ResourceRequirements,
        SeccompProfile, SecurityContext, ServiceAccountTokenProjection, Toleration, Volume,
        VolumeMount, VolumeProjection,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::LabelSelector},
};
use kube::api::ObjectMeta;

use super::{Settings, labels_of, spec_name};
use crate::{
    api::{job::FineTuneJob, labels},
    job::{Compute, quantity},
    operator::observed,
};

/// The user of the images.
const USER: i64 = 65532;
/// Seconds for saving a checkpoint when a pod is asked to end.
const GRACE_SECONDS: i64 = 60;
/// Seconds until a pod leaves a node that does not answer; the default is five minutes.
const LOST_NODE_SECONDS: i64 = 30;
/// Label of a node that tells it apart.
const HOSTNAME: &str = "kubernetes.io/hostname";

pub(super) fn template(job: &FineTuneJob, attempt: u32, settings: &Settings) -> PodTemplateSpec {
    let cluster = &job.spec.cluster;
    let secrets = cluster.image_pull_secrets.iter();
    let secrets: Vec<_> = secrets.map(|name| LocalObjectReference { name: name.clone() }).collect();
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels_of(job, Some(attempt))),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            affinity: Some(affinity(job)),
            automount_service_account_token: Some(false),
            containers: vec![container(job, attempt, settings)],
            enable_service_links: Some(false),
            image_pull_secrets: (!secrets.is_empty()).then_some(secrets),
            node_selector: (!cluster.node_selector.is_empty())
                .then(|| cluster.node_selector.clone()),
            priority_class_name: cluster.priority_class.clone(),
            restart_policy: Some("Never".to_owned()),
            scheduling_group: (settings.pod_groups && observed::is_gang(job))
                .then(|| PodSchedulingGroup { pod_group_name: Some(job.name().to_owned()) }),
            security_context: Some(PodSecurityContext {
                fs_group: Some(USER),
                fs_group_change_policy: Some("OnRootMismatch".to_owned()),
                run_as_group: Some(USER),
                run_as_non_root: Some(true),
                run_as_user: Some(USER),
                seccomp_profile: Some(SeccompProfile {
                    type_: "RuntimeDefault".to_owned(),
                    localhost_profile: None,
                }),
                ..PodSecurityContext::default()
            }),
            service_account_name: Some(job.name().to_owned()),
            subdomain: Some(job.name().to_owned()),
            termination_grace_period_seconds: Some(GRACE_SECONDS),
            tolerations: Some(tolerations(job)),
            volumes: Some(volumes(job, attempt)),
            ..PodSpec::default()
        }),
    }
}

fn container(job: &FineTuneJob, attempt: u32, settings: &Settings) -> Container {
    let command = ["qvl", "agent", "rank"];
    Container {
        name: labels::CONTAINER.to_owned(),
        image: Some(job.spec.cluster.image.clone().unwrap_or_else(|| settings.image.clone())),
        command: Some(command.map(str::to_owned).to_vec()),
        env: Some(environment(job, attempt, settings)),
        resources: Some(resources(job)),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities { add: None, drop: Some(vec!["ALL".to_owned()]) }),
            read_only_root_filesystem: Some(true),
            ..SecurityContext::default()
        }),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        volume_mounts: Some(mounts(job)),
        ..Container::default()
    }
}

fn environment(job: &FineTuneJob, attempt: u32, settings: &Settings) -> Vec<EnvVar> {
    let value = |name: &str, value: String| EnvVar {
        name: name.to_owned(),
        value: Some(value),
        value_from: None,
    };
    let field = |name: &str, path: &str| EnvVar {
        name: name.to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                api_version: Some("v1".to_owned()),
                field_path: path.to_owned(),
            }),
            ..EnvVarSource::default()
        }),
    };
    let mut variables = vec![
        value("QVL_NAMESPACE", job.namespace().to_owned()),
        value("QVL_JOB", job.name().to_owned()),
        value("QVL_ATTEMPT", attempt.to_string()),
        field("QVL_INDEX", "metadata.annotations['batch.kubernetes.io/job-completion-index']"),
        value("QVL_PODS", observed::pods(job).to_string()),
        value("QVL_LOCAL_RANKS", observed::ranks_per_pod(job).to_string()),
        value("QVL_BROKER", settings.broker_url.clone()),
        field("QVL_NODE", "spec.nodeName"),
        field("QVL_POD_UID", "metadata.uid"),
        field("QVL_POD_IP", "status.podIP"),
    ];
    if let Some(url) = &settings.collector_url {
        variables.push(value("QVL_COLLECTOR", url.clone()));
    }
    if let Some(ca) = &settings.ca {
        variables.push(value("QVL_CA", ca.clone()));
    }
    variables
}

/// What the ranks of one pod need together.
fn resources(job: &FineTuneJob) -> ResourceRequirements {
    let ranks = observed::ranks_per_pod(job);
    let each = &job.spec.cluster.resources;
    let mut requests = BTreeMap::new();
    let mut limits = BTreeMap::new();
    if !each.cpu.is_empty() {
        requests.insert("cpu".to_owned(), Quantity(quantity::times(&each.cpu, ranks)));
    }
    if !each.memory.is_empty() {
        let amount = Quantity(quantity::times(&each.memory, ranks));
        requests.insert("memory".to_owned(), amount.clone());
        limits.insert("memory".to_owned(), amount);
    }
    if let Some(name) = gpu_resource(job) {
        requests.insert(name.clone(), Quantity(ranks.to_string()));
        limits.insert(name, Quantity(ranks.to_string()));
    }
    let some = |amounts: BTreeMap<_, _>| (!amounts.is_empty()).then_some(amounts);
    ResourceRequirements { claims: None, limits: some(limits), requests: some(requests) }
}

/// Extended resource of the GPUs; `None` for ranks that need none.
fn gpu_resource(job: &FineTuneJob) -> Option<String> {
    let named = job.spec.cluster.gpu_resource.clone().filter(|name| !name.is_empty());
    named.or_else(|| match job.spec.world.compute {
        Compute::Cpu => None,
        Compute::Auto | Compute::Cuda => Some("nvidia.com/gpu".to_owned()),
    })
}

/// One pod for a node, and none on a node that failed this job or that its file excludes.
fn affinity(job: &FineTuneJob) -> Affinity {
    let failed = job.status.iter().flat_map(|status| &status.placement.excluded);
    let mut excluded: Vec<String> = failed.map(|node| node.name.clone()).collect();
    excluded.extend(job.spec.cluster.exclude_nodes.iter().cloned());
    excluded.sort_unstable();
    excluded.dedup();
    let term = NodeSelectorTerm {
        match_expressions: Some(vec![NodeSelectorRequirement {
            key: HOSTNAME.to_owned(),
            operator: "NotIn".to_owned(),
            values: Some(excluded.clone()),
        }]),
        match_fields: None,
    };
    let selector = (!excluded.is_empty()).then(|| NodeSelector { node_selector_terms: vec![term] });
    Affinity {
        node_affinity: selector.map(|selector| NodeAffinity {
            required_during_scheduling_ignored_during_execution: Some(selector),
            preferred_during_scheduling_ignored_during_execution: None,
        }),
        pod_affinity: None,
        pod_anti_affinity: Some(PodAntiAffinity {
            required_during_scheduling_ignored_during_execution: Some(vec![PodAffinityTerm {
                label_selector: Some(LabelSelector {
                    match_labels: Some(BTreeMap::from([(
                        labels::JOB.to_owned(),
                        job.name().to_owned(),
                    )])),
                    match_expressions: None,
                }),
                topology_key: HOSTNAME.to_owned(),
                ..PodAffinityTerm::default()
            }]),
            preferred_during_scheduling_ignored_during_execution: None,
        }),
    }
}

fn tolerations(job: &FineTuneJob) -> Vec<Toleration> {
    let lost = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];
    let lost = lost.map(|key| Toleration {
        effect: Some("NoExecute".to_owned()),
        key: Some(key.to_owned()),
        operator: Some("Exists".to_owned()),
        toleration_seconds: Some(LOST_NODE_SECONDS),
        value: None,
    });
    // Nodes with GPUs are often kept for those who ask for GPUs.
    let gpu = gpu_resource(job).map(|key| Toleration {
        effect: Some("NoSchedule".to_owned()),
        key: Some(key),
        operator: Some("Exists".to_owned()),
        toleration_seconds: None,
        value: None,
    });
    lost.into_iter().chain(gpu).collect()
}

/// Volumes of qvl itself: name and place.
const OWN: [(&str, &str); 5] = [
    ("qvl-job", "/etc/qvl"),
    ("qvl-token", "/var/run/secrets/qvl.dev"),
    ("qvl-spool", "/var/spool/qvl"),
    ("qvl-shm", "/dev/shm"),
    ("qvl-tmp", "/tmp"),
];

fn mounts(job: &FineTuneJob) -> Vec<VolumeMount> {
    let own = OWN.into_iter().map(|(name, path)| VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: ["qvl-job", "qvl-token"].contains(&name).then_some(true),
        ..VolumeMount::default()
    });
    let given = job.spec.cluster.volumes.iter().map(|volume| VolumeMount {
        name: volume.name.clone(),
        mount_path: volume.mount_path.clone(),
        read_only: volume.read_only.then_some(true),
        ..VolumeMount::default()
    });
    own.chain(given).collect()
}

fn volumes(job: &FineTuneJob, attempt: u32) -> Vec<Volume> {
    let [spec, token, spool, shm, tmp] =
        OWN.map(|(name, _path)| Volume { name: name.to_owned(), ..Volume::default() });
    let empty = EmptyDirVolumeSource::default;
    let own = vec![
        Volume {
            config_map: Some(ConfigMapVolumeSource {
                name: spec_name(job.name(), attempt),
                ..ConfigMapVolumeSource::default()
            }),
            ..spec
        },
        Volume { projected: Some(self::token(job)), ..token },
        Volume { empty_dir: Some(empty()), ..spool },
        Volume {
            empty_dir: Some(EmptyDirVolumeSource {
                medium: Some("Memory".to_owned()),
                size_limit: Some(Quantity(job.spec.cluster.shm.clone())),
                ..EmptyDirVolumeSource::default()
            }),
            ..shm
        },
        Volume { empty_dir: Some(empty()), ..tmp },
    ];
    let given = job.spec.cluster.volumes.iter().map(|volume| Volume {
        name: volume.name.clone(),
        persistent_volume_claim: volume.persistent_volume_claim.as_ref().map(|claim| {
            PersistentVolumeClaimVolumeSource {
                claim_name: claim.clone(),
                read_only: volume.read_only.then_some(true),
            }
        }),
        host_path: volume.host_path.as_ref().map(|path| HostPathVolumeSource {
            path: path.clone(),
            type_: Some("Directory".to_owned()),
        }),
        ..Volume::default()
    });
    own.into_iter().chain(given).collect()
}

/// A token that proves to the broker and the collector which pod of which job speaks, and that
/// is worth nothing at the API server.
fn token(job: &FineTuneJob) -> ProjectedVolumeSource {
    let token = ServiceAccountTokenProjection {
        audience: Some(format!("qvl.dev/{}/{}", job.namespace(), job.name())),
        expiration_seconds: Some(3600),
        path: "token".to_owned(),
        ..ServiceAccountTokenProjection::default()
    };
    ProjectedVolumeSource {
        sources: Some(vec![VolumeProjection {
            service_account_token: Some(token),
            ..VolumeProjection::default()
        }]),
        ..ProjectedVolumeSource::default()
    }
}
