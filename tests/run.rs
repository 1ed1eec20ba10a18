//! Whole runs with the real programs: the demo's base, a few samples, processes as ranks.

#![expect(clippy::unwrap_used, reason = "a test fails where it is wrong")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

/// A folder with data, a job file and a registry of its own.
struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new(steps: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::copy("tests/goldens/a.png", folder.path().join("a.png")).unwrap();
        let sample = |i: usize| {
            let (x, y) = (10 * i + 1, 7 * i + 2);
            let question = format!("Picture 1: <img>a.png</img>\nFind <ref>{i}</ref>");
            let answer = format!("<ref>{i}</ref><box>({x},{y}),({},{})</box>", x + 300, y + 200);
            json!({"id": format!("s{i}"), "conversations": [
                {"from": "user", "value": question}, {"from": "assistant", "value": answer}]})
        };
        let samples: Vec<Value> = (0..12).map(sample).collect();
        fs::write(folder.path().join("d.json"), json!(samples).to_string()).unwrap();
        let base = Path::new("examples/digits/base").canonicalize().unwrap();
        let job = json!({
            "apiVersion": "qvl.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "t"},
            "spec": {
                "model": {"path": base},
                "data": {"maxLength": 256, "train": [{"name": "d", "path": "d.json", "task": "grounding"}],
                    "eval": [{"name": "e", "path": "d.json", "task": "grounding", "limit": 2}]},
                "method": {"lora": {"r": 4, "alpha": 8, "dropout": 0.1}},
                "optimizer": {"learningRate": 0.002},
                "batch": {"global": 8, "unit": 2},
                "stages": [{"name": "one", "steps": steps / 2}, {"name": "two", "steps": steps - steps / 2}],
                "world": {"compute": "cpu", "threads": 1},
                "checkpoint": {"everySteps": 3, "keep": 2},
                "evaluation": {"maxNewTokens": 8},
                "output": "out"}});
        fs::write(folder.path().join("job.yaml"), job.to_string()).unwrap();
        Bench { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn qvl(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qvl"));
        command.args(args).current_dir(self.folder.path());
        command.env("XDG_STATE_HOME", self.path("state")).env("NO_COLOR", "1");
        command.env("QVL_TRAIN_BIN", env!("CARGO_BIN_EXE_qvl-train"));
        command
    }

    fn launch(&self, ranks: u32) -> Output {
        let ranks = ranks.to_string();
        self.qvl(&["launch", "job.yaml", "--local", "--overwrite", "--gpus", &ranks])
            .output()
            .unwrap()
    }

    fn adapter(&self) -> Vec<u8> {
        fs::read(self.path("out/adapter/adapter_model.safetensors")).unwrap()
    }

    fn state(&self) -> Option<Value> {
        serde_json::from_slice(&fs::read(self.path("out/state.json")).ok()?).ok()
    }
}

#[track_caller]
fn succeeded(output: &Output) {
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{out}\n{err}", output.status);
}

#[test]
fn one_two_and_four_processes_write_the_same_adapter() {
    let bench = Bench::new(6);
    let mut adapters = Vec::new();
    for ranks in [1, 2, 4] {
        succeeded(&bench.launch(ranks));
        adapters.push(bench.adapter());
    }
    assert!(adapters[0] == adapters[1], "two ranks have other bits than one");
    assert!(adapters[0] == adapters[2], "four ranks have other bits than one");
}

#[test]
fn a_resume_at_any_step_equals_an_uninterrupted_run() {
    let bench = Bench::new(6);
    succeeded(&bench.launch(1));
    let whole = bench.adapter();
    for stop in 1..6 {
        fs::remove_dir_all(bench.path("out")).unwrap();
        let stop = stop.to_string();
        for (attempt, extra) in [("1", vec!["--stop-after", stop.as_str()]), ("2", Vec::new())] {
            let output = Command::new(env!("CARGO_BIN_EXE_qvl-train"))
                .args(["run", "--job", "job.yaml"])
                .args(extra)
                .current_dir(bench.folder.path())
                .env("QVL_ATTEMPT", attempt)
                .output()
                .unwrap();
            succeeded(&output);
        }
        assert!(bench.adapter() == whole, "resumed at step {stop}: other bits");
    }
}

#[test]
fn a_killed_rank_is_named_and_the_run_goes_on_to_the_same_result() {
    let bench = Bench::new(120);
    succeeded(&bench.launch(1));
    let whole = bench.adapter();
    fs::remove_dir_all(bench.path("out")).unwrap();
    let mut child = bench
        .qvl(&["launch", "job.yaml", "--local", "--gpus", "2"])
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let until = Instant::now() + Duration::from_secs(120);
    let victim = loop {
        assert!(Instant::now() < until, "no step within two minutes");
        let state = bench.state().filter(|state| 3 < state["step"].as_u64().unwrap_or(0));
        if let Some(state) = state {
            break state["ranks"][1]["pid"].as_u64().unwrap();
        }
        thread::sleep(Duration::from_millis(20));
    };
    let killed = Command::new("kill").args(["-9", &victim.to_string()]).status().unwrap();
    assert!(killed.success());
    assert!(child.wait().unwrap().success());
    let state = bench.state().unwrap();
    assert_eq!(state["status"], "succeeded");
    assert_eq!(state["incidents"][0]["culprit"], 1, "{state}");
    assert_eq!(state["incidents"][0]["restarted"], true);
    assert!(bench.adapter() == whole, "a restart changed the bits");
    let logs = bench.qvl(&["logs", "t", "--attempt", "1", "--rank", "1"]).output().unwrap();
    assert!(String::from_utf8_lossy(&logs.stdout).contains("was killed (signal 9)"));
}

#[test]
fn a_stopped_run_resumes_with_other_ranks_to_the_same_result() {
    let bench = Bench::new(120);
    succeeded(&bench.launch(1));
    let whole = bench.adapter();
    fs::remove_dir_all(bench.path("out")).unwrap();
    let mut child = bench
        .qvl(&["launch", "job.yaml", "--local", "--gpus", "2"])
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let until = Instant::now() + Duration::from_secs(120);
    while bench.state().is_none_or(|state| state["step"].as_u64().unwrap_or(0) < 4) {
        assert!(Instant::now() < until, "no step within two minutes");
        thread::sleep(Duration::from_millis(20));
    }
    succeeded(&bench.qvl(&["stop", "t"]).output().unwrap());
    assert_eq!(child.wait().unwrap().code(), Some(103), "cancelled");
    let status = bench.qvl(&["status", "t"]).output().unwrap();
    assert_eq!(status.status.code(), Some(103));
    succeeded(&bench.qvl(&["resume", "t", "--gpus", "4"]).output().unwrap());
    assert!(bench.adapter() == whole, "a stop and another number of ranks changed the bits");
}

#[test]
fn bad_input_is_one_clear_error() {
    let bench = Bench::new(6);
    let job = fs::read_to_string(bench.path("job.yaml")).unwrap();
    let error = |text: &str| {
        fs::write(bench.path("job.yaml"), text).unwrap();
        let output = bench.launch(1);
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(err.matches("error:").count(), 1, "{err}");
        (output.status.code().unwrap(), err)
    };
    let (code, text) = error(&job.replace("learningRate", "learningrate"));
    assert_eq!(code, 2);
    assert!(text.contains("did you mean `learningRate`?"), "{text}");
    let (code, text) = error(&job.replace("\"maxLength\":256", "\"maxLength\":100"));
    assert_eq!(code, 1);
    assert!(text.contains("tokens, the limit is 100"), "{text}");
    let data = fs::read_to_string(bench.path("d.json")).unwrap();
    fs::write(bench.path("d.json"), data.replace("(1,2)", "(1,2000)")).unwrap();
    let (code, text) = error(&job);
    assert_eq!(code, 1);
    assert!(text.contains("(1,2000)"), "{text}");
    assert!(!bench.path("out").exists(), "nothing is half-written");
}
