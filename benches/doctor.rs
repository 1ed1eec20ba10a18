//! What the doctor costs, on one node and on a fleet of a thousand, beside Python's collectors.
//! `make bench-doctor` writes the figures into docs/benchmarks.md.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark for people")]

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use nix::sys::resource::{UsageWho, getrusage};
use serde_json::Value;

const NODES: usize = 1000;
/// Runs of each line, after one that warms up.
const RUNS: usize = 9;
const FILE: &str = "docs/benchmarks.md";
const BEGIN: &str = "<!-- doctor -->\n";
const END: &str = "<!-- end of doctor -->\n";
/// First argument of the process that measures one command.
const MEASURE: &str = "--measure";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == MEASURE) {
        return measure(&arguments[1..]);
    }
    let folder = tempfile::tempdir().unwrap();
    let (healthy, drifting) = (folder.path().join("healthy"), folder.path().join("drifting"));
    write_fleet(&healthy, |_number, _node| {});
    write_fleet(&drifting, drift);
    let lines = lines(&healthy, &drifting);
    let text = report(&lines, &compare(&lines));
    println!("{text}");
    let page = fs::read_to_string(FILE).unwrap();
    let (before, rest) = page.split_once(BEGIN).expect("the file has the marker");
    let (_old, after) = rest.split_once(END).expect("the file has the end marker");
    fs::write(FILE, format!("{before}{BEGIN}{text}{END}{after}")).unwrap();
}

/// One command and what is said about it.
struct Line {
    name: String,
    command: Result<Vec<String>, String>,
    /// Longest median and largest memory.
    budget: Option<(Duration, u64)>,
}

fn lines(healthy: &Path, drifting: &Path) -> Vec<Line> {
    let qvl = env!("CARGO_BIN_EXE_qvl").to_owned();
    let doctor = |more: &[&str]| -> Vec<String> {
        let base = [qvl.as_str(), "doctor"];
        base.iter().chain(more).map(|word| (*word).to_owned()).collect()
    };
    let fleet = |folder: &Path| {
        let ranks = (NODES * 8).to_string();
        let mut command = doctor(&["--gpus", &ranks, "--facts"]);
        let mut files: Vec<PathBuf> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        command.extend(files.iter().map(|file| file.display().to_string()));
        command
    };
    let mib = 1024;
    let second = Some((Duration::from_secs(1), 100 * mib));
    vec![
        Line {
            name: "`qvl doctor`: looks at this node and judges it".to_owned(),
            command: Ok(doctor(&[])),
            budget: Some((Duration::from_millis(100), 30 * mib)),
        },
        python("`python -m torch.utils.collect_env`", "venv", "torch.utils.collect_env", "torch"),
        python("`ds_report`", "venv-deepspeed", "deepspeed.env_report", "deepspeed"),
        Line {
            name: format!(
                "`qvl doctor --facts FILE...`: {NODES} healthy nodes, {} ranks",
                NODES * 8
            ),
            command: Ok(fleet(healthy)),
            budget: second,
        },
        Line {
            name: "the same, 11 nodes drift: labels and smallest change".to_owned(),
            command: Ok(fleet(drifting)),
            budget: second,
        },
    ]
}

/// A module of an environment of the tests, or of the Python that QVL_BENCH_PYTHON names.
fn python(name: &str, environment: &str, module: &str, package: &str) -> Line {
    let home = || format!("{}/.cache/qvl", std::env::var("HOME").unwrap());
    let cache = std::env::var("QVL_CACHE").unwrap_or_else(|_unset| home());
    let usual = || format!("{cache}/{environment}/bin/python");
    let python = std::env::var("QVL_BENCH_PYTHON").unwrap_or_else(|_unset| usual());
    let import = Command::new(&python).args(["-c", &format!("import {package}")]).output();
    let command = match import {
        Ok(output) if output.status.success() => {
            // `ds_report` is this call.
            let call = format!("import {module} as m; (getattr(m, 'cli_main', None) or m.main)()");
            Ok(vec![python, "-c".to_owned(), call])
        }
        Ok(_failed) => Err(format!("no `{package}` in this Python")),
        Err(error) => Err(format!("{python}: {error}")),
    };
    Line { name: name.to_owned(), command, budget: None }
}

/// Time and memory of a command's runs, sorted; empty if it is not there.
#[derive(Default)]
struct Measured {
    times: Vec<Duration>,
    kibibytes: u64,
}

/// All lines in turns.
fn compare(lines: &[Line]) -> Vec<Measured> {
    let mut measured: Vec<Measured> = lines.iter().map(|_line| Measured::default()).collect();
    for run in 0..=RUNS {
        for (line, measured) in lines.iter().zip(&mut measured) {
            let Ok(command) = &line.command else { continue };
            let output = Command::new(std::env::current_exe().unwrap())
                .arg(MEASURE)
                .args(command)
                .stderr(Stdio::inherit())
                .output()
                .unwrap();
            assert!(output.status.success(), "{}: {}", line.name, output.status);
            let text = String::from_utf8(output.stdout).unwrap();
            let (nanos, kibibytes) = text.trim().split_once(' ').unwrap();
            if 0 < run {
                measured.times.push(Duration::from_nanos(nanos.parse().unwrap()));
                measured.kibibytes = measured.kibibytes.max(kibibytes.parse().unwrap());
            }
        }
    }
    measured.iter_mut().for_each(|measured| measured.times.sort());
    measured
}

/// Runs one command, and prints nanoseconds and the largest resident set of it and its children.
fn measure(command: &[String]) {
    let begin = Instant::now();
    let status = Command::new(&command[0])
        .args(&command[1..])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    let took = begin.elapsed();
    // 0, 1 or 3: it judged; anything else means that it did not run.
    assert!(matches!(status.code(), Some(0 | 1 | 3)), "{status}");
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    println!("{} {}", took.as_nanos(), usage.max_rss());
}

fn report(lines: &[Line], measured: &[Measured]) -> String {
    let cores = std::thread::available_parallelism().unwrap();
    let date = jiff::Timestamp::now().strftime("%Y-%m-%d").to_string();
    let memory = fs::read_to_string("/proc/meminfo").unwrap();
    let kibibytes: f64 = memory.split_whitespace().nth(1).unwrap().parse().unwrap();
    let mut text = format!(
        "Measured {date} on {cores} cores and {:.0} GiB, without a GPU; {RUNS} runs of each line.\n\n\
         | | shortest | median | times the first line | memory | budget |\n|---|---|---|---|---|---|\n",
        kibibytes / 1024.0 / 1024.0
    );
    let median = |measured: &Measured| measured.times[measured.times.len() / 2];
    let first = median(&measured[0]);
    for (line, measured) in lines.iter().zip(measured) {
        let name = &line.name;
        if let Err(why) = &line.command {
            writeln!(text, "| {name} | not measured: {why} | | | | |").unwrap();
            continue;
        }
        let milliseconds = |time: Duration| format!("{:.0} ms", time.as_secs_f64() * 1e3);
        let mebibytes = |kibibytes: u64| format!("{:.1} MiB", kibibytes as f64 / 1024.0);
        let median = median(measured);
        let ratio = median.as_secs_f64() / first.as_secs_f64();
        let budget = line.budget.map_or(String::new(), |(time, memory)| {
            format!("{}, {}", milliseconds(time), mebibytes(memory))
        });
        let (shortest, middle) = (milliseconds(measured.times[0]), milliseconds(median));
        let memory = mebibytes(measured.kibibytes);
        writeln!(text, "| {name} | {shortest} | {middle} | {ratio:.1} | {memory} | {budget} |")
            .unwrap();
    }
    text
}

/// A fleet of copies of one healthy node, each with names, numbers and addresses of its own.
fn write_fleet(folder: &Path, change: impl Fn(usize, &mut Value)) {
    fs::create_dir(folder).unwrap();
    let text = fs::read_to_string("tests/facts/healthy-8xh100.json").unwrap();
    let node: Value = serde_json::from_str(&text).unwrap();
    for number in 0..NODES {
        let mut copy = node.clone();
        let name = format!("gpu-{number:04}");
        copy["node"] = name.as_str().into();
        let facts = &mut copy["facts"];
        for id in ["hostname", "boot_id", "machine_id"] {
            facts["identity"][id]["known"]["value"] = format!("{id}-{name}").into();
        }
        let gpus = facts["nvml"]["gpus"]["known"]["value"].as_array_mut().unwrap();
        for (index, gpu) in gpus.iter_mut().enumerate() {
            gpu["uuid"]["known"]["value"] = format!("GPU-{number:08x}-{index:04x}").into();
        }
        address(&mut copy, number);
        change(number, &mut copy);
        let text = serde_json::to_string_pretty(&copy).unwrap();
        fs::write(folder.join(format!("{name}.json")), text).unwrap();
    }
}

fn address(node: &mut Value, number: usize) {
    let interfaces = &mut node["facts"]["network"]["interfaces"]["known"]["value"];
    for (i, interface) in interfaces.as_array_mut().unwrap().iter_mut().enumerate() {
        if interface["loopback"] == false {
            let address = format!("10.{i}.{}.{}/16", number / 250, 1 + number % 250);
            interface["addresses"] = Value::Array(vec![address.into()]);
        }
    }
}

fn drift(number: usize, node: &mut Value) {
    match number {
        100..107 => {
            let old = "535.104.05";
            node["facts"]["nvml"]["driver_version"]["known"]["value"] = old.into();
            node["facts"]["driver"]["kernel_module"]["known"]["value"]["version"] = old.into();
        }
        500..503 => {
            let nccl = &mut node["facts"]["trainer"]["nccl"]["known"]["value"];
            nccl[0]["version"] = "2.18.1".into();
        }
        900 => address(node, 901),
        _ => {}
    }
}
