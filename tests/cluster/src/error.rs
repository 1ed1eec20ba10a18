//! Why an operation on the cluster failed.

use std::{io, path::PathBuf, time::Duration};

/// One variant per failed operation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the test cluster needs root")]
    NotRoot,
    #[error("missing packages: {}", packages.join(" "))]
    Packages { packages: Vec<&'static str> },
    #[error("no Go toolchain")]
    NoGo,
    #[error("`{tool}` did not build; its log is `{log}`", log = log.display())]
    Build { tool: &'static str, log: PathBuf },
    #[error("`{path}` was not built", path = path.display())]
    NotBuilt { path: PathBuf, hint: &'static str },
    #[error("cannot {what} `{path}`", path = path.display())]
    File { what: &'static str, path: PathBuf, source: io::Error },
    #[error("`{path}` does not describe nodes: {reason}", path = path.display())]
    Topology { path: PathBuf, reason: String },
    #[error("the name `{name}` of a cluster is not made of 1 to 8 lower-case letters and digits")]
    Name { name: String },
    #[error("cannot start `{program}`")]
    Start { program: String, source: io::Error },
    #[error("`{command}` failed: {message}")]
    Command { command: String, message: String },
    #[error("cannot {what}")]
    System { what: String, source: io::Error },
    #[error("cannot make the certificate of `{name}`")]
    Certificate { name: String, source: rcgen::Error },
    #[error("{what} after {} s; logs are in `{}`", limit.as_secs(), log.display())]
    Timeout { what: String, limit: Duration, log: PathBuf },
    #[error("`{name}` ended: {last}; its log is `{log}`", log = log.display())]
    Ended { name: &'static str, last: String, log: PathBuf },
    #[error("cluster `{name}` is not up")]
    NotUp { name: String },
    #[error("cluster `{name}` has no node `{node}`; it has {known}")]
    NoNode { name: String, node: String, known: String },
    #[error("`{path}` is no scenario of the simulated driver: {reason}", path = path.display())]
    Scenario { path: PathBuf, reason: String },
    #[error("node `{node}` has no GPU {gpu}")]
    NoGpu { node: String, gpu: usize },
    #[error("what is left of cluster `{name}` cannot be removed: {what}")]
    Leftover { name: String, what: String },
}

impl Error {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::NotRoot => Some("run it with sudo -E".to_owned()),
            Error::Packages { packages } => {
                Some(format!("apt-get install -y {}", packages.join(" ")))
            }
            Error::NoGo => Some("install Go 1.26 or newer: https://go.dev/dl".to_owned()),
            Error::NotBuilt { hint, .. } => Some((*hint).to_owned()),
            Error::Name { .. } => Some("see QVL_CLUSTER or --name".to_owned()),
            Error::NotUp { .. } => Some("make cluster-up".to_owned()),
            Error::Build { .. } => Some("the tail of the log names the cause".to_owned()),
            Error::Topology { .. } => Some("see tests/cluster/nodes.yaml".to_owned()),
            Error::Scenario { .. } => Some("see tests/simgpu/src/scenario.rs".to_owned()),
            Error::Leftover { .. } => Some("try `qvl-cluster down` again".to_owned()),
            Error::File { .. }
            | Error::Start { .. }
            | Error::Command { .. }
            | Error::System { .. }
            | Error::Certificate { .. }
            | Error::Timeout { .. }
            | Error::Ended { .. }
            | Error::NoNode { .. }
            | Error::NoGpu { .. } => None,
        }
    }
}

/// Names the file in the error of a file operation.
pub(crate) trait At<T> {
    /// `what` is a verb: `read`, `write`, `make the folder`.
    fn at(self, what: &'static str, path: impl Into<PathBuf>) -> Result<T, Error>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, what: &'static str, path: impl Into<PathBuf>) -> Result<T, Error> {
        self.map_err(|source| Error::File { what, path: path.into(), source })
    }
}

impl<T> At<T> for nix::Result<T> {
    fn at(self, what: &'static str, path: impl Into<PathBuf>) -> Result<T, Error> {
        self.map_err(io::Error::from).at(what, path)
    }
}
