//! From the text of a job file to a valid job, or to all that is wrong with it.

use serde_json::{Map, Value};

use super::{FineTuneJob, validate};

/// Why a text is not a job.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// Not YAML at all.
    #[error("job file `{name}` is not YAML: {reason}")]
    Yaml { name: String, reason: String },
    /// Everything that is wrong with it, one line each.
    #[error("job file `{name}` is wrong:{}", lines(problems))]
    Problems { name: String, problems: Vec<Problem> },
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where: `spec.optimizer.learningRate`.
    pub path: String,
    /// What is wrong, with what was found and what was expected.
    pub what: String,
    /// What to do.
    pub hint: String,
}

fn lines(problems: &[Problem]) -> String {
    problems
        .iter()
        .map(|Problem { path, what, hint }| format!("\n  {path}: {what}\n    hint: {hint}"))
        .collect()
}

/// Parses and checks a job; `name` is the file's name for messages.
pub fn parse(text: &str, name: &str) -> Result<FineTuneJob, JobError> {
    let value: Value = serde_saphyr::from_str(text).map_err(|error| JobError::Yaml {
        name: name.to_owned(),
        reason: error.to_string().lines().next().unwrap_or_default().to_owned(),
    })?;
    let failed = |problems| Err(JobError::Problems { name: name.to_owned(), problems });
    let unknown = unknown_fields(&value);
    if !unknown.is_empty() {
        return failed(unknown);
    }
    let job: FineTuneJob = match serde_path_to_error::deserialize(&value) {
        Ok(job) => job,
        Err(error) => {
            let path = error.path().to_string();
            let problem = Problem {
                hint: format!(
                    "`qvl explain job {}` describes the field",
                    path.trim_end_matches('.')
                ),
                what: error.into_inner().to_string(),
                path,
            };
            return failed(vec![problem]);
        }
    };
    let problems = validate::problems(&job);
    if problems.is_empty() { Ok(job) } else { failed(problems) }
}

/// Fields that the schema does not have, each with the nearest name that it has.
fn unknown_fields(value: &Value) -> Vec<Problem> {
    let root = schemars::schema_for!(FineTuneJob).to_value();
    let mut problems = Vec::new();
    walk(&root, &root, value, "", &mut problems);
    problems
}

fn walk(root: &Value, schema: &Value, value: &Value, path: &str, problems: &mut Vec<Problem>) {
    let schema = resolve(root, schema);
    if let Value::Array(items) = value {
        let Some(item_schema) = find(root, schema, &|schema| schema.get("items")) else { return };
        for (i, item) in items.iter().enumerate() {
            walk(root, item_schema, item, &format!("{path}[{i}]"), problems);
        }
    }
    let Value::Object(fields) = value else { return };
    let known = properties(root, schema);
    if known.is_empty() {
        return;
    }
    for (name, field) in fields {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        match known.get(name) {
            Some(schema) => walk(root, schema, field, &path, problems),
            None => problems.push(unknown_field(&path, name, &known)),
        }
    }
}

fn unknown_field(path: &str, name: &str, known: &Map<String, Value>) -> Problem {
    let nearest = known
        .keys()
        .map(|key| (strsim::damerau_levenshtein(&key.to_lowercase(), &name.to_lowercase()), key))
        .min();
    let hint = match nearest {
        Some((distance, key)) if distance <= 1 + name.len() / 3 => format!("did you mean `{key}`?"),
        _ => format!("known fields: {}", known.keys().cloned().collect::<Vec<_>>().join(", ")),
    };
    Problem { path: path.to_owned(), what: "unknown field".to_owned(), hint }
}

/// Follows `$ref`.
fn resolve<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    let target = schema
        .get("$ref")
        .and_then(Value::as_str)
        .and_then(|reference| root.pointer(reference.strip_prefix('#')?));
    target.map_or(schema, |target| resolve(root, target))
}

/// Properties of a schema and of its alternatives.
fn properties(root: &Value, schema: &Value) -> Map<String, Value> {
    let schema = resolve(root, schema);
    let mut found =
        schema.get("properties").and_then(Value::as_object).cloned().unwrap_or_default();
    for alternative in alternatives(schema) {
        found.extend(properties(root, alternative));
    }
    found
}

fn find<'a>(
    root: &'a Value,
    schema: &'a Value,
    wanted: &dyn Fn(&'a Value) -> Option<&'a Value>,
) -> Option<&'a Value> {
    let schema = resolve(root, schema);
    wanted(schema).or_else(|| alternatives(schema).find_map(|schema| find(root, schema, wanted)))
}

fn alternatives(schema: &Value) -> impl Iterator<Item = &Value> {
    let lists = ["anyOf", "oneOf", "allOf"].into_iter();
    lists.filter_map(|key| schema.get(key).and_then(Value::as_array)).flatten()
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
          spec.optimiser: unknown field
            hint: did you mean `optimizer`?
        ");
        insta::assert_snapshot!(error(&format!("{JOB}  method: {{lora: {{rank: 4}}}}\n")), @r"
        job file `job.yaml` is wrong:
          spec.method.lora.rank: unknown field
            hint: known fields: alpha, dropout, r, targets
        ");
        insta::assert_snapshot!(error(&JOB.replace("task: grounding", "task: grounding, wieght: 1")), @r"
        job file `job.yaml` is wrong:
          spec.data.train[0].wieght: unknown field
            hint: did you mean `weight`?
        ");
    }

    #[test]
    fn a_mistyped_value_names_its_path() {
        let text = error(&JOB.replace("steps: 10", "steps: many"));
        assert!(text.contains("spec.stages[0].steps: invalid type"), "{text}");
        let text = error(&JOB.replace("task: grounding", "task: boxes"));
        assert!(text.contains("spec.data.train[0].task: unknown variant `boxes`"), "{text}");
    }

    #[test]
    fn what_is_no_yaml_is_said_so() {
        assert!(error("a: [").starts_with("job file `job.yaml` is not YAML"));
    }
}
