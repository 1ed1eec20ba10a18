//! Facts: of this machine, of files that were saved on others, and how they are saved.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use super::{DoctorArgs, replay};
use crate::{
    cli::CliError,
    doctor::{Demand, Stack},
    facts::{Fact, FactsFile, KernelLog, NodeFacts, NodeName, Place, Snapshot},
    probe,
    wire::ExitStatus,
};

pub(super) fn snapshot(
    args: &DoctorArgs,
    folders: Vec<(Place, PathBuf)>,
    demand: &Demand,
) -> Result<Snapshot, CliError> {
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
    let kernel_log = args.kernel_log.as_deref().map(kernel_log).transpose()?;
    let program = itself();
    let trainer = args.trainer.clone().or_else(|| beside(program.as_deref()));
    let hashes = args.save_facts.is_some();
    let official = (args.asked.stack() == Stack::Official)
        .then(|| probe::Official { python: args.python.clone(), script: args.script.clone() });
    let reach = args.reach.clone();
    let driver =
        probe::Options { program, reach, official, kernel_log, ..probe::Options::default() };
    let options = probe::Options { root, trainer, folders, hashes, ..driver };
    let mut facts = probe::node(&options);
    let node = probe::name(&facts);
    args.active.add(&mut facts, &options.folders, demand, options.trainer.as_deref())?;
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

/// This program's file, which asks the driver; without `/proc` nobody knows it, and the driver is not asked.
fn itself() -> Option<PathBuf> {
    std::env::current_exe().ok()
}

/// The trainer beside it.
fn beside(program: Option<&Path>) -> Option<PathBuf> {
    program.map(|program| program.with_file_name("qvl-train")).filter(|trainer| trainer.exists())
}

/// A log that was saved, as a fact.
fn kernel_log(path: &Path) -> Result<Fact<KernelLog>, CliError> {
    let log = probe::read_kernel_log(path).map_err(|error| {
        let what = format!("failed to read the kernel log `{}`", path.display());
        CliError::of(ExitStatus::Usage, anyhow::Error::new(error).context(what))
            .hint("`journalctl -k -b -o export > FILE` or `dmesg > FILE` writes one")
    })?;
    Ok(Fact::known(log, path.display().to_string()))
}

/// Facts in the form that `--facts` reads.
pub(super) fn facts_file(node: &NodeName, facts: &NodeFacts, origin: String) -> String {
    let (node, facts) = (node.clone(), facts.clone());
    let file = FactsFile { format: FactsFile::VERSION, origin, node, facts };
    serde_json::to_string_pretty(&file).expect("plain data") + "\n"
}

/// Facts of saved files, or of this machine if there are none.
pub(super) fn saved_or_own(
    saved: &[PathBuf],
    folders: Vec<(Place, PathBuf)>,
) -> Result<Snapshot, CliError> {
    if !saved.is_empty() {
        return Ok(Snapshot { nodes: replay::nodes(saved)?, ..Snapshot::default() });
    }
    let program = itself();
    let trainer = beside(program.as_deref());
    let options = probe::Options { program, trainer, folders, ..probe::Options::default() };
    let facts = probe::node(&options);
    let nodes = BTreeMap::from([(probe::name(&facts), facts)]);
    Ok(Snapshot { nodes, ..Snapshot::default() })
}
