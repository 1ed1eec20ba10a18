//! `qvl doctor`: will the job run on these machines?

mod binary;
mod catalog;
mod fleet;
mod replay;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use clap::{Args, Subcommand, ValueEnum};

use super::{CliError, cluster, plan};
use crate::{
    data::lint,
    doctor::{self, DataVerdict, Demand, Overall, Report, Seen, Sizes, Stack},
    facts::{FactsFile, NodeFacts, NodeName, Place, Snapshot},
    job::{FineTuneJob, memory},
    probe,
    report::{self, View},
    wire::ExitStatus,
};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct DoctorArgs {
    #[command(subcommand)]
    command: Option<DoctorCommand>,
    /// Judge for this job; without it, for a machine alone.
    #[arg(long, value_name = "FILE")]
    job: Option<PathBuf>,
    /// Number of ranks, instead of `spec.world.gpus`.
    #[arg(long, value_name = "N")]
    gpus: Option<u32>,
    /// Whose trainer will run.
    #[arg(long, value_enum, default_value_t = StackArg::Own)]
    stack: StackArg,
    /// Judge facts that were saved on other machines, one file for each node.
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with_all = ["save_facts", "sysroot"])]
    facts: Vec<PathBuf>,
    /// Save what was observed, for `--facts`.
    #[arg(long, value_name = "FILE")]
    save_facts: Option<PathBuf>,
    /// Read files below this folder instead of `/`. The driver is asked all the same.
    #[arg(long, value_name = "DIR")]
    sysroot: Option<PathBuf>,
    /// Form of the report.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Warnings and unknown checks block too.
    #[arg(long)]
    strict: bool,
    /// Accept that this check cannot be evaluated. May be given several times.
    #[arg(long, value_name = "ID")]
    allow_unknown: Vec<String>,
    /// Leave out what differs from run to run: the time that the doctor took.
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
    #[arg(long, conflicts_with_all = ["facts", "save_facts", "sysroot"])]
    cluster: bool,
    /// Wait so long until all nodes have reported, as in `2m`.
    #[arg(long, value_name = "TIME", requires = "cluster", value_parser = cluster::launch::duration)]
    wait: Option<Duration>,
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
    /// Say which driver a program needs, and why: libraries, PTX and machine code in its file.
    Binary {
        /// The program, such as qvl-train.
        file: PathBuf,
        /// Form of the answer.
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum StackArg {
    /// `qvl-train`.
    Own,
    /// The official finetune.py with DeepSpeed.
    Official,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

pub(super) fn run(args: &DoctorArgs, out: &mut impl Write) -> Result<ExitStatus, CliError> {
    match &args.command {
        Some(DoctorCommand::Explain { id }) => return catalog::explain(find(id)?, out),
        Some(DoctorCommand::List { format: Format::Text }) => return catalog::text(out),
        Some(DoctorCommand::List { format: Format::Json }) => return catalog::json(out),
        Some(DoctorCommand::Binary { file, format }) => {
            return binary::run(file, *format == Format::Json, out);
        }
        None => {}
    }
    let begin = Instant::now();
    let allowed = allowed(&args.allow_unknown)?;
    let (demand, folders, known) = demand(args)?;
    let report = if args.cluster {
        let (job, wait) = (known.job.as_ref(), args.wait.unwrap_or_default());
        let roster = cluster::fleet::read(&args.target, job, args.trainer.as_deref(), wait)?;
        let demand = cluster::fleet::shaped(demand, &roster, job);
        let snapshot = &roster.fleet.snapshot;
        let mut report = doctor::diagnose(snapshot, &demand);
        report.leave_to_pods(roster.trainer);
        let seen = Seen { rank: false, trainer: roster.trainer };
        fleet::add(&mut report, snapshot, &demand, &known, &allowed, seen);
        if args.format == Format::Text {
            cluster::fleet::preface(&roster, &report, job, &allowed, out)?;
        }
        report
    } else {
        let snapshot = snapshot(args, folders)?;
        let mut report = doctor::diagnose(&snapshot, &demand);
        fleet::add(&mut report, &snapshot, &demand, &known, &allowed, Seen::ALL);
        report
    };
    let elapsed_ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
    let elapsed_ms = (!args.reproducible).then_some(elapsed_ms);
    let view = View { strict: args.strict, elapsed_ms, ..view(&allowed) };
    match args.format {
        Format::Text => report::text(&report, &view, out)?,
        Format::Json => report::write_json(&report, &view, out)?,
    }
    Ok(status(&report, args.strict, &allowed))
}

/// Text as wide as the terminal, within reason; the stream takes colours out that nobody sees.
pub(super) fn view(allowed: &BTreeSet<String>) -> View<'_> {
    let terminal = terminal_size::terminal_size().map(|(width, _height)| usize::from(width.0));
    let width = terminal.unwrap_or(100).clamp(60, 120);
    View { strict: false, allowed, elapsed_ms: None, color: true, width }
}

fn status(report: &Report, strict: bool, allowed: &BTreeSet<String>) -> ExitStatus {
    match report.overall(strict, allowed) {
        Overall::Ready => ExitStatus::Success,
        Overall::Unknown => ExitStatus::Unknown,
        Overall::Blocked => ExitStatus::Blocked,
    }
}

/// What the doctor said before a launch.
pub(super) enum Gate {
    /// The job may start. Facts and verdict as JSON, for the report.
    Open { facts: String, verdict: String },
    /// It must not.
    Closed(ExitStatus),
}

/// Judges this machine for a planned job before anything is started.
pub(super) fn gate(
    planned: &plan::Plan,
    folder: &Path,
    trainer: &Path,
    allow_unknown: &[String],
    out: &mut impl Write,
) -> Result<Gate, CliError> {
    let options = probe::Options {
        program: Some(std::env::current_exe()?),
        trainer: Some(trainer.to_owned()),
        folders: folders(&planned.job, folder),
        ..probe::Options::default()
    };
    let facts = probe::node(&options);
    let node = probe::name(&facts);
    let saved = facts_file(&node, &facts, "this machine".to_owned());
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
pub(super) fn stop_launch(
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

/// What is asked for, the folders that the job uses, and the job and its plan.
type Asked = (Demand, Vec<(Place, PathBuf)>, fleet::Known);

fn demand(args: &DoctorArgs) -> Result<Asked, CliError> {
    let stack = match args.stack {
        StackArg::Own => Stack::Own,
        StackArg::Official => Stack::Official,
    };
    let Some(path) = &args.job else {
        let folders = vec![(Place::Temporary, std::env::temp_dir())];
        let demand = Demand { stack, ranks: args.gpus, ..Demand::default() };
        return Ok((demand, folders, fleet::Known { job: None, planned: None }));
    };
    let folder = path.parent().filter(|path| !path.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let job = plan::read_job(path, args.gpus)?;
    if args.cluster && !folder.join(&job.spec.model.path).exists() {
        // Model and data lie on volumes of the cluster: their sizes are not known here.
        let demand = Demand { stack, ..Demand::of(&job, Sizes::default()) };
        return Ok((demand, Vec::new(), fleet::Known { job: Some(job), planned: None }));
    }
    let planned = plan::make(job, folder)?;
    let mut sizes = sizes(&planned, folder);
    if stack == Stack::Official {
        sizes.rank_memory_bytes = fleet::official(&planned).or(sizes.rank_memory_bytes);
    }
    let demand = Demand { stack, ..Demand::of(&planned.job, sizes) };
    let folders = folders(&planned.job, folder);
    let job = Some(planned.job.clone());
    Ok((demand, folders, fleet::Known { job, planned: Some(planned) }))
}

/// The folders and files that a job reads and writes.
pub(super) fn folders(job: &FineTuneJob, folder: &Path) -> Vec<(Place, PathBuf)> {
    let spec = &job.spec;
    let mut folders = vec![
        (Place::Temporary, std::env::temp_dir()),
        (Place::Output, folder.join(&spec.output)),
        (Place::Model, folder.join(&spec.model.path)),
    ];
    let sets = spec.data.train.iter().map(|set| &set.path);
    let sets = sets.chain(spec.data.eval.iter().map(|set| &set.path));
    folders.extend(sets.map(|path| (Place::Data, folder.join(path))));
    folders
}

pub(super) fn sizes(planned: &plan::Plan, folder: &Path) -> Sizes {
    let blocking = |finding: &&lint::Finding| finding.severity == lint::Severity::Block;
    let findings = &planned.data.findings;
    let blocks = findings.iter().filter(blocking).count();
    let worst = findings.iter().find(blocking).or(findings.first());
    Sizes {
        rank_memory_bytes: Some(planned.memory.total()),
        model_file_bytes: weight_bytes(&folder.join(&planned.job.spec.model.path)),
        trained_parameters: Some(memory::trained_parameters(&planned.job, &planned.shape)),
        data: Some(DataVerdict {
            blocking: blocks as u64,
            warnings: (findings.len() - blocks) as u64,
            worst: worst.map(|f| format!("{} `{}`: {}", f.file, f.sample, f.what)),
        }),
    }
}

/// Size of all weight files of a release; `None` if there is none to measure.
fn weight_bytes(base: &Path) -> Option<u64> {
    let entries = fs::read_dir(base).ok()?.flatten();
    let weights = entries.filter(|entry| {
        let name = entry.file_name();
        Path::new(&name).extension().is_some_and(|e| e == "safetensors" || e == "bin")
    });
    let sizes: Vec<u64> =
        weights.filter_map(|entry| fs::metadata(entry.path()).ok()).map(|m| m.len()).collect();
    (!sizes.is_empty()).then(|| sizes.iter().sum())
}

fn snapshot(args: &DoctorArgs, folders: Vec<(Place, PathBuf)>) -> Result<Snapshot, CliError> {
    let expected = args.expect_nodes.iter().cloned().map(NodeName).collect();
    if !args.facts.is_empty() {
        return Ok(Snapshot { nodes: replay::nodes(&args.facts)?, expected });
    }
    let root = args.sysroot.clone().unwrap_or_else(|| PathBuf::from("/"));
    if !root.is_dir() {
        let what = format!("`{}` is not a folder", root.display());
        return Err(CliError::new(ExitStatus::Usage, what)
            .hint("--sysroot must be the root of a file tree, with proc and sys in it"));
    }
    let program = std::env::current_exe()?;
    let beside = program.with_file_name("qvl-train");
    let trainer = args.trainer.clone().or_else(|| beside.exists().then_some(beside));
    let hashes = args.save_facts.is_some();
    let official = (args.stack == StackArg::Official)
        .then(|| probe::Official { python: args.python.clone(), script: args.script.clone() });
    let (reach, program) = (args.reach.clone(), Some(program));
    let driver = probe::Options { program, reach, official, ..probe::Options::default() };
    let options = probe::Options { root, trainer, folders, hashes, ..driver };
    let facts = probe::node(&options);
    let node = probe::name(&facts);
    if let Some(path) = &args.save_facts {
        let origin = match &args.sysroot {
            Some(root) => format!("files below {}", root.display()),
            None => "this machine".to_owned(),
        };
        fs::write(path, facts_file(&node, &facts, origin)).map_err(|error| {
            let what = format!("failed to write facts to `{}`", path.display());
            CliError::of(ExitStatus::Usage, anyhow::Error::new(error).context(what))
        })?;
    }
    Ok(Snapshot { nodes: BTreeMap::from([(node, facts)]), expected })
}

/// Facts in the form that `--facts` reads.
fn facts_file(node: &NodeName, facts: &NodeFacts, origin: String) -> String {
    let (node, facts) = (node.clone(), facts.clone());
    let file = FactsFile { format: FactsFile::VERSION, origin, node, facts };
    serde_json::to_string_pretty(&file).expect("plain data") + "\n"
}
