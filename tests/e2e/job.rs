//! A job of these tests: its file, its launch, its pods and its processes.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::{
    lab::{JOBS, Lab, PODS, until, within},
    seen::{Said, Step},
};

/// Steps of the test's job, and how often it saves.
pub(crate) const STEPS: u64 = 60;
pub(crate) const EVERY: u64 = 10;
/// Longest run of a job, restarts included.
const RUN: Duration = Duration::from_secs(300);

/// A job file.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub name: String,
    pub object: Value,
}

impl Job {
    /// The digits job, shorter: [`STEPS`] steps, one small evaluation.
    pub(crate) fn digits(name: &str) -> Job {
        let text = fs::read_to_string("examples/digits/job.yaml").unwrap();
        let mut object: Value = serde_saphyr::from_str(&text).unwrap();
        object["metadata"]["name"] = json!(name);
        let spec = &mut object["spec"];
        spec["stages"][0]["steps"] = json!(STEPS);
        spec["schedule"]["warmupSteps"] = json!(5);
        spec["checkpoint"]["everySteps"] = json!(EVERY);
        spec["evaluation"]["atStart"] = json!(false);
        spec["data"]["eval"].as_array_mut().unwrap().truncate(1);
        spec["data"]["eval"][0]["limit"] = json!(4);
        spec["output"] = json!(format!("../../demo/{name}"));
        Job { name: name.to_owned(), object }
    }

    /// The same with another value of a field of the spec.
    pub(crate) fn with(mut self, pointer: &str, value: Value) -> Job {
        let mut place = &mut self.object["spec"];
        for key in pointer.split('.') {
            place = match key.parse::<usize>() {
                Ok(index) => &mut place[index],
                Err(_) => &mut place[key],
            };
        }
        *place = value;
        self
    }

    /// JSON is YAML too.
    pub(crate) fn text(&self) -> String {
        self.object.to_string()
    }

    /// `qvl launch FILE --gpus 4`, in the background.
    pub(crate) fn launch<'l>(&self, lab: &'l Lab, more: &[&str]) -> Launch<'l> {
        let file = lab.folder.path().join(format!("{}.yaml", self.name));
        fs::write(&file, self.text()).unwrap();
        let log = lab.folder.path().join(format!("{}.log", self.name));
        let file = file.to_str().unwrap();
        let mut qvl = lab.command(&["launch", file, "--gpus", "4"]);
        qvl.args(more).stdout(Stdio::null()).stderr(File::create(&log).unwrap());
        Launch { lab, name: self.name.clone(), child: qvl.spawn().unwrap(), log }
    }
}

/// A launched job.
pub(crate) struct Launch<'l> {
    lab: &'l Lab,
    pub name: String,
    child: Child,
    log: PathBuf,
}

impl Launch<'_> {
    /// A field of the object in the cluster.
    pub(crate) fn field(&self, pointer: &str) -> Value {
        self.lab.field(&format!("{JOBS}/{}", self.name), pointer)
    }

    pub(crate) fn step(&self) -> u64 {
        self.field("/status/progress/step").as_u64().unwrap_or(0)
    }

    /// Waits until the job has made so many steps.
    #[track_caller]
    pub(crate) fn wait_for_step(&mut self, step: u64) {
        until(&format!("step {step}"), || {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "the launch ended: {}", self.printed());
            (step <= self.step()).then_some(())
        });
    }

    /// Waits for a state, as `kubectl get ftj` shows it.
    #[track_caller]
    pub(crate) fn wait_for_state(&self, state: &str) {
        until(&format!("state {state}"), || {
            (self.field("/status/summary/state") == state).then_some(())
        });
    }

    fn printed(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// The pod of an index, of the newest attempt: name, node and uid.
    pub(crate) fn pod(&self, index: u32) -> (String, String, String) {
        let labels =
            format!("qvl.dev/job={},batch.kubernetes.io/job-completion-index={index}", self.name);
        let path = format!("{PODS}?labelSelector={labels}");
        let list = self.lab.field(&path, "/items");
        let made = |pod: &&Value| pod["metadata"]["creationTimestamp"].to_string();
        let pod = list.as_array().unwrap().iter().max_by_key(made).unwrap();
        let text = |pointer: &str| pod.pointer(pointer).unwrap().as_str().unwrap().to_owned();
        (text("/metadata/name"), text("/spec/nodeName"), text("/metadata/uid"))
    }

    /// The process of a rank: two ranks are in a pod.
    pub(crate) fn rank(&self, rank: u32) -> Pid {
        let (_name, _node, uid) = self.pod(rank / 2);
        until(&format!("a process of rank {rank}"), || process(&uid, rank))
    }

    pub(crate) fn signal(&self, rank: u32, signal: Signal) -> Instant {
        kill(self.rank(rank), signal).unwrap();
        Instant::now()
    }

    /// Waits until the launch ends, and answers with what it printed.
    #[track_caller]
    pub(crate) fn end(&mut self) -> Said {
        let status = within(RUN, "the launch ends", || self.child.try_wait().unwrap());
        Said { code: status.code().unwrap(), text: self.printed() }
    }

    /// Every line that the collector has, in order.
    pub(crate) fn lines(&self) -> Vec<Value> {
        let words = ["logs", &self.name, "--cluster", "--rank", "all", "--json"];
        let said = Said::of(&self.lab.command(&words).output().unwrap());
        assert_eq!(said.code, 0, "{said}");
        said.text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Steps of rank 0 in the order in which they were made.
    pub(crate) fn steps(&self) -> Vec<Step> {
        self.lines().iter().filter_map(Step::of).collect()
    }

    /// Weights of the result.
    pub(crate) fn weights(&self) -> Vec<u8> {
        let file = format!("demo/{}/adapter/adapter_model.safetensors", self.name);
        fs::read(self.lab.volume.join(file)).unwrap()
    }

    /// It ended as if nothing had happened: complete, with the weights of an undisturbed run, every
    /// step in the log, and no step made again that a checkpoint had.
    #[track_caller]
    pub(crate) fn assert_undisturbed(&mut self) -> Said {
        let said = self.end();
        assert_eq!(said.code, 0, "{said}");
        assert_eq!(self.field("/status/summary/state"), "Complete");
        assert!(self.weights() == self.lab.reference(), "the weights differ");
        self.assert_no_saved_step_is_made_again();
        assert_numbered(&self.lines());
        said
    }

    /// Every step is in the log, and none was made again that a checkpoint had.
    #[track_caller]
    pub(crate) fn assert_no_saved_step_is_made_again(&self) {
        let steps = self.steps();
        let numbers: Vec<u64> = steps.iter().map(|step| step.number).collect();
        assert!((1..=STEPS).all(|step| numbers.contains(&step)), "{numbers:?}");
        for pair in steps.windows(2).filter(|pair| pair[1].number <= pair[0].number) {
            // The death may come between a step and its checkpoint.
            let saved = (pair[0].number - 1) / EVERY * EVERY;
            assert!(saved < pair[1].number, "{pair:?}: step {saved} was saved");
        }
    }
}

impl Drop for Launch<'_> {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Every pod's lines of a rank are numbered without a gap: none was lost.
#[track_caller]
fn assert_numbered(lines: &[Value]) {
    let mut next = std::collections::BTreeMap::new();
    for line in lines {
        let key = (line["pod"].to_string(), line["rank"].as_u64(), line["epoch"].as_u64());
        let number = line["number"].as_u64().unwrap();
        let expected = next.entry(key).or_insert(number);
        assert_eq!(number, *expected, "{line}");
        *expected += 1;
    }
}

/// The trainer of a rank in a pod, found by the pod's control group.
fn process(uid: &str, rank: u32) -> Option<Pid> {
    let (dashed, flat) = (format!("pod{uid}"), format!("pod{}", uid.replace('-', "_")));
    let wanted = format!("RANK={rank}");
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()).find_map(|pid| {
        let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).ok();
        if read("comm")? != b"qvl-train\n" {
            return None;
        }
        let group = String::from_utf8(read("cgroup")?).ok()?;
        let environment = String::from_utf8(read("environ")?).ok()?;
        let is_it = (group.contains(&dashed) || group.contains(&flat))
            && environment.split('\0').any(|variable| variable == wanted);
        is_it.then(|| Pid::from_raw(pid))
    })
}
