//! `qvl doctor why` as its user runs it: files, folders, standard input, exit codes.

#![expect(clippy::unwrap_used, reason = "a test fails where it is wrong")]

mod schema;

use std::{fs, io::Write, path::Path, process::Output};

use assert_cmd::Command;

/// Rank 3 is killed for want of memory on the second node; all others tell of what followed.
const NODE0: &str = "\
W1124 10:00:00.100000 4021 torch/distributed/run.py:792] Setting OMP_NUM_THREADS to 1\n\
\r  1%|1         | 5/500 [00:12<20:01,  2.43s/it]\r  2%|2         | 9/500 [00:22<19:41,  2.41s/it]\n\
[rank0]:[E1124 10:40:31.000000 ProcessGroupNCCL.cpp:607] [Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=81, OpType=ALLREDUCE, Timeout(ms)=1800000) ran for 1800431 milliseconds before timing out.\n\
[rank1]:[E1124 10:40:31.100000 ProcessGroupNCCL.cpp:607] [Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=81, OpType=ALLREDUCE, Timeout(ms)=1800000) ran for 1800431 milliseconds before timing out.\n\
[rank1]: BrokenPipeError: [Errno 32] Broken pipe\n\
W1124 10:40:33.000000 4021 torch/distributed/elastic/multiprocessing/api.py:897] Sending process 4101 closing signal SIGTERM\n\
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:\n";
const NODE1: &str = "\
W1124 10:00:00.100000 911 torch/distributed/run.py:792] Setting OMP_NUM_THREADS to 1\n\
[rank2]:[E1124 10:40:31.200000 ProcessGroupNCCL.cpp:607] [Rank 2] Watchdog caught collective operation timeout\n";
const KERNEL1: &str = "\
Nov 24 10:10:29 node1 kernel: python invoked oom-killer: gfp_mask=0xcc0, order=0\n\
Nov 24 10:10:30 node1 kernel: Memory cgroup out of memory: Killed process 4242 (python) total-vm:91532100kB, anon-rss:38612000kB\n";

fn why(args: &[&str], stdin: &[u8], folder: &Path) -> Output {
    let mut command = Command::cargo_bin("qvl").unwrap();
    command.args(["doctor", "why"]).args(args).current_dir(folder).write_stdin(stdin);
    command.output().unwrap()
}

fn text(output: &Output) -> String {
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn logs() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in
        [("node0.log", NODE0), ("node1.log", NODE1), ("node1-kernel.log", KERNEL1)]
    {
        fs::write(folder.path().join(name), content).unwrap();
    }
    folder
}

#[test]
fn the_first_cause_of_many_ranks_is_named() {
    let folder = logs();
    let output = why(&["node0.log", "node1.log", "node1-kernel.log"], b"", folder.path());
    insta::assert_snapshot!("why-ranks", text(&output));
    assert_eq!(output.status.code(), Some(0));
    // A folder is all its files, and their order does not matter: times decide.
    let whole = why(&["."], b"", folder.path());
    assert!(text(&whole).contains("node1-kernel.log:2"), "{}", text(&whole));
    assert!(!text(&whole).contains("no times that can be compared"));
    let late = "2026-11-24 10:00:09 Too many open files\n";
    let unknown = "No CUDA GPUs are available\n";
    fs::write(folder.path().join("late.log"), late).unwrap();
    fs::write(folder.path().join("unknown.log"), unknown).unwrap();
    let text = text(&why(&["late.log", "unknown.log"], b"", folder.path()));
    assert!(text.contains("no times that can be compared"), "{text}");
}

#[test]
fn consequences_alone_are_told_as_such() {
    let folder = tempfile::tempdir().unwrap();
    let log = "x\n[rank1]: BrokenPipeError: [Errno 32] Broken pipe\nOddError: something else\n";
    let output = why(&["-"], log.as_bytes(), folder.path());
    insta::assert_snapshot!("why-consequences", text(&output));
    assert_eq!(output.status.code(), Some(3));
}

#[test]
fn what_is_not_recognised_is_said_with_the_last_error_lines() {
    let folder = tempfile::tempdir().unwrap();
    let log = "step 1\nOddError: nobody knows this\nstep 2\n";
    let output = why(&["-", "--exit-code", "42"], log.as_bytes(), folder.path());
    insta::assert_snapshot!("why-unknown", text(&output));
    assert_eq!(output.status.code(), Some(3));
}

#[test]
fn an_exit_code_needs_no_log() {
    let folder = tempfile::tempdir().unwrap();
    for code in ["137", "-9"] {
        let output = why(&["--exit-code", code], b"", folder.path());
        assert!(text(&output).contains("host-memory-short"), "{}", text(&output));
        assert_eq!(output.status.code(), Some(0));
    }
}

#[test]
fn json_is_what_its_schema_names() {
    let folder = logs();
    let output = why(&["node0.log", "node1-kernel.log", "--format", "json"], b"", folder.path());
    let answer: serde_json::Value = serde_json::from_str(&text(&output)).unwrap();
    assert_eq!(answer["verdict"], "cause");
    let first = &answer["findings"][0];
    assert_eq!((&first["id"], &first["line"]), (&"host-oom".into(), &2.into()));
    assert_eq!(first["checks"][0]["id"], "host-memory-short");
    let watchdog = &answer["findings"][1];
    assert_eq!(watchdog["ranks"], serde_json::json!(["rank 0", "rank 1"]));
    let schema = Command::cargo_bin("qvl").unwrap().args(["schema", "why"]).output().unwrap();
    let schema: serde_json::Value = serde_json::from_slice(&schema.stdout).unwrap();
    assert_eq!(schema::errors(&schema, &answer, "answer"), [""; 0]);
}

#[test]
fn a_log_that_cannot_be_read_is_one_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    for (args, says) in [
        (vec!["missing.log"], "failed to read log `missing.log`"),
        (vec!["."], "folder `.` has no files"),
        (vec![], "required"),
    ] {
        let output = why(&args, b"", folder.path());
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(says), "{error}");
        assert!(output.stdout.is_empty());
    }
}

/// A log of a few hundred megabytes would not fit beside a model; here it need not fit at all.
#[test]
fn a_large_log_is_streamed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.log");
    let mut file = std::io::BufWriter::new(fs::File::create(&path).unwrap());
    let line =
        "[2026-11-24 10:00:03,000] [INFO] step 12 of 500, loss 1.8123, learning rate 9.4e-06\n";
    for _ in 0..200_000 {
        file.write_all(line.as_bytes()).unwrap();
    }
    file.write_all(b"Too many open files\n").unwrap();
    drop(file);
    // 16 MB of log, and less address space than two copies of it would need.
    let program = assert_cmd::cargo::cargo_bin("qvl");
    let shell = format!("ulimit -d 100000; exec {} doctor why large.log", program.display());
    let mut command = std::process::Command::new("sh");
    let output = command.args(["-c", &shell]).current_dir(folder.path()).output().unwrap();
    assert!(text(&output).contains("large.log:200001"), "{}", text(&output));
}
