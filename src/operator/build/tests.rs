//! The objects as YAML.

use super::*;
use crate::{
    api::job::{ExcludedNode, JobStatus},
    operator::testing,
};

fn yaml(object: &impl serde::Serialize) -> String {
    serde_saphyr::to_string(object).unwrap()
}

fn settings() -> Settings {
    Settings {
        image: "qvl/qvl-train:1".to_owned(),
        broker_url: "https://qvl-operator.qvl-system.svc:8080".to_owned(),
        collector_url: Some("https://qvl-collector.qvl-system.svc:8443".to_owned()),
        ca: Some("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n".to_owned()),
        pod_groups: false,
    }
}

#[test]
fn the_scheduler_is_told_of_a_gang_where_it_knows_gangs() {
    let group_of = |job: &FineTuneJob| {
        let job = super::job(job, 1, &Settings { pod_groups: true, ..settings() });
        job.spec.unwrap().template.spec.unwrap().scheduling_group?.pod_group_name
    };
    let mut job = testing::observed().job;
    (job.spec.world.gpus, job.spec.cluster.gpus_per_node) = (2, Some(1));
    assert_eq!(group_of(&job).as_deref(), Some(job.name()));
    let group = pod_group(&job);
    assert_eq!(group.metadata.name.as_deref(), Some(job.name()));
    assert_eq!(group.spec.scheduling_policy.gang.unwrap().min_count, 2);
    assert!(
        super::job(&job, 1, &settings())
            .spec
            .unwrap()
            .template
            .spec
            .unwrap()
            .scheduling_group
            .is_none()
    );
    job.spec.cluster.queue = Some("team-a".to_owned());
    assert_eq!(group_of(&job), None, "the queue sees to it");
    job.spec.cluster.queue = None;
    job.spec.world.gpus = 1;
    assert_eq!(group_of(&job), None, "one pod is no gang");
}

#[test]
fn objects_of_a_job_on_two_nodes() {
    let mut job = testing::job();
    job.spec.world.gpus = 4;
    job.spec.cluster.gpus_per_node = Some(2);
    "4".clone_into(&mut job.spec.cluster.resources.cpu);
    "8Gi".clone_into(&mut job.spec.cluster.resources.memory);
    let excluded = ExcludedNode { name: "n3".to_owned(), reason: "NodeLost".to_owned() };
    let mut status = JobStatus::default();
    status.placement.excluded.push(excluded);
    job.status = Some(status);
    job.spec.cluster.exclude_nodes = vec!["n5".to_owned(), "n3".to_owned()];
    insta::assert_snapshot!(yaml(&super::job(&job, 2, &settings())));
    insta::assert_snapshot!(yaml(&account(&job)));
    insta::assert_snapshot!(yaml(&service(&job)));
    insta::assert_snapshot!(yaml(&spec(&job, 2)));
}

#[test]
fn a_queue_owns_the_suspension_of_the_one_job() {
    let mut job = testing::job();
    job.spec.cluster.queue = Some("team-a".to_owned());
    let object = super::job(&job, 1, &settings());
    let spec = object.spec.unwrap();
    assert_eq!(spec.suspend, Some(true));
    assert_eq!(spec.backoff_limit, Some(i32::MAX));
    let actions: Vec<String> =
        spec.pod_failure_policy.unwrap().rules.into_iter().map(|rule| rule.action).collect();
    assert_eq!(actions, ["FailJob", "Ignore"]);
    assert_eq!(object.metadata.labels.unwrap()[labels::QUEUE], "team-a");
}

#[test]
fn ranks_on_cpus_ask_for_no_gpu() {
    let mut job = testing::job();
    job.spec.world.compute = job::Compute::Cpu;
    let pod = |job: &FineTuneJob| super::job(job, 1, &settings()).spec.unwrap().template.spec;
    let requests = |job: &FineTuneJob| {
        let pod = pod(job).unwrap();
        pod.containers[0].resources.clone().unwrap().requests.unwrap_or_default()
    };
    assert!(requests(&job).is_empty());
    job.spec.cluster.gpu_resource = Some("nvidia.com/gpu".to_owned());
    assert_eq!(requests(&job)["nvidia.com/gpu"].0, "1");
}

#[test]
fn the_job_file_of_a_pod_is_a_job_file() {
    let text = spec(&testing::job(), 1).data.unwrap()["job.yaml"].clone();
    let job = job::parse(&text, "job.yaml").unwrap();
    assert_eq!(job.spec.model.path, "/data/base");
    assert_eq!(job.spec.output, "/data/out");
    assert_eq!(job.spec.data.train[0].path, "/elsewhere/train.json");
}

#[test]
fn a_relative_path_needs_a_volume() {
    let mut job = testing::job();
    assert!(pod_paths::homeless(&job.spec).is_empty());
    job.spec.cluster.volumes.clear();
    assert_eq!(pod_paths::homeless(&job.spec), ["base", "out"]);
}
