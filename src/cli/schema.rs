//! `qvl schema` and `qvl explain`: formats, described by their own types.

use std::io::Write;

use clap::{Args, ValueEnum};
use serde_json::Value;

use super::{CliError, cluster, jobs};
use crate::{
    job::FineTuneJob,
    report,
    wire::{ExitStatus, Record, SupervisorRecord},
};

#[derive(Debug, Args)]
pub struct SchemaArgs {
    /// What to describe.
    #[arg(value_enum)]
    of: Format,
}

#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// Name of a job of the cluster, or the word `job` for the format of job files.
    name: String,
    /// With `job`: a field, for example `spec.optimizer`.
    path: Option<String>,
    #[command(flatten)]
    at: cluster::At,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// The job file.
    Job,
    /// The report of `qvl doctor --format json`.
    Report,
    /// The plan of `qvl doctor --fix --format json`.
    Fix,
    /// The answer of `qvl doctor why --format json`.
    Why,
    /// The lines of `qvl launch --output json`.
    Events,
}

/// One line of `qvl launch --output json`.
#[derive(schemars::JsonSchema)]
#[schemars(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum Line {
    /// A rank speaks.
    Rank(Record),
    /// The supervisor speaks.
    Supervisor(SupervisorRecord),
    /// The launcher of a job in a cluster speaks.
    Cluster(cluster::record::ClusterRecord),
}

pub(super) fn schema(args: &SchemaArgs, out: &mut impl Write) -> Result<ExitStatus, CliError> {
    let schema = match args.of {
        Format::Job => schemars::schema_for!(FineTuneJob),
        Format::Report => report::schema(),
        Format::Fix => report::fix::schema(),
        Format::Why => report::why::schema(),
        Format::Events => schemars::schema_for!(Line),
    };
    writeln!(out, "{}", serde_json::to_string_pretty(&schema).expect("plain data"))?;
    Ok(ExitStatus::Success)
}

/// Why a job is in its state; a run on this machine tells it by its status.
fn explain_job(args: &ExplainArgs, out: &mut impl Write) -> Result<ExitStatus, CliError> {
    if let Some(field) = &args.path {
        let what = format!("`{field}` is a field of the job format, `{}` a job", args.name);
        return Err(CliError::new(ExitStatus::Usage, what)
            .hint(format!("`qvl explain job {field}` describes the field")));
    }
    if args.at.is_cluster(&args.name)? {
        return cluster::commands::explain(&args.name, &args.at, out);
    }
    jobs::describe(&jobs::find(&args.name)?, out)?;
    Ok(ExitStatus::Success)
}

pub(super) fn explain(args: &ExplainArgs, out: &mut impl Write) -> Result<ExitStatus, CliError> {
    if args.name != "job" || args.at.cluster {
        return explain_job(args, out);
    }
    let root = schemars::schema_for!(FineTuneJob).to_value();
    let mut schema = &root;
    for name in args.path.iter().flat_map(|path| path.split('.')).filter(|name| !name.is_empty()) {
        let name = name.split('[').next().unwrap_or(name);
        schema = field(&root, schema, name).ok_or_else(|| {
            let known: Vec<String> =
                fields(&root, schema).into_iter().map(|(name, _schema)| name).collect();
            CliError::new(ExitStatus::Usage, format!("the job format has no field `{name}` there"))
                .hint(format!("known fields: {}", known.join(", ")))
        })?;
    }
    let described = resolve(&root, schema);
    for text in [description(schema), description(described)].into_iter().flatten().take(1) {
        writeln!(out, "{text}\n")?;
    }
    print_fields(&root, schema, 0, args.path.is_none(), out)?;
    Ok(ExitStatus::Success)
}

/// One field a line, with type and default; below it its description.
fn print_fields(
    root: &Value,
    schema: &Value,
    depth: usize,
    deep: bool,
    out: &mut impl Write,
) -> std::io::Result<()> {
    let indent = "  ".repeat(depth);
    for (name, field) in fields(root, schema) {
        let default = match field.get("default") {
            Some(default) if !default.is_object() && !default.is_null() => {
                format!("  (default {default})")
            }
            Some(_) | None => String::new(),
        };
        writeln!(out, "{indent}{name}: {}{default}", type_name(root, &field))?;
        let text = description(&field).or_else(|| description(resolve(root, &field)));
        if let Some(text) = text {
            writeln!(out, "{indent}    {}", text.replace('\n', " "))?;
        }
        if deep && depth < 4 {
            print_fields(root, &field, depth + 1, deep, out)?;
        }
    }
    Ok(())
}

fn description(schema: &Value) -> Option<&str> {
    schema.get("description").and_then(Value::as_str)
}

fn type_name(root: &Value, schema: &Value) -> String {
    let target = resolve(root, schema);
    if let Some(items) = target.get("items") {
        return format!("list of {}", type_name(root, items));
    }
    let names = |key: &str| {
        let values = target.get(key)?.as_array()?;
        let words = values.iter().filter_map(|value| {
            value.as_str().or_else(|| value.get("const").and_then(Value::as_str))
        });
        let words: Vec<&str> = words.collect();
        (!words.is_empty()).then(|| words.join(" | "))
    };
    if let Some(choices) = names("enum").or_else(|| names("oneOf")) {
        return choices;
    }
    if let Some(constant) = target.get("const").and_then(Value::as_str) {
        return constant.to_owned();
    }
    match target.get("type") {
        Some(Value::String(name)) => name.clone(),
        Some(Value::Array(names)) => {
            let names: Vec<&str> = names.iter().filter_map(Value::as_str).collect();
            names.join(" | ")
        }
        Some(_) | None => "object".to_owned(),
    }
}

fn resolve<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    let reference = schema.get("$ref").and_then(Value::as_str);
    let target = reference.and_then(|reference| root.pointer(reference.strip_prefix('#')?));
    target.map_or(schema, |target| resolve(root, target))
}

fn field<'a>(root: &'a Value, schema: &'a Value, name: &str) -> Option<&'a Value> {
    let schema = resolve(root, schema);
    if let Some(items) = schema.get("items") {
        return field(root, items, name);
    }
    let direct = schema.get("properties").and_then(|properties| properties.get(name));
    direct.or_else(|| {
        let lists = ["anyOf", "oneOf"].into_iter().filter_map(|key| schema.get(key)?.as_array());
        lists.flatten().find_map(|alternative| field(root, alternative, name))
    })
}

fn fields(root: &Value, schema: &Value) -> Vec<(String, Value)> {
    let schema = resolve(root, schema);
    if let Some(items) = schema.get("items") {
        return fields(root, items);
    }
    let mut found: Vec<(String, Value)> = schema
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(name, field)| (name.clone(), field.clone()))
        .collect();
    for key in ["anyOf", "oneOf"] {
        for alternative in schema.get(key).and_then(Value::as_array).into_iter().flatten() {
            found.extend(fields(root, alternative));
        }
    }
    found
}
