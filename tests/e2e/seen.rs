//! What users see, and what ranks said.

use std::{fmt, process::Output};

use serde_json::Value;

/// What a program printed on both streams, and its exit code.
#[derive(Debug)]
pub(crate) struct Said {
    pub code: i32,
    pub text: String,
}

impl Said {
    pub(crate) fn of(output: &Output) -> Said {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Said {
            code: output.status.code().unwrap_or(-1),
            text: text(&output.stdout) + &text(&output.stderr),
        }
    }

    /// From the submission on, without what depends on how busy the machine is: progress, waits and
    /// states that come and go.
    pub(crate) fn story(&self) -> String {
        let passing = [
            " waits: ",
            ": scheduling",
            ": preflight",
            ": rendezvous",
            ": restarting",
            ": all ranks met",
            ": running",
            ": queued",
            ": stalled",
            ": suspending",
        ];
        let lines = self.text.lines().skip_while(|line| !line.contains(": submitted"));
        let told = lines.filter(|line| {
            !line.starts_with("step ") && !passing.iter().any(|word| line.contains(word))
        });
        told.map(|line| format!("{line}\n")).collect()
    }
}

impl fmt::Display for Said {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "exit code {}", self.code)?;
        out.write_str(&self.text)
    }
}

/// A step that rank 0 made.
#[derive(Debug)]
pub(crate) struct Step {
    pub number: u64,
    /// Milliseconds since the Unix epoch.
    pub time_ms: u64,
    pub epoch: u64,
}

impl Step {
    pub(crate) fn of(line: &Value) -> Option<Step> {
        let text: Value = serde_json::from_str(line["text"].as_str()?).ok()?;
        let is_it = line["rank"] == 0 && text["event"] == "step";
        is_it.then(|| Step {
            number: text["step"].as_u64().unwrap(),
            time_ms: line["time_ms"].as_u64().unwrap(),
            epoch: line["epoch"].as_u64().unwrap(),
        })
    }
}

/// Compares a text with its golden, times and random names apart.
macro_rules! assert_golden {
    ($name:expr, $text:expr) => {
        insta::with_settings!({
            snapshot_path => "snapshots",
            prepend_module_to_snapshot => false,
            omit_expression => true,
            filters => crate::seen::FILTERS.to_vec(),
        }, { insta::assert_snapshot!($name, $text) });
    };
}
pub(crate) use assert_golden;

/// What differs from run to run.
pub(crate) const FILTERS: &[(&str, &str)] = &[
    (r"\b\d+(\.\d+)?( s|s| seconds)\b", "[time]"),
    (r"(-a\d+-\d)-[a-z0-9]{5}\b", "$1-[pod]"),
    (r"\b10\.\d+\.\d+\.\d+(:\d+)?", "[address]"),
    (r"process \d+", "process [pid]"),
    (r"\bstep \d+", "step [n]"),
    (r"\bn[123]\b", "[node]"),
    (r"\b\d+ pass(, \d+ (warn|unknown))*", "[counts]"),
    (r"\bsha256:[0-9a-f]{12}\b", "[digest]"),
];
