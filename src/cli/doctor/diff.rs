//! `qvl doctor diff A B`: what is not the same in two files of facts, or in two reports.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    path::{Path, PathBuf},
};

use clap::Args;
use serde_json::Value;

use super::{Format, asked, replay, view};
use crate::{
    cli::{CliError, input},
    doctor::{self, Demand, Report},
    facts::{FactsFile, Snapshot, differences},
    report::changes::{self, Diff, SavedReport},
    wire::ExitStatus,
};

#[derive(Debug, Args)]
pub(super) struct DiffArgs {
    /// Facts of `qvl doctor --save-facts`, or a report of `--format json`.
    first: PathBuf,
    /// Another file of the same kind.
    second: PathBuf,
    #[command(flatten)]
    asked: asked::JobArgs,
    /// Form of the answer.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

enum Kind {
    Facts(Box<FactsFile>),
    Report(SavedReport),
}

pub(super) fn run(args: &DiffArgs, out: &mut impl Write) -> Result<ExitStatus, CliError> {
    let diff = match (read(&args.first)?, read(&args.second)?) {
        (Kind::Facts(first), Kind::Facts(second)) => {
            let (demand, _folders, _job) = asked::demand(&args.asked, false)?;
            of_facts(*first, *second, &demand)
        }
        (Kind::Report(first), Kind::Report(second)) => changes::of_reports(&first, &second),
        (Kind::Facts(_), Kind::Report(_)) | (Kind::Report(_), Kind::Facts(_)) => {
            let (a, b) = (args.first.display(), args.second.display());
            let what = format!("of `{a}` and `{b}` one holds facts and the other a report");
            return Err(CliError::new(ExitStatus::Usage, what)
                .hint("give two files of `--save-facts`, or two of `--format json`"));
        }
    };
    match args.format {
        Format::Text => changes::diff_text(&diff, &view(&BTreeSet::new()), out)?,
        Format::Json => writeln!(out, "{}", changes::diff_json(&diff))?,
    }
    Ok(ExitStatus::Success)
}

fn of_facts(first: FactsFile, second: FactsFile, demand: &Demand) -> Diff {
    let facts = differences(&first.facts, &second.facts);
    let names = [first.node.to_string(), second.node.to_string()];
    let judge = |file: FactsFile| -> Report {
        let nodes = BTreeMap::from([(file.node, file.facts)]);
        doctor::diagnose(&Snapshot { nodes, ..Snapshot::default() }, demand)
    };
    let (first, second) = (judge(first), judge(second));
    changes::of_facts(names, facts, &doctor::turns(&first, &second, true))
}

/// A file tells by its fields what it is.
fn read(path: &Path) -> Result<Kind, CliError> {
    let failed = |error: anyhow::Error| {
        let what = format!("failed to read `{}`", path.display());
        CliError::of(ExitStatus::Usage, error.context(what))
            .hint("expected facts of `qvl doctor --save-facts`, or a report of `--format json`")
    };
    let text = input::text(path).map_err(|error| failed(error.into()))?;
    let value: Value = serde_json::from_str(&text).map_err(|error| failed(error.into()))?;
    if value.get("facts").is_some() {
        return Ok(Kind::Facts(Box::new(replay::read_facts(path)?)));
    }
    let report = serde_path_to_error::deserialize(value).map_err(|error| failed(error.into()))?;
    Ok(Kind::Report(report))
}
