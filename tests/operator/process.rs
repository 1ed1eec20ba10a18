//! `qvl operator` as a process that can be killed at any moment.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Mutex,
    time::Duration,
};

use serde_json::Value;

/// A running operator, and another one after each crash.
pub(crate) struct Operator {
    namespace: Option<String>,
    kubeconfig: PathBuf,
    log: PathBuf,
    child: Mutex<Child>,
}

impl Operator {
    /// Starts one for a namespace, or for all. It finds the API server at `server`; `folder` gets
    /// its kubeconfig and its log.
    pub(crate) fn start(namespace: Option<&str>, server: SocketAddr, folder: &Path) -> Operator {
        let name = namespace.unwrap_or("all");
        let kubeconfig = folder.join(format!("{name}.kubeconfig"));
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: t\n\
             clusters: [{{name: t, cluster: {{server: 'http://{server}'}}}}]\n\
             contexts: [{{name: t, context: {{cluster: t, user: t}}}}]\n\
             users: [{{name: t, user: {{}}}}]\n"
        );
        fs::write(&kubeconfig, text).unwrap();
        Operator::with(namespace, kubeconfig, folder)
    }

    /// The same with a kubeconfig.
    pub(crate) fn with(namespace: Option<&str>, kubeconfig: PathBuf, folder: &Path) -> Operator {
        let log = folder.join(format!("{}.log", namespace.unwrap_or("all")));
        let namespace = namespace.map(str::to_owned);
        let child = Mutex::new(spawn(namespace.as_deref(), &kubeconfig, &log));
        Operator { namespace, kubeconfig, log, child }
    }

    /// Kills it and starts the next.
    pub(crate) fn crash(&self) {
        let mut child = self.child.lock().unwrap();
        kill(&mut child);
        *child = spawn(self.namespace.as_deref(), &self.kubeconfig, &self.log);
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.lock().unwrap().id()
    }

    /// A number of its metrics; `None` if it does not answer yet.
    pub(crate) fn metric(&self, name: &str) -> Option<u64> {
        let text = self.metrics()?;
        let lines = text.lines().filter_map(|line| line.strip_prefix(name));
        let values = lines.filter_map(|rest| rest.rsplit(' ').next()?.parse::<u64>().ok());
        Some(values.sum())
    }

    /// All of its metrics.
    pub(crate) fn metrics(&self) -> Option<String> {
        let mut socket = TcpStream::connect(self.page()?).ok()?;
        socket.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
        socket.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").ok()?;
        let mut text = String::new();
        socket.read_to_string(&mut text).ok()?;
        Some(text)
    }

    /// Where the newest one serves its metrics, by its log: the system chooses the port.
    fn page(&self) -> Option<SocketAddr> {
        let text = fs::read_to_string(&self.log).ok()?;
        let mut told = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let listens = told.rfind(|line| line["fields"]["what"] == "metrics")?;
        listens["fields"]["address"].as_str()?.parse().ok()
    }

    /// The last lines that it wrote.
    pub(crate) fn last_words(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        kill(&mut self.child.lock().unwrap());
    }
}

fn kill(child: &mut Child) {
    // One that has ended by itself is gone as well.
    let _ended = child.kill();
    child.wait().unwrap();
}

fn spawn(namespace: Option<&str>, kubeconfig: &Path, log: &Path) -> Child {
    let log = File::options().create(true).append(true).open(log).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_qvl"));
    command.args(["operator", "--image=none", "--broker-url=http://127.0.0.1:9"]);
    command.args(["--broker-listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0"]);
    if let Some(namespace) = namespace {
        command.args(["--namespace", namespace]);
    }
    command.env("KUBECONFIG", kubeconfig);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap()
}
