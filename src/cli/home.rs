//! Where the runs and the repairs of a user are remembered.

use std::path::PathBuf;

/// `$XDG_STATE_HOME/qvl/jobs`, by default `~/.local/state/qvl/jobs`.
pub(super) fn jobs() -> PathBuf {
    state().join("jobs")
}

/// The journal of repairs of a machine: home folders are often shared between machines.
pub(super) fn repairs(node: &str) -> PathBuf {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    let name: String = node.chars().map(plain).collect();
    state().join(format!("repairs/{name}.jsonl"))
}

fn state() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
    let state = std::env::var_os("XDG_STATE_HOME").filter(|path| !path.is_empty());
    state.map_or_else(|| home().join(".local/state"), PathBuf::from).join("qvl")
}
