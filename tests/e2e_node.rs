//! Node agents on a real cluster: reports, the doctor over the fleet, the launcher's choice of nodes,
//! and faults of GPUs, nodes, agents and the API server.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use qvl_cluster::{
    Topology, images,
    testing::{TestCluster, must},
};
use serde_json::Value;

/// One node has an older driver, one has GPUs of half the memory.
const NODES: &str = "
nodes:
  - {name: n1, gpus: 2, profile: a100-sxm4-80g}
  - {name: n2, gpus: 2, profile: a100-sxm4-80g, driver: 535.104.05, cuda: 12020}
  - {name: n3, gpus: 2, profile: a100-sxm4-40g}
";

/// A rank of it needs about 47 GiB.
const JOB: &str = "
apiVersion: qvl.dev/v1alpha1
kind: FineTuneJob
metadata: {name: boxes}
spec:
  model: {path: base}
  data: {train: [{name: a, path: train.json, task: text}]}
  method: {lora: {r: 64}}
  batch: {global: 64, unit: 16}
  stages: [{name: one, steps: 2}]
  world: {gpus: 4, compute: cuda}
  output: out
  cluster: {volumes: [{name: data, mountPath: /data, hostPath: /data}]}
";

/// The shape of the 7B release; no weights are needed to plan.
const CONFIG: &str = r#"{"vocab_size": 151936, "hidden_size": 4096, "num_hidden_layers": 32,
    "num_attention_heads": 32, "intermediate_size": 22016, "visual": {"width": 1664, "layers": 48,
    "heads": 16, "mlp_ratio": 4.9231, "image_size": 448, "patch_size": 14}}"#;

/// Where the kernel of this machine has no loadable modules, nothing can be known about them.
const ALLOWED: [&str; 2] = ["--allow-unknown", "kernel-module-missing"];
const LIMIT: Duration = Duration::from_secs(120);

/// A cluster with agents, and a folder with a job.
struct Fleet {
    cluster: TestCluster,
    folder: tempfile::TempDir,
}

#[test]
fn agents_report_their_nodes_and_the_doctor_judges_the_fleet() {
    let fleet = Fleet::new();
    fleet.every_node_has_a_report();
    fleet.the_doctor_names_the_node_and_what_it_means_for_the_job();
    fleet.a_launch_uses_only_nodes_that_can_take_the_job();
    fleet.an_xid_is_in_the_report_within_seconds();
    fleet.a_gpu_that_vanishes_is_missed();
    fleet.a_driver_that_hangs_does_not_hang_its_agent();
    fleet.reports_survive_the_api_server_and_the_agents();
    fleet.a_node_that_does_not_report_is_unknown();
    fleet.a_deleted_node_takes_its_report_along();
}

impl Fleet {
    fn new() -> Fleet {
        let nodes = Topology::parse(NODES, Path::new("nodes.yaml")).unwrap();
        let cluster = TestCluster::with("node", nodes);
        must(images::product(&cluster, &must(images::release_folder())));
        let install = "install qvl charts/qvl -n qvl-system --create-namespace \
             -f charts/qvl/ci/test-cluster-values.yaml \
             --set agent.interval=3s --set collector.enabled=false --set operator.replicas=1 --wait";
        let output = cluster.command("helm").args(install.split_whitespace()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let folder = tempfile::tempdir().unwrap();
        job(folder.path());
        Fleet { cluster, folder }
    }

    fn every_node_has_a_report(&self) {
        for (node, driver) in [("n1", "570.124.06"), ("n2", "535.104.05"), ("n3", "570.124.06")] {
            self.until(node, |summary| summary["gpus"] == 2 && summary["driver"] == driver);
            let summary = self.summary(node);
            assert!(
                matches!(summary["verdict"].as_str(), Some("ok" | "unknown" | "warning")),
                "{summary}"
            );
            assert_eq!(summary["xids"], "-");
        }
        assert_eq!(self.summary("n3")["product"], "NVIDIA A100-SXM4-40GB");
        let table = self.cluster.run("get nodereports");
        let head: Vec<&str> = table.lines().next().unwrap().split_whitespace().collect();
        assert_eq!(head, ["NAME", "VERDICT", "GPUS", "PRODUCT", "DRIVER", "PROBLEMS", "OBSERVED"]);
        let uid = self.cluster.run("get node n1 -o jsonpath={.metadata.uid}");
        let owner = "get nodereport n1 -o jsonpath={.metadata.ownerReferences[0].uid}";
        assert_eq!(self.cluster.run(owner), uid);
        let size = self.cluster.run("get nodereport n1 -o json").len();
        assert!(size < 100_000, "{size} bytes for two GPUs");
    }

    fn the_doctor_names_the_node_and_what_it_means_for_the_job(&self) {
        let (code, text) =
            self.doctor(&["--job", &self.path("job.yaml"), "--trainer", &self.path("trainer")]);
        assert_eq!(code, 1, "{text}");
        let lines = words(&text);
        for expected in [
            "NODE VERDICT GPUS PRODUCT MEMORY DRIVER REPORTED WHY",
            "n2 FAIL 2 NVIDIA A100-SXM4-80GB 80.0 GiB 535.104.05 ago ptx-too-new",
            "n3 FAIL 2 NVIDIA A100-SXM4-40GB 40.0 GiB 570.124.06 ago memory-too-small",
            "boxes: 4 ranks do not fit without n2, n3; at most 2 ranks fit, as 1x2",
            "FAIL ptx-too-new on n2",
            "what the trainer has PTX 8.7 (nvcc 12.8), which needs driver 570; here is 535.104.05",
            "FAIL memory-too-small on n3",
            "WARN driver-skew on all nodes",
            "what driver version differs: 570.124.06 on 2 of 3 nodes, but 535.104.05 on n2",
        ] {
            assert!(lines.iter().any(|line| line == expected), "no line `{expected}` in\n{text}");
        }
        // This machine may be busy, or its clock not be set: warnings of the real n1.
        let row = "2 NVIDIA A100-SXM4-80GB 80.0 GiB 570.124.06 ago";
        let good = [format!("n1 ok {row}"), format!("n1 WARN {row}")];
        let found = lines.iter().any(|line| good.iter().any(|good| line.starts_with(good)));
        assert!(found, "{text}");
        let (_code, text) = self.doctor(&[
            "--job",
            &self.path("job.yaml"),
            "--trainer",
            &self.path("trainer"),
            "--gpus",
            "2",
        ]);
        let expected = "boxes: 2 ranks fit without n2, n3, for example as 1x2 on n1";
        assert!(text.contains(expected), "{text}");
        // Without the job and the trainer's file, all of these nodes are good.
        let (code, text) = self.doctor(&[]);
        assert_eq!(code, 0, "{text}");
    }

    fn a_launch_uses_only_nodes_that_can_take_the_job(&self) {
        must(self.cluster.xid("n1", 0, 79, "GPU has fallen off the bus."));
        self.until("n1", |summary| summary["xids"] == "79");
        let (code, text) = self.launch(2);
        assert_eq!(code, 0, "{text}");
        // Two ranks need a GPU each of 80 GB, so n2 is what is left.
        assert!(text.contains("1 pod of 2 nvidia.com/gpu, for example on n2"), "{text}");
        assert!(text.contains("not on n1: xid-seen: GPU 0 (0000:07:00.0, "), "{text}");
        assert!(text.contains("not on n3: memory-too-small: "), "{text}");
        let lines = words(&text);
        let at = lines.iter().position(|line| line == "excludeNodes:").unwrap();
        assert_eq!(lines[at + 1..at + 3], ["- n1", "- n3"]);
        // All four are needed: the doctor says why they cannot be had.
        let (code, text) = self.launch(4);
        assert_eq!(code, 1, "{text}");
        assert!(text.contains("xid-seen on n1"), "{text}");
    }

    fn an_xid_is_in_the_report_within_seconds(&self) {
        let begin = Instant::now();
        must(self.cluster.xid("n2", 1, 48, "Double Bit ECC Error"));
        self.until("n2", |summary| summary["xids"] == "48");
        let took = begin.elapsed();
        assert!(took < Duration::from_secs(30), "{took:?}");
        assert_eq!(self.summary("n2")["verdict"], "bad");
        let (code, text) = self.doctor(&[]);
        assert_eq!(code, 1, "{text}");
        assert!(text.contains("xid-seen on n2"), "{text}");
        assert!(text.contains("Xid 48"), "{text}");
        let metrics = self.page("n2", "metrics");
        assert!(metrics.contains("qvl_node_xids_total{node=\"n2\",code=\"48\"} 1"), "{metrics}");
        assert!(
            metrics.contains("qvl_node_finding{node=\"n2\",check=\"xid-seen\",verdict=\"fail\"} 1")
        );
        assert!(metrics.contains("qvl_node_gpus{node=\"n2\"} 2"), "{metrics}");
    }

    fn a_gpu_that_vanishes_is_missed(&self) {
        self.scenario("n3", r#"{"driver": "570.124.06", "cuda_driver": 12080, "gpus": [{"profile": "a100-sxm4-40g"}]}"#);
        self.until("n3", |summary| summary["gpus"] == 1);
        // The device plugin still offers the one that is gone.
        let (code, text) = self.doctor(&[]);
        assert_eq!(code, 1, "{text}");
        assert!(text.contains("gpu-count-mismatch on n3"), "{text}");
        let text = words(&text).join(" ");
        assert!(text.contains("2 GPUs allocatable in the cluster, but 1 in the driver"), "{text}");
        must(self.cluster.restart_device_plugin("n3"));
        let offered = "get node n3 -o jsonpath=gpus={.status.allocatable.nvidia\\.com/gpu}.";
        self.cluster.wait_for(offered, "gpus=1.");
        let (_code, text) = self.doctor(&[]);
        assert!(!text.contains("gpu-count-mismatch on n3"), "{text}");
        // A job that wants two GPUs of each node misses it all the same.
        let (_code, text) = self.doctor(&["--job", &self.path("job.yaml"), "--gpus", "4"]);
        assert!(
            words(&text).join(" ").contains("2 ranks on this node, but 1 usable GPUs"),
            "{text}"
        );
    }

    fn a_driver_that_hangs_does_not_hang_its_agent(&self) {
        let slow = r#"{"driver": "570.124.06", "cuda_driver": 12080, "gpus": [{"profile": "a100-sxm4-40g",
            "delays_ms": {"nvmlDeviceGetTemperature": 600000}}]}"#;
        self.scenario("n3", slow);
        self.until("n3", |summary| summary["driver"] == "hangs");
        let summary = self.summary("n3");
        assert!(summary["problems"].as_str().unwrap().contains("driver-hang"), "{summary}");
        assert_eq!(self.page("n3", "healthz"), "ok\n");
        self.scenario("n3", &slow.replace("600000", "0"));
        self.until("n3", |summary| summary["driver"] == "570.124.06");
    }

    fn reports_survive_the_api_server_and_the_agents(&self) {
        let restarts = "get pods -n qvl-system -l app.kubernetes.io/component=agent \
                        -o jsonpath={.items[*].status.containerStatuses[0].restartCount}";
        assert_eq!(self.cluster.run(restarts), "0 0 0");
        must(self.cluster.stop_apiserver());
        must(self.cluster.xid("n3", 0, 31, "MMU Fault"));
        // Long enough for several tries of the agents.
        thread::sleep(Duration::from_secs(8));
        must(self.cluster.start_apiserver());
        self.until("n3", |summary| summary["xids"] == "31");
        assert_eq!(self.cluster.run(restarts), "0 0 0");

        let old = self.pod("n3");
        let begin = Instant::now();
        self.cluster.run(&format!("delete pod -n qvl-system {old} --grace-period=150 --wait"));
        // It ends when it is told to, not when its time is over.
        assert!(begin.elapsed() < Duration::from_secs(100), "{:?}", begin.elapsed());
        self.cluster.run("rollout status daemonset/qvl-agent -n qvl-system --timeout=60s");
        assert_ne!(self.pod("n3"), old);
        let before = self.observed("n3");
        self.scenario("n3", r#"{"driver": "570.133.20", "cuda_driver": 12080, "gpus": [{"profile": "a100-sxm4-40g"}]}"#);
        self.until("n3", |summary| summary["driver"] == "570.133.20" && summary["xids"] == "31");
        assert!(before < self.observed("n3"));
    }

    fn a_node_that_does_not_report_is_unknown(&self) {
        // No agent on n3 any more.
        let selector = r#"{"spec":{"template":{"spec":{"affinity":{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[{"matchExpressions":[{"key":"kubernetes.io/hostname","operator":"NotIn","values":["n3"]}]}]}}}}}}}"#;
        self.cluster
            .run(&format!("patch daemonset qvl-agent -n qvl-system --type=merge -p {selector}"));
        self.cluster.run("rollout status daemonset/qvl-agent -n qvl-system --timeout=120s");
        self.cluster.wait_for(
            "get pods -n qvl-system -l app.kubernetes.io/component=agent -o jsonpath=:{.items[*].spec.nodeName}: --field-selector spec.nodeName=n3",
            "::",
        );
        let old = r#"{"spec":{"observedAt":"2026-01-01T00:00:00Z"}}"#;
        self.cluster.run(&format!("patch nodereport n3 --type=merge -p {old}"));
        let (_code, text) = self.doctor(&[]);
        let lines = words(&text);
        assert!(lines.iter().any(|line| line.starts_with("n3 UNKNOWN - - - - ")), "{text}");
        assert!(text.contains("report of n3 is not used: it is "), "{text}");
        // kubectl tells that it is old.
        let table = self.cluster.run("get nodereport n3 --no-headers");
        assert!(table.trim_end().ends_with('d'), "{table}");
        self.cluster.run("delete nodereport n3");
        let (code, text) = self.doctor(&["--job", &self.path("job.yaml")]);
        assert_eq!(code, 1, "{text}");
        let lines = words(&text);
        let expected = "n3 UNKNOWN - - - - never node-missing";
        assert!(lines.iter().any(|line| line == expected), "{text}");
        // Cordoned nodes need no report; the table names them.
        for node in ["n1", "n2"] {
            self.cluster.run(&format!("cordon {node}"));
        }
        let (code, text) = self.doctor(&[]);
        assert_eq!(code, 3, "{text}");
        assert!(
            words(&text)
                .iter()
                .any(|line| line.starts_with("n1 left out") && line.ends_with("cordoned")),
            "{text}"
        );
    }

    fn a_deleted_node_takes_its_report_along(&self) {
        self.cluster.run("get nodereport n2");
        must(self.cluster.stop_kubelet("n2"));
        self.cluster.run("delete node n2");
        self.cluster.wait_for("get nodereport n2", "not found");
        self.cluster.run("get nodereport n1");
    }

    /// `qvl doctor --cluster`: code and text.
    fn doctor(&self, args: &[&str]) -> (i32, String) {
        self.qvl(&[&["doctor", "--cluster", "--reproducible"], &ALLOWED[..], args].concat())
    }

    /// What a launch would do.
    fn launch(&self, gpus: u32) -> (i32, String) {
        let (job, gpus) = (self.path("job.yaml"), gpus.to_string());
        let args = ["launch", &job, "--gpus", &gpus, "--dry-run", "-o", "yaml"];
        self.qvl(&[&args[..], &ALLOWED].concat())
    }

    fn qvl(&self, args: &[&str]) -> (i32, String) {
        let mut command = self.cluster.command(env!("CARGO_BIN_EXE_qvl"));
        let output = command.env_remove("QVL_TRAIN_BIN").args(args).output().unwrap();
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        (output.status.code().unwrap(), text.concat())
    }

    fn summary(&self, node: &str) -> Value {
        let text =
            self.cluster.run(&format!("get nodereport {node} -o jsonpath={{.spec.summary}}"));
        serde_json::from_str(&text).unwrap()
    }

    fn observed(&self, node: &str) -> String {
        self.cluster.run(&format!("get nodereport {node} -o jsonpath={{.spec.observedAt}}"))
    }

    /// Waits for a report.
    #[track_caller]
    fn until(&self, node: &str, is: impl Fn(&Value) -> bool) {
        let begin = Instant::now();
        let mut last = String::new();
        while begin.elapsed() < LIMIT {
            let words = ["get", "nodereport", node, "-o", "jsonpath={.spec.summary}"];
            last = self.cluster.kubectl(&words).unwrap_or_else(|error| error.to_string());
            if serde_json::from_str(&last).is_ok_and(|summary| is(&summary)) {
                return;
            }
            thread::sleep(Duration::from_millis(500)); // each kubectl costs a tenth of a second
        }
        let mut all = format!("{node}: {last}\n");
        let pods = "logs -n qvl-system -l app.kubernetes.io/component=agent --prefix --tail=20";
        let _never = writeln!(all, "{}", self.cluster.run(pods));
        panic!("{all}");
    }

    fn scenario(&self, node: &str, text: &str) {
        let file = self.folder.path().join("scenario.json");
        fs::write(&file, text).unwrap();
        must(self.cluster.set_scenario(node, &file));
    }

    /// The agent's pod on a node; between two of them the DaemonSet takes a moment.
    fn pod(&self, node: &str) -> String {
        let agents = "get pods -n qvl-system -l app.kubernetes.io/component=agent -o name";
        let one = format!("{agents} --field-selector=spec.nodeName={node}");
        self.cluster.wait_for(&one, "pod/");
        let names = self.cluster.run(&one);
        names.lines().next().unwrap_or_default().trim_start_matches("pod/").to_owned()
    }

    /// A page of the agent on a node.
    fn page(&self, node: &str, page: &str) -> String {
        let pod = self.pod(node);
        let url = format!("/api/v1/namespaces/qvl-system/pods/http:{pod}:9090/proxy/{page}");
        self.cluster.run(&format!("get --raw {url}"))
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }
}

/// Lines with one space between words, without times.
fn words(text: &str) -> Vec<String> {
    let word =
        |word: &&str| !word.ends_with('s') || word.trim_end_matches('s').parse::<u32>().is_err();
    text.lines()
        .map(|line| line.split_whitespace().filter(word).collect::<Vec<_>>().join(" "))
        .collect()
}

/// A job, its base without weights, one sample, and a trainer that needs a driver of branch 570.
fn job(folder: &Path) {
    let write = |name: &str, text: &str| fs::write(folder.join(name), text).unwrap();
    fs::create_dir(folder.join("base")).unwrap();
    write("job.yaml", JOB);
    write("base/config.json", CONFIG);
    let mut vocabulary = String::new();
    for byte in 0..=255_u8 {
        writeln!(vocabulary, "{} {byte}", BASE64_STANDARD.encode([byte])).unwrap();
    }
    write("base/qwen.tiktoken", &vocabulary);
    let answer = "A cat sits on a mat. ".repeat(15);
    write(
        "train.json",
        &serde_json::json!([{"id": "a", "conversations": [
        {"from": "user", "value": "What is it?"}, {"from": "assistant", "value": answer.trim()}]}])
        .to_string(),
    );
    write("ptx", "\n.version 8.7\n.target sm_80\n.address_size 64\n");
    let objcopy =
        "-I binary -O elf64-x86-64 -B i386:x86-64 --rename-section .data=.rodata ptx trainer";
    let output =
        Command::new("objcopy").args(objcopy.split(' ')).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(PathBuf::from(folder).join("trainer").exists());
}
