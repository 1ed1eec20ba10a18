//! The doctor before a launch.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    path::Path,
};

use super::{
    Permission, allowed, folders, observed::facts_file, sizes, status, unix_seconds, view,
};
use crate::{
    cli::{CliError, plan},
    doctor::{self, Demand, Overall, Report, Seal, Stack},
    facts::Snapshot,
    job::FineTuneJob,
    probe,
    report::{self, View},
    wire::{DoctorVerdict, ExitStatus, VerdictCounts},
};

/// What the doctor said before a launch.
pub(crate) enum Gate {
    /// The job may start. Facts and report as JSON, and the verdict that the run keeps.
    Open { facts: String, report: String, verdict: Box<DoctorVerdict> },
    /// It must not.
    Closed(ExitStatus),
}

/// Judges this machine for a planned job before anything is started; `job` as it was read.
pub(crate) fn gate(
    job: &FineTuneJob,
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
    let judged = Judged { report: &report, snapshot: &snapshot, job, allow_unknown, permission };
    let (verdict, report) = judged.seal()?;
    Ok(Gate::Open { facts: saved, report, verdict: Box::new(verdict) })
}

/// What a launch was judged by.
pub(crate) struct Judged<'j> {
    pub report: &'j Report,
    pub snapshot: &'j Snapshot,
    /// The job as it was read, before anything is planned.
    pub job: &'j FineTuneJob,
    pub allow_unknown: &'j [String],
    pub permission: Option<&'j Permission>,
}

impl Judged<'_> {
    /// The verdict in few bytes, and the sealed report that it is the digest of.
    pub(crate) fn seal(&self) -> Result<(DoctorVerdict, String), CliError> {
        let now = unix_seconds();
        let seal = Seal::of(self.snapshot, Some(self.job), Stack::Own, Some(now));
        let allowed = allowed(self.allow_unknown)?;
        let view = View { seal: Some(&seal), ..view(&allowed) };
        let verdict = self.verdict(&seal, now, &allowed, report::digest(self.report, &view));
        Ok((verdict, report::json(self.report, &view)))
    }

    fn verdict(
        &self,
        seal: &Seal,
        unix_seconds: i64,
        allowed: &BTreeSet<String>,
        digest: String,
    ) -> DoctorVerdict {
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let doctor::Counts { pass, warn, fail, unknown, skipped } = self.report.counts();
        let unread = self.report.results.iter().filter(|result| result.is_needed_unknown());
        let unread: BTreeSet<&str> = unread.map(|result| result.rule.id).collect();
        let verdict = DoctorVerdict {
            digest,
            rules: seal.rules.clone(),
            facts: seal.facts.clone(),
            job: seal.job.clone().unwrap_or_default(),
            unix_seconds,
            counts: VerdictCounts {
                pass: number(pass),
                warn: number(warn),
                fail: number(fail),
                unknown: number(unknown),
                skipped: number(skipped),
            },
            nodes: self.report.nodes.iter().map(|name| name.0.clone()).collect(),
            nodes_total: number(self.report.nodes.len()),
            allowed_unknown: allowed
                .iter()
                .filter(|id| unread.contains(id.as_str()))
                .cloned()
                .collect(),
            permission: self.permission.and_then(Permission::digest),
        };
        verdict.bounded()
    }
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
