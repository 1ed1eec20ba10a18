//! Where a cluster keeps its files, and what its namespaces are called.

use std::{
    env, fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use crate::error::{At, Error};

/// Default name of a cluster.
pub const DEFAULT_NAME: &str = "test";

/// Folders and names of one cluster. Two clusters of different names do not meet.
#[derive(Clone, Debug)]
pub struct Places {
    name: String,
    root: PathBuf,
}

impl Places {
    /// `name` is part of the names of namespaces and control groups.
    pub fn new(name: &str) -> Result<Places, Error> {
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        if name.is_empty() || 8 < name.len() || !name.chars().all(good) {
            return Err(Error::Name { name: name.to_owned() });
        }
        Ok(Places { name: name.to_owned(), root: cache().join("cluster") })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Programs, shared by all clusters.
    pub fn bin(&self) -> PathBuf {
        self.root.join("bin")
    }

    /// One program.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin().join(name)
    }

    /// Charts and definitions that come with the programs, shared by all clusters.
    pub fn share(&self) -> PathBuf {
        self.root.join("share")
    }

    /// Logs of builds.
    pub fn build_logs(&self) -> PathBuf {
        self.root.join("build-logs")
    }

    /// Everything that one life of this cluster writes; `down` removes it.
    pub fn run(&self) -> PathBuf {
        let folder =
            if self.name == DEFAULT_NAME { "run".into() } else { format!("run-{}", self.name) };
        self.root.join(folder)
    }

    /// Locked while a process changes the cluster. Namespaces belong to the machine, whatever the
    /// cache folder.
    pub(crate) fn lock(&self) -> PathBuf {
        PathBuf::from(format!("/run/lock/{}change", self.prefix()))
    }

    /// Locked while a test uses the cluster.
    pub(crate) fn use_lock(&self) -> PathBuf {
        PathBuf::from(format!("/run/lock/{}use", self.prefix()))
    }

    /// For users: reaches the API server through the forwarder.
    pub fn kubeconfig(&self) -> PathBuf {
        self.run().join("kubeconfig")
    }

    pub(crate) fn pki(&self) -> PathBuf {
        self.run().join("pki")
    }

    pub fn logs(&self) -> PathBuf {
        self.run().join("log")
    }

    pub(crate) fn pids(&self) -> PathBuf {
        self.run().join("pids")
    }

    /// Image archives that every node imports when it boots for the first time.
    pub fn images(&self) -> PathBuf {
        self.run().join("images")
    }

    /// Folders behind the cluster's persistent volumes.
    pub fn volumes(&self) -> PathBuf {
        self.run().join("volumes")
    }

    /// Files of a node.
    pub fn node(&self, node: &str) -> PathBuf {
        self.run().join("nodes").join(node)
    }

    /// Prefix of every namespace and control group of this cluster.
    pub(crate) fn prefix(&self) -> String {
        format!("qvl-{}-", self.name)
    }

    /// Network namespace of a node, or of the control plane: `cp`.
    pub(crate) fn network(&self, node: &str) -> String {
        format!("{}{node}", self.prefix())
    }

    /// Makes a folder.
    pub(crate) fn make(folder: &Path) -> Result<(), Error> {
        fs::create_dir_all(folder).at("make the folder", folder)
    }

    /// Copies a file, or a folder with all in it. What is read-only there is not here.
    pub(crate) fn copy(from: &Path, to: &Path) -> Result<(), Error> {
        if !from.is_dir() {
            let bytes = fs::read(from).at("read", from)?;
            return fs::write(to, bytes).at("write", to);
        }
        Places::make(to)?;
        for entry in fs::read_dir(from).at("read", from)? {
            let entry = entry.at("read", from)?;
            Places::copy(&entry.path(), &to.join(entry.file_name()))?;
        }
        Ok(())
    }

    /// Waits until `done`, which is asked after each `pause`, or says `what` is wrong.
    pub(crate) fn wait(
        &self,
        what: &str,
        limit: Duration,
        pause: Duration,
        mut done: impl FnMut() -> bool,
    ) -> Result<(), Error> {
        let begin = Instant::now();
        while !done() {
            if limit < begin.elapsed() {
                let (what, log) = (what.to_owned(), self.logs());
                return Err(Error::Timeout { what, limit, log });
            }
            thread::sleep(pause);
        }
        Ok(())
    }
}

/// `QVL_CACHE`, or the user's cache folder.
fn cache() -> PathBuf {
    env::var_os("QVL_CACHE").map_or_else(
        || PathBuf::from(env::var_os("HOME").unwrap_or_else(|| "/tmp".into())).join(".cache/qvl"),
        PathBuf::from,
    )
}
