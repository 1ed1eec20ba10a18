//! `qvl doctor --active` on this machine, on simulated GPUs, and between network namespaces.
//!
//! The namespaces need root, `ip` and `tc`, as the tests on a real cluster do.
#![expect(clippy::unwrap_used, reason = "a test fails where it is wrong")]

#[path = "active/gpus.rs"]
mod gpus;
#[path = "active/machine.rs"]
mod machine;
#[path = "active/network.rs"]
mod network;

use std::{collections::BTreeMap, process::Command};

use serde_json::Value;

/// A report of the doctor: verdicts by check, and all of it.
pub(crate) struct Report {
    pub(crate) verdicts: BTreeMap<String, String>,
    pub(crate) json: Value,
    pub(crate) code: Option<i32>,
}

impl Report {
    /// Runs `qvl doctor --active --format json` with more arguments.
    #[track_caller]
    pub(crate) fn of(command: &mut Command, args: &[&str]) -> Report {
        command.args(["doctor", "--active", "--format", "json"]).args(args);
        let state = tempfile::tempdir().unwrap();
        // A run of whoever makes these tests is not theirs.
        command.env("XDG_STATE_HOME", state.path());
        let output = command.output().unwrap();
        let json: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        let word = |check: &Value, key: &str| check[key].as_str().unwrap().to_owned();
        let checks = json["checks"].as_array().unwrap();
        let verdicts = checks.iter().map(|check| (word(check, "id"), word(check, "verdict")));
        Report { verdicts: verdicts.collect(), code: output.status.code(), json }
    }

    #[track_caller]
    pub(crate) fn expect(&self, expected: &[(&str, &str)]) {
        for (id, verdict) in expected {
            assert_eq!(self.verdicts[*id], *verdict, "{id}\n{:#}", self.check(id));
        }
    }

    /// All that is said about a check.
    pub(crate) fn check(&self, id: &str) -> &Value {
        let checks = self.json["checks"].as_array().unwrap();
        checks.iter().find(|check| check["id"] == id).unwrap()
    }

    /// The first problem of a check.
    #[track_caller]
    pub(crate) fn what(&self, id: &str) -> &str {
        let problem = &self.check(id)["problems"][0]["what"];
        problem.as_str().unwrap_or_else(|| panic!("{:#}", self.check(id)))
    }
}
