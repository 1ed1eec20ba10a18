//! The report for a program. These structs are the contract; the doctor's own types may change.

mod fleet;

use std::{
    collections::BTreeMap,
    io::{self, Write},
    mem,
};

use schemars::JsonSchema;
use serde::Serialize;

use super::{View, schema_of};
use crate::{
    doctor::{self, CheckResult, Digester, Overall, Report},
    job::Compute,
};

/// Version of the format: grows when a field changes its meaning or goes away.
pub const JSON_VERSION: u32 = 1;

/// The report of `qvl doctor --format json`.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(title = "DoctorReport")]
struct Document<'r> {
    /// Version of this format: 1.
    v: u32,
    /// Verdict on the whole.
    verdict: Whole,
    /// One line about the driver.
    driver: &'r str,
    /// Name of the job; absent if the doctor was asked about machines alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    job: Option<&'r str>,
    /// What the ranks compute on.
    compute: Device,
    /// Ranks of the whole job; absent = one for each GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    ranks: Option<u32>,
    /// Nodes that reported.
    nodes: Vec<&'r str>,
    /// Nodes that should have reported.
    missing_nodes: Vec<&'r str>,
    /// How much was judged, in one line.
    coverage: String,
    /// Milliseconds of observation and judgement; absent with `--reproducible`.
    #[serde(skip_serializing_if = "Option::is_none")]
    elapsed_ms: Option<u64>,
    /// Results by verdict.
    counts: Counts,
    /// What the verdict was made of; `qvl launch --verdict` compares it.
    #[serde(skip_serializing_if = "Option::is_none")]
    seal: Option<Sealed>,
    /// One result for each check and subject, sorted by area, check and subject.
    #[schemars(with = "Vec<Check<'r>>")]
    checks: Checks<'r>,
    /// Which GPUs a rank fits into; absent on CPUs, and without a job whose size is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<fleet::Memory<'r>>,
    /// What differs between nodes; absent for a single node.
    #[serde(skip_serializing_if = "Option::is_none")]
    drift: Option<fleet::Drift<'r>>,
    /// The smallest change of the nodes after which the job can be launched; absent for a single
    /// node, and if nothing stops the job.
    #[serde(skip_serializing_if = "Option::is_none")]
    smallest_change: Option<fleet::SmallestChange<'r>>,
}

/// Results, made one after another while they are written: a large fleet has some hundred thousand.
struct Checks<'r>(&'r [CheckResult]);

impl Serialize for Checks<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(check))
    }
}

/// Digests of what went into the verdict, each `sha256:` and 64 digits. They show what was mixed
/// up or edited; they are no signature.
#[derive(Clone, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct Sealed {
    /// Of the facts of all nodes.
    facts: String,
    /// Of the table of rules, with the version of the program.
    rules: String,
    /// Of the job; absent without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    job: Option<String>,
    /// Seconds since the Unix epoch; absent with `--reproducible`.
    #[serde(skip_serializing_if = "Option::is_none")]
    unix_seconds: Option<i64>,
    /// Of this whole report without this field.
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
}

/// Verdict on the whole.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Whole {
    /// Nothing blocks.
    Ready,
    /// A check that the job needs is unknown, or a node did not report.
    Unknown,
    /// Something blocks.
    Blocked,
}

/// What the ranks compute on.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Device {
    Cpu,
    Cuda,
}

/// Results by verdict.
#[derive(Serialize, JsonSchema)]
struct Counts {
    pass: usize,
    warn: usize,
    fail: usize,
    unknown: usize,
    skipped: usize,
}

/// What one check says about one subject.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct Check<'r> {
    /// Id of the check; `qvl doctor explain ID` describes it.
    id: &'r str,
    /// Group of the check.
    area: &'r str,
    /// Name of a node, `all nodes`, or `job`.
    subject: String,
    /// The worst of what follows.
    verdict: Verdict,
    /// Whether a launch stops when this is unknown.
    needed: bool,
    /// Why the check does not apply.
    #[serde(skip_serializing_if = "Option::is_none")]
    skipped: Option<&'r str>,
    /// Facts that were missing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unknown: Vec<Unread<'r>>,
    /// What is wrong, worst first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    problems: Vec<Problem<'r>>,
    /// What the verdict rests on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    evidence: Vec<Evidence<'r>>,
    /// Where the threshold comes from.
    source: &'r str,
}

/// Verdict of one check.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    Skipped,
    Pass,
    Warn,
    Unknown,
    Fail,
}

/// A fact that was missing.
#[derive(Serialize, JsonSchema)]
struct Unread<'r> {
    /// Call or file that was tried.
    call: &'r str,
    /// Why it gave nothing.
    why: &'r str,
}

/// One thing that is wrong.
#[derive(Serialize, JsonSchema)]
struct Problem<'r> {
    /// `info`, `warn` or `block`.
    severity: Severity,
    /// Observed against required.
    what: &'r str,
    /// What it does to this job.
    impact: &'r str,
    /// What to do.
    fix: &'r str,
    /// Command that shows it.
    see: &'r str,
}

/// How bad a problem is.
#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Severity {
    Info,
    Warn,
    Block,
}

/// One reading.
#[derive(Serialize, JsonSchema)]
struct Evidence<'r> {
    /// Call or file.
    call: &'r str,
    /// Part of the subject, such as `GPU 3`.
    #[serde(skip_serializing_if = "Option::is_none")]
    part: Option<&'r str>,
    /// What it gave; bytes and counts are numbers.
    value: Value,
    /// What the check asks for.
    required: &'r str,
}

/// A reading.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
enum Value {
    Number(u64),
    Real(f64),
    Flag(bool),
    Text(String),
    List(Vec<String>),
    Absent(Option<()>),
}

/// The report as pretty JSON.
pub fn json(report: &Report, view: &View<'_>) -> String {
    serde_json::to_string_pretty(&sealed(report, view)).expect("plain data")
}

/// The same to a stream: the whole text of a large fleet is never there at once.
pub fn write_json(report: &Report, view: &View<'_>, out: &mut impl Write) -> io::Result<()> {
    let mut out = io::BufWriter::with_capacity(1 << 16, out);
    serde_json::to_writer_pretty(&mut out, &sealed(report, view))?;
    writeln!(out)?;
    out.flush()
}

fn sealed<'r>(report: &'r Report, view: &View<'_>) -> Document<'r> {
    let mut document = document(report, view);
    let digest = document.seal.is_some().then(|| digest_of(&mut document));
    if let Some(seal) = &mut document.seal {
        seal.digest = digest;
    }
    document
}

/// Digest of the report without this digest, as `seal.digest` has it.
pub fn digest(report: &Report, view: &View<'_>) -> String {
    digest_of(&mut document(report, view))
}

/// The digest of the canonical form, check by check.
fn digest_of(document: &mut Document<'_>) -> String {
    let Checks(results) = mem::replace(&mut document.checks, Checks(&[]));
    let plain = serde_json::to_value(&*document).expect("plain data");
    document.checks = Checks(results);
    let fields: BTreeMap<_, _> = plain.as_object().into_iter().flatten().collect();
    let mut digest = Digester::default();
    digest.open('{');
    for (name, field) in fields {
        digest.key(name);
        if name == "checks" {
            digest.open('[');
            let values = results.iter().map(|result| serde_json::to_value(check(result)));
            values.for_each(|value| digest.item(&value.expect("plain data")));
            digest.close(']');
        } else {
            digest.value(field);
        }
    }
    digest.close('}');
    digest.finish()
}

fn document<'r>(report: &'r Report, view: &View<'_>) -> Document<'r> {
    let doctor::Counts { pass, warn, fail, unknown, skipped } = report.counts();
    Document {
        v: JSON_VERSION,
        verdict: match report.overall(view.strict, view.allowed) {
            Overall::Ready => Whole::Ready,
            Overall::Unknown => Whole::Unknown,
            Overall::Blocked => Whole::Blocked,
        },
        driver: &report.driver,
        job: report.job.as_deref(),
        compute: match report.compute {
            Compute::Cpu => Device::Cpu,
            Compute::Cuda | Compute::Auto => Device::Cuda,
        },
        ranks: report.ranks,
        nodes: report.nodes.iter().map(|name| name.0.as_str()).collect(),
        missing_nodes: report.missing.iter().map(|name| name.0.as_str()).collect(),
        coverage: report.coverage(),
        elapsed_ms: view.elapsed_ms,
        counts: Counts { pass, warn, fail, unknown, skipped },
        seal: view.seal.map(|seal| Sealed {
            facts: seal.facts.clone(),
            rules: seal.rules.clone(),
            job: seal.job.clone(),
            unix_seconds: seal.unix_seconds,
            digest: None,
        }),
        checks: Checks(&report.results),
        memory: report.memory.as_ref().map(fleet::memory),
        drift: report.drift.as_ref().map(fleet::drift),
        smallest_change: report.remedy.as_ref().map(fleet::smallest_change),
    }
}

/// The JSON Schema of [`json`].
pub fn schema() -> schemars::Schema {
    schema_of::<Document<'static>>()
}

fn check(result: &CheckResult) -> Check<'_> {
    Check {
        id: result.rule.id,
        area: result.rule.area.name(),
        subject: result.subject.to_string(),
        verdict: match result.verdict {
            doctor::Verdict::Skipped => Verdict::Skipped,
            doctor::Verdict::Pass => Verdict::Pass,
            doctor::Verdict::Warn => Verdict::Warn,
            doctor::Verdict::Unknown => Verdict::Unknown,
            doctor::Verdict::Fail => Verdict::Fail,
        },
        needed: result.rule.is_needed(),
        skipped: result.skipped.as_deref(),
        unknown: result
            .unknown
            .iter()
            .map(|unread| Unread { call: &unread.from, why: &unread.why })
            .collect(),
        problems: result.problems.iter().map(problem).collect(),
        evidence: result.evidence.iter().map(evidence).collect(),
        source: result.rule.source,
    }
}

fn problem(problem: &doctor::Problem) -> Problem<'_> {
    Problem {
        severity: match problem.severity {
            doctor::Severity::Info => Severity::Info,
            doctor::Severity::Warn => Severity::Warn,
            doctor::Severity::Block => Severity::Block,
        },
        what: &problem.what,
        impact: &problem.impact,
        fix: &problem.fix,
        see: &problem.see,
    }
}

fn evidence(evidence: &doctor::Evidence) -> Evidence<'_> {
    Evidence {
        call: &evidence.call,
        part: evidence.subject.as_deref(),
        value: match &evidence.value {
            doctor::Value::Number(number) | doctor::Value::Bytes(number) => Value::Number(*number),
            doctor::Value::Real(real) => Value::Real(*real),
            doctor::Value::Flag(flag) => Value::Flag(*flag),
            doctor::Value::Text(text) => Value::Text(text.clone()),
            doctor::Value::List(list) => Value::List(list.clone()),
            doctor::Value::Absent => Value::Absent(None),
        },
        required: &evidence.required,
    }
}
