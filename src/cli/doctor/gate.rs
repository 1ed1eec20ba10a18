//! The doctor before a launch.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    path::Path,
};

use super::{Permission, allowed, folders, observed::facts_file, sizes, status, view};
use crate::{
    cli::{CliError, plan},
    doctor::{self, Demand, Overall, Report},
    facts::Snapshot,
    probe, report,
    wire::ExitStatus,
};

/// What the doctor said before a launch.
pub(crate) enum Gate {
    /// The job may start. Facts and verdict as JSON, for the report.
    Open { facts: String, verdict: String },
    /// It must not.
    Closed(ExitStatus),
}

/// Judges this machine for a planned job before anything is started.
pub(crate) fn gate(
    planned: &plan::Plan,
    folder: &Path,
    trainer: &Path,
    allow_unknown: &[String],
    permission: Option<&Permission>,
    out: &mut impl Write,
) -> Result<Gate, CliError> {
    let options = probe::Options {
        program: std::env::current_exe().ok(),
        trainer: Some(trainer.to_owned()),
        folders: folders(&planned.job, folder),
        ..probe::Options::default()
    };
    let facts = probe::node(&options);
    let node = probe::name(&facts);
    let saved = facts_file(&node, &facts, "this machine".to_owned());
    if let Some(permission) = permission {
        permission.check(&BTreeSet::from([node.clone()]), false, out)?;
    }
    let nodes = BTreeMap::from([(node, facts)]);
    let snapshot = Snapshot { nodes, expected: BTreeSet::new() };
    let report = doctor::diagnose(&snapshot, &Demand::of(&planned.job, sizes(planned, folder)));
    if let Some(refused) = stop_launch(&report, allow_unknown, out)? {
        return Ok(Gate::Closed(refused));
    }
    let verdict = report::json(&report, &view(&allowed(allow_unknown)?));
    Ok(Gate::Open { facts: saved, verdict })
}

/// Says what is wrong, and whether a launch must stop because of it.
pub(crate) fn stop_launch(
    report: &Report,
    allow_unknown: &[String],
    out: &mut impl Write,
) -> Result<Option<ExitStatus>, CliError> {
    let allowed = allowed(allow_unknown)?;
    report::problems(report, &view(&allowed), out)?;
    writeln!(out, "{}", report::summary(report))?;
    let hint = match report.overall(false, &allowed) {
        Overall::Ready => return Ok(None),
        Overall::Blocked => {
            "blocked: nothing was started; `qvl doctor --job FILE` shows all checks"
        }
        Overall::Unknown => {
            "nothing was started: a check that the job needs is unknown; --allow-unknown ID accepts it"
        }
    };
    writeln!(out, "{hint}")?;
    Ok(Some(status(report, false, &allowed)))
}
