//! Where the runs of a user are remembered.

use std::path::PathBuf;

/// `$XDG_STATE_HOME/qvl/jobs`, by default `~/.local/state/qvl/jobs`.
pub(super) fn jobs() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
    let state = std::env::var_os("XDG_STATE_HOME").filter(|path| !path.is_empty());
    state.map_or_else(|| home().join(".local/state"), PathBuf::from).join("qvl/jobs")
}
