//! A cluster: from nothing to ready nodes, and back.

use std::{
    env, fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::{
    control_plane, daemon, driver,
    error::{At, Error},
    forward, images, lock, namespace, network, node, objects, packages, pki,
    places::{DEFAULT_NAME, Places},
    teardown, tools,
    topology::{Node, Topology},
};

/// How long nodes and DNS may take.
const LIMIT: Duration = Duration::from_secs(120);

/// What to bring up.
#[derive(Debug)]
pub struct Options {
    /// Name of the cluster: clusters of different names can run at the same time.
    pub name: String,
    pub topology: Topology,
}

impl Default for Options {
    fn default() -> Self {
        Options { name: DEFAULT_NAME.to_owned(), topology: Topology::default() }
    }
}

/// A cluster that is up. Dropping it changes nothing: [`Cluster::down`] ends it.
#[derive(Debug)]
pub struct Cluster {
    pub(crate) places: Places,
    pub(crate) topology: Topology,
}

impl Cluster {
    /// Ends what an earlier cluster of this name left, and brings up a new one: when this returns,
    /// nodes are ready, their GPUs are allocatable and services are found by DNS.
    pub fn up(options: Options) -> Result<Cluster, Error> {
        packages::check()?;
        let places = Places::new(&options.name)?;
        tools::check(&places)?;
        let _lock = lock::hold(&places.lock())?;
        teardown::all(&places)?;
        let cluster = Cluster { places, topology: options.topology };
        cluster.prepare()?;
        cluster.start()?;
        cluster.wait_for_nodes()?;
        Ok(cluster)
    }

    /// The cluster `name`, which is up.
    pub fn open(name: &str) -> Result<Cluster, Error> {
        let places = Places::new(name)?;
        let path = topology_file(&places);
        let Ok(text) = fs::read_to_string(&path) else {
            return Err(Error::NotUp { name: name.to_owned() });
        };
        let bad = |error: serde_json::Error| Error::Topology { path, reason: error.to_string() };
        Ok(Cluster { topology: serde_json::from_str(&text).map_err(bad)?, places })
    }

    /// Ends the cluster `name`, whole or half-made, and removes its files.
    pub fn down(name: &str) -> Result<(), Error> {
        let places = Places::new(name)?;
        packages::check()?;
        let _lock = lock::hold(&places.lock())?;
        teardown::all(&places)
    }

    /// What exists of the cluster `name`: processes, namespaces, control groups, mounts, files.
    /// Nothing after [`Cluster::down`].
    pub fn remains(name: &str) -> Result<Vec<String>, Error> {
        Ok(teardown::remains(&Places::new(name)?))
    }

    pub fn name(&self) -> &str {
        self.places.name()
    }

    pub fn places(&self) -> &Places {
        &self.places
    }

    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// For any client: leads through the forwarder on 127.0.0.1.
    pub fn kubeconfig(&self) -> PathBuf {
        self.places.kubeconfig()
    }

    /// A command that finds this cluster and its programs: `kubectl`, `helm`, `qvl`.
    pub fn command(&self, program: &str) -> Command {
        let own = self.places.program(program);
        let mut command = if own.exists() { Command::new(own) } else { Command::new(program) };
        let path = env::var("PATH").unwrap_or_default();
        command
            .env("KUBECONFIG", self.kubeconfig())
            .env("PATH", format!("{}:{path}", self.places.bin().display()));
        command
    }

    /// Runs kubectl through the forwarder and answers with its output.
    pub fn kubectl(&self, args: &[&str]) -> Result<String, Error> {
        output(self.command("kubectl").args(args))
    }

    /// Applies objects by server-side apply.
    pub fn apply(&self, yaml: &str) -> Result<String, Error> {
        let mut kubectl = self.command("kubectl");
        kubectl.args(["apply", "--server-side", "--force-conflicts", "-f", "-"]);
        input(&mut kubectl, yaml)
    }

    /// Imports an image archive on every node that runs.
    pub fn load(&self, archive: &Path) -> Result<(), Error> {
        let archive = archive.canonicalize().at("find", archive)?;
        let nodes = &self.topology.nodes;
        let load = |index: usize| {
            let node = &nodes[index].name;
            if daemon::running(&self.places, &format!("containerd-{node}")).is_none() {
                return Ok(());
            }
            node::inside(&self.places, node, || node::import(&self.places, &archive))
        };
        in_parallel(nodes.len(), load, || Ok(()))
    }

    /// Whether each daemon runs: its name, and its process.
    pub fn daemons(&self) -> Vec<(String, Option<i32>)> {
        let entries = fs::read_dir(self.places.pids()).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
            .into_iter()
            .map(|name| {
                let pid = daemon::running(&self.places, &name);
                (name, pid)
            })
            .collect()
    }

    /// Number and description of a node.
    pub(crate) fn node(&self, name: &str) -> Result<(usize, &Node), Error> {
        self.topology.find(name).ok_or_else(|| {
            let known: Vec<&str> =
                self.topology.nodes.iter().map(|node| node.name.as_str()).collect();
            Error::NoNode {
                name: self.name().to_owned(),
                node: name.to_owned(),
                known: known.join(", "),
            }
        })
    }

    /// Waits until `done`, or names `what` did not happen.
    pub fn wait(
        &self,
        what: &str,
        limit: Duration,
        done: impl FnMut() -> bool,
    ) -> Result<(), Error> {
        self.places.wait(what, limit, Duration::from_millis(100), done)
    }

    fn prepare(&self) -> Result<(), Error> {
        let places = &self.places;
        for folder in [places.logs(), places.pids(), places.images(), places.volumes()] {
            Places::make(&folder)?;
        }
        // A copy, because this one may be built anew while the cluster runs.
        let (program, copy) = (program()?, places.run().join("qvl-cluster"));
        fs::copy(&program, &copy).at("copy", &program)?;
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).at("open", &copy)?;
        let text = serde_json::to_string_pretty(&self.topology).expect("plain data");
        let path = topology_file(places);
        fs::write(&path, text).at("write", path)?;
        pki::make(places, &self.topology)?;
        images::basic(places)?;
        network::make(places, &self.topology)
    }

    fn start(&self) -> Result<(), Error> {
        let (places, nodes) = (&self.places, &self.topology.nodes);
        control_plane::begin(places, &self.topology)?;
        // Nodes import their images while the API server starts.
        in_parallel(
            nodes.len(),
            |index| node::boot(places, index, &nodes[index]),
            || control_plane::wait(places),
        )?;
        in_parallel(
            nodes.len(),
            |index| node::join(places, &self.topology, index),
            || {
                control_plane::finish(places, &self.topology)?;
                let objects = objects::make(places)?;
                namespace::inside(&places.network("cp"), || {
                    let mut kubectl = control_plane::kubectl(places);
                    kubectl.args(["apply", "--server-side", "-f", "-"]);
                    input(&mut kubectl, &objects)
                })?;
                forward::start(places)
            },
        )
    }

    fn wait_for_nodes(&self) -> Result<(), Error> {
        let nodes: Vec<&str> = self.topology.nodes.iter().map(|node| node.name.as_str()).collect();
        self.wait_for(&nodes)?;
        // Without it, pods of this namespace are refused.
        self.wait("there is no default service account", LIMIT, || {
            self.kubectl(&["get", "serviceaccount", "default"]).is_ok()
        })
    }

    /// Waits until these nodes are ready and offer as many GPUs as their scenarios have.
    pub(crate) fn wait_for(&self, nodes: &[&str]) -> Result<(), Error> {
        let mut expected = Vec::new();
        for name in nodes {
            let (_index, node) = self.node(name)?;
            // A broken driver may offer anything.
            let is_broken = node.scenario.is_some();
            let driver = driver::current(&self.places.node(name))?;
            let gpus = driver.map_or(0, |driver| driver.gpus.len());
            expected.push(((*name).to_owned(), if is_broken { 0 } else { gpus }));
        }
        self.wait("nodes are not ready", LIMIT, || {
            let Ok(text) = self.kubectl(&["get", "nodes", "-o", "json"]) else { return false };
            let list: Value = serde_json::from_str(&text).unwrap_or_default();
            expected.iter().all(|(name, gpus)| is_ready(&list, name, *gpus))
        })
    }
}

fn is_ready(list: &Value, name: &str, gpus: usize) -> bool {
    let nodes = list["items"].as_array().into_iter().flatten();
    let Some(node) = nodes.into_iter().find(|node| node["metadata"]["name"] == name) else {
        return false;
    };
    let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
    let ready = conditions.into_iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
    let offered = node["status"]["allocatable"]["nvidia.com/gpu"].as_str().unwrap_or("0");
    ready && gpus <= offered.parse().unwrap_or(0)
}

/// Runs `each` for all numbers on threads, and `meanwhile` here; answers with the first error.
fn in_parallel(
    count: usize,
    each: impl Fn(usize) -> Result<(), Error> + Sync,
    meanwhile: impl FnOnce() -> Result<(), Error>,
) -> Result<(), Error> {
    thread::scope(|scope| {
        let each = &each;
        let threads: Vec<_> = (0..count).map(|index| scope.spawn(move || each(index))).collect();
        let here = meanwhile();
        let there: Vec<Result<(), Error>> = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect();
        here.and(there.into_iter().collect())
    })
}

/// Runs a command to its end and answers with what it wrote.
pub(crate) fn output(command: &mut Command) -> Result<String, Error> {
    input(command, "")
}

/// The same with a text as its input.
pub(crate) fn input(command: &mut Command, text: &str) -> Result<String, Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    let name = Path::new(&program).file_name().unwrap_or_default().to_string_lossy();
    let arguments = command.get_args().map(|argument| argument.to_string_lossy());
    let shown = arguments.fold(name.into_owned(), |all, next| format!("{all} {next}"));
    let start = |source| Error::Start { program: program.clone(), source };
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(start)?;
    if let Some(mut pipe) = child.stdin.take() {
        // A command that does not read its input says itself what is wrong.
        let _unread = pipe.write_all(text.as_bytes());
    }
    let output = child.wait_with_output().map_err(start)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::Command { command: shown, message })
}

/// This crate's program: the one that runs, or the one beside the test that runs.
fn program() -> Result<PathBuf, Error> {
    let own = env::current_exe().at("find", "this program")?;
    let folder = own.parent().unwrap_or(Path::new("/"));
    let names = [folder.join("qvl-cluster"), folder.join("../qvl-cluster")];
    let found = names.into_iter().find(|path| path.exists());
    found.ok_or(Error::NotBuilt {
        path: folder.join("../qvl-cluster"),
        hint: "cargo build --release -p qvl-cluster",
    })
}

fn topology_file(places: &Places) -> PathBuf {
    places.run().join("topology.json")
}
