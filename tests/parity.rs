//! `qvl doctor parity` with the real trainer, and with trainers that are wrong on several ranks.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::{Value, json};

/// A folder with twenty samples in two sets, and a job whose step takes all of them.
struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let bench = Bench { folder };
        fs::copy("tests/goldens/a.png", bench.path("a.png")).unwrap();
        let sample = |i: usize| {
            let words = "word ".repeat(1 + i % 5);
            let question = format!("Picture 1: <img>a.png</img>\nFind {words}<ref>{i}</ref>");
            let answer = format!("<ref>{i}</ref><box>({},{}),(900,900)</box>", 10 * i, 7 * i);
            json!({"id": format!("s{i}"), "conversations": [
                {"from": "user", "value": question}, {"from": "assistant", "value": answer}]})
        };
        let samples: Vec<Value> = (0..16).map(sample).collect();
        fs::write(bench.path("d.json"), json!(samples).to_string()).unwrap();
        fs::write(bench.path("other.json"), json!(samples[..12]).to_string()).unwrap();
        fs::write(bench.path("c.json"), json!(samples[..4]).to_string()).unwrap();
        let base = Path::new("examples/digits/base").canonicalize().unwrap();
        let job = json!({
            "apiVersion": "qvl.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "t"},
            "spec": {
                "model": {"path": base},
                "data": {"maxLength": 256, "train": [
                    {"name": "d", "path": "d.json", "task": "grounding"},
                    {"name": "c", "path": "c.json", "task": "caption", "weight": 0.5}]},
                "method": {"lora": {"r": 4, "alpha": 8, "dropout": 0.1}},
                "batch": {"global": 20, "unit": 2},
                "stages": [{"name": "one", "epochs": 10.0}],
                "world": {"compute": "cpu", "threads": 1},
                "seed": 4711,
                "output": "out"}});
        fs::write(bench.path("job.yaml"), job.to_string()).unwrap();
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn parity(&self, trainer: &Path, more: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qvl"));
        command.args(["doctor", "parity", "job.yaml", "--steps", "2"]).args(more);
        command.current_dir(self.folder.path()).env("XDG_STATE_HOME", self.path("state"));
        command.env("QVL_TRAIN_BIN", trainer).output().unwrap()
    }

    /// A trainer that reads its job file through `sed` when it is not alone.
    fn wrong_on_several_ranks(&self, sed: &str) -> PathBuf {
        let script = format!(
            "#!/bin/sh\nif [ \"$WORLD_SIZE\" != 1 ]; then\n  sed '{sed}' \"$3\" > \"$3.$RANK\"\n  \
             cmp -s \"$3\" \"$3.$RANK\" && exit 70\n  set -- run --job \"$3.$RANK\"\nfi\n\
             exec '{}' \"$@\"\n",
            env!("CARGO_BIN_EXE_qvl-train")
        );
        let path = self.path("trainer");
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }
}

fn trainer() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_qvl-train"))
}

#[track_caller]
fn text(output: &Output, code: i32) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let shown = format!("{text}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{shown}");
    shown
}

#[test]
fn any_number_of_ranks_gives_the_same_bits() {
    let bench = Bench::new();
    let shown = text(&bench.parity(trainer(), &["--gpus", "1,2,4"]), 0);
    for ranks in ["2 ranks", "4 ranks"] {
        let line = format!("parity  t: 1 rank and {ranks} are the same, bit by bit: ");
        assert!(shown.contains(&line), "{shown}");
    }
    assert!(!shown.contains("DIFFERENT"), "{shown}");
    assert!(!bench.path("out").exists(), "the job's own output is not touched");
}

#[test]
fn a_trainer_that_depends_on_the_number_of_ranks_is_caught() {
    let cases = [
        // Other samples.
        ("s/d.json/other.json/", 1, "tokens", "the sampler depends"),
        // The loss is divided by something else.
        ("s/weight: 0.5/weight: 2.5/", 1, "loss", "the weights of tasks"),
        // Dropout draws other numbers, and samples come in another order.
        ("s/seed: 4711/seed: 4712/", 1, "gradient norm", "random numbers of dropout"),
        // The optimizer; the first step of a warm-up changes no weights.
        ("s/weightDecay: [0-9.e-]*/weightDecay: 0.5/", 2, "weights.safetensors: ", "the optimizer"),
    ];
    for (sed, step, what, points_to) in cases {
        let bench = Bench::new();
        let wrong = bench.wrong_on_several_ranks(sed);
        let shown = text(&bench.parity(&wrong, &["--gpus", "1,2", "--format", "json"]), 1);
        let answer: Value =
            serde_json::from_str(&shown[shown.find('{').unwrap()..=shown.rfind('}').unwrap()])
                .unwrap();
        let difference = &answer["compared"][0]["difference"];
        assert_eq!(difference["step"], step, "{sed}: {answer}");
        let found = difference["what"].as_str().unwrap();
        assert!(found.starts_with(what), "{sed}: {answer}");
        assert!(difference["pointsTo"].as_str().unwrap().contains(points_to), "{sed}: {answer}");
        assert_ne!(difference["values"][0], difference["values"][1], "{sed}");
    }
}

#[test]
fn what_cannot_be_compared_is_said() {
    let bench = Bench::new();
    let shown = text(&bench.parity(trainer(), &["--gpus", "2,2"]), 2);
    assert!(shown.contains("at least two different numbers of ranks"), "{shown}");
    let broken = bench.path("broken");
    fs::write(&broken, "#!/bin/sh\necho out of luck >&2\nexit 1\n").unwrap();
    fs::set_permissions(&broken, fs::Permissions::from_mode(0o755)).unwrap();
    let shown = text(&bench.parity(&broken, &["--keep", "kept"]), 3);
    assert!(shown.contains("the run on 1 rank failed"), "{shown}");
    assert!(bench.path("kept/ranks-1/job.yaml").exists(), "the run is kept");
    let shown = text(&bench.parity(trainer(), &["--keep", "kept"]), 2);
    assert!(shown.contains("failed to make folder `kept`"), "{shown}");
}
