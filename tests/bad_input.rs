//! Wrong input through the real programs: one clear error each, with the object, what was expected
//! and a hint; nothing half-written, nothing that was saved is lost.

#![expect(clippy::unwrap_used, reason = "a test fails where it is wrong")]

use std::{
    fs,
    net::TcpListener,
    path::PathBuf,
    process::{Command, Output},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

/// A folder with a copy of the demo's base, a few samples and a job.
struct Case {
    folder: tempfile::TempDir,
}

impl Case {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::copy("tests/goldens/a.png", folder.path().join("a.png")).unwrap();
        fs::create_dir(folder.path().join("base")).unwrap();
        for entry in fs::read_dir("examples/digits/base").unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, folder.path().join("base").join(path.file_name().unwrap())).unwrap();
        }
        let case = Case { folder };
        case.answer("<ref>6</ref><box>(1,2),(301,202)</box>");
        case.job(&json!({}));
        case
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Samples that all have this answer.
    fn answer(&self, answer: &str) {
        let sample = |i: usize| {
            let question = format!("Picture 1: <img>a.png</img>\nFind <ref>{i}</ref>");
            json!({"id": format!("s{i}"), "conversations": [
                {"from": "user", "value": question}, {"from": "assistant", "value": answer}]})
        };
        let samples: Vec<Value> = (0..8).map(sample).collect();
        fs::write(self.path("d.json"), json!(samples).to_string()).unwrap();
    }

    /// Six steps, with these fields of the spec instead.
    fn job(&self, change: &Value) {
        let mut job = json!({
            "apiVersion": "qvl.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "bad"},
            "spec": {
                "model": {"path": "base"},
                "data": {"maxLength": 256, "train": [{"name": "d", "path": "d.json", "task": "grounding"}]},
                "method": {"lora": {"r": 4, "alpha": 8}},
                "batch": {"global": 4, "unit": 2},
                "stages": [{"name": "one", "steps": 6}],
                "world": {"compute": "cpu", "threads": 1, "peerTimeoutSeconds": 3},
                "checkpoint": {"everySteps": 2, "keep": 2},
                "failure": {"maxRestarts": 0},
                "output": "out"}});
        for (name, value) in change.as_object().unwrap() {
            job["spec"][name] = value.clone();
        }
        fs::write(self.path("job.yaml"), job.to_string()).unwrap();
    }

    fn program(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(args).current_dir(self.folder.path());
        command.env("XDG_STATE_HOME", self.path("state")).env("NO_COLOR", "1");
        command.env("QVL_TRAIN_BIN", env!("CARGO_BIN_EXE_qvl-train"));
        command
    }

    fn qvl(&self, args: &[&str]) -> Said {
        Said::of(&self.program(env!("CARGO_BIN_EXE_qvl"), args).output().unwrap(), self)
    }

    fn launch(&self) -> Said {
        self.qvl(&["launch", "job.yaml", "--local", "--overwrite"])
    }

    /// One rank of two, without a launcher.
    fn rank(&self, rank: &str, port: u16) -> Said {
        let mut command =
            self.program(env!("CARGO_BIN_EXE_qvl-train"), &["run", "--job", "job.yaml"]);
        command.env("RANK", rank).env("LOCAL_RANK", rank).env("WORLD_SIZE", "2");
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
        command.env("QVL_ATTEMPT", "1").env("QVL_TOKEN", "secret");
        command.env("QVL_PEER_TIMEOUT_SECONDS", "3");
        Said::of(&command.output().unwrap(), self)
    }
}

/// Exit code, and what a user reads on the terminal from the first error on.
struct Said {
    code: i32,
    errors: String,
    all: String,
}

impl Said {
    fn of(output: &Output, case: &Case) -> Said {
        let folder = case.folder.path().canonicalize().unwrap();
        let all = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        let all = all.replace(folder.to_str().unwrap(), "DIR");
        let tells = |line: &&str| {
            ["error:", "hint:", "culprit:"].iter().any(|word| line.trim_start().starts_with(word))
        };
        let errors: Vec<&str> = all.lines().filter(tells).collect();
        Said { code: output.status.code().unwrap(), errors: errors.join("\n"), all: all.clone() }
    }

    #[track_caller]
    fn is(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "{}", self.all);
        for word in words {
            assert!(self.errors.contains(word), "`{word}` is not in:\n{}", self.all);
        }
        assert!(self.errors.contains("hint:"), "no hint in:\n{}", self.all);
    }
}

#[test]
fn weights_that_are_missing_truncated_or_of_another_shape() {
    let case = Case::new();
    let file = fs::read_dir(case.path("base")).unwrap().map(|entry| entry.unwrap().path());
    let file = file.into_iter().find(|path| path.extension().is_some_and(|e| e == "safetensors"));
    let file = file.unwrap();
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    case.launch()
        .is(100, &["model.safetensors", "it is truncated or damaged", "download the file again"]);
    fs::remove_file(&file).unwrap();
    case.launch().is(100, &["DIR/base", "no weights"]);
    fs::write(&file, &whole).unwrap();
    let config = case.path("base/config.json");
    let text = fs::read_to_string(&config).unwrap();
    let mut value: Value = serde_json::from_str(&text).unwrap();
    value["intermediate_size"] = json!(value["intermediate_size"].as_u64().unwrap() * 2);
    fs::write(&config, value.to_string()).unwrap();
    case.launch().is(100, &["do not fit config.json", "same release"]);
}

#[test]
fn a_vocabulary_that_is_a_pointer_of_git_lfs() {
    let case = Case::new();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:9b2f\nsize 2561218\n";
    fs::write(case.path("base/qwen.tiktoken"), pointer).unwrap();
    case.launch().is(2, &["qwen.tiktoken", "Git LFS pointer", "git lfs pull"]);
}

#[test]
fn pictures_that_are_broken_or_huge() {
    let case = Case::new();
    fs::write(case.path("a.png"), b"no picture").unwrap();
    case.launch().is(1, &["`s0`", "a.png", "PNG and JPEG are supported"]);
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 100_000, 100_000);
    encoder.set_color(png::ColorType::Grayscale);
    let mut writer = encoder.write_header().unwrap();
    writer.write_chunk(png::chunk::IDAT, b"first of many").unwrap();
    drop(writer);
    fs::write(case.path("a.png"), bytes).unwrap();
    case.launch().is(1, &["`s0`", "a.png", "100000"]);
}

#[test]
fn boxes_that_are_outside_reversed_or_decimal() {
    for (answer, rule, hint) in [
        ("(1,2),(3,1000)", "box-range", "0 to 999"),
        ("(300,2),(1,200)", "box-reversed", "the upper left corner comes first"),
        ("(0.1,0.2),(0.3,0.4)", "box-decimal", "whole thousandths"),
    ] {
        let case = Case::new();
        case.answer(&format!("<ref>6</ref><box>{answer}</box>"));
        case.launch().is(1, &["`s0`", answer, rule, hint]);
        assert!(!case.path("out").exists(), "nothing is half-written");
    }
}

#[test]
fn an_adapter_for_another_base() {
    let case = Case::new();
    assert_eq!(case.launch().code, 0);
    fs::rename(case.path("out/adapter"), case.path("first")).unwrap();
    let file = case.path("base/model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let end = bytes.len();
    bytes[end / 2..].fill(0x3c);
    fs::write(&file, bytes).unwrap();
    case.job(&json!({"model": {"path": "base", "adapter": "first"}}));
    case.launch().is(100, &["DIR/first", "was trained on another base", "base_model_name_or_path"]);
}

#[test]
fn a_checkpoint_with_a_wrong_digest_is_not_resumed() {
    let case = Case::new();
    case.job(&json!({"stages": [{"name": "one", "steps": 60}]}));
    let qvl = env!("CARGO_BIN_EXE_qvl");
    let child = case.program(qvl, &["launch", "job.yaml", "--local"]).spawn().unwrap();
    let saved = |step: &str| case.path(&format!("out/checkpoints/step-{step}/manifest.json"));
    until(|| (4..60).find(|step| saved(&format!("{step:08}")).exists()));
    case.qvl(&["stop", "bad"]);
    child.wait_with_output().unwrap();
    let folder = (4..60_u32).rev().map(|step| format!("{step:08}"));
    let newest = folder.into_iter().find(|step| saved(step).exists()).unwrap();
    let file = saved(&newest).with_file_name("optimizer.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let end = bytes.len();
    bytes[end - 1] ^= 1;
    fs::write(&file, bytes).unwrap();
    let said = case.qvl(&["resume", "bad"]);
    assert_eq!(said.code, 0, "{}", said.all);
    assert!(said.all.contains("optimizer.safetensors is damaged: its SHA-256 is"), "{}", said.all);
    let rest = format!("goes on after step {}", 2 * ((newest.parse::<u32>().unwrap() - 1) / 2));
    assert!(said.all.contains(&rest), "{rest}: {}", said.all);
}

/// Waits until there is something.
fn until<T>(mut found: impl FnMut() -> Option<T>) -> T {
    for _ in 0..600 {
        if let Some(found) = found() {
            return found;
        }
        thread::sleep(Duration::from_millis(50));
    }
    panic!("not within 30 seconds");
}

#[test]
fn a_full_disk_while_saving() {
    let case = Case::new();
    case.job(&json!({"stages": [{"name": "one", "steps": 300}], "output": "disk/out"}));
    fs::create_dir(case.path("disk")).unwrap();
    let launch = format!("{} launch job.yaml --local", env!("CARGO_BIN_EXE_qvl"));
    let script = format!(
        "mount -t tmpfs -o size=560m tmpfs disk
         {launch} & pid=$!
         for _ in $(seq 300); do ls disk/out/checkpoints 2>/dev/null | grep -q step- && break; sleep 0.1; done
         cat /dev/zero > disk/filler 2>/dev/null
         wait $pid; echo launch $?
         rm disk/filler
         {} resume bad; echo resume $?",
        env!("CARGO_BIN_EXE_qvl"),
    );
    let mut command = case.program("unshare", &["--mount", "sh", "-c", &script]);
    let said = Said::of(&command.output().unwrap(), &case);
    said.is(0, &["no space to write DIR/disk/out/checkpoints", "earlier checkpoints are intact"]);
    assert!(!said.all.contains("error:"), "{}", said.all);
    assert!(said.all.contains("launch 100") && said.all.contains("resume 0"), "{}", said.all);
    assert!(said.all.contains("goes on after step"), "{}", said.all);
}

#[test]
fn a_port_that_is_taken_and_peers_that_never_come() {
    let case = Case::new();
    case.job(&json!({"failure": {"startupSeconds": 3}}));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    case.rank("0", port)
        .is(75, &["the port is taken by another process", "choose another MASTER_PORT"]);
    drop(taken);
    case.rank("0", port).is(80, &["rank 1 did not join", "read the log of rank 1"]);
    case.rank("1", port).is(80, &["rank 1 did not reach rank 0", "MASTER_ADDR and MASTER_PORT"]);
}
