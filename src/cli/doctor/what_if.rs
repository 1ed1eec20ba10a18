//! `qvl doctor what-if`: other facts, and what they do to the verdicts.

use std::{collections::BTreeSet, io::Write, path::PathBuf};

use clap::Args;

use super::{Format, allowed, asked, observed, status, view};
use crate::{
    cli::CliError,
    doctor,
    facts::{EditError, NodeFacts, NodeName, Snapshot, edited},
    report::{
        View,
        changes::{self, Change, WhatIf},
    },
    wire::ExitStatus,
};

#[derive(Debug, Args)]
pub(super) struct WhatIfArgs {
    /// Change one fact: `gpu-1.memory.available_bytes=64000000000`. `*` for the node means all, as
    /// an item of a list every item; the value `unread` means that the fact is not known. With one
    /// node its name may be left out. May be given several times.
    #[arg(long, value_name = "NODE.FIELD=VALUE", required = true)]
    set: Vec<String>,
    #[command(flatten)]
    asked: asked::JobArgs,
    /// Saved facts, one file for each node; without them, the facts of this machine.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    facts: Vec<PathBuf>,
    /// Warnings and unknown checks block too.
    #[arg(long)]
    strict: bool,
    /// Accept that this check cannot be evaluated. May be given several times.
    #[arg(long, value_name = "ID")]
    allow_unknown: Vec<String>,
    /// Form of the answer.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

pub(super) fn run(args: &WhatIfArgs, out: &mut impl Write) -> Result<ExitStatus, CliError> {
    let allowed = allowed(&args.allow_unknown)?;
    let (demand, folders, _job) = asked::demand(&args.asked, false)?;
    let real = observed::saved_or_own(&args.facts, folders)?;
    let mut imagined = real.clone();
    let mut made = Vec::new();
    for set in &args.set {
        made.extend(apply(&mut imagined, set)?);
    }
    let before = doctor::diagnose(&real, &demand);
    let after = doctor::diagnose(&imagined, &demand);
    let view = View { strict: args.strict, ..view(&allowed) };
    let answer = WhatIf { changes: &made, before: &before, after: &after };
    match args.format {
        Format::Text => changes::what_if_text(&answer, &view, out)?,
        Format::Json => writeln!(out, "{}", changes::what_if_json(&answer, &view))?,
    }
    Ok(status(&after, args.strict, &allowed))
}

/// Makes one change on every node that it names.
fn apply(snapshot: &mut Snapshot, set: &str) -> Result<Vec<Change>, CliError> {
    let Some((target, value)) = set.split_once('=') else {
        let what = format!("`{set}` is no change: expected NODE.FIELD=VALUE");
        return Err(CliError::new(ExitStatus::Usage, what)
            .hint("for example --set gpu-1.memory.available_bytes=64000000000"));
    };
    let (names, path) = resolve(snapshot, target)?;
    let mut made = Vec::new();
    for name in names {
        let facts = &snapshot.nodes[&name];
        let (facts, before) = edited(facts, path, value).map_err(|error| explain(facts, error))?;
        let (node, path, after) = (name.to_string(), path.to_owned(), value.to_owned());
        made.push(Change { node, path, before, after });
        snapshot.nodes.insert(name, facts);
    }
    Ok(made)
}

/// The nodes that a target names, and the path behind them. Names of nodes have dots, too.
fn resolve<'t>(snapshot: &Snapshot, target: &'t str) -> Result<(Vec<NodeName>, &'t str), CliError> {
    if let Some(path) = target.strip_prefix("*.") {
        return Ok((snapshot.nodes.keys().cloned().collect(), path));
    }
    let path = |name: &NodeName| target.strip_prefix(name.0.as_str())?.strip_prefix('.');
    let named = snapshot.nodes.keys().filter_map(|name| Some((name, path(name)?)));
    if let Some((name, path)) = named.max_by_key(|(name, _path)| name.0.len()) {
        return Ok((vec![name.clone()], path));
    }
    let names: BTreeSet<&str> = snapshot.nodes.keys().map(|name| name.0.as_str()).collect();
    let first = target.split('.').next().unwrap_or(target);
    if let [name] = snapshot.nodes.keys().collect::<Vec<_>>()[..]
        && is_field(&snapshot.nodes[name], first)
    {
        return Ok((vec![name.clone()], target));
    }
    let nearest = names.iter().min_by_key(|name| strsim::damerau_levenshtein(name, first));
    let known = names.iter().take(8).copied().collect::<Vec<_>>().join(", ");
    Err(CliError::new(ExitStatus::Usage, format!("there is no node `{first}` in `{target}`"))
        .hint(format!("did you mean `{}`? The nodes are: {known}", nearest.unwrap_or(&""))))
}

fn is_field(facts: &NodeFacts, name: &str) -> bool {
    serde_json::to_value(facts).is_ok_and(|facts| facts.get(name).is_some())
}

fn explain(facts: &NodeFacts, error: EditError) -> CliError {
    let hint = match &error {
        EditError::NoField { near, .. } if !near.is_empty() => {
            format!("did you mean `{}`? Near are: {}", near[0], near.join(", "))
        }
        EditError::NoField { at, .. } if at == "facts" || at.is_empty() => {
            format!("a path begins with one of: {}", fields(facts))
        }
        EditError::NoField { at, .. } => {
            format!("`{at}` is a value without parts, or an empty list: set it whole, as JSON")
        }
        EditError::Unread { at, .. } => format!("set `{at}` whole, as JSON"),
        EditError::WrongValue { .. } => {
            "write it as in a file of `qvl doctor --save-facts`, or `unread`".to_owned()
        }
    };
    CliError::of(ExitStatus::Usage, error).hint(hint)
}

fn fields(facts: &NodeFacts) -> String {
    let facts = serde_json::to_value(facts).unwrap_or_default();
    let names = facts.as_object().into_iter().flatten().map(|(name, _value)| name.as_str());
    names.collect::<Vec<_>>().join(", ")
}
