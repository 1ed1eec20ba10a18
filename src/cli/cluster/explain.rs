//! `qvl explain JOB`: one chain from what the user sees to its cause, each line with the object
//! that says it. Pure.

mod containers;

use std::{
    collections::BTreeSet,
    io::{self, Write},
};

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use super::{
    events,
    objects::{Objects, items, name, text},
    status::passed,
    table::age,
};
use crate::{api::job::LastFailure, operator::conditions::IMAGE_UNAVAILABLE};

/// One line: who says it, and what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub source: String,
    pub what: String,
}

/// The whole answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chain {
    pub head: String,
    /// What the doctor said before the launch.
    pub doctor: Option<String>,
    pub links: Vec<Link>,
    pub hints: BTreeSet<String>,
    /// What was not looked at.
    pub blind: Vec<String>,
}

/// Conditions of the start in order: what comes after the first that is false is its consequence.
const START: [&str; 5] =
    ["Validated", "QuotaReserved", "PodsScheduled", "PreflightPassed", "RendezvousComplete"];
/// What the operator says of a pod that never asked it anything.
const NOT_SPOKEN: &str = "has not spoken yet";
/// Warnings that come and go without any effect.
const HARMLESS: [&str; 4] = [
    "ErrWorkloadCompose",
    "DNSConfigForming",
    "VolumeFailedDelete",
    "FailedToUpdateEndpointSlices",
];

impl Chain {
    fn add(&mut self, source: impl Into<String>, what: impl Into<String>) {
        let link = Link { source: source.into(), what: one_line(&what.into()) };
        if !self.links.contains(&link) {
            self.links.push(link);
        }
    }

    fn hint(&mut self, hint: impl Into<String>) {
        self.hints.insert(hint.into());
    }
}

/// Builds the chain.
pub(crate) fn chain(objects: &Objects, now: Timestamp) -> Chain {
    let mut chain = Chain { blind: objects.not_read.clone(), ..Chain::default() };
    head(objects, now, &mut chain);
    doctor(objects, now, &mut chain);
    conditions(objects, &mut chain);
    last_failure(objects, &mut chain);
    if text(&objects.job, "/status/summary/state") == "Complete" {
        return chain;
    }
    child_jobs(objects, &mut chain);
    workloads(objects, &mut chain);
    let troubled = pods(objects, &mut chain);
    warnings(objects, &troubled, &mut chain);
    nodes(objects, now, &mut chain);
    chain
}

fn head(objects: &Objects, now: Timestamp, chain: &mut Chain) {
    let job = &objects.job;
    let state = match text(job, "/status/summary/state") {
        "" | "Pending" if items(job, "/status/conditions").next().is_none() => {
            "pending: the operator has not looked at it yet".to_owned()
        }
        state => state.to_lowercase(),
    };
    // The server fills an empty status with defaults: conditions only the operator writes.
    if items(job, "/status/conditions").next().is_none() {
        chain.hint("does the operator run? `kubectl -n qvl-system get deploy qvl-operator`");
    }
    let newest = items(job, "/status/conditions")
        .filter_map(|condition| text(condition, "/lastTransitionTime").parse::<Timestamp>().ok())
        .max();
    let since =
        newest.map_or(String::new(), |time| format!(", last change {} ago", age(Some(time), now)));
    let reason = match text(job, "/status/summary/reason") {
        "" => String::new(),
        reason => format!(": {reason}"),
    };
    // Why it failed is the first link.
    let (verb, reason) = if state == "failed" { ("", String::new()) } else { ("is ", reason) };
    chain.head = format!("{} {verb}{state}{reason}{since}", name(job));
}

fn conditions(objects: &Objects, chain: &mut Chain) {
    let job = &objects.job;
    let source = format!("FineTuneJob/{}", name(job));
    let find = |kind: &str, status: &str| {
        items(job, "/status/conditions")
            .find(|c| text(c, "/type") == kind && text(c, "/status") == status)
    };
    let told = |kind: &str, condition: &Value| {
        let (status, reason) = (text(condition, "/status"), text(condition, "/reason"));
        let message = match text(condition, "/message") {
            "" => String::new(),
            message => format!(": {message}"),
        };
        format!("{kind} is {status} ({reason}){message}")
    };
    for kind in ["Failed", "Restarting", "Suspended"] {
        if let Some(condition) = find(kind, "True") {
            chain.add(source.clone(), told(kind, condition));
            // Its pods, which say more, go at once.
            if text(condition, "/reason") == IMAGE_UNAVAILABLE {
                chain.hint(containers::IMAGE);
            }
        }
    }
    let state = text(job, "/status/summary/state");
    if matches!(state, "Complete" | "Failed" | "Suspended") {
        return;
    }
    let waiting = START.iter().find_map(|kind| find(kind, "False").map(|c| (*kind, c)));
    let stalled = || find("Progressing", "False").map(|condition| ("Progressing", condition));
    let first = if state == "Running" { stalled() } else { waiting.or_else(stalled) };
    if let Some((kind, condition)) = first {
        chain.add(source, told(kind, condition));
        // All pods run by then, or an earlier condition would be the first.
        if text(condition, "/message").contains(NOT_SPOKEN) {
            chain.hint(
                "pods that run and are not heard do not reach the operator: a network policy or DNS, or a \
                 certificate that they do not believe; \
                 `kubectl logs POD` shows what they try",
            );
        }
    }
}

/// What was known before the start: a fault that the doctor saw then is not new.
fn doctor(objects: &Objects, now: Timestamp, chain: &mut Chain) {
    let verdict = objects.job.pointer("/status/doctor").cloned();
    chain.doctor = verdict
        .and_then(|verdict| serde_json::from_value(verdict).ok())
        .map(|verdict| passed(&verdict, now));
}

fn last_failure(objects: &Objects, chain: &mut Chain) {
    let failure = objects.job.pointer("/status/lastFailure").cloned();
    let Some(failure) = failure.and_then(|f| serde_json::from_value::<LastFailure>(f).ok()) else {
        return;
    };
    let source = format!("FineTuneJob/{}", name(&objects.job));
    let sentence = failure.sentence();
    chain.add(source.clone(), format!("the culprit: {sentence}, after step {}", failure.step));
    if let Some(last) = failure.tail.lines().rfind(|line| !line.trim().is_empty()) {
        chain.add(source, format!("its last words: {last}"));
    }
    chain.hints.extend(failure.hint);
}

/// The newest attempt's Job.
fn child_jobs(objects: &Objects, chain: &mut Chain) {
    let attempt =
        |job: &&Value| text(job, "/metadata/labels/qvl.dev~1attempt").parse::<u32>().unwrap_or(0);
    let Some(job) = objects.jobs.iter().max_by_key(attempt) else {
        let state = text(&objects.job, "/status/summary/state");
        if objects.pods.is_empty() && matches!(state, "Scheduling" | "Queued") {
            chain.add(
                format!("FineTuneJob/{}", name(&objects.job)),
                "no Job exists for this attempt yet",
            );
        }
        return;
    };
    let source = format!("Job/{}", name(job));
    for condition in items(job, "/status/conditions").filter(|c| text(c, "/status") == "True") {
        if matches!(text(condition, "/type"), "Failed" | "FailureTarget") {
            let (reason, message) = (text(condition, "/reason"), text(condition, "/message"));
            chain.add(source.clone(), format!("failed ({reason}): {message}"));
            return;
        }
    }
    if job.pointer("/spec/suspend").and_then(Value::as_bool) == Some(true) {
        chain.add(source, "is suspended: its queue has not admitted it");
    }
}

fn workloads(objects: &Objects, chain: &mut Chain) {
    for workload in &objects.workloads {
        let source = format!("Workload/{}", name(workload));
        let find = |kind: &str, status: &str| {
            items(workload, "/status/conditions")
                .find(|c| text(c, "/type") == kind && text(c, "/status") == status)
        };
        let trouble = find("Evicted", "True").or_else(|| find("QuotaReserved", "False"));
        if let Some(condition) = trouble.filter(|_| find("Finished", "True").is_none()) {
            let queue = text(workload, "/spec/queueName");
            chain.add(source, format!("waits in queue {queue}: {}", text(condition, "/message")));
            chain.hint(format!(
                "`kubectl describe localqueue {queue}` shows its quota and who waits"
            ));
        }
    }
}

/// Pods of the newest attempt that are in trouble; equal troubles are told once.
fn pods<'o>(objects: &'o Objects, chain: &mut Chain) -> BTreeSet<&'o str> {
    let attempt =
        |pod: &&Value| text(pod, "/metadata/labels/qvl.dev~1attempt").parse::<u32>().unwrap_or(0);
    let newest = objects.pods.iter().map(|pod| attempt(&pod)).max().unwrap_or(0);
    let mut groups: Vec<(String, Vec<&Value>)> = Vec::new();
    for pod in objects.pods.iter().filter(|pod| attempt(pod) == newest) {
        let Some(what) = pod_trouble(pod, chain) else { continue };
        match groups.iter_mut().find(|(known, _pods)| *known == what) {
            Some((_known, pods)) => pods.push(pod),
            None => groups.push((what, vec![pod])),
        }
    }
    for (what, pods) in &groups {
        let others = match pods.len() - 1 {
            0 => String::new(),
            1 => " (and one pod more)".to_owned(),
            more => format!(" (and {more} pods more)"),
        };
        let node = match text(pods[0], "/spec/nodeName") {
            "" => String::new(),
            node => format!("on {node} "),
        };
        chain.add(format!("Pod/{}", name(pods[0])), format!("{node}{what}{others}"));
    }
    groups.iter().flat_map(|(_what, pods)| pods.iter().map(|pod| name(pod))).collect()
}

fn pod_trouble(pod: &Value, chain: &mut Chain) -> Option<String> {
    let conditions = || items(pod, "/status/conditions");
    let disrupted = conditions()
        .find(|c| text(c, "/type") == "DisruptionTarget" && text(c, "/status") == "True");
    if let Some(condition) = disrupted {
        let (reason, message) = (text(condition, "/reason"), text(condition, "/message"));
        return Some(format!("was taken away ({reason}): {message}"));
    }
    let going = containers::is_going(pod);
    let unscheduled = conditions()
        .find(|c| text(c, "/type") == "PodScheduled" && text(c, "/status") == "False" && !going);
    if let Some(condition) = unscheduled {
        chain.hint("`qvl top` shows what is free and who uses the rest");
        return Some(format!("finds no node: {}", text(condition, "/message")));
    }
    let containers =
        items(pod, "/status/initContainerStatuses").chain(items(pod, "/status/containerStatuses"));
    for container in containers {
        if let Some(what) = containers::trouble(container, pod, chain) {
            return Some(what);
        }
    }
    let started = pod.pointer("/status/containerStatuses").is_some();
    (text(pod, "/status/phase") == "Pending" && !started && !going)
        .then(|| "is bound to its node, but the kubelet has not begun to start it".to_owned())
}

/// Warnings about pods that are still in trouble, and about the job and its Job: an old warning
/// about something that runs by now explains nothing.
fn warnings(objects: &Objects, troubled: &BTreeSet<&str>, chain: &mut Chain) {
    let runs = text(&objects.job, "/status/summary/state") == "Running";
    let mut warnings: Vec<&Value> = objects
        .events
        .iter()
        .filter(|event| text(event, "/type") == "Warning")
        .filter(|event| !HARMLESS.contains(&text(event, "/reason")))
        .filter(|event| match text(event, "/involvedObject/kind") {
            "Pod" => troubled.contains(text(event, "/involvedObject/name")),
            _ => !runs,
        })
        .collect();
    warnings.sort_by_key(|event| std::cmp::Reverse(events::time(event)));
    let mut told: BTreeSet<String> = BTreeSet::new();
    for event in warnings {
        let (reason, message) = (text(event, "/reason"), one_line(text(event, "/message")));
        // Pods of one Job say the same but for their own names and volumes.
        let kind = format!("{} {reason}", text(event, "/involvedObject/kind"));
        let known =
            chain.links.iter().any(|link| !message.is_empty() && link.what.contains(&message));
        if known || !told.insert(kind) {
            continue;
        }
        if reason == "FailedMount" || reason == "FailedAttachVolume" {
            chain.hint("do the claims of spec.cluster.volumes exist, and are they bound? `kubectl get pvc`");
        }
        let times = events::times(event);
        let often = if times < 2 { String::new() } else { format!(" (x{times})") };
        chain.add(events::about(event), format!("event {reason}{often}: {message}"));
    }
}

fn nodes(objects: &Objects, now: Timestamp, chain: &mut Chain) {
    for node in &objects.nodes {
        let source = format!("Node/{}", name(node));
        if node.pointer("/spec/unschedulable").and_then(Value::as_bool) == Some(true) {
            chain.add(source.clone(), "is cordoned");
        }
        for condition in items(node, "/status/conditions") {
            let (kind, status) = (text(condition, "/type"), text(condition, "/status"));
            let message = text(condition, "/message");
            let since = age(text(condition, "/lastTransitionTime").parse().ok(), now);
            match (kind, status) {
                ("Ready", "True") => {}
                ("Ready", _) => {
                    chain.add(source.clone(), format!("is not ready for {since}: {message}"));
                }
                (kind, "True") if kind.ends_with("Pressure") || kind == "NetworkUnavailable" => {
                    chain.add(source.clone(), format!("{kind} for {since}: {message}"));
                }
                _ => {}
            }
        }
    }
    for report in &objects.reports {
        let problems = text(report, "/spec/summary/problems");
        if !matches!(problems, "" | "none") {
            chain.add(format!("NodeReport/{}", name(report)), format!("problems: {problems}"));
            chain.hint("`qvl doctor --cluster` tells what to do about the nodes' problems");
        }
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The chain for a person.
pub(crate) fn print(chain: &Chain, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{}", chain.head)?;
    let width = chain.links.iter().map(|link| link.source.chars().count()).max().unwrap_or(0);
    for link in &chain.links {
        writeln!(out, "  {:<width$}  {}", link.source, link.what)?;
    }
    if chain.links.is_empty() {
        writeln!(out, "  no object of the job reports a problem")?;
    }
    if let Some(doctor) = &chain.doctor {
        writeln!(out, "doctor: {doctor}")?;
    }
    chain.blind.iter().try_for_each(|blind| writeln!(out, "not looked at: {blind}"))?;
    chain.hints.iter().try_for_each(|hint| writeln!(out, "hint: {hint}"))
}

#[cfg(test)]
mod tests;
