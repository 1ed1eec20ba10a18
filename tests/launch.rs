//! The supervisor with real processes: a shell script speaks the protocol of a trainer, so that
//! every way to fail can be asked for.

#![expect(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use qvl::{
    launch::{
        process,
        state::{RunState, Status},
    },
    wire::{Record, SupervisorEvent, SupervisorRecord, TrainerExit},
};

/// A run in a folder of its own, ready for `qvl resume`.
struct Run {
    folder: tempfile::TempDir,
    scenario: &'static str,
}

impl Run {
    fn new(scenario: &'static str, failure: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let run = Run { folder, scenario };
        fs::create_dir(run.output()).unwrap();
        let job = format!(
            "apiVersion: qvl.dev/v1alpha1
kind: FineTuneJob
metadata: {{name: {scenario}}}
spec:
  model: {{path: m}}
  data: {{train: [{{name: t, path: t.json, task: grounding}}]}}
  stages: [{{name: main, steps: 6}}]
  world: {{gpus: 2, compute: cpu}}
  failure: {{{failure}}}
  output: {}
",
            run.output().display()
        );
        fs::write(run.output().join("job.yaml"), job).unwrap();
        RunState::new(scenario, &run.output(), 1).write().unwrap();
        run
    }

    fn output(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    fn qvl(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qvl"));
        command
            .args(args)
            .env("SCENARIO", self.scenario)
            .env("XDG_STATE_HOME", self.folder.path().join("home"))
            .env("QVL_TRAIN_BIN", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/launch/trainer.sh"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn start(&self, args: &[&str]) -> Child {
        let output = self.output();
        self.qvl(&["resume", output.to_str().unwrap()]).args(args).spawn().unwrap()
    }

    fn resume(&self, args: &[&str]) -> Output {
        self.start(args).wait_with_output().unwrap()
    }

    fn ask(&self, args: &[&str]) -> (i32, String) {
        let output = self.qvl(args).output().unwrap();
        (output.status.code().unwrap(), text(&output))
    }

    fn state(&self) -> RunState {
        RunState::read(&self.output()).unwrap()
    }

    /// Waits until the run is where a test wants it.
    fn until(&self, what: &str, wanted: impl Fn(&RunState) -> bool) -> RunState {
        let end = Instant::now() + Duration::from_secs(30);
        while Instant::now() < end {
            let state = self.state();
            if wanted(&state) {
                return state;
            }
            thread::sleep(Duration::from_millis(50));
        }
        panic!("never {what}: {:?}", self.state());
    }

    fn pids(&self, attempt: u32) -> Vec<u32> {
        let file = |rank| self.output().join(format!("meeting/pid-{attempt}-{rank}"));
        (0..2).map(|rank| fs::read_to_string(file(rank)).unwrap().trim().parse().unwrap()).collect()
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

#[track_caller]
fn assert_gone(pids: &[u32]) {
    for pid in pids {
        assert_eq!(process::start(*pid), None, "process {pid} was left behind");
    }
}

#[test]
fn a_run_succeeds_and_tells_where_everything_is() {
    let run = Run::new("normal", "");
    let output = run.resume(&[]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    for part in [
        "normal: attempt 1, 2 ranks\n",
        "2 ranks ready: 6 steps\n",
        "step 6/6: loss 2.500 grounding 2.500, lr 1.0e-3, 20.0 it/s eta 0s\n",
        "step 3: checkpoint saved (2.0 KiB)\n",
        "normal succeeded after ",
    ] {
        assert!(said.contains(part), "no `{part}` in:\n{said}");
    }
    assert_eq!(run.state().status, Status::Succeeded);
    let (code, status) = run.ask(&["status", "normal"]);
    assert_eq!(code, 0);
    assert!(status.contains("6 of 6"), "{status}");
    let (code, said) = run.ask(&["resume", "normal"]);
    assert_eq!(code, 2);
    assert!(said.starts_with("error: `normal` has succeeded\n\nhint: "), "{said}");
    let curve = fs::read_to_string(run.output().join("loss.svg")).unwrap();
    assert!(curve.contains("<svg"));
}

#[test]
fn a_killed_rank_is_named_and_all_go_on_from_the_checkpoint() {
    let run = Run::new("kill", "");
    let output = run.resume(&[]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("culprit: rank 1 was killed (signal 9)"), "{said}");
    assert!(said.contains("restarting all ranks from the checkpoint of step 3 in 1 s"), "{said}");
    let state = run.state();
    let [incident] = state.incidents.as_slice() else { panic!("{:?}", state.incidents) };
    assert_eq!((incident.attempt, incident.culprit, incident.step), (1, 1, 4));
    assert!(incident.restarted);
    assert_eq!((state.attempt, state.step), (2, 6));
    // Attempts meet at other ports with other tokens.
    let (_code, log) = run.ask(&["logs", "kill", "--grep", "token [0-9a-f]{32}$"]);
    let tokens: std::collections::BTreeSet<&str> =
        log.lines().filter_map(|line| line.rsplit_once("token ")).map(|(_, token)| token).collect();
    assert_eq!((log.lines().count(), tokens.len()), (4, 2), "{log}");
    let (_code, log) = run.ask(&["logs", "kill", "--first-error"]);
    assert!(
        log.contains("a1 r1  [supervisor] rank 1 was killed")
            || log.contains("a1 r0  failed: rank 1 went away"),
        "{log}"
    );
}

#[test]
fn wrong_input_is_not_tried_again() {
    let run = Run::new("data", "");
    let output = run.resume(&[]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(100), "{said}");
    assert!(
        said.contains("culprit: rank 0 failed: sample `7` has a box outside 0 to 999"),
        "{said}"
    );
    assert!(said.contains("a restart cannot help: the input has to change first"), "{said}");
    let state = run.state();
    assert_eq!((state.status, state.attempt), (Status::Failed, 1));
    assert_eq!(state.incidents[0].exit, Some(TrainerExit::Data));
    assert_gone(&run.pids(1));
}

#[test]
fn restarts_are_counted() {
    let run = Run::new("transient", "maxRestarts: 1");
    let output = run.resume(&[]);
    assert_eq!(output.status.code(), Some(100));
    let state = run.state();
    assert_eq!(state.attempt, 2);
    let restarted: Vec<bool> = state.incidents.iter().map(|incident| incident.restarted).collect();
    assert_eq!(restarted, [true, false]);
    assert!(state.why.unwrap().contains("used up"));
}

#[test]
fn a_silent_rank_is_killed_with_its_children_and_named() {
    let run = Run::new("silent", "startupSeconds: 8");
    let output = run.resume(&[]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let incident = &run.state().incidents[0];
    assert_eq!((incident.culprit, incident.exit), (1, Some(TrainerExit::Stalled)));
    assert!(incident.what.contains("made no step for"), "{}", incident.what);
    assert!(said.contains("hint: raise failure.stallMultiplier"), "{said}");
    assert_gone(&run.pids(1));
}

#[test]
fn of_two_silent_ranks_the_stopped_one_is_to_blame() {
    let run = Run::new("stopped", "startupSeconds: 8");
    assert_eq!(run.resume(&[]).status.code(), Some(0));
    assert_eq!(run.state().incidents[0].culprit, 1);
    assert_gone(&run.pids(1));
}

#[test]
fn ctrl_c_saves_and_stops_and_the_run_goes_on_later() {
    let run = Run::new("long", "");
    let child = run.start(&[]);
    run.until("at step 2", |state| 2 <= state.step);
    signal(&child, Signal::SIGINT);
    let output = child.wait_with_output().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(103), "{said}");
    assert!(said.contains("stopping: the ranks save a checkpoint"), "{said}");
    assert!(said.contains("hint: `qvl resume long` goes on from the newest checkpoint"), "{said}");
    let state = run.state();
    // Rank 0 was still saving when rank 1 had left, and was not killed for it.
    assert_eq!((state.status, state.incidents.len()), (Status::Stopped, 0));
    let saved: u64 = fs::read_to_string(run.output().join("meeting/checkpoint"))
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    // The signal may come between the report of a step and the next.
    assert!(saved <= state.step && state.step <= saved + 1, "{saved} {}", state.step);
    let child = run.start(&[]);
    run.until("on in attempt 2", |state| state.attempt == 2 && saved < state.step);
    let (code, said) = run.ask(&["stop", "long"]);
    assert_eq!(code, 0, "{said}");
    assert!(said.starts_with("long stopped at step "), "{said}");
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(103));
}

#[test]
fn a_second_ctrl_c_kills() {
    let run = Run::new("deaf", "");
    let child = run.start(&[]);
    run.until("at step 1", |state| 1 <= state.step);
    signal(&child, Signal::SIGINT);
    thread::sleep(Duration::from_millis(700));
    assert_eq!(run.state().status, Status::Running);
    signal(&child, Signal::SIGINT);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(103), "{}", text(&output));
    assert_gone(&run.pids(1));
}

#[test]
fn ranks_of_a_killed_supervisor_are_found_and_ended() {
    let run = Run::new("orphan", "");
    let mut child = run.start(&[]);
    run.until("at step 1", |state| 1 <= state.step);
    signal(&child, Signal::SIGKILL);
    child.wait().unwrap();
    let (code, said) = run.ask(&["status", "orphan"]);
    assert_eq!(code, 100);
    assert!(said.starts_with("orphan: dead\n"), "{said}");
    assert!(said.contains("is gone\nrank 0 (process "), "{said}");
    let (code, said) = run.ask(&["stop", "orphan"]);
    assert_eq!(code, 0, "{said}");
    assert!(said.starts_with("ending rank 0 (process "), "{said}");
    assert_gone(&run.pids(1));
}

#[test]
fn every_line_of_a_rank_is_kept_in_order() {
    let run = Run::new("noise", "");
    assert_eq!(run.resume(&[]).status.code(), Some(0));
    let (_code, log) = run.ask(&["logs", "noise", "--rank", "1", "--json"]);
    let lines: Vec<serde_json::Value> =
        log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let numbers: Vec<u64> = lines.iter().map(|line| line["number"].as_u64().unwrap()).collect();
    assert!(numbers.iter().copied().eq(0..numbers.len() as u64), "{numbers:?}");
    let texts: Vec<&str> = lines.iter().map(|line| line["text"].as_str().unwrap()).collect();
    let noise: Vec<&str> = texts.iter().copied().filter(|text| text.starts_with("line ")).collect();
    let expected: Vec<String> = (0..2000).map(|i| format!("line {i}")).collect();
    assert_eq!(noise, expected);
    assert!(texts.contains(&"not \u{fffd} text") && texts.contains(&"no end"));
}

#[test]
fn variables_of_the_job_reach_the_ranks_and_others_do_not() {
    let run = Run::new("variables", "");
    let path = run.output().join("job.yaml");
    let job = fs::read_to_string(&path).unwrap();
    fs::write(&path, job + "  env: {set: {OF_THE_JOB: there}, unset: [OF_THE_SHELL]}\n").unwrap();
    let output = run.output();
    let mut command = run.qvl(&["resume", output.to_str().unwrap()]);
    let ended = command.env("OF_THE_JOB", "other").env("OF_THE_SHELL", "there").output().unwrap();
    assert_eq!(ended.status.code(), Some(0));
    let (_code, log) = run.ask(&["logs", "variables"]);
    assert_eq!(log.matches("variables there none").count(), 2, "{log}");
}

#[test]
fn the_json_stream_holds_ranks_and_supervisor() {
    let run = Run::new("kill", "");
    let output = run.resume(&["--output", "json"]);
    assert_eq!(output.status.code(), Some(0));
    let stream = String::from_utf8(output.stdout).unwrap();
    let mut events = Vec::new();
    for line in stream.lines() {
        let rank = serde_json::from_str::<Record>(line).is_ok();
        let supervisor = serde_json::from_str::<SupervisorRecord>(line).map(|record| record.event);
        assert!(rank != supervisor.is_ok(), "{line}");
        events.extend(supervisor);
    }
    let attempts = events.iter().filter(|e| matches!(e, SupervisorEvent::AttemptStarted { .. }));
    assert_eq!(attempts.count(), 2);
    assert!(matches!(events[1], SupervisorEvent::Culprit { culprit: 1, restarted: true, .. }));
    let restarting = SupervisorEvent::Restarting { after_seconds: 1, checkpoint_step: Some(3) };
    assert_eq!(events[2], restarting);
    let Some(SupervisorEvent::Ended { status, .. }) = events.last() else { panic!("{events:?}") };
    assert_eq!(status, "succeeded");
}

#[test]
fn a_run_in_the_background_is_seen_from_elsewhere() {
    let run = Run::new("normal", "");
    let output = run.resume(&["--detach"]);
    assert_eq!(output.status.code(), Some(101), "{}", text(&output));
    let (code, log) = run.ask(&["logs", "-f", "normal"]);
    assert_eq!(code, 0, "{log}");
    assert!(log.contains("r0  step 6/6: loss 2.5000"), "{log}");
    let (code, list) = run.ask(&["ps"]);
    assert_eq!(code, 0);
    assert!(list.contains("normal  succeeded  6/6"), "{list}");
}

#[test]
fn what_does_not_exist_is_said_so() {
    let run = Run::new("normal", "");
    let (code, said) = run.ask(&["status", "other"]);
    assert_eq!(code, 102);
    assert!(said.starts_with("error: no run named `other`\n\nhint: "), "{said}");
    let output = run.output();
    let output = output.to_str().unwrap();
    let (code, said) = run.ask(&["resume", output, "--trainer", "/nowhere/qvl-train"]);
    assert_eq!(code, 2, "{said}");
    assert!(said.starts_with("error: no trainer at `/nowhere/qvl-train`\n\nhint: "), "{said}");
    // A trainer that cannot be started leaves the run resumable.
    let (code, said) = run.ask(&["resume", output, "--trainer", output]);
    assert_eq!(code, 100, "{said}");
    assert!(said.contains("failed to run the ranks of `normal`"), "{said}");
    assert!(!run.state().is_alive());
}
