//! The API server refuses what `qvl` refuses, and takes what `qvl` takes: `job::problems` says the
//! rules in Rust, the definition of the kind says them in CEL.

use std::fs;

use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams, ValidationDirective},
    core::{ApiResource, DynamicObject, GroupVersionKind},
};
use qvl::{
    api::job::{FineTuneJob, State},
    job,
    operator::conditions::{FAILED, find},
};
use serde_json::{Value, json};

const JOB: &str = "apiVersion: qvl.dev/v1alpha1
kind: FineTuneJob
metadata: {name: table}
spec:
  model: {path: m}
  data: {train: [{name: t, path: t.json, task: grounding}], eval: [{name: e, path: e.json, task: vqa}]}
  batch: {global: 8, unit: 2}
  stages: [{name: s, steps: 10}]
  output: out
";
const OUT: &str = "output: out";

/// How the API server begins to say that fields or list entries are not those of the kind.
const SHAPE: &str = "failed to create typed patch object";

/// What to replace in the good job, and with what.
const BAD: &[(&str, &str)] = &[
    ("name: table", "name: A_b"),
    ("name: table", "name: a-"),
    ("name: table", "name: 1a"),
    ("name: table", "name: abcdefghijklmnopqrstuvwxyz-abcdefghijklmnopq"),
    ("path: m", "path: ''"),
    ("path: m", "path: ' '"),
    (OUT, "output: ''"),
    (OUT, "output: '  '"),
    ("t.json", "' '"),
    ("e.json", "''"),
    ("{name: t, path", "{name: t/u, path"),
    ("{name: t, path", "{name: .t, path"),
    ("{name: t, path", "{name: '', path"),
    ("{name: t, path", "{name: ' ', path"),
    ("{name: t, path", "{name: \"a\\tb\", path"),
    ("{name: t, path", "{name: \"a\\u0081b\", path"),
    (
        "{name: e, path: e.json, task: vqa}",
        "{name: e, path: a, task: vqa}, {name: e, path: b, task: vqa}",
    ),
    ("task: vqa", "task: vqa, limit: 0"),
    ("task: vqa", "task: other"),
    ("task: vqa", "task: vqa, colour: red"),
    ("[{name: t, path: t.json, task: grounding}]", "[]"),
    ("task: grounding", "task: grounding, weight: 0"),
    ("task: grounding", "task: grounding, weight: -1"),
    ("data: {train", "data: {maxLength: 3, train"),
    ("unit: 2", "unit: 3"),
    ("unit: 2", "unit: 0"),
    ("unit: 2", "unit: 16"),
    ("global: 8", "global: 0"),
    ("global: 8", "global: -8"),
    (OUT, "output: out\n  world: {gpus: 5}"),
    (OUT, "output: out\n  world: {gpus: 0}"),
    (OUT, "output: out\n  world: {peerTimeoutSeconds: 0}"),
    ("steps: 10", "steps: 0"),
    ("steps: 10", "epochs: -1"),
    ("steps: 10", "epochs: 0"),
    ("steps: 10", "sets: [t]"),
    ("steps: 10", "steps: 1, epochs: 1"),
    ("steps: 10", "steps: 1, sets: [x]"),
    ("steps: 10", "steps: 1, sets: []"),
    ("steps: 10", "steps: 1, learningRate: 0"),
    ("steps: 10", "steps: 1, schedule: {finalRatio: 2}"),
    ("steps: 10", "steps: 1, schedule: {warmupRatio: -0.5}"),
    ("{name: s, steps: 10}", "{name: s, steps: 10}, {name: s, steps: 1}"),
    ("[{name: s, steps: 10}]", "[]"),
    (OUT, "output: out\n  cluster: {gpusPerNode: 2}"),
    (OUT, "output: out\n  cluster: {gpusPerNode: 0}"),
    (OUT, "output: out\n  cluster: {startTimeoutSeconds: 0}"),
    (OUT, "output: out\n  cluster: {nodeSelector: {a: 1}}"),
    (OUT, "output: out\n  cluster: {resources: {cpu: two}}"),
    (OUT, "output: out\n  cluster: {resources: {memory: 1..5Gi}}"),
    (OUT, "output: out\n  cluster: {shm: 8GB}"),
    (OUT, "output: out\n  cluster: {shm: ''}"),
    (OUT, "output: out\n  cluster: {shm: '.'}"),
    (OUT, "output: out\n  cluster: {workDir: data}"),
    (OUT, "output: out\n  cluster: {volumes: [{name: v, mountPath: /v}]}"),
    (
        OUT,
        "output: out\n  cluster: {volumes: [{name: v, mountPath: /v, hostPath: /v, persistentVolumeClaim: c}]}",
    ),
    (OUT, "output: out\n  cluster: {volumes: [{name: V, mountPath: /v, hostPath: /v}]}"),
    (OUT, "output: out\n  cluster: {volumes: [{name: v, mountPath: v, hostPath: /v}]}"),
    (OUT, "output: out\n  cluster: {volumes: [{name: v, mountPath: /v, hostPath: v}]}"),
    (OUT, "output: out\n  cluster: {volumes: [{name: v, mountPath: /tmp, hostPath: /v}]}"),
    (OUT, "output: out\n  cluster: {volumes: [{name: v, mountPath: /etc/qvl/, hostPath: /v}]}"),
    (OUT, "output: out\n  optimizer: {learningRate: -1}"),
    (OUT, "output: out\n  optimizer: {beta1: -0.1}"),
    (OUT, "output: out\n  optimizer: {beta2: 1}"),
    (OUT, "output: out\n  optimizer: {epsilon: 0}"),
    (OUT, "output: out\n  optimizer: {weightDecay: -0.1}"),
    (OUT, "output: out\n  optimizer: {maxGradNorm: -1}"),
    (OUT, "output: out\n  schedule: {warmupRatio: -1}"),
    (OUT, "output: out\n  schedule: {finalRatio: 1.5}"),
    (OUT, "output: out\n  method: {lora: {r: 0}}"),
    (OUT, "output: out\n  method: {lora: {alpha: 0}}"),
    (OUT, "output: out\n  method: {lora: {dropout: 1}}"),
    (OUT, "output: out\n  method: {lora: {targets: []}}"),
    (OUT, "output: out\n  method: {lora: {targets: [w1, w1]}}"),
    (OUT, "output: out\n  method: {full: {train: []}}"),
    (OUT, "output: out\n  method: {full: {train: [lm, lm]}}"),
    (OUT, "output: out\n  method: {full: {train: [lm]}, lora: {r: 8}}"),
    (OUT, "output: out\n  method: {}"),
    (OUT, "output: out\n  evaluation: {bestBy: x}"),
    (OUT, "output: out\n  evaluation: {maxNewTokens: 0}"),
    (OUT, "output: out\n  checkpoint: {keep: 0}"),
    (OUT, "output: out\n  failure: {stallMultiplier: 1}"),
    (OUT, "output: out\n  failure: {startupSeconds: 0}"),
    (OUT, "output: out\n  colour: red"),
    (OUT, "out: output"),
];

/// Changes that leave the job good.
const GOOD: &[(&str, &str)] = &[
    ("steps: 10", "epochs: 0.5, sets: [t], learningRate: 1.0e-5"),
    ("task: grounding", "task: grounding, weight: 2"),
    (OUT, "output: out\n  world: {gpus: 4, compute: cpu}"),
    (OUT, "output: out\n  evaluation: {bestBy: e}"),
    (OUT, "output: out\n  method: {full: {train: [lm, vit]}}"),
    (OUT, "output: out\n  optimizer: {weightDecay: 0, maxGradNorm: 0, beta1: 0}"),
    (
        OUT,
        "output: out\n  world: {gpus: 4}\n  cluster: {gpusPerNode: 2, resources: {cpu: '1.5', memory: 2Gi}, shm: .5Gi}",
    ),
    (
        OUT,
        "output: out\n  cluster: {resources: {cpu: ''}, workDir: /data, queue: q, ttlSeconds: 0}",
    ),
    (
        OUT,
        "output: out\n  cluster: {volumes: [{name: v, mountPath: /tmp/x, hostPath: /v}, {name: w, mountPath: /w, persistentVolumeClaim: c}]}",
    ),
    (OUT, "output: out\n  cluster: {nodeSelector: {type: kwok, example.com/a: b}}"),
    (OUT, "output: out\n  suspend: true"),
];

/// The table, the examples, and what may change later.
pub(crate) async fn the_api_server_refuses_what_qvl_refuses(client: &Client) {
    let mut wrong = Vec::new();
    for (from, to) in BAD {
        let text = changed(from, to);
        if job::parse(&text, "job.yaml").is_ok() {
            wrong.push(format!("qvl takes `{to}`"));
        }
        match offer(client, &text).await {
            Ok(()) => wrong.push(format!("the API server takes `{to}`")),
            // What does not even have the shape of the kind is no good patch: 400 or 500.
            Err(kube::Error::Api(status)) if [400, 422].contains(&status.code) => {}
            Err(kube::Error::Api(status)) if status.message.contains(SHAPE) => {}
            Err(error) => wrong.push(format!("`{to}`: {error}")),
        }
    }
    let changes = GOOD.iter().map(|(from, to)| changed(from, to));
    let examples = ["examples/digits/job.yaml", "examples/digits/base.job.yaml"];
    let examples = examples.map(|path| fs::read_to_string(path).unwrap());
    for text in changes.chain(examples) {
        if let Err(error) = job::parse(&text, "job.yaml") {
            wrong.push(format!("qvl refuses {text}: {error}"));
        }
        if let Err(error) = offer(client, &text).await {
            wrong.push(format!("the API server refuses {text}: {error}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    only_suspend_may_change(client).await;
}

fn changed(from: &str, to: &str) -> String {
    assert!(JOB.contains(from), "{from}");
    JOB.replace(from, to)
}

/// As `kubectl apply --server-side --dry-run=server` does.
async fn offer(client: &Client, text: &str) -> Result<(), kube::Error> {
    let kind = GroupVersionKind::gvk("qvl.dev", "v1alpha1", "FineTuneJob");
    let kind = ApiResource::from_gvk_with_plural(&kind, "finetunejobs");
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), "default", &kind);
    let object: Value = serde_saphyr::from_str(text).unwrap();
    let parameters = PatchParams {
        dry_run: true,
        field_validation: Some(ValidationDirective::Strict),
        ..PatchParams::apply("test").force()
    };
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    api.patch(&name, &parameters, &Patch::Apply(&object)).await.map(|_object| ())
}

async fn only_suspend_may_change(client: &Client) {
    let api: Api<FineTuneJob> = Api::namespaced(client.clone(), "default");
    let job = FineTuneJob::of(job::parse(JOB, "job.yaml").unwrap());
    api.create(&PostParams::default(), &job).await.unwrap();
    let change = async |spec: Value| {
        let patch = Patch::Merge(json!({"spec": spec}));
        api.patch("table", &PatchParams::default(), &patch).await
    };
    let error = change(json!({"seed": 7})).await.unwrap_err().to_string();
    assert!(error.contains("spec.seed cannot change"), "{error}");
    assert!(change(json!({"suspend": true})).await.unwrap().spec.suspend);
    api.delete("table", &kube::api::DeleteParams::default()).await.unwrap();
}

/// The rule that a job file may break on a laptop and not in a cluster: it is not in the
/// definition, so the operator says it, once and for all.
pub(crate) fn says_what_the_api_server_let_pass(job: &FineTuneJob) -> bool {
    let status = job.status.clone().unwrap_or_default();
    let failed = find(&status.conditions, FAILED);
    let told = failed.is_some_and(|failed| {
        failed.reason == "Invalid" && failed.message.contains("spec.cluster.volumes")
    });
    told && status.summary.state == State::Failed
}

/// Its paths are relative, and there is nothing that they could be relative to.
pub(crate) const HOMELESS: &str = JOB;
