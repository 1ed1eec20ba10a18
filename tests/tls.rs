//! TLS between the parts of qvl as processes: a certificate that is renewed while a follower reads,
//! and what a pod says that does not believe the broker and the collector. `src/tls/tests.rs` has
//! every kind of certificate.
#![expect(clippy::unwrap_used, reason = "a test fails where it is wrong")]

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use qvl::{
    logs::spool::{Destination, Identity, Spool},
    tls::{self, Roots},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use serde_json::json;

const TOKEN: &str = "token-of-pod-0";

type Ca = CertifiedIssuer<'static, KeyPair>;

fn ca() -> Ca {
    let mut parameters = CertificateParams::new(Vec::new()).unwrap();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap()
}

/// Puts a certificate that is valid until the end of `year` where the kubelet would: both files
/// change at once, because they are links into a folder that is replaced.
fn issue(ca: &Ca, folder: &Path, year: i32) {
    let mut parameters = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    parameters.not_before = date_time_ymd(2020, 1, 1);
    parameters.not_after = date_time_ymd(year, 12, 31);
    let key = KeyPair::generate().unwrap();
    let certificate = parameters.signed_by(&key, ca).unwrap();
    let data = folder.join(format!("..{year}"));
    fs::create_dir_all(&data).unwrap();
    fs::write(data.join("tls.crt"), certificate.pem()).unwrap();
    fs::write(data.join("tls.key"), key.serialize_pem()).unwrap();
    let link = folder.join("..data_tmp");
    std::os::unix::fs::symlink(&data, &link).unwrap();
    fs::rename(&link, folder.join("..data")).unwrap();
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A process that ends with this.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        self.0.wait().unwrap();
    }
}

struct Collector {
    url: String,
    metrics: String,
    folder: PathBuf,
    _process: Process,
}

impl Collector {
    fn start(folder: &Path, flags: &[&str]) -> Collector {
        let (listen, metrics) = (free_port(), free_port());
        let tokens = json!([
            {"token": TOKEN, "namespace": "team", "job": "digits", "pod": "digits-a1-0-x7f2q",
                "podUid": "0b1f"},
            {"token": "token-of-reader", "namespace": "team", "job": "digits"},
        ]);
        fs::write(folder.join("tokens.json"), tokens.to_string()).unwrap();
        let log = fs::File::create(folder.join("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_qvl"));
        command
            .arg("collector")
            .args(["--listen", &format!("127.0.0.1:{listen}")])
            .args(["--metrics-listen", &format!("127.0.0.1:{metrics}")])
            .arg("--dir")
            .arg(folder.join("logs"))
            .arg("--tokens")
            .arg(folder.join("tokens.json"))
            .arg("--tls-cert")
            .arg(folder.join("..data/tls.crt"))
            .arg("--tls-key")
            .arg(folder.join("..data/tls.key"))
            .args(flags);
        let process = Process(command.stderr(log).spawn().unwrap());
        let collector = Collector {
            url: format!("https://127.0.0.1:{listen}"),
            metrics: format!("http://127.0.0.1:{metrics}/metrics"),
            folder: folder.to_owned(),
            _process: process,
        };
        until("the collector listens", || std::net::TcpStream::connect(("127.0.0.1", listen)).ok());
        collector
    }

    /// A number of its metrics, which are on a plain port.
    async fn metric(&self, name: &str) -> u64 {
        let answer = tls::client(None).build().unwrap().get(&self.metrics).send().await;
        let text = answer.unwrap().text().await.unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("{name}: {text}")).trim().parse().unwrap()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap()
    }

    fn lines(&self) -> String {
        format!("{}/v1/namespaces/team/jobs/digits/lines", self.url)
    }
}

#[track_caller]
fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "never: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

fn now_ms() -> u64 {
    u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap()
}

/// The spool of a pod that was given these roots.
fn spool(folder: &Path, collector: &str, roots: &Roots) -> Spool {
    let token_file = folder.join("token");
    fs::write(&token_file, TOKEN).unwrap();
    let identity = Identity {
        namespace: "team".to_owned(),
        job: "digits".to_owned(),
        attempt: 1,
        index: 0,
        pod_uid: "0b1f".to_owned(),
    };
    let roots = Some(roots.clone());
    let destination = Destination { collector: collector.to_owned(), token_file, roots };
    Spool::start(&folder.join("spool"), Some(destination), identity).unwrap()
}

#[test]
fn a_renewed_certificate_disturbs_neither_a_follower_nor_a_pod() {
    let folder = tempfile::tempdir().unwrap();
    let ca = ca();
    issue(&ca, folder.path(), 2099);
    let collector = Collector::start(folder.path(), &[]);
    let roots = Roots::parse("the CA", &ca.pem()).unwrap();
    let writing = spool(folder.path(), &collector.url, &roots);
    writing.push(0, 1, now_ms(), "before");
    let metric = |name: &str| block_on(collector.metric(name));
    let ends = metric("qvl_tls_not_after_seconds ");
    block_on(async {
        let client = tls::client(Some(&roots)).build().unwrap();
        let request = client.get(format!("{}?follow=true", collector.lines()));
        let mut answer = request.bearer_auth("token-of-reader").send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 200);
        let mut read = async |wanted: &str| {
            let mut text = String::new();
            while !text.contains(wanted) {
                let chunk = tokio::time::timeout(Duration::from_secs(20), answer.chunk()).await;
                text += std::str::from_utf8(&chunk.unwrap().unwrap().unwrap()).unwrap();
            }
        };
        read("before").await;
        issue(&ca, folder.path(), 2100);
        while collector.metric("qvl_tls_renewals_total ").await == 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        writing.push(0, 1, now_ms(), "after");
        read("after").await;
    });
    assert!(ends < metric("qvl_tls_not_after_seconds "));
    // New connections get the new one, of the CA that they know.
    let text = block_on(async {
        let client = tls::client(Some(&roots)).build().unwrap();
        let answer = client.get(collector.lines()).bearer_auth("token-of-reader").send().await;
        answer.unwrap().text().await.unwrap()
    });
    assert_eq!(text.lines().count(), 2, "{text}");
    assert_eq!(writing.close(Duration::from_secs(10)).acknowledged, 2);

    // A broken file is told, and the certificate of before stays.
    fs::write(folder.path().join("..data/tls.crt"), "no certificate").unwrap();
    until("the broken file is told", || (metric("qvl_tls_files_unusable ") == 1).then_some(()));
    let log = collector.log();
    assert!(log.contains("the older certificates stay in use"), "{log}");
    assert!(log.contains("no certificate in `"), "{log}");
    let again = spool(folder.path(), &collector.url, &roots);
    again.push(0, 1, now_ms(), "still");
    assert_eq!(again.close(Duration::from_secs(10)).trouble, None);
}

/// The supervisor of a pod that was given this CA; what it says until the text is there.
fn pod_says(folder: &Path, url: &str, ca: Option<&str>, wanted: &str) -> String {
    let pod = folder.join("pod");
    fs::create_dir_all(&pod).unwrap();
    let job = "apiVersion: qvl.dev/v1alpha1\nkind: FineTuneJob\nmetadata: {name: digits}\nspec:\n  \
        model: {path: m}\n  data: {train: [{name: t, path: t.json, task: text}]}\n  stages: [{name: a, \
        steps: 9}]\n  world: {gpus: 2, compute: cpu}\n  output: out\n";
    fs::write(pod.join("job.yaml"), job).unwrap();
    fs::write(pod.join("token"), TOKEN).unwrap();
    let said = pod.join("stderr");
    let mut command = Command::new(env!("CARGO_BIN_EXE_qvl"));
    command
        .args(["agent", "rank", "--skip-preflight", "--namespace", "team", "--name", "digits"])
        .args(["--attempt", "1", "--index", "0", "--pods", "1", "--local-ranks", "2"])
        .args(["--node", "n", "--pod-uid", "0b1f", "--pod-ip", "127.0.0.1", "--broker", url])
        .args(["--trainer", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/logs/writer.sh")])
        .stdout(Stdio::null())
        .stderr(fs::File::create(&said).unwrap());
    for (flag, name) in [
        ("--token-file", "token"),
        ("--job-file", "job.yaml"),
        ("--spool", "spool"),
        ("--termination-log", "termination"),
    ] {
        command.arg(flag).arg(pod.join(name));
    }
    if let Some(ca) = ca {
        command.env("QVL_CA", ca);
    }
    let _process = Process(command.spawn().unwrap());
    until(wanted, || Some(fs::read_to_string(&said).unwrap()).filter(|text| text.contains(wanted)))
}

#[test]
fn a_pod_says_why_it_does_not_believe_a_peer_and_what_helps() {
    let (ours, other) = (ca(), ca());
    let folder = tempfile::tempdir().unwrap();
    issue(&ours, folder.path(), 2099);
    // Who answers makes no difference: the handshake comes first.
    let collector = Collector::start(folder.path(), &[]);
    let url = collector.url.as_str();
    let text = pod_says(folder.path(), url, Some(&other.pem()), "was not made by a CA");
    assert!(text.contains("hint: the CA was replaced while the pod ran"), "{text}");
    let text =
        pod_says(folder.path(), url, None, "cannot be checked: no CA certificates are given");
    assert!(text.contains("hint: the operator sets QVL_CA"), "{text}");
    let text = pod_says(folder.path(), url, Some("noise"), "no certificate in QVL_CA");
    assert!(text.contains("hint: the operator sets QVL_CA"), "{text}");
    let plain = url.replace("https", "http");
    let text = pod_says(folder.path(), &plain, Some(&ours.pem()), "421 Misdirected Request");
    assert!(text.contains("this port speaks TLS") && text.contains("hint: use https://"), "{text}");

    issue(&ours, folder.path(), 2021);
    until("the old certificate is shown", || {
        (block_on(collector.metric("qvl_tls_renewals_total ")) == 1).then_some(())
    });
    let text =
        pod_says(folder.path(), url, Some(&ours.pem()), "its certificate ended at 2021-12-31");
    assert!(text.contains("`helm upgrade` makes a new one"), "{text}");
}

#[test]
fn a_spool_keeps_what_a_stranger_should_not_have() {
    let (ours, other) = (ca(), ca());
    let folder = tempfile::tempdir().unwrap();
    issue(&other, folder.path(), 2099);
    let stranger = Collector::start(folder.path(), &[]);
    let roots = Roots::parse("the CA", &ours.pem()).unwrap();
    let writing = spool(folder.path(), &stranger.url, &roots);
    writing.push(0, 1, now_ms(), "a line");
    let stats = writing.close(Duration::from_secs(2));
    assert_eq!((stats.written, stats.acknowledged, stats.lost), (1, 0, 0));
    let trouble = stats.trouble.unwrap();
    assert!(trouble.contains("was not made by a CA"), "{trouble}");
    assert_eq!(block_on(stranger.metric("qvl_collector_lines_total ")), 0);
    issue(&ours, folder.path(), 2100);
    until("the certificate is ours", || {
        (block_on(stranger.metric("qvl_tls_renewals_total ")) == 1).then_some(())
    });
    let again = spool(folder.path(), &stranger.url, &roots);
    assert_eq!(again.close(Duration::from_secs(20)).acknowledged, 1);
}

#[test]
fn programs_do_not_start_with_half_of_what_tls_needs() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tls.crt");
    let says = |words: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_qvl")).args(words).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let path = file.to_str().unwrap();
    let (code, text) = says(&["collector", "--tls-cert", path]);
    assert!(code == Some(2) && text.contains("--tls-key"), "{text}");
    fs::write(folder.path().join("tokens.json"), "[]").unwrap();
    let tokens = folder.path().join("tokens.json");
    let logs = folder.path().join("logs");
    let words = ["collector", "--tls-cert", path, "--tls-key", path, "--tokens"];
    let rest = [tokens.to_str().unwrap(), "--dir", logs.to_str().unwrap()];
    let (code, text) = says(&[&words[..], &rest[..]].concat());
    assert!(code == Some(2) && text.contains("failed to read `"), "{text}");
    assert!(text.contains("hint: expected PEM files"), "{text}");
}
