//! One rule broken at a time.

use crate::job::parse;

const JOB: &str = r"apiVersion: qvl.dev/v1alpha1
kind: FineTuneJob
metadata: {name: a}
spec:
  model: {path: m}
  data: {train: [{name: t, path: t.json, task: grounding}]}
  batch: {global: 8, unit: 2}
  stages: [{name: s, steps: 10}]
  output: out
";

/// What is wrong after one change to a good job.
fn found(from: &str, to: &str) -> String {
    assert!(JOB.contains(from), "{from}");
    parse(&JOB.replace(from, to), "j").unwrap_err().to_string()
}

#[test]
#[expect(clippy::too_many_lines, reason = "one case per rule")]
fn each_rule_names_its_field() {
    assert!(parse(JOB, "j").is_ok());
    let labels = "output: out\n  cluster: {nodeSelector: {type: a, example.com/b: c}}";
    assert!(parse(&JOB.replace("output: out", labels), "j").is_ok());
    let out = "output: out";
    let cases = [
        ("name: a", "name: A_b", "metadata.name"),
        ("name: a", "name: a-", "metadata.name"),
        ("path: m", "path: ''", "spec.model.path"),
        ("{name: t, path", "{name: t/u, path", "spec.data.train[0].name"),
        ("task: grounding", "task: grounding, weight: 0", "spec.data.train[0].weight"),
        ("task: grounding", "task: grounding, weight: -1", "spec.data.train[0].weight"),
        ("unit: 2", "unit: 3", "spec.batch.unit"),
        ("unit: 2", "unit: 0", "spec.batch.unit"),
        ("global: 8", "global: 0", "spec.batch.global"),
        (out, "output: out\n  env: {set: {1A: b}}", "spec.env.set.1A"),
        (out, "output: out\n  env: {set: {RANK: '0'}}", "spec.env.set.RANK"),
        (out, "output: out\n  env: {set: {QVL_TOKEN: x}}", "spec.env.set.QVL_TOKEN"),
        (out, "output: out\n  env: {unset: ['A=B']}", "spec.env.unset[0]"),
        (out, "output: out\n  env: {set: {A: b}, unset: [A]}", "spec.env.unset[0]"),
        (out, "output: out\n  world: {gpus: 5}", "spec.world.gpus"),
        (out, "output: out\n  world: {gpus: 0}", "spec.world.gpus"),
        (out, "output: out\n  world: {peerTimeoutSeconds: 0}", "spec.world.peerTimeoutSeconds"),
        ("steps: 10", "steps: 0", "spec.stages[0].steps"),
        ("steps: 10", "epochs: -1", "spec.stages[0].epochs"),
        ("steps: 10", "sets: [t]", "spec.stages[0]"),
        ("steps: 10", "steps: 1, epochs: 1", "spec.stages[0]"),
        ("steps: 10", "steps: 1, sets: [x]", "spec.stages[0].sets[0]"),
        ("steps: 10", "steps: 1, sets: []", "spec.stages[0].sets"),
        ("steps: 10", "steps: 1, learningRate: 0", "spec.stages[0].learningRate"),
        ("steps: 10", "steps: 1, schedule: {finalRatio: 2}", "spec.stages[0].schedule.finalRatio"),
        (
            "{name: s, steps: 10}",
            "{name: s, steps: 10}, {name: s, steps: 1}",
            "spec.stages[1].name",
        ),
        ("[{name: s, steps: 10}]", "[]", "spec.stages"),
        (out, "output: out\n  cluster: {gpusPerNode: 2}", "spec.cluster.gpusPerNode"),
        (out, "output: out\n  cluster: {gpusPerNode: 0}", "spec.cluster.gpusPerNode"),
        (out, "output: out\n  cluster: {nodeSelector: {a: 1}}", "spec.cluster.nodeSelector.a"),
        (
            out,
            "output: out\n  cluster: {startTimeoutSeconds: 0}",
            "spec.cluster.startTimeoutSeconds",
        ),
        (out, "output: out\n  cluster: {resources: {cpu: two}}", "spec.cluster.resources.cpu"),
        (out, "output: out\n  cluster: {shm: 8GB}", "spec.cluster.shm"),
        (out, "output: out\n  cluster: {workDir: data}", "spec.cluster.workDir"),
        (
            out,
            "output: out\n  cluster: {volumes: [{name: v, mountPath: /v}]}",
            "spec.cluster.volumes[0]",
        ),
        (
            out,
            "output: out\n  cluster: {volumes: [{name: v, mountPath: v, hostPath: /v}]}",
            "spec.cluster.volumes[0].mountPath",
        ),
        (
            out,
            "output: out\n  cluster: {volumes: [{name: v, mountPath: /tmp, hostPath: /v}]}",
            "spec.cluster.volumes[0].mountPath",
        ),
        (out, "output: out\n  optimizer: {learningRate: -1}", "spec.optimizer.learningRate"),
        (out, "output: out\n  optimizer: {beta2: 1}", "spec.optimizer.beta2"),
        (out, "output: out\n  optimizer: {epsilon: 0}", "spec.optimizer.epsilon"),
        (out, "output: out\n  optimizer: {weightDecay: -0.1}", "spec.optimizer.weightDecay"),
        (out, "output: out\n  schedule: {warmupRatio: -1}", "spec.schedule.warmupRatio"),
        (out, "output: out\n  method: {lora: {r: 0}}", "spec.method.lora.r"),
        (out, "output: out\n  method: {lora: {alpha: 0}}", "spec.method.lora.alpha"),
        (out, "output: out\n  method: {lora: {targets: [w1, w1]}}", "spec.method.lora.targets"),
        (out, "output: out\n  method: {full: {train: []}}", "spec.method.full.train"),
        (out, "output: out\n  evaluation: {bestBy: x}", "spec.evaluation.bestBy"),
        (out, "output: out\n  checkpoint: {keep: 0}", "spec.checkpoint.keep"),
        (out, "output: out\n  failure: {stallMultiplier: 1}", "spec.failure.stallMultiplier"),
        ("data: {train", "data: {maxLength: 3, train", "spec.data.maxLength"),
    ];
    for (from, to, path) in cases {
        let error = found(from, to);
        let named = error.lines().any(|line| {
            line.strip_prefix("  ").and_then(|line| line.split([' ', ':']).next()) == Some(path)
        });
        assert!(named, "{to}: {error}");
        assert_eq!(error.matches("hint:").count(), 1, "{error}");
    }
}

#[test]
fn all_problems_are_told_with_what_was_expected() {
    let bad = JOB
        .replace("name: a", "name: Digits")
        .replace("unit: 2", "unit: 3")
        .replace("{name: s, steps: 10}", "{name: s, sets: [u]}")
        .replace("output: out", "output: out\n  evaluation: {bestBy: held-out}");
    insta::assert_snapshot!(parse(&bad, "job.yaml").unwrap_err(), @r"
    job file `job.yaml` is wrong:
      metadata.name (line 3): `Digits` is not a name
        hint: use lower-case letters, digits and `-`, begin with a letter, at most 40 characters
      spec.evaluation.bestBy (line 10): no evaluation set is named `held-out`
        hint: spec.data.eval is empty
      spec.batch.unit (line 7): units of 3 samples do not make a batch of 8
        hint: `unit` must divide `global`
      spec.stages[0] (line 8): neither epochs nor steps
        hint: give one of them
      spec.stages[0].sets[0] (line 8): no training set is named `u`
        hint: known: t
    ");
}
