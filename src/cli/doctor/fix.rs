//! `qvl doctor --fix`: a plan of repairs, and with `--apply` the repairs.

use std::{collections::BTreeMap, io::Write};

use super::{DoctorArgs, Examined, Form, find, judged, status, unix_seconds, view};
use crate::{
    cli::{CliError, home},
    doctor::{
        CheckResult, Overall, Report, Severity, Subject, Verdict,
        fix::{self, Draft, Repair, Scene, Target},
    },
    facts::NodeName,
    repair::{self, Begin, End, Journal, JournalError, Machine, Refused},
    report::{
        View,
        fix::{self as shown, Fate, Plan},
    },
    wire::ExitStatus,
};

pub(super) fn run(args: &DoctorArgs, out: &mut impl Write) -> Result<ExitStatus, CliError> {
    let json = match args.format {
        Form::Text => false,
        Form::Json => true,
        Form::Sarif | Form::Junit | Form::Markdown | Form::Html => {
            let what = "a plan of repairs has the forms text and json";
            return Err(CliError::new(ExitStatus::Usage, what)
                .hint("leave out --format, or use --format json"));
        }
    };
    args.only.iter().try_for_each(|id| find(id).map(|_rule| ()))?;
    let path = home::repairs(&node());
    let journal = if args.apply { Some(Journal::open(&path).map_err(explain)?) } else { None };
    let lock = journal.as_ref().map(Journal::lock).transpose()?;
    let machine = Machine::new(std::env::current_exe()?, lock);
    if let Some(journal) = journal {
        return Fixer { args, machine, journal, json }.run(out);
    }
    // A plan changes nothing, so it does not need the journal either.
    let earlier = Journal::read(&path).map_err(explain)?;
    let interrupted = earlier.iter().filter(|one| is_open(one)).count();
    show(args, &machine, interrupted, json, out)
}

fn is_open(one: &repair::Transaction) -> bool {
    matches!(one.state, repair::State::Open | repair::State::Restoring)
}

/// Name of this machine.
pub(super) fn node() -> String {
    let name = nix::unistd::gethostname().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// What a journal that cannot be used means to a person.
pub(super) fn explain(error: JournalError) -> CliError {
    let (status, hint) = match &error {
        JournalError::Io { .. } => (
            ExitStatus::Internal,
            "it lies below XDG_STATE_HOME, or else ~/.local/state; nothing was changed since",
        ),
        JournalError::Busy { .. } => {
            (ExitStatus::Blocked, "wait until it has ended, then try again")
        }
        JournalError::Torn { .. } => (
            ExitStatus::Internal,
            "nothing was changed; look at that line: it must be JSON as qvl wrote it",
        ),
    };
    CliError::of(status, error).hint(hint)
}

/// The machine, the rights and the files that repairs may use.
fn scene(args: &DoctorArgs) -> Result<Scene, CliError> {
    let live = args.facts.is_empty() && args.sysroot.is_none() && !args.cluster;
    let job_file = match &args.asked.job {
        // A link stays a link: what it leads to is changed.
        Some(path) => Some(path.canonicalize()?.display().to_string()),
        None => None,
    };
    Ok(Scene {
        here: live.then(|| NodeName(node())),
        root: nix::unistd::geteuid().is_root(),
        session: if live { repair::session() } else { None },
        job_file,
    })
}

/// Drafts of a report, and the repairs that they would be one after another.
struct Planned {
    drafts: Vec<Draft>,
    repairs: Vec<Repair>,
    left: Vec<fix::Left>,
}

fn planned(args: &DoctorArgs, scene: &Scene, judged: &Examined, machine: &Machine) -> Planned {
    let Examined { report, snapshot, demand, .. } = judged;
    let (drafts, left) = fix::drafts(report, snapshot, demand, scene, &args.only);
    // Several repairs of one file build on each other.
    let mut texts: BTreeMap<Target, Option<String>> = BTreeMap::new();
    let repairs: Vec<Repair> = drafts
        .iter()
        .map(|draft| {
            let repair = draft.clone().resolved(scene, |target| match texts.get(target) {
                Some(text) => Ok(text.clone()),
                None => machine.read(target).map_err(|trouble| trouble.to_string()),
            });
            if repair.is_ready() {
                let files = repair.changes.iter().filter(|change| change.target.path().is_some());
                texts.extend(files.map(|change| (change.target.clone(), change.new.clone())));
            }
            repair
        })
        .collect();
    Planned { drafts, repairs, left }
}

fn about(judged: &Examined) -> String {
    let nodes: Vec<String> = judged.report.nodes.iter().map(ToString::to_string).collect();
    let nodes = match &nodes[..] {
        [node] => format!("node {node}"),
        nodes => format!("{} nodes", nodes.len()),
    };
    judged.report.job.as_ref().map_or_else(|| nodes.clone(), |job| format!("{nodes}, job {job}"))
}

fn show(
    args: &DoctorArgs,
    machine: &Machine,
    interrupted: usize,
    json: bool,
    out: &mut impl Write,
) -> Result<ExitStatus, CliError> {
    let (judged, scene) = (judged(args, None)?, scene(args)?);
    let Planned { repairs, left, .. } = planned(args, &scene, &judged, machine);
    let can =
        args.facts.is_empty() && args.sysroot.is_none() && repairs.iter().any(Repair::is_ready);
    let command = "the same command with --apply".to_owned();
    let plan = Plan {
        about: about(&judged),
        repairs: &repairs,
        left: &left,
        interrupted,
        apply: can.then_some(command),
    };
    let view = View { strict: args.strict, ..view(&judged.allowed) };
    if json {
        let overall = judged.report.overall(args.strict, &judged.allowed);
        writeln!(out, "{}", shown::json(&plan, None, &[], overall))?;
    } else {
        shown::plan(&plan, &view, out)?;
    }
    Ok(status(&judged.report, args.strict, &judged.allowed))
}

struct Fixer<'a> {
    args: &'a DoctorArgs,
    machine: Machine,
    journal: Journal,
    json: bool,
}

impl Fixer<'_> {
    fn run(mut self, out: &mut impl Write) -> Result<ExitStatus, CliError> {
        let recovered = self.recover(out)?;
        let (before, scene) = (judged(self.args, None)?, scene(self.args)?);
        let Planned { drafts, repairs, left } = planned(self.args, &scene, &before, &self.machine);
        let about = about(&before);
        let plan = Plan { about, repairs: &repairs, left: &left, interrupted: 0, apply: None };
        let allowed = before.allowed.clone();
        let view = View { strict: self.args.strict, ..view(&allowed) };
        if !self.json {
            shown::plan(&plan, &view, out)?;
            writeln!(out)?;
        }
        let (mut now, mut fates) = (before, Vec::new());
        for (draft, repair) in drafts.into_iter().zip(&repairs) {
            let (fate, after) = self.make(draft, &scene, &now)?;
            if !self.json {
                shown::fate(repair, &fate, &view, out)?;
                out.flush()?;
            }
            fates.push(fate);
            now = after.unwrap_or(now);
        }
        let failed = fates.iter().any(Fate::is_failure);
        if failed {
            now = judged(self.args, None)?;
        }
        let overall = now.report.overall(self.args.strict, &now.allowed);
        if self.json {
            writeln!(out, "{}", shown::json(&plan, Some(&fates), &recovered, overall))?;
        } else {
            self.end(overall, out)?;
        }
        let status = status(&now.report, self.args.strict, &now.allowed);
        Ok(if failed { ExitStatus::Blocked } else { status })
    }

    fn end(&self, overall: Overall, out: &mut impl Write) -> std::io::Result<()> {
        let verdict = match overall {
            Overall::Ready => "the doctor says now: ready, nothing blocks",
            Overall::Unknown => "the doctor says now: not known; `qvl doctor` shows what",
            Overall::Blocked => "the doctor says now: blocked; `qvl doctor` shows by what",
        };
        let file = self.args.asked.job.as_ref().filter(|_job| self.args.cluster);
        writeln!(out, "\n{verdict}")?;
        match file {
            Some(file) => writeln!(
                out,
                "the changed job is used from its next start on: qvl launch {}",
                file.display()
            ),
            None => Ok(()),
        }
    }

    /// Rolls back what an earlier process did not finish.
    fn recover(&mut self, out: &mut impl Write) -> Result<Vec<u64>, CliError> {
        let mut recovered = Vec::new();
        for one in repair::interrupted(&self.journal) {
            let (id, rule) = (one.begin.id, one.begin.rule.clone());
            repair::restore(&mut self.journal, &self.machine, &one, End::RolledBack, false).map_err(
                |error| {
                    let what = format!("repair {id} ({rule}) was interrupted and cannot be rolled back");
                    let status = if error.is_denied() { ExitStatus::Unreachable } else { ExitStatus::Blocked };
                    CliError::of(status, anyhow::Error::new(error).context(what)).hint(format!(
                        "`qvl doctor undo {id} --force` writes the old state over it; `qvl doctor undo --list` shows it"
                    ))
                },
            )?;
            if !self.json {
                writeln!(out, "repair {id} ({rule}) was interrupted: rolled back")?;
            }
            recovered.push(id);
        }
        Ok(recovered)
    }

    /// Makes one repair and looks whether it helps. The report after it, if it stays.
    fn make(
        &mut self,
        draft: Draft,
        scene: &Scene,
        before: &Examined,
    ) -> Result<(Fate, Option<Examined>), CliError> {
        let machine = &self.machine;
        // Anew: an earlier repair may have changed the same file.
        let read = |target: &Target| machine.read(target).map_err(|trouble| trouble.to_string());
        let planned = draft.obstacle.clone();
        let repair = draft.resolved(scene, read);
        if let Some(why) = repair.obstacle {
            let nothing = planned.is_none()
                && repair.changes.is_empty()
                && holds(&before.report, repair.rule, &repair.subject).is_ok();
            let fate = if nothing { Fate::AlreadySo } else { Fate::NotReady { why } };
            return Ok((fate, None));
        }
        let id = self.journal.next_id();
        let begin = Begin {
            v: 1,
            id,
            at: unix_seconds(),
            boot: machine.boot(),
            rule: repair.rule.to_owned(),
            subject: repair.subject.to_string(),
            what: repair.what,
            changes: repair.changes,
        };
        let why = match repair::apply(&mut self.journal, machine, begin) {
            Ok(()) => match self.verified(repair.rule, &repair.subject, before) {
                Ok(after) => {
                    repair::keep(&mut self.journal, id).map_err(explain)?;
                    return Ok((Fate::Done { id }, Some(after)));
                }
                Err(why) => why,
            },
            Err(Refused::Journal(error)) => return Err(explain(error)),
            Err(error) => error.to_string(),
        };
        Ok((self.back(id, why)?, None))
    }

    fn back(&mut self, id: u64, why: String) -> Result<Fate, CliError> {
        let all = self.journal.transactions();
        let Some(one) = all.iter().find(|one| one.begin.id == id) else {
            return Ok(Fate::RolledBack { why });
        };
        match repair::restore(&mut self.journal, &self.machine, one, End::RolledBack, false) {
            Ok(()) => Ok(Fate::RolledBack { why }),
            Err(Refused::Journal(error)) => Err(explain(error)),
            Err(error) => {
                Ok(Fate::Stuck { id, why: format!("{why}; and it cannot be rolled back: {error}") })
            }
        }
    }

    /// The verdict on newly read facts, or why the repair does not help.
    fn verified(
        &self,
        rule: &str,
        subject: &Subject,
        before: &Examined,
    ) -> Result<Examined, String> {
        let after = judged(self.args, None).map_err(|error| error.line())?;
        holds(&after.report, rule, subject)?;
        // What was unknown or skipped before may come to light by a repair; that is not its fault.
        let broken = after.report.results.iter().find(|now| {
            let was = before
                .report
                .results
                .iter()
                .find(|was| was.rule.id == now.rule.id && was.subject == now.subject);
            let was = was.map(|was| was.verdict);
            now.verdict == Verdict::Fail && matches!(was, Some(Verdict::Pass | Verdict::Warn))
        });
        match broken {
            Some(broken) => Err(format!("{} fails since", broken.rule.id)),
            None => Ok(after),
        }
    }
}

/// Whether a check has nothing to complain of; not knowing is not enough.
fn holds(report: &Report, rule: &str, subject: &Subject) -> Result<(), String> {
    let about = |result: &&CheckResult| {
        result.rule.id == rule && (matches!(subject, Subject::All) || result.subject == *subject)
    };
    for result in report.results.iter().filter(about) {
        if let Some(problem) = result.problems.iter().find(|p| Severity::Info < p.severity) {
            return Err(format!("the check still says: {}", problem.what));
        }
        if let Some(unread) = result.unknown.first() {
            return Err(format!("the check is unknown now: {unread}"));
        }
    }
    Ok(())
}
