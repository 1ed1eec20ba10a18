//! Every row is proven by an excerpt, and a healthy log by silence.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::doctor;

const EXCERPTS: &str = include_str!("../../../tests/why/excerpts.txt");
const STORIES: &str = include_str!("../../../tests/why/stories.txt");
const HEALTHY: &str = include_str!("../../../tests/why/healthy.log");

/// By id: the lines of its excerpt.
fn excerpts() -> BTreeMap<&'static str, Vec<&'static str>> {
    let sections = EXCERPTS.split("\n## ").skip(1);
    let of = |section: &'static str| {
        let mut lines = section.lines();
        (lines.next().unwrap(), lines.filter(|line| !line.is_empty()).collect())
    };
    sections.map(of).collect()
}

fn read(logs: &[(&str, &str)]) -> Answer {
    let mut collector = Collector::default();
    for (name, text) in logs {
        collector.source(*name);
        (1..).zip(text.lines()).for_each(|(number, line)| collector.line(number, line.as_bytes()));
    }
    collector.finish()
}

fn ids(answer: &Answer) -> Vec<&str> {
    answer.findings.iter().map(|finding| finding.pattern.id.as_str()).collect()
}

#[test]
fn every_row_is_whole_and_names_checks_that_exist() {
    let table = include_str!("../data/log_patterns.tsv");
    assert_eq!(patterns().len(), doctor::table::rows(table).count(), "a row is not understood");
    assert!(pattern::SET.len() == patterns().len() + 1);
    let codes = include_str!("../data/exit_codes.tsv");
    let codes: Vec<_> = doctor::table::rows(codes).map(|row| row[0].parse().unwrap()).collect();
    let exits = codes.iter().map(|code| exit_code(*code).expect("a row that is understood"));
    let mut seen = BTreeSet::new();
    for pattern in patterns().iter().chain(exits) {
        assert!(seen.insert(&pattern.id), "{} is there twice", pattern.id);
        for check in &pattern.checks {
            assert!(doctor::rule(check).is_some(), "{}: no check `{check}`", pattern.id);
        }
        let texts = [pattern.title, pattern.means, pattern.fix, pattern.source];
        assert!(texts.iter().all(|text| !text.is_empty()), "{}", pattern.id);
        assert!(pattern.class != Class::Cause || pattern.source != "-", "{}", pattern.id);
    }
}

#[test]
fn every_row_fires_on_its_excerpt_and_no_other_takes_it() {
    let excerpts = excerpts();
    assert_eq!(excerpts.len(), patterns().len());
    for pattern in patterns() {
        let lines = excerpts.get(pattern.id.as_str());
        let lines = lines.unwrap_or_else(|| panic!("no excerpt for {}", pattern.id));
        for line in lines {
            assert_eq!(ids(&read(&[("log", line)])), [pattern.id.as_str()], "{line}");
        }
    }
}

/// Whole logs after reports of users: what came first must come first, whatever followed from it.
#[test]
fn failures_that_people_reported_are_explained() {
    let mut wrong = Vec::new();
    let mut sources = BTreeSet::new();
    for story in STORIES.split("\n## ").skip(1) {
        let (title, rest) = story.split_once('\n').unwrap();
        let (source, rest) = rest.strip_prefix("source: ").unwrap().split_once('\n').unwrap();
        let (first, log) = rest.strip_prefix("first: ").unwrap().split_once('\n').unwrap();
        assert!(source.contains('/') && source.contains('#'), "{title}: {source}");
        assert!(sources.insert(source), "{source} is there twice");
        let answer = read(&[("log", log)]);
        let found = ids(&answer);
        if found.first() != Some(&first) {
            wrong.push(format!("{title} ({source}): expected {first}, found {found:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(50 < sources.len(), "{} stories", sources.len());
}

/// What awslabs' hyperpod-nccl looks for, each with the row that takes it. Two of its 38 words are not
/// here: `libnccl-net.so` and `CUDA_VISIBLE_DEVICES` stand in healthy logs, so `net-plugin-load`
/// and `no-gpu-visible` ask for more.
#[test]
fn what_hyperpod_nccl_knows_is_known() {
    for (line, id) in [
        ("Timeout waiting for", "rendezvous-wait"),
        ("Connection refused", "refused"),
        ("Address already in use", "port-taken"),
        ("NCCL WARN Connect to", "nccl-connect"),
        ("network is unreachable", "no-route"),
        ("Error in Store", "store-error"),
        ("DistStoreError", "store-error"),
        ("RendezvousConnectionError", "elastic-connection"),
        ("RendezvousTimeout", "elastic-timeout"),
        ("Name or service not known", "no-name"),
        ("getaddrinfo failed", "no-name"),
        ("Watchdog timeout", "nccl-watchdog"),
        ("unhandled system error", "nccl-system"),
        ("unhandled cuda error", "nccl-cuda"),
        ("peer access is not supported", "p2p-unsupported"),
        ("NCCL WARN Cuda failure", "nccl-cuda"),
        ("fi_getinfo failed", "efa-missing"),
        ("NCCL_OFI_RDMA", "ofi-error"),
        ("Call to ibv_reg_mr failed", "ib-locked-memory"),
        ("NET/OFI Using TCP", "ofi-tcp"),
        ("Failed to load NCCL", "nccl-library"),
        ("OOMKilled", "host-oom"),
        ("CUDA out of memory", "cuda-out-of-memory"),
        ("cudaMalloc failed", "cuda-out-of-memory"),
        ("failed to extend /dev/shm", "shm-full"),
        ("Bus error", "shm-full"),
        ("NCCL function not found", "nccl-symbol"),
        ("Incompatible NCCL version", "nccl-version"),
        ("Could not find interface", "nccl-interface"),
        ("world_size mismatch", "nccl-rank-count"),
        ("doesn't have NCCL built in", "nccl-not-built"),
        ("unlink shared memory", "shm-stale-unlink"),
        ("Call to ncclCommAbort", "nccl-abort"),
        ("MNNVL topology", "mnnvl"),
        ("ENOMEM", "no-memory"),
        ("invalid alignment", "misaligned"),
    ] {
        assert_eq!(ids(&read(&[("log", line)])), [id], "{line}");
    }
}

/// Problems of users of Qwen-VL, and the rows by which they show in a log. What only shows in a
/// result (boxes, learning rate, forgetting) has a note.
#[test]
fn the_problems_of_qwen_vl_have_rows() {
    for (problem, rows) in [
        ("ranks die of host memory", vec!["host-oom", "killed"]),
        ("SIGBUS", vec!["shm-full"]),
        ("a hang without peer access", vec!["nccl-watchdog", "rtx4000-p2p"]),
        ("a hang with mixed batches", vec!["nccl-watchdog", "unused-ddp"]),
        ("a picture that was cut off", vec!["qwen-cut-image"]),
        ("a path that is too long", vec!["qwen-long-path"]),
        ("a leaf variable in place", vec!["qwen-inplace"]),
        ("a constant learning rate", vec!["deepspeed-scheduler"]),
        ("results that do not change", vec!["adapter-not-applied"]),
        (
            "a merged model that does not load",
            vec!["merged-incomplete", "qwen-tokenizer-attribute"],
        ),
        ("device_map", vec!["two-devices"]),
        ("boxes that are wrong", vec!["grounding-zero"]),
        ("V100 and bf16", vec!["no-bf16", "unscale-fp16"]),
        ("DeepSpeed and torch", vec!["deepspeed-log-import"]),
        ("out of memory on 24 GB", vec!["cuda-out-of-memory"]),
        ("no checkpoint to resume", vec!["resume-missing"]),
        ("answers known by heart", vec!["loss-zero"]),
        ("the loss of accumulated batches", vec!["qwen-forward-argument"]),
        ("qwen.tiktoken is missing", vec!["qwen-tiktoken", "lfs-pointer"]),
        ("the font SimSun.ttf", vec!["qwen-font"]),
        ("pictures of the network", vec!["picture-fetch", "picture-unreadable"]),
    ] {
        for id in rows {
            assert!(patterns().iter().any(|pattern| pattern.id == id), "{problem}: {id}");
        }
    }
}

#[test]
fn a_healthy_log_says_nothing() {
    let answer = read(&[("log", HEALTHY)]);
    assert_eq!(ids(&answer), [""; 0]);
    assert!(answer.cause().is_none());
}

/// One rank is out of memory; the others lose it, wait, and are ended. Its log comes last.
#[test]
fn a_cause_wins_over_earlier_consequences() {
    let victims = "[rank0]:[E ProcessGroupNCCL.cpp:607] [Rank 0] Watchdog caught collective operation timeout\n\
        [rank1]: BrokenPipeError: [Errno 32] Broken pipe\n\
        W0109 19:38:21.682000 1 torch/api.py:897] Sending process 7 closing signal SIGTERM\n\
        torch.distributed.elastic.multiprocessing.errors.ChildFailedError:\n";
    let culprit = "step 1\n[rank3]: torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB\n";
    for logs in [
        [("node0.log", victims), ("node1.log", culprit)],
        [("node1.log", culprit), ("node0.log", victims)],
    ] {
        let answer = read(&logs);
        let cause = answer.cause().unwrap();
        assert_eq!(cause.pattern.id, "cuda-out-of-memory");
        assert_eq!(cause.place.to_string(), "node1.log:2");
        assert_eq!(cause.rank.as_deref(), Some("rank 3"));
        assert_eq!(ids(&answer)[1], "nccl-watchdog");
        // One cause needs no order.
        assert!(answer.ordered);
    }
}

#[test]
fn of_two_causes_the_earlier_one_is_first() {
    let late = "2026-11-24 10:00:09,000 ERROR Too many open files\n";
    let early = "2026-11-24 10:00:01,500 ERROR\nNo CUDA GPUs are available\n";
    let answer = read(&[("a.log", late), ("b.log", early)]);
    assert_eq!(ids(&answer), ["no-gpu-visible", "too-many-files"]);
    assert!(answer.ordered);
    // The same in one log: what is written first is first.
    assert_eq!(
        ids(&read(&[("a.log", &[late, early].concat())])),
        ["too-many-files", "no-gpu-visible"]
    );
    // Times of another form cannot be compared.
    let other = "E1124 10:00:00.000000 7 x.py:1] No CUDA GPUs are available\n";
    let answer = read(&[("a.log", late), ("b.log", other)]);
    assert_eq!(ids(&answer), ["too-many-files", "no-gpu-visible"]);
    assert!(!answer.ordered);
}

#[test]
fn consequences_alone_are_no_cause() {
    let answer = read(&[("a.log", "x\nConnection reset by peer\nSomeError: strange\n")]);
    assert!(answer.cause().is_none());
    assert_eq!(ids(&answer), ["peer-closed"]);
    assert_eq!(answer.tail[0].text, "SomeError: strange");
}

#[test]
fn ranks_are_read_in_every_dialect() {
    for (line, rank) in [
        ("[rank3]: Too many open files", "rank 3"),
        ("[default3]: Too many open files", "rank 3"),
        ("rank 3 | Too many open files", "rank 3"),
        ("[1,3]<stderr>: Too many open files", "rank 3"),
        ("10:00:00.123 a1 r3  Too many open files", "rank 3"),
        (
            "{\"time_ms\":1764000003000,\"rank\":3,\"attempt\":1,\"text\":\"Too many open files\"}",
            "rank 3",
        ),
        ("\x1b[31m[rank3]:\x1b[0m Too many open files", "rank 3"),
        ("Too many open files local_rank: 3 (pid: 9)", "local rank 3"),
    ] {
        let answer = read(&[("log", line)]);
        assert_eq!(answer.cause().unwrap().rank.as_deref(), Some(rank), "{line}");
    }
    for (name, rank) in [
        ("logs/attempt-001-rank-003.log", "rank 3"),
        ("rank3.txt", "rank 3"),
        ("attempt_0/3/stderr.log", "local rank 3"),
    ] {
        let answer = read(&[(name, "1764000003000 7 Too many open files")]);
        let cause = answer.cause().unwrap();
        assert_eq!((cause.rank.as_deref(), &*cause.text), (Some(rank), "Too many open files"));
    }
}

#[test]
fn times_are_read_in_every_dialect() {
    use line::{Form, stamp};
    let ms = 1_764_000_003_250;
    for (text, form) in [
        ("1764000003250 12 x", Form::Absolute),
        ("{\"time_ms\":1764000003250,\"rank\":0}", Form::Absolute),
        ("2025-11-24T16:00:03.250Z x", Form::Absolute),
        ("2025-11-24T17:00:03.250+01:00 x", Form::Absolute),
        ("[2025-11-24 16:00:03,250] [INFO] x", Form::Local),
    ] {
        assert_eq!(stamp(text).map(|s| (s.form, s.ms)), Some((form, ms)), "{text}");
    }
    let glog = stamp("[rank6]:[E912 09:28:22.641402409 ProcessGroupNCCL.cpp:1664]").unwrap();
    let syslog = stamp("Sep 12 09:28:22 node kernel: x").unwrap();
    assert_eq!((glog.form, glog.ms - 641), (syslog.form, syslog.ms));
    assert_eq!(stamp("2025-13-24 16:00:03"), None);
}

#[test]
fn an_exit_code_helps_where_the_log_is_silent() {
    let killed = |log: &str, code| {
        let mut collector = Collector::default();
        collector.source("log");
        collector.line(1, log.as_bytes());
        collector.exit_code(code);
        collector.finish()
    };
    assert_eq!(ids(&killed("", -9)), ["exit-137"]);
    assert_eq!(ids(&killed("", 137)), ["exit-137"]);
    assert_eq!(ids(&killed("CUDA out of memory", 1)), ["cuda-out-of-memory", "exit-1"]);
    assert_eq!(killed("", 42).unknown_exit, Some(42));
    assert!(ids(&killed("", 0)).is_empty());
}

#[test]
fn the_part_of_a_long_line_that_matters_is_kept() {
    let line = format!("{} Too many open files", "x".repeat(1000));
    let answer = read(&[("log", &line)]);
    assert!(answer.cause().unwrap().text.ends_with("Too many open files"));
}
