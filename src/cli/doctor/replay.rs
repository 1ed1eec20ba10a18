//! Facts that were saved, one file for each node.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use crate::{
    cli::CliError,
    facts::{FactsFile, NodeFacts, NodeName},
    wire::ExitStatus,
};

/// Reads facts of several machines.
pub(super) fn nodes(paths: &[PathBuf]) -> Result<BTreeMap<NodeName, NodeFacts>, CliError> {
    let mut nodes = BTreeMap::new();
    for path in paths {
        let file = read_facts(path)?;
        let name = file.node.clone();
        if nodes.insert(file.node, file.facts).is_some() {
            let what = format!("`{}` is about `{name}`, as a file before it", path.display());
            return Err(CliError::new(ExitStatus::Usage, what).hint("give one file for each node"));
        }
    }
    Ok(nodes)
}

fn read_facts(path: &Path) -> Result<FactsFile, CliError> {
    let failed = |error: anyhow::Error| {
        let what = format!("failed to read facts from `{}`", path.display());
        CliError::of(ExitStatus::Usage, error.context(what))
            .hint("`qvl doctor --save-facts FILE` writes such a file")
    };
    let text = fs::read_to_string(path).map_err(|error| failed(error.into()))?;
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
    serde_path_to_error::deserialize(value).map_err(|error| failed(error.into()))
}
