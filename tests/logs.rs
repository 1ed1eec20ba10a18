//! The log contract with real processes, files and sockets: pods that are killed, a collector that
//! is killed, requests that nobody should believe, a disk that is full.

#![expect(clippy::unwrap_used, reason = "a test fails where it is wrong")]

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use qvl::{
    logs::{
        auth::{self, Auth, Caller},
        collector::StoredLine,
        segment::{Body, Record},
        spool::{Destination, Identity, Limits, Spool, Stats},
    },
    operator::{
        broker::{self, Broker, Leader, random_tokens},
        gang::{GangSpec, Gangs},
    },
    tls,
};
use serde_json::json;

/// Names the folder of a pod in a child process of these tests.
const POD: &str = "QVL_TEST_LOGS_POD";
const TOKEN: &str = "token-of-pod-0";

fn identity() -> Identity {
    Identity {
        namespace: "team".to_owned(),
        job: "digits".to_owned(),
        attempt: 1,
        index: 0,
        pod_uid: "0b1f".to_owned(),
    }
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(now.as_millis()).unwrap()
}

/// A collector as a process of its own, which can be killed.
struct Collector {
    folder: PathBuf,
    url: String,
    flags: Vec<String>,
    process: Option<Child>,
}

impl Collector {
    fn start(folder: &Path, flags: &[&str]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let pod = |token: &str, namespace: &str, job: &str, index: u32, uid: &str| {
            let pod = format!("{job}-a1-{index}-x7f2q");
            json!({"token": token, "namespace": namespace, "job": job, "pod": pod, "podUid": uid})
        };
        let tokens = json!([
            pod(TOKEN, "team", "digits", 0, "0b1f"),
            pod("token-of-pod-1", "team", "digits", 1, "77aa"),
            pod("token-of-other-job", "team", "letters", 0, "0c0c"),
            {"token": "token-of-reader", "namespace": "team", "job": "digits"},
        ]);
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("tokens.json"), tokens.to_string()).unwrap();
        let mut collector = Collector {
            folder: folder.to_owned(),
            url: format!("http://127.0.0.1:{port}"),
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            process: None,
        };
        collector.run();
        collector
    }

    fn run(&mut self) {
        let address = self.url.strip_prefix("http://").unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_qvl"));
        command.args(["collector", "--listen", address, "--metrics-listen", "127.0.0.1:0"]);
        command.arg("--dir").arg(self.folder.join("logs"));
        command.arg("--tokens").arg(self.folder.join("tokens.json")).args(&self.flags);
        let log = fs::File::options().create(true).append(true).open(self.folder.join("log"));
        self.process = Some(command.stderr(log.unwrap()).spawn().unwrap());
        let begin = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(begin.elapsed() < Duration::from_secs(20), "the collector does not listen");
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn kill(&mut self) {
        let mut process = self.process.take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    fn segments(&self) -> String {
        self.place("segments?attempt=1&index=0&podUid=0b1f")
    }

    fn place(&self, what: &str) -> String {
        format!("{}/v1/namespaces/team/jobs/digits/{what}", self.url)
    }

    fn lines(&self) -> Vec<StoredLine> {
        let (status, text) = get(&self.place("lines"), "token-of-reader");
        assert_eq!(status, 200, "{text}");
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Sends what is left in a pod's folder.
    fn drain(&self, pod: &Path) -> Stats {
        let spool = spool(pod, &self.url, Limits::default());
        let stats = spool.close(Duration::from_secs(30));
        assert_eq!(stats.trouble, None);
        stats
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.kill();
        }
    }
}

fn http() -> reqwest::Client {
    tls::client(None).build().unwrap()
}

/// Status and text of the answer.
fn post(url: &str, token: &str, body: &[u8]) -> (u16, String) {
    block_on(async {
        let request = http().post(url).bearer_auth(token);
        let answer = request.body(body.to_vec()).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    })
}

/// The answer to the head of a segment of that length: a large one is refused before it is sent.
fn announce(collector: &Collector, length: usize) -> String {
    let address = collector.url.strip_prefix("http://").unwrap();
    let url = collector.segments();
    let path = url.strip_prefix(&collector.url).unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {TOKEN}\r\n\
         content-length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = [0; 64];
    let length = stream.read(&mut answer).unwrap();
    String::from_utf8_lossy(&answer[..length]).into_owned()
}

fn get(url: &str, token: &str) -> (u16, String) {
    block_on(async {
        let request = http().get(url).header("x-qvl-token", token);
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    })
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

fn spool(pod: &Path, url: &str, limits: Limits) -> Spool {
    let token = pod.join("token");
    fs::create_dir_all(pod).unwrap();
    fs::write(&token, format!("{TOKEN}\n")).unwrap();
    let destination = Destination { collector: url.to_owned(), token_file: token, roots: None };
    Spool::start_with(&pod.join("spool"), Some(destination), identity(), limits).unwrap()
}

fn frames(records: impl IntoIterator<Item = (u32, u64, String)>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (rank, number, text) in records {
        let body = Body::Line(text);
        Record { rank, attempt: 1, epoch: 1, time_ms: 5, number, body }.encode(&mut bytes);
    }
    bytes
}

/// What a pod does: two ranks write lines and note, behind each, that it was written. As a child
/// of another test it does so until it is killed.
#[test]
fn a_pod_writes_lines_and_notes_each() {
    let (folder, url, endless) = match env::var(POD) {
        Ok(value) => {
            let (folder, url) = value.split_once(' ').unwrap();
            (PathBuf::from(folder), url.to_owned(), true)
        }
        Err(_) => (tempfile::tempdir().unwrap().keep(), "http://127.0.0.1:1".to_owned(), false),
    };
    let limits = Limits { segment_bytes: 64 * 1024, ..Limits::default() };
    let spool = spool(&folder, &url, limits);
    let notes = fs::File::options().create(true).append(true).open(folder.join("notes"));
    let mut notes = notes.unwrap();
    // The numbers of processes repeat.
    let writer = format!("{}-{}", std::process::id(), now_ms());
    let mut i = 0;
    while endless || i < 100 {
        let rank = i % 2;
        let text = format!("{writer}-{i}");
        spool.push(rank, 1, now_ms(), &text);
        notes.write_all(format!("{} {rank} {text}\n", now_ms()).as_bytes()).unwrap();
        i += 1;
        if i.is_multiple_of(8) {
            thread::sleep(Duration::from_millis(4));
        }
    }
    let stats = spool.close(Duration::from_secs(1));
    assert_eq!((stats.pushed, stats.written, stats.acknowledged), (100, 100, 0));
    fs::remove_dir_all(folder).unwrap();
}

/// So many kills, or ten times as many with `QVL_SOAK=1`.
fn kills(usual: u64) -> u64 {
    if env::var("QVL_SOAK").is_ok_and(|value| value == "1") { usual * 10 } else { usual }
}

/// Pauses that nobody chose. `QVL_SEED` repeats those of a run that failed.
struct Pauses(u64);

impl Pauses {
    fn new(test: &str) -> Self {
        let given = env::var("QVL_SEED").ok().map(|seed| seed.parse().unwrap());
        let seed = given.unwrap_or_else(now_ms);
        let mut err = std::io::stderr();
        writeln!(err, "{test}: QVL_SEED={seed}").unwrap();
        Pauses(seed)
    }

    /// Milliseconds within a range.
    fn next(&mut self, range: std::ops::Range<u64>) -> Duration {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        Duration::from_millis(range.start + (self.0 >> 33) % (range.end - range.start))
    }
}

#[test]
fn no_line_that_is_a_second_old_is_lost_when_pods_and_collectors_are_killed() {
    let folder = tempfile::tempdir().unwrap();
    let pod = folder.path().join("pod");
    fs::create_dir_all(&pod).unwrap();
    let mut collector = Collector::start(&folder.path().join("collector"), &[]);
    let mut pauses = Pauses::new("pods and collectors");
    let mut ends = Vec::new();
    for round in 0..kills(20) {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "a_pod_writes_lines_and_notes_each"])
            .env(POD, format!("{} {}", pod.display(), collector.url))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        thread::sleep(pauses.next(500..750));
        if round % 3 == 1 {
            collector.kill();
            thread::sleep(pauses.next(0..300));
            collector.run();
        }
        thread::sleep(pauses.next(550..800));
        let now = now_ms();
        child.kill().unwrap();
        child.wait().unwrap();
        ends.push((now, fs::metadata(pod.join("notes")).unwrap().len()));
    }
    collector.drain(&pod);
    let notes = fs::read_to_string(pod.join("notes")).unwrap();
    compare(&collector.lines(), &notes, &ends);
}

/// A broker for the job, in this process, and what it knows of the job.
fn broker(runtime: &tokio::runtime::Runtime) -> (String, Arc<Mutex<Gangs>>) {
    let gangs = Arc::new(Mutex::new(Gangs::new(random_tokens())));
    let pod = Some(("digits-a1-0-x7f2q".to_owned(), "0b1f".to_owned()));
    let caller = Caller { namespace: "team".to_owned(), pod };
    let auth = Auth::Fixed(vec![(TOKEN.to_owned(), auth::audience("team", "digits"), caller)]);
    // The sender may go: what it has said stays.
    let leader = tokio::sync::watch::channel(Leader::Me).1;
    let broker = Arc::new(Broker::new(auth, Arc::clone(&gangs), leader));
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    runtime.spawn(broker::serve(listener, None, broker, std::future::pending()));
    (url, gangs)
}

/// The supervisor of the only pod of a job.
fn supervisor(pod: &Path, broker: &str, collector: &str) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qvl"));
    command
        .args(["agent", "rank", "--skip-preflight", "--namespace", "team", "--name", "digits"])
        .args(["--attempt", "1", "--index", "0", "--pods", "1", "--local-ranks", "2"])
        .args(["--node", "n", "--pod-uid", "0b1f", "--pod-ip", "127.0.0.1"])
        .args(["--broker", broker, "--collector", collector])
        .args(["--trainer", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/logs/writer.sh")]);
    for (flag, name) in [
        ("--token-file", "token"),
        ("--job-file", "job.yaml"),
        ("--spool", "spool"),
        ("--termination-log", "termination"),
    ] {
        command.arg(flag).arg(pod.join(name));
    }
    command.env("NOTES", pod.join("notes")).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

const JOB: &str = "
apiVersion: qvl.dev/v1alpha1
kind: FineTuneJob
metadata: {name: digits}
spec:
  model: {path: m}
  data: {train: [{name: t, path: t.json, task: text}]}
  stages: [{name: a, steps: 9}]
  world: {gpus: 2, compute: cpu}
  output: out
";

#[test]
fn no_line_that_is_a_second_old_is_lost_when_supervisors_are_killed() {
    let folder = tempfile::tempdir().unwrap();
    let pod = folder.path().join("pod");
    fs::create_dir_all(&pod).unwrap();
    fs::write(pod.join("token"), TOKEN).unwrap();
    fs::write(pod.join("job.yaml"), JOB).unwrap();
    let mut collector = Collector::start(&folder.path().join("collector"), &[]);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let (broker, gangs) = broker(&runtime);
    let key = ("team".to_owned(), "digits".to_owned());
    let (attempt, pods, ranks_per_pod, max_restarts) = (1, 1, 2, 3);
    let (restarts, epoch_floor) = (0, 0);
    let spec = GangSpec {
        attempt,
        pods,
        ranks_per_pod,
        max_restarts,
        restarts,
        epoch_floor,
        replaces: false,
    };
    let mut pauses = Pauses::new("supervisors");
    let mut ends = Vec::new();
    for round in 0..kills(6) {
        // As if the pod had just been made: no pause before a restart.
        gangs.lock().unwrap().forget(&key);
        gangs.lock().unwrap().register(key.clone(), spec);
        let before = fs::read_to_string(pod.join("notes")).unwrap_or_default().len();
        let mut agent = supervisor(&pod, &broker, &collector.url);
        let begin = Instant::now();
        while fs::read_to_string(pod.join("notes")).unwrap_or_default().len() == before {
            assert!(begin.elapsed() < Duration::from_secs(60), "no rank writes");
            thread::sleep(Duration::from_millis(20));
        }
        thread::sleep(pauses.next(1000..1500));
        if round % 3 == 1 {
            collector.kill();
            thread::sleep(pauses.next(0..300));
            collector.run();
        }
        thread::sleep(pauses.next(0..500));
        let now = now_ms();
        agent.kill().unwrap();
        agent.wait().unwrap();
        wait_for_writers(&pod.join("notes"));
        ends.push((now, fs::metadata(pod.join("notes")).unwrap().len()));
    }
    collector.drain(&pod);
    let notes = fs::read_to_string(pod.join("notes")).unwrap();
    compare(&collector.lines(), &notes, &ends);
}

/// Ranks whose supervisor is gone may note one line more, which nobody reads, and end.
fn wait_for_writers(notes: &Path) {
    let notes = fs::read_to_string(notes).unwrap();
    let text = |note: &str| note.rsplit(' ').next().map(str::to_owned);
    let pids: BTreeSet<String> =
        notes.lines().filter_map(|note| Some(text(note)?.split('-').next()?.to_owned())).collect();
    let lives = |pid: &String| {
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.contains("writer.sh")
    };
    let begin = Instant::now();
    while pids.iter().any(lives) {
        assert!(begin.elapsed() < Duration::from_secs(60), "a rank outlives its supervisor");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Each line that was noted a second before a kill must be stored, once, in order. Of each kill
/// the time is given, and the length of the notes by then.
fn compare(stored: &[StoredLine], notes: &str, kills: &[(u64, u64)]) {
    let mut next: BTreeMap<u32, u64> = BTreeMap::new();
    let mut texts: BTreeMap<(u32, &str), u32> = BTreeMap::new();
    for line in stored {
        assert_eq!(line.lost, None, "nothing was given up");
        let next = next.entry(line.rank).or_default();
        assert_eq!(line.number, *next, "rank {}: in order, without gaps", line.rank);
        *next += 1;
        *texts.entry((line.rank, line.text.as_deref().unwrap())).or_default() += 1;
    }
    let twice: Vec<_> = texts.iter().filter(|(_line, count)| 1 < **count).collect();
    assert!(twice.is_empty(), "lines are there more than once: {twice:?}");
    let (mut promised, mut lost, mut youngest) = (0, Vec::new(), 0);
    let mut read = 0;
    for note in notes.split_inclusive('\n') {
        read += note.len() as u64;
        let words: Vec<&str> = note.trim_end().split(' ').collect();
        let &[time, rank, text] = words.as_slice() else { continue };
        let (time, rank): (u64, u32) = (time.parse().unwrap(), rank.parse().unwrap());
        let (kill, _length) = *kills.iter().find(|(_time, length)| read <= *length).unwrap();
        let stored = texts.contains_key(&(rank, text));
        if time + 1000 <= kill {
            promised += 1;
            if !stored {
                lost.push(note);
            }
        }
        if !stored {
            youngest = youngest.max(kill.saturating_sub(time));
        }
    }
    let mut err = std::io::stderr();
    writeln!(
        err,
        "{promised} lines were promised, {} stored; the oldest lost one was {youngest} ms old",
        stored.len()
    )
    .unwrap();
    assert!(0 < promised);
    assert_eq!(lost, Vec::<&str>::new());
}

#[test]
fn files_that_were_cut_are_read_to_the_cut_and_gone_on_with() {
    let folder = tempfile::tempdir().unwrap();
    let mut collector = Collector::start(&folder.path().join("collector"), &[]);
    let line = |number: u64| (0, number, format!("line {number}"));
    assert_eq!(post(&collector.segments(), TOKEN, &frames((0..100).map(line))).0, 200);
    collector.kill();
    let parts = collector.folder.join("logs/team/digits/a00001");
    let part = fs::read_dir(parts).unwrap().next().unwrap().unwrap().path();
    let length = fs::metadata(&part).unwrap().len();
    fs::File::options().write(true).open(&part).unwrap().set_len(length / 2 - 3).unwrap();
    collector.run();
    let left = collector.lines().len() as u64;
    assert!(40 < left && left < 60, "{left}");
    assert_eq!(post(&collector.segments(), TOKEN, &frames([line(100)])).0, 200);
    let lines = collector.lines();
    let texts: Vec<_> = lines.iter().filter_map(|line| line.text.clone()).collect();
    let expected: Vec<_> = (0..left).chain([100]).map(|number| line(number).2).collect();
    assert_eq!(texts, expected);
    let gaps: Vec<_> = lines.iter().filter_map(|line| Some((line.number, line.lost?))).collect();
    assert_eq!(gaps, [(left, 100 - left)]);
}

#[test]
fn requests_that_nobody_should_believe_are_refused_and_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let collector = Collector::start(&folder.path().join("collector"), &[]);
    let sent = frames([(0, 0, "a".to_owned())]);
    let refused = |what: &str, token: &str, body: &[u8], status: u16, why: &str| {
        let (got, text) = post(&collector.place(what), token, body);
        assert_eq!(got, status, "{what}: {text}");
        assert!(text.contains(why), "{what}: {text}");
    };
    let segments = "segments?attempt=1&index=0&podUid=0b1f";
    refused(segments, "no-token", &sent, 401, "not valid for `qvl.dev/team/digits`");
    refused(segments, "token-of-other-job", &sent, 401, "not valid");
    refused(segments, "token-of-pod-1", &sent, 403, "not that of pod 0");
    refused(segments, "token-of-reader", &sent, 403, "not that of pod 0");
    refused("segments?attempt=2&index=0&podUid=0b1f", TOKEN, &sent, 403, "attempt 2");
    refused("segments?attempt=1&index=0&podUid=77aa", TOKEN, &sent, 403, "not that of pod 0");
    refused("segments?attempt=1&index=0&podUid=..%2F..", TOKEN, &sent, 400, "no pod UID");
    refused("segments?attempt=x&index=0&podUid=0b1f", TOKEN, &sent, 400, "");
    refused(segments, TOKEN, b"no segment", 400, "damaged after 0 bytes");
    assert!(announce(&collector, (4 << 20) + 1).starts_with("HTTP/1.1 413 "));
    refused(segments, TOKEN, &frames([(16, 0, "a".to_owned())]), 403, "rank 16");
    for job in ["..%2F..%2Fetc", "%2Fetc", "a%00b", "..", "."] {
        let url = format!("{}/v1/namespaces/team/jobs/{job}/{segments}", collector.url);
        let status = post(&url, TOKEN, &sent).0;
        assert!([400, 401, 404].contains(&status), "{job}: {status}");
    }
    assert_eq!(get(&collector.place("lines"), "").0, 401);
    assert_eq!(get(&collector.place("lines"), "token-of-other-job").0, 401);
    assert_eq!(get(&collector.place("lines?rank=x"), "token-of-reader").0, 400);
    assert_eq!(collector.lines(), []);
    let left: Vec<_> = fs::read_dir(collector.folder.join("logs")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    // A replay is no harm.
    for new in [1, 0] {
        let (status, text) = post(&collector.segments(), TOKEN, &sent);
        assert_eq!(status, 200, "{text}");
        assert!(text.contains(&format!("\"lines\":{new}")), "{text}");
    }
    assert_eq!(collector.lines().len(), 1);
}

#[test]
fn a_full_collector_takes_nothing_and_the_pod_keeps_its_lines() {
    let folder = tempfile::tempdir().unwrap();
    let mut collector = Collector::start(&folder.path().join("collector"), &["--max-bytes", "2Ki"]);
    let pod = folder.path().join("pod");
    let writing = spool(&pod, &collector.url, Limits::default());
    // One line alone is too much: it does not matter how many are sent together.
    let long = "a line of the rank ".repeat(200);
    (0..100).for_each(|i| writing.push(0, 1, now_ms(), &format!("{long}{i}")));
    let stats = writing.close(Duration::from_secs(2));
    assert_eq!((stats.written, stats.acknowledged, stats.lost), (100, 0, 0));
    assert!(stats.trouble.unwrap().contains("507"));
    assert_eq!(collector.lines(), []);
    collector.kill();
    collector.flags = vec![];
    collector.run();
    assert_eq!(collector.drain(&pod).acknowledged, 100);
    assert_eq!(collector.lines().len(), 100);
}

#[test]
fn a_follower_sees_lines_within_seconds() {
    let folder = tempfile::tempdir().unwrap();
    let collector = Collector::start(&folder.path().join("collector"), &[]);
    let pod = folder.path().join("pod");
    let writing = spool(&pod, &collector.url, Limits::default());
    writing.push(0, 1, now_ms(), "first");
    let follow = collector.place("lines?follow=true");
    block_on(async {
        let request = http().get(follow).bearer_auth("token-of-reader");
        let mut answer = request.send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 200);
        for text in ["first", "second"] {
            if text == "second" {
                writing.push(0, 1, now_ms(), text);
            }
            let begin = Instant::now();
            let chunk = tokio::time::timeout(Duration::from_secs(10), answer.chunk()).await;
            let chunk = chunk.unwrap().unwrap().unwrap();
            let line: StoredLine = serde_json::from_slice(chunk.trim_ascii()).unwrap();
            assert_eq!(line.text.as_deref(), Some(text));
            assert!(begin.elapsed() < Duration::from_secs(10));
        }
    });
    assert_eq!(writing.close(Duration::from_secs(10)).acknowledged, 2);
}
