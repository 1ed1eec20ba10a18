//! From the text of a job file to a valid job, or to all that is wrong with it.

use serde_json::Value;

use super::{FineTuneJob, lines, shape, validate};

/// Why a text is not a job.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// Not YAML at all.
    #[error("job file `{name}` is not YAML: {reason}")]
    Yaml { name: String, reason: String },
    /// Everything that is wrong with it, one line each.
    #[error("job file `{name}` is wrong:{}", list(problems))]
    Problems { name: String, problems: Vec<Problem> },
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where: `spec.optimizer.learningRate`.
    pub path: String,
    /// Line of the file, if the field is written there.
    pub line: Option<u64>,
    /// What is wrong, with what was found and what was expected.
    pub what: String,
    /// What to do.
    pub hint: String,
}

fn list(problems: &[Problem]) -> String {
    let line = |problem: &Problem| {
        let Problem { path, line, what, hint } = problem;
        let line = line.map_or(String::new(), |line| format!(" (line {line})"));
        format!("\n  {path}{line}: {what}\n    hint: {hint}")
    };
    problems.iter().map(line).collect()
}

/// Parses and checks a job; `name` is the file's name for messages.
pub fn parse(text: &str, name: &str) -> Result<FineTuneJob, JobError> {
    let document: Value = serde_saphyr::from_str(text).map_err(|error| JobError::Yaml {
        name: name.to_owned(),
        reason: first_line(&error.to_string()),
    })?;
    check(&document).map_err(|mut problems| {
        let lines = lines::of(text);
        for problem in &mut problems {
            problem.line = lines.get(&problem.path).copied();
        }
        JobError::Problems { name: name.to_owned(), problems }
    })
}

/// What the parser says, without the picture of the text that follows.
fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

/// Shape first, then what the types alone see, then the rules: each needs the one before.
fn check(document: &Value) -> Result<FineTuneJob, Vec<Problem>> {
    let refuse = |problems: Vec<Problem>| if problems.is_empty() { Ok(()) } else { Err(problems) };
    refuse(shape::problems(document))?;
    let job: FineTuneJob = serde_path_to_error::deserialize(document).map_err(|error| {
        let path = error.path().to_string().trim_end_matches('.').to_owned();
        let hint = format!("`qvl explain job {path}` describes the field");
        vec![Problem { what: error.into_inner().to_string(), line: None, path, hint }]
    })?;
    refuse(validate::problems(&job))?;
    Ok(job)
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: &str = "apiVersion: qvl.dev/v1alpha1
kind: FineTuneJob
metadata: {name: a}
spec:
  model: {path: m}
  data: {train: [{name: t, path: t.json, task: grounding}]}
  stages: [{name: s, steps: 10}]
  output: out
";

    fn error(text: &str) -> String {
        parse(text, "job.yaml").unwrap_err().to_string()
    }

    #[test]
    fn a_short_job_has_all_defaults() {
        let job = parse(JOB, "job.yaml").unwrap();
        assert_eq!(job.spec.seed, 42);
        assert_eq!(job.spec.batch.global, 16);
    }

    #[test]
    fn an_unknown_field_gets_the_nearest_name() {
        insta::assert_snapshot!(error(&format!("{JOB}  optimiser: {{learningRate: 1}}\n")), @r"
        job file `job.yaml` is wrong:
          spec.optimiser (line 9): unknown field
            hint: did you mean `optimizer`?
        ");
        insta::assert_snapshot!(error(&format!("{JOB}  optimizer:\n    learningrate: 1\n")), @r"
        job file `job.yaml` is wrong:
          spec.optimizer.learningrate (line 10): unknown field
            hint: did you mean `learningRate`?
        ");
        insta::assert_snapshot!(error(&format!("{JOB}  method: {{lora: {{rank: 4}}}}\n")), @r"
        job file `job.yaml` is wrong:
          spec.method.lora.rank (line 9): unknown field
            hint: known fields: alpha, dropout, r, targets
        ");
    }

    #[test]
    fn all_mistyped_values_are_told_at_once() {
        let text = JOB
            .replace("task: grounding", "task: groundig, wieght: 1")
            .replace("{name: s, steps: 10}", "{name: 7, steps: many}")
            .replace("metadata: {name: a}", "metadata: {}");
        insta::assert_snapshot!(error(&format!("{text}  batch: {{global: -1, unit: 1.5}}\n  seed: [1]\n")), @r#"
        job file `job.yaml` is wrong:
          metadata.name: required field is missing
            hint: `qvl explain job metadata.name` describes it
          spec.batch.global (line 9): expected a whole number of 0 or more, got -1
            hint: `qvl explain job spec.batch.global` describes the field
          spec.batch.unit (line 9): expected a whole number of 0 or more, got 1.5
            hint: `qvl explain job spec.batch.unit` describes the field
          spec.data.train[0].task (line 6): expected one of grounding, caption, vqa, text, got `groundig`
            hint: did you mean `grounding`?
          spec.data.train[0].wieght (line 6): unknown field
            hint: did you mean `weight`?
          spec.seed (line 10): expected a whole number of 0 or more, got a list
            hint: `qvl explain job spec.seed` describes the field
          spec.stages[0].name (line 7): expected text, got 7
            hint: `qvl explain job spec.stages[0].name` describes the field
          spec.stages[0].steps (line 7): expected a whole number of 0 or more, got the text "many"
            hint: `qvl explain job spec.stages[0].steps` describes the field
        "#);
    }

    #[test]
    fn a_method_is_one_of_two() {
        insta::assert_snapshot!(error(&format!("{JOB}  method: {{lora: {{}}, full: {{}}}}\n")), @r"
        job file `job.yaml` is wrong:
          spec.method (line 9): expected exactly one of lora, full, got full, lora
            hint: `qvl explain job spec.method` describes them
        ");
        assert!(parse(&format!("{JOB}  method: {{full: {{}}}}\n"), "j").is_ok());
    }

    #[test]
    fn another_version_or_kind_is_refused() {
        insta::assert_snapshot!(error(&JOB.replace("v1alpha1", "v2").replace("kind: FineTuneJob", "kind: Job")), @r"
        job file `job.yaml` is wrong:
          apiVersion (line 1): expected `qvl.dev/v1alpha1`, got `qvl.dev/v2`
            hint: choices: qvl.dev/v1alpha1
          kind (line 2): expected `FineTuneJob`, got `Job`
            hint: choices: FineTuneJob
        ");
    }

    #[test]
    fn a_number_that_is_too_large_names_its_field() {
        let text = error(&format!("{JOB}  batch: {{global: 99999999999}}\n"));
        assert!(text.contains("spec.batch.global (line 9): "), "{text}");
    }

    #[test]
    fn what_is_no_yaml_is_said_so() {
        let text = error("a: [");
        assert!(text.starts_with("job file `job.yaml` is not YAML: line "), "{text}");
    }
}
