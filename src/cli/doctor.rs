//! `qvl doctor`: will the job run on these machines?

mod active;
mod asked;
mod binary;
mod catalog;
mod diff;
mod fix;
mod fleet;
mod gate;
mod observed;
mod parity;
mod permission;
mod replay;
mod serve;
mod undo;
mod what_if;
mod why;

use std::{
    collections::BTreeSet,
    io::Write,
    path::PathBuf,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use clap::{Args, Subcommand, ValueEnum};

pub(super) use active::{options as active_options, run as active_tests};
pub(super) use asked::{folders, sizes};
pub(super) use gate::{Gate, Judged, gate, stop_launch};
pub(super) use permission::{Permission, VerdictArgs};

use super::{CliError, cluster};
use crate::{
    doctor::{self, Demand, Overall, Report, Seal, Seen},
    facts::Snapshot,
    report::{self, View},
    wire::ExitStatus,
};

/// Columns of text that goes to no terminal.
const WIDTH: usize = 100;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
pub struct DoctorArgs {
    #[command(subcommand)]
    command: Option<DoctorCommand>,
    #[command(flatten)]
    asked: asked::JobArgs,
    /// Judge facts that were saved on other machines, one file for each node.
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["save_facts", "sysroot"])]
    facts: Vec<PathBuf>,
    /// Save what was observed, for `--facts`.
    #[arg(long, value_name = "FILE")]
    save_facts: Option<PathBuf>,
    /// Read files below this folder instead of `/`. The driver is asked all the same.
    #[arg(long, value_name = "DIR")]
    sysroot: Option<PathBuf>,
    /// Show a plan of repairs instead of the report. It changes nothing without --apply.
    #[arg(long, conflicts_with = "save_facts")]
    fix: bool,
    /// Make the repairs of the plan, look again after each, and roll back what does not help.
    #[arg(long, requires = "fix", conflicts_with_all = ["facts", "sysroot"])]
    apply: bool,
    /// Repair only what this check finds. May be given several times.
    #[arg(long, requires = "fix", value_name = "ID")]
    only: Vec<String>,
    /// Read the kernel log from this file instead of /dev/kmsg: text of dmesg or syslog, or what
    /// `journalctl -k` writes with `-o export` or `-o json`. Only its last boot counts.
    #[arg(long, value_name = "FILE", conflicts_with = "facts")]
    kernel_log: Option<PathBuf>,
    /// Form of the report; a plan of repairs is text or JSON.
    #[arg(long, value_enum, default_value_t = Form::Text)]
    format: Form,
    /// Warnings and unknown checks block too.
    #[arg(long)]
    strict: bool,
    /// Accept that this check cannot be evaluated. May be given several times.
    #[arg(long, value_name = "ID")]
    allow_unknown: Vec<String>,
    /// Show digests of the facts, the rules and the job that the verdict was made of.
    #[arg(short, long)]
    verbose: bool,
    /// The same facts give the same bytes: without times, and as wide as on no terminal.
    #[arg(long)]
    reproducible: bool,
    /// Names of all nodes that must have reported.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    expect_nodes: Vec<String>,
    /// The trainer that will run, instead of the `qvl-train` beside this program. With --cluster
    /// the nodes are judged by what this file needs.
    #[arg(long, visible_alias = "binary", value_name = "FILE", env = "QVL_TRAIN_BIN")]
    trainer: Option<PathBuf>,
    /// Connect to these, to see that ranks will reach each other. An answer that nothing listens
    /// is fine: the way is free.
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    reach: Vec<String>,
    /// With `--stack official`: the Python environment, or its folder `site-packages`.
    #[arg(long, value_name = "DIR")]
    python: Option<PathBuf>,
    /// With `--stack official`: the shell script that starts the ranks.
    #[arg(long, value_name = "FILE")]
    script: Option<PathBuf>,
    /// Judge the nodes of the cluster by the reports of their agents.
    #[arg(long, conflicts_with_all = ["facts", "save_facts", "sysroot", "kernel_log"])]
    cluster: bool,
    /// Wait so long until all nodes have reported, as in `2m`.
    #[arg(long, value_name = "TIME", requires = "cluster", value_parser = cluster::launch::duration)]
    wait: Option<Duration>,
    #[command(flatten)]
    active: active::ActiveArgs,
    #[command(flatten)]
    target: cluster::Target,
}

#[derive(Debug, Subcommand)]
enum DoctorCommand {
    /// Explain a check: what it is, why it matters, where its threshold comes from.
    Explain {
        /// Id of the check, such as `shm-small`.
        id: String,
    },
    /// List all checks.
    List {
        /// Form of the list.
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
    /// Prove that a job is the same on one rank and on several: its plan, and the bits of a few steps.
    Parity(parity::ParityArgs),
    /// Say which driver a program needs, and why: libraries, PTX and machine code in its file.
    Binary {
        /// The program, such as qvl-train.
        file: PathBuf,
        /// Form of the answer.
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
    /// Say why a job failed, from its logs: the first cause, and not what followed from it.
    Why(why::WhyArgs),
    /// Change facts, and say which verdicts change with them.
    WhatIf(what_if::WhatIfArgs),
    /// Compare two files of facts, or two reports in JSON.
    Diff(diff::DiffArgs),
    /// Take repairs of `--fix --apply` back, the newest first.
    Undo(undo::UndoArgs),
    /// Let other hosts test their way to this one, for a while: the other side of `--peers`.
    Serve(serve::ServeArgs),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// Forms of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    /// For a terminal.
    Text,
    /// For programs; `qvl schema report` describes it.
    Json,
    /// SARIF 2.1.0, for code scanning.
    Sarif,
    /// JUnit XML, for CI systems.
    Junit,
    /// For an issue or a pull request.
    Markdown,
    /// One page with the fleet as a matrix.
    Html,
}

pub(super) fn run(args: &DoctorArgs, out: &mut impl Write) -> Result<ExitStatus, CliError> {
    match &args.command {
        Some(DoctorCommand::Explain { id }) => return catalog::explain(find(id)?, out),
        Some(DoctorCommand::List { format: Format::Text }) => return catalog::text(out),
        Some(DoctorCommand::List { format: Format::Json }) => return catalog::json(out),
        Some(DoctorCommand::Binary { file, format }) => {
            return binary::run(file, *format == Format::Json, out);
        }
        Some(DoctorCommand::Parity(args)) => return parity::run(args, out),
        Some(DoctorCommand::Why(args)) => return why::run(args, out),
        Some(DoctorCommand::WhatIf(args)) => return what_if::run(args, out),
        Some(DoctorCommand::Diff(args)) => return diff::run(args, out),
        Some(DoctorCommand::Undo(args)) => return undo::run(args, out),
        Some(DoctorCommand::Serve(args)) => return serve::run(args, out),
        None => {}
    }
    if args.fix {
        return fix::run(args, out);
    }
    let begin = Instant::now();
    let Examined { report, snapshot, known, allowed, .. } = judged(args, Some(out))?;
    let elapsed_ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
    let elapsed_ms = (!args.reproducible).then_some(elapsed_ms);
    let now = (!args.reproducible).then(unix_seconds);
    // It takes all facts once more, so only who shows it makes it.
    let seal = (args.verbose || args.format == Form::Json)
        .then(|| Seal::of(&snapshot, known.job.as_ref(), args.asked.stack(), now));
    let seal = seal.as_ref();
    let view = view(&allowed);
    // Nor does it depend on how wide the terminal is.
    let width = if args.reproducible { WIDTH } else { view.width };
    let view = View { strict: args.strict, elapsed_ms, seal, width, ..view };
    match args.format {
        Form::Text => report::text(&report, &view, out)?,
        Form::Json => report::write_json(&report, &view, out)?,
        Form::Sarif => writeln!(out, "{}", report::sarif(&report, &view))?,
        Form::Junit => report::junit(&report, &view, out)?,
        Form::Markdown => write!(out, "{}", report::markdown(&report, &view))?,
        Form::Html => report::html(&report, &view, out)?,
    }
    Ok(status(&report, args.strict, &allowed))
}

/// What was asked, what was observed, and the verdict on it.
struct Examined {
    report: Report,
    snapshot: Snapshot,
    demand: Demand,
    known: fleet::Known,
    allowed: BTreeSet<String>,
}

/// Looks at the machines and judges them. The text about a cluster goes to `out`.
fn judged(args: &DoctorArgs, out: Option<&mut dyn Write>) -> Result<Examined, CliError> {
    let allowed = allowed(&args.allow_unknown)?;
    let (demand, folders, known) = asked::demand(&args.asked, args.cluster)?;
    if !args.cluster {
        let snapshot = observed::snapshot(args, folders, &demand)?;
        let mut report = doctor::diagnose(&snapshot, &demand);
        fleet::add(&mut report, &snapshot, &demand, &known, &allowed, Seen::ALL);
        return Ok(Examined { report, snapshot, demand, known, allowed });
    }
    let (job, wait) = (known.job.as_ref(), args.wait.unwrap_or_default());
    let roster = cluster::fleet::read(&args.target, job, args.trainer.as_deref(), wait)?;
    let demand = cluster::fleet::shaped(demand, &roster, job);
    let snapshot = &roster.fleet.snapshot;
    let mut report = doctor::diagnose(snapshot, &demand);
    report.leave_to_pods(roster.trainer);
    let seen = Seen { rank: false, trainer: roster.trainer };
    fleet::add(&mut report, snapshot, &demand, &known, &allowed, seen);
    if let Some(mut out) = out.filter(|_out| args.format == Form::Text) {
        cluster::fleet::preface(&roster, &report, job, &allowed, &mut out)?;
    }
    Ok(Examined { report, snapshot: roster.fleet.snapshot, demand, known, allowed })
}

fn unix_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Text as wide as the terminal, within reason; the stream takes colours out that nobody sees.
pub(super) fn view(allowed: &BTreeSet<String>) -> View<'_> {
    let terminal = terminal_size::terminal_size().map(|(width, _height)| usize::from(width.0));
    let width = terminal.unwrap_or(WIDTH).clamp(60, 120);
    View { strict: false, allowed, elapsed_ms: None, color: true, width, seal: None }
}

fn status(report: &Report, strict: bool, allowed: &BTreeSet<String>) -> ExitStatus {
    match report.overall(strict, allowed) {
        Overall::Ready => ExitStatus::Success,
        Overall::Unknown => ExitStatus::Unknown,
        Overall::Blocked => ExitStatus::Blocked,
    }
}

/// Ids that may be unknown; a misspelt one would silently allow nothing.
pub(super) fn allowed(ids: &[String]) -> Result<BTreeSet<String>, CliError> {
    for id in ids {
        find(id)?;
    }
    Ok(ids.iter().cloned().collect())
}

fn find(id: &str) -> Result<&'static doctor::Rule, CliError> {
    doctor::rule(id).ok_or_else(|| {
        let distance = |rule: &&&doctor::Rule| strsim::damerau_levenshtein(rule.id, id);
        let nearest = doctor::RULES.iter().min_by_key(distance).map_or("", |rule| rule.id);
        CliError::new(ExitStatus::Usage, format!("there is no check `{id}`"))
            .hint(format!("did you mean `{nearest}`? `qvl doctor list` shows all"))
    })
}
