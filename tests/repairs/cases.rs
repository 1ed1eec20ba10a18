//! Ways to break a machine, one for each kind of repair.

use std::{fmt::Write as _, fs, path::Path};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use qvl::doctor::fix::Kind;

/// One way to break a machine, and the repair.
pub(crate) struct Case {
    pub(crate) kinds: &'static [Kind],
    pub(crate) rule: &'static str,
    /// Arguments of the doctor.
    pub(crate) args: &'static str,
    /// Breaks the machine.
    pub(crate) prepare: &'static str,
    /// Prints the state of what the repair changes.
    pub(crate) state: &'static str,
    /// Facts that the repair changes, as JSON pointers.
    pub(crate) facts: &'static [&'static str],
    /// What the plan shows.
    pub(crate) shows: &'static [&'static str],
    /// Changes the same thing after the repair; nothing for what has two states only.
    pub(crate) meddle: Option<&'static str>,
}

pub(crate) static PERSISTENCE: Case = Case {
    kinds: &[Kind::Persistence],
    rule: "persistence-off",
    args: "--gpus 2",
    prepare: "true",
    state: "grep -o '\"persistence\": *[a-z]*' \"$LD_LIBRARY_PATH/scenario.json\" | tr -d ' '",
    facts: &["/nvml/gpus/known/value/1/persistence/known/value"],
    shows: &["nvidia-smi -i GPU-", "-pm 1", "off -> on", "until the next boot"],
    meddle: None,
};

pub(crate) static SHARED_MEMORY: Case = Case {
    kinds: &[Kind::SharedMemory],
    rule: "shm-small",
    args: "--gpus 2",
    prepare: "echo kept > /dev/shm/file",
    state: "df -B1 --output=size /dev/shm; cat /dev/shm/file; grep ' /dev/shm ' /proc/self/mountinfo | grep -o 'rw,[a-z,]*'",
    facts: &["/shm/mount/known/value/total_bytes"],
    shows: &["mount -o remount,size=", "67108864 -> ", "/dev/shm"],
    meddle: Some("mount -o remount,size=1g /dev/shm"),
};

/// The hard limit stays: not every root may raise it.
pub(crate) static LIMIT: Case = Case {
    kinds: &[Kind::Limit, Kind::LimitFile],
    rule: "file-size-limit",
    args: "--gpus 2",
    prepare: "ulimit -S -f 2048",
    state: "grep 'Max file size' /proc/self/limits; ls -A /etc/security/limits.d",
    facts: &["/limits/file_size_bytes/known/value"],
    shows: &[
        "prlimit --pid ",
        "--fsize=unlimited:unlimited",
        "1048576 unlimited -> unlimited unlimited",
        "+*    -  fsize  unlimited",
        "/dev/null",
    ],
    meddle: Some("echo '# mine' >> /etc/security/limits.d/90-qvl-fsize.conf"),
};

/// A limit that is lowered.
pub(crate) static CORE: Case = Case {
    kinds: &[Kind::Limit, Kind::LimitFile],
    rule: "core-dumps-on",
    args: "--gpus 2",
    prepare: "ulimit -S -c unlimited; echo core > /proc/sys/kernel/core_pattern",
    state: "grep 'Max core file size' /proc/self/limits; ls -A /etc/security/limits.d",
    facts: &["/limits/core_bytes/known/value"],
    shows: &["--core=0:unlimited", "unlimited unlimited -> 0 unlimited", "+*    soft  core  0"],
    meddle: Some("prlimit --pid $$ --core=4096:unlimited"),
};

pub(crate) static MODULE: Case = Case {
    kinds: &[Kind::Module],
    rule: "kernel-module-missing",
    args: "--gpus 2",
    prepare: "true",
    state: "cat /proc/modules",
    facts: &["/driver/modules/known/value"],
    shows: &["modprobe nvidia_uvm", "modprobe -r nvidia_uvm"],
    meddle: None,
};

pub(crate) static SYSCTL: Case = Case {
    kinds: &[Kind::Sysctl],
    rule: "overcommit-strict",
    args: "--gpus 2",
    prepare: "echo 2 > /proc/sys/vm/overcommit_memory",
    state: "cat /proc/sys/vm/overcommit_memory",
    facts: &["/system/sysctl/known/value/vm.overcommit_memory"],
    shows: &["sysctl -w vm.overcommit_memory=\"0\"", "2 -> 0"],
    meddle: Some("echo 1 > /proc/sys/vm/overcommit_memory"),
};

pub(crate) static JOB_FILE: Case = Case {
    kinds: &[Kind::JobFile],
    rule: "nccl-algorithm-forced",
    args: "--job \"$T/job.yaml\"",
    prepare: "export NCCL_ALGO=Ring; chmod 640 \"$T/job.yaml\"",
    state: "cat \"$T/job.yaml\"; stat -c %a \"$T/job.yaml\"; ls -A \"$T\" | grep qvl || true",
    facts: &[],
    shows: &["+  env:", "+    unset:", "+      - NCCL_ALGO", "@@"],
    meddle: Some("echo '# mine' >> \"$T/job.yaml\""),
};

pub(crate) static CASES: [&Case; 7] =
    [&PERSISTENCE, &SHARED_MEMORY, &LIMIT, &CORE, &MODULE, &SYSCTL, &JOB_FILE];

const JOB: &str = "# My job; this line stays.
apiVersion: qvl.dev/v1alpha1
kind: FineTuneJob
metadata: {name: boxes}
spec:
  model: {path: base}
  data: {train: [{name: a, path: train.json, task: text}]}
  stages: [{name: one, steps: 2}]
  world: {gpus: 2, compute: cuda}
  output: out   # and this word
";

const CONFIG: &str = r#"{"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 128, "visual": {"width": 64, "layers": 2,
    "heads": 2, "mlp_ratio": 4.0, "image_size": 448, "patch_size": 14}}"#;

/// A job with a base that has no weights.
pub(crate) fn write_job(folder: &Path) {
    let write = |name: &str, text: &str| fs::write(folder.join(name), text).unwrap();
    fs::create_dir(folder.join("base")).unwrap();
    write("job.yaml", JOB);
    write("base/config.json", CONFIG);
    let mut vocabulary = String::new();
    for byte in 0..=255_u8 {
        writeln!(vocabulary, "{} {byte}", BASE64_STANDARD.encode([byte])).unwrap();
    }
    write("base/qwen.tiktoken", &vocabulary);
    let turns = serde_json::json!([{"from": "user", "value": "What?"},
        {"from": "assistant", "value": "A cat."}]);
    write("train.json", &serde_json::json!([{"id": "a", "conversations": turns}]).to_string());
}
