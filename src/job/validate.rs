//! Rules that a well-formed job can still break.

use std::collections::BTreeSet;

use super::{FineTuneJob, Method, Stage, parse::Problem};

/// Everything that is wrong with a job.
#[expect(clippy::too_many_lines, reason = "a table of rules")]
pub(super) fn problems(job: &FineTuneJob) -> Vec<Problem> {
    let mut found = Vec::new();
    let mut refuse = |wrong: bool, path: &str, what: String, hint: &str| {
        if wrong {
            found.push(Problem { path: path.to_owned(), what, hint: hint.to_owned() });
        }
    };
    let spec = &job.spec;
    let name = &job.metadata.name;
    refuse(
        !is_dns_label(name) || 40 < name.len(),
        "metadata.name",
        format!("`{name}` is not a name"),
        "use lower-case letters, digits and `-`, begin with a letter, at most 40 characters",
    );
    refuse(spec.data.train.is_empty(), "spec.data.train", "no training set".into(), "add one");
    let names: Vec<&str> = spec.data.train.iter().map(|set| set.name.as_str()).collect();
    let eval_names: Vec<&str> = spec.data.eval.iter().map(|set| set.name.as_str()).collect();
    let stage_names: Vec<&str> = spec.stages.iter().map(|stage| stage.name.as_str()).collect();
    for (path, names) in [
        ("spec.data.train", &names),
        ("spec.data.eval", &eval_names),
        ("spec.stages", &stage_names),
    ] {
        let unique: BTreeSet<&&str> = names.iter().collect();
        refuse(unique.len() != names.len(), path, "two have the same name".into(), "rename one");
    }
    for (i, set) in spec.data.train.iter().enumerate() {
        refuse(
            !(set.weight.is_finite() && 0.0 < set.weight),
            &format!("spec.data.train[{i}].weight"),
            format!("{} is not a weight", set.weight),
            "use a number above 0; leave a set out of a stage with `sets`",
        );
    }
    let optimizer = &spec.optimizer;
    refuse(
        !(optimizer.learning_rate.is_finite() && 0.0 < optimizer.learning_rate),
        "spec.optimizer.learningRate",
        format!("{} is not a learning rate", optimizer.learning_rate),
        "adapters learn with about 1e-4",
    );
    for (path, beta) in [("beta1", optimizer.beta1), ("beta2", optimizer.beta2)] {
        refuse(
            !(0.0..1.0).contains(&beta),
            &format!("spec.optimizer.{path}"),
            format!("{beta} is outside 0 to 1"),
            "the usual values are 0.9 and 0.95",
        );
    }
    if let Method::Lora(lora) = &spec.method {
        refuse(lora.r == 0, "spec.method.lora.r", "rank 0 learns nothing".into(), "use 8 to 64");
        refuse(
            !(0.0..1.0).contains(&lora.dropout),
            "spec.method.lora.dropout",
            format!("{} is no probability below 1", lora.dropout),
            "the official value is 0.05",
        );
        refuse(
            lora.targets.is_empty(),
            "spec.method.lora.targets",
            "no target".into(),
            "leave it out for the official four",
        );
    }
    let batch = &spec.batch;
    let whole = batch.unit != 0 && batch.global != 0 && batch.global.is_multiple_of(batch.unit);
    refuse(
        !whole,
        "spec.batch",
        format!("units of {} do not make a batch of {}", batch.unit, batch.global),
        "`unit` must divide `global`",
    );
    refuse(
        spec.world.gpus == 0 || (whole && batch.global / batch.unit < spec.world.gpus),
        "spec.world.gpus",
        format!("{} ranks share {} units", spec.world.gpus, batch.global / batch.unit.max(1)),
        "each rank needs at least one unit: raise batch.global or lower batch.unit",
    );
    refuse(
        spec.stages.is_empty(),
        "spec.stages",
        "no stage".into(),
        "add `- {name: main, epochs: 3}`",
    );
    for (i, stage) in spec.stages.iter().enumerate() {
        if let Some((what, hint)) = stage_problem(stage, &names) {
            refuse(true, &format!("spec.stages[{i}]"), what, hint);
        }
    }
    if let Some(best) = &spec.evaluation.best_by {
        refuse(
            !eval_names.contains(&best.as_str()),
            "spec.evaluation.bestBy",
            format!("no evaluation set is named `{best}`"),
            "use a name from spec.data.eval",
        );
    }
    found
}

fn stage_problem(stage: &Stage, sets: &[&str]) -> Option<(String, &'static str)> {
    match (stage.epochs, stage.steps) {
        (None, None) => return Some(("neither epochs nor steps".into(), "give one of them")),
        (Some(_), Some(_)) => return Some(("both epochs and steps".into(), "give one of them")),
        (Some(epochs), None) if !(epochs.is_finite() && 0.0 < epochs) => {
            return Some((format!("{epochs} epochs"), "use a number above 0"));
        }
        (None, Some(0)) => return Some(("0 steps".into(), "use a number above 0")),
        (Some(_), None) | (None, Some(_)) => {}
    }
    let unknown = stage.sets.iter().flatten().find(|name| !sets.contains(&name.as_str()))?;
    Some((format!("no training set is named `{unknown}`"), "use names from spec.data.train"))
}

fn is_dns_label(name: &str) -> bool {
    let letters = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    letters && name.starts_with(|c: char| c.is_ascii_lowercase()) && !name.ends_with('-')
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn each_rule_names_its_field() {
        let cases = [
            ("name: a", "name: A_b", "metadata.name"),
            ("unit: 2", "unit: 3", "spec.batch"),
            ("output: out", "output: out\n  world: {gpus: 5}", "spec.world.gpus"),
            ("steps: 10", "steps: 0", "spec.stages[0]"),
            ("steps: 10", "sets: [t]", "spec.stages[0]"),
            ("steps: 10", "steps: 1, sets: [x]", "spec.stages[0]"),
            ("steps: 10", "steps: 1, epochs: 1", "spec.stages[0]"),
            ("task: grounding", "task: grounding, weight: 0", "spec.data.train[0].weight"),
            (
                "output: out",
                "output: out\n  optimizer: {learningRate: -1}",
                "spec.optimizer.learningRate",
            ),
            ("output: out", "output: out\n  optimizer: {beta2: 1}", "spec.optimizer.beta2"),
            ("output: out", "output: out\n  method: {lora: {r: 0}}", "spec.method.lora.r"),
            ("output: out", "output: out\n  evaluation: {bestBy: x}", "spec.evaluation.bestBy"),
        ];
        assert!(parse(JOB, "j").is_ok());
        for (from, to, path) in cases {
            let error = parse(&JOB.replace(from, to), "j").unwrap_err().to_string();
            assert!(error.contains(&format!("\n  {path}: ")), "{to}: {error}");
            assert_eq!(error.matches("hint:").count(), 1, "{error}");
        }
    }
}
