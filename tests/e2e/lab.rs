//! The cluster of these tests, with qvl installed from its chart as a user would.

use std::{
    cell::OnceCell,
    env,
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use axum::http::Request;
use kube::Client;
use qvl_cluster::{
    Topology, images,
    testing::{TestCluster, must},
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::{client, job::Job, seen::Said};

/// Longest wait for anything that should happen soon.
pub(crate) const SOON: Duration = Duration::from_secs(120);
/// What the chart is called, and where it is installed.
pub(crate) const SYSTEM: &str = "qvl-system";

/// Where the API server keeps the jobs of these tests.
pub(crate) const JOBS: &str = "/apis/qvl.dev/v1alpha1/namespaces/default/finetunejobs";

/// Where it keeps their pods.
pub(crate) const PODS: &str = "/api/v1/namespaces/default/pods";

/// Three nodes: a job uses two of them, so that one can take the place of another.
const NODES: &str = "nodes: [{name: n1, gpus: 2}, {name: n2, gpus: 2}, {name: n3, gpus: 2}]\n";

pub(crate) struct Lab {
    pub cluster: TestCluster,
    /// The folder behind the claim of model, data and results.
    pub volume: PathBuf,
    /// Job files and what was printed.
    pub folder: TempDir,
    client: Client,
    runtime: Runtime,
    reference: OnceCell<Vec<u8>>,
}

impl Lab {
    pub(crate) fn up() -> Lab {
        let folder = tempfile::tempdir().unwrap();
        let topology = folder.path().join("nodes.yaml");
        fs::write(&topology, NODES).unwrap();
        let cluster = TestCluster::with("e2e", must(Topology::read(&topology)));
        must(images::product(&cluster, &programs()));
        let data = folder.path().join("data");
        make_data(&data);
        let base = Path::new("examples/digits/base");
        let files = [(data, "demo/data".into()), (base.to_owned(), base.to_owned())];
        let volume = must(cluster.claim("digits", &files));
        let runtime = Runtime::new().unwrap();
        let client = runtime.block_on(client::connect(&cluster));
        let lab = Lab { cluster, volume, folder, client, runtime, reference: OnceCell::new() };
        lab.install();
        lab
    }

    pub(crate) fn install(&self) {
        // Without agents: what they say of this machine is no part of what is compared.
        let values =
            ["-f", "charts/qvl/ci/test-cluster-values.yaml", "--set", "agent.enabled=false"];
        let words = ["install", "qvl", "charts/qvl", "--create-namespace", "--wait"];
        self.helm(&[&words[..], &values].concat());
    }

    /// helm in the namespace of qvl, which must succeed.
    #[track_caller]
    pub(crate) fn helm(&self, words: &[&str]) {
        let mut helm = self.cluster.command("helm");
        let done =
            Said::of(&helm.args(words).args(["-n", SYSTEM, "--timeout", "120s"]).output().unwrap());
        assert_eq!(done.code, 0, "helm {words:?}: {done}");
    }

    /// `qvl` as a user of this cluster calls it.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut qvl = self.cluster.command(env!("CARGO_BIN_EXE_qvl"));
        // Runs of this machine are not meant.
        qvl.args(words).env("XDG_STATE_HOME", self.folder.path().join("state"));
        qvl.env("COLUMNS", "120").stdin(Stdio::null());
        qvl
    }

    pub(crate) fn qvl(&self, words: &[&str]) -> Said {
        Said::of(&self.command(words).output().unwrap())
    }

    /// What the API server answers to a GET of a path; null if the object is absent. Asked often: a
    /// kubectl each time would take a tenth of a second of a processor from the job.
    pub(crate) fn get(&self, path: &str) -> Value {
        let request = Request::get(path).body(Vec::new()).unwrap();
        self.runtime.block_on(self.client.request(request)).unwrap_or_default()
    }

    /// A field of an object; null if either is absent.
    pub(crate) fn field(&self, path: &str, pointer: &str) -> Value {
        self.get(path).pointer(pointer).cloned().unwrap_or_default()
    }

    /// Whether a list has no objects; not so if the API server does not answer.
    pub(crate) fn is_empty(&self, path: &str) -> bool {
        self.field(path, "/items").as_array().is_some_and(Vec::is_empty)
    }

    /// Changes how many pods an object of qvl has, and waits until it is so.
    pub(crate) fn scale(&self, kind: &str, name: &str, replicas: u32) {
        self.cluster.run(&format!("-n {SYSTEM} scale {kind} {name} --replicas {replicas}"));
        let path = format!("/apis/apps/v1/namespaces/{SYSTEM}/{kind}/{name}");
        let ready = || {
            let object = self.get(&path);
            let count = |field: &str| object["status"][field].as_u64().unwrap_or(0);
            let wanted = u64::from(replicas);
            (count("readyReplicas") == wanted && count("replicas") == wanted).then_some(())
        };
        until(&format!("{kind} {name} has {replicas} pods"), ready);
    }

    /// The weights that every run of [`Job::digits`] must end with: those of one rank on this machine.
    pub(crate) fn reference(&self) -> &[u8] {
        self.reference.get_or_init(|| {
            let folder = self.folder.path().join("reference/examples/digits");
            fs::create_dir_all(&folder).unwrap();
            let root = folder.join("../..");
            let link = |from: PathBuf, to: PathBuf| std::os::unix::fs::symlink(from, to).unwrap();
            link(fs::canonicalize("examples/digits/base").unwrap(), folder.join("base"));
            fs::create_dir_all(root.join("demo")).unwrap();
            link(self.folder.path().join("data"), root.join("demo/data"));
            let job = Job::digits("reference");
            let file = folder.join("job.yaml");
            fs::write(&file, job.text()).unwrap();
            let file = file.to_str().unwrap();
            let said = self.qvl(&["launch", file, "--local", "--gpus", "1", "--output", "json"]);
            assert_eq!(said.code, 0, "{said}");
            fs::read(root.join("demo/reference/adapter/adapter_model.safetensors")).unwrap()
        })
    }

    /// Deletes all jobs and waits until their pods are gone.
    pub(crate) fn clean(&self) {
        self.cluster.run("delete ftj --all --wait=false");
        let kinds = [PODS, "/apis/batch/v1/namespaces/default/jobs", JOBS];
        let gone = || kinds.iter().all(|path| self.is_empty(path)).then_some(());
        until("the last job is gone", gone);
    }
}

/// Where the API server keeps the pods, Secrets and claims of qvl itself.
pub(crate) fn system(rest: &str) -> String {
    format!("/api/v1/namespaces/{SYSTEM}/{rest}")
}

/// Milliseconds since the Unix epoch.
pub(crate) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(now.as_millis()).unwrap()
}

/// Writes down how long something took, for whoever asked with QVL_FIGURES=FILE.
pub(crate) fn figure(what: &str, milliseconds: u64) {
    if let Ok(path) = env::var("QVL_FIGURES") {
        let mut file = File::options().create(true).append(true).open(path).unwrap();
        writeln!(file, "| {what} | {:.2} s |", milliseconds as f64 / 1e3).unwrap();
    }
}

/// Waits until there is an answer.
#[track_caller]
pub(crate) fn until<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    within(SOON, what, ask)
}

/// Waits at most so long until there is an answer.
#[track_caller]
pub(crate) fn within<T>(limit: Duration, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begin.elapsed() < limit, "not within {} s: {what}", limit.as_secs());
        thread::sleep(Duration::from_millis(100));
    }
}

/// The folder of the built programs.
fn programs() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_qvl")).parent().unwrap().to_owned()
}

fn make_data(target: &Path) {
    let cache = env::var("QVL_CACHE").map_or_else(
        |_unset| PathBuf::from(env::var("HOME").unwrap()).join(".cache/qvl"),
        PathBuf::from,
    );
    let digits = programs().join("examples/digits");
    assert!(digits.exists(), "missing program: cargo build --release --examples");
    let packages = cache.join("packages");
    assert!(packages.join("digits.csv.gz").exists(), "missing pictures: make setup-data");
    let made =
        Command::new(digits).arg("--packages").arg(packages).arg("--out").arg(target).output();
    let made = made.unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}
