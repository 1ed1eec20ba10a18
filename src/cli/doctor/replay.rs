//! Facts that were saved, one file for each node.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    thread,
};

use crate::{
    cli::{CliError, input},
    facts::{self, FactsFile, NodeFacts, NodeName},
    wire::ExitStatus,
};

/// Files from which on a second thread is worth its start.
const MANY: usize = 16;

/// Reads facts of several machines.
pub(super) fn nodes(paths: &[PathBuf]) -> Result<BTreeMap<NodeName, NodeFacts>, CliError> {
    let mut nodes = Vec::with_capacity(paths.len());
    let mut names = BTreeSet::new();
    for (path, file) in paths.iter().zip(read_all(paths)) {
        let FactsFile { node, facts, .. } = *file?;
        if !names.insert(node.clone()) {
            let what = format!("`{}` is about `{node}`, as a file before it", path.display());
            return Err(CliError::new(ExitStatus::Usage, what).hint("give one file for each node"));
        }
        nodes.push((node, facts));
    }
    // Made of all at once, a map has no gaps.
    Ok(nodes.into_iter().collect())
}

/// Every file in its place, read on all processors if they are many.
fn read_all(paths: &[PathBuf]) -> Vec<Result<Box<FactsFile>, CliError>> {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let threads = if paths.len() < MANY { 1 } else { processors };
    let share = paths.len().div_ceil(threads).max(1);
    thread::scope(|scope| {
        let start = |paths| thread::Builder::new().spawn_scoped(scope, move || read(paths));
        let parts: Vec<_> = paths.chunks(share).map(|paths| (paths, start(paths))).collect();
        let mut files = Vec::with_capacity(paths.len());
        for (paths, part) in parts {
            files.extend(match part {
                Ok(part) => part.join().expect("readers do not panic"),
                // No more threads: then this one reads.
                Err(_none) => read(paths),
            });
        }
        files
    })
}

fn read(paths: &[PathBuf]) -> Vec<Result<Box<FactsFile>, CliError>> {
    paths.iter().map(|path| read_facts(path).map(Box::new)).collect()
}

pub(super) fn read_facts(path: &Path) -> Result<FactsFile, CliError> {
    let failed = |error: anyhow::Error| {
        let what = format!("failed to read facts from `{}`", path.display());
        CliError::of(ExitStatus::Usage, error.context(what))
            .hint("`qvl doctor --save-facts FILE` writes such a file")
    };
    let text = input::text(path).map_err(|error| failed(error.into()))?;
    // Straight into its type; only what does not fit is read again, to say why.
    let file = match facts::read::<FactsFile>(&text) {
        Ok(file) if file.format == FactsFile::VERSION => return Ok(file),
        file => file,
    };
    let value: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| failed(error.into()))?;
    let format = value.get("format").and_then(serde_json::Value::as_u64);
    if format != Some(u64::from(FactsFile::VERSION)) {
        let found = format.map_or("none".to_owned(), |format| format.to_string());
        return Err(failed(anyhow::Error::msg(format!(
            "format {found}, this program reads {}",
            FactsFile::VERSION
        ))));
    }
    file.map_err(|error| failed(error.into()))
}
