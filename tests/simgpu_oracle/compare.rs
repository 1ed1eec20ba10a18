//! Values of qvl beside those of another client.

use qvl::facts::{Fact, GpuFacts, GpuHandle, NvmlFacts, NvmlState};
use serde::Serialize;
use serde_json::{Value, json};

/// What a client says when a GPU lacks a feature (`nvmlReturn_t`).
const NOT_SUPPORTED: u64 = 3;
const LOST: u32 = 15;

/// Collects differences, so that one run shows all of them.
pub(crate) struct Comparison {
    client: String,
    compared: usize,
    differences: Vec<String>,
}

impl Comparison {
    pub(crate) fn with(client: &str) -> Self {
        Comparison { client: client.to_owned(), compared: 0, differences: Vec::new() }
    }

    /// Fails if anything differed, or if fewer than `least` values were compared.
    pub(crate) fn finish(self, least: usize) {
        assert!(self.differences.is_empty(), "{}: {}", self.client, self.differences.join("\n"));
        assert!(least < self.compared, "only {} values were compared", self.compared);
    }

    /// A value, or an error on both sides. `None` means "not supported".
    pub(crate) fn same<T: Serialize>(&mut self, place: &str, fact: &Fact<T>, theirs: &Value) {
        self.compared += 1;
        let error = theirs.get("error").and_then(Value::as_u64);
        let agree = match fact.get() {
            Ok(value) => match (serde_json::to_value(value).unwrap(), error) {
                (Value::Null, Some(code)) => code == NOT_SUPPORTED,
                (ours, None) => ours == *theirs,
                (_, Some(_)) => false,
            },
            Err(_unread) => error.is_some(),
        };
        if !agree {
            let ours = serde_json::to_value(fact).unwrap();
            self.differences.push(format!("{place}: qvl {ours}, {} {theirs}", self.client));
        }
    }

    pub(crate) fn gpu(&mut self, place: &str, ours: &GpuFacts, theirs: &Value) {
        let mut same = |field: &str, fact: &Fact<Value>| {
            self.same(&format!("{place}.{field}"), fact, &theirs[field]);
        };
        // All facts of a GPU by their names, but for the memory, whose three come from one call.
        let facts = serde_json::to_value(ours).unwrap();
        for (field, fact) in facts.as_object().unwrap() {
            if !matches!(field.as_str(), "index" | "handle") && !field.starts_with("memory_") {
                same(field, &serde_json::from_value(fact.clone()).unwrap());
            }
        }
        same("memory", &memory(ours));
    }

    pub(crate) fn host(&mut self, scenario: &str, ours: &NvmlFacts, theirs: &Value) {
        match ours.state.get().unwrap() {
            NvmlState::Ready => {}
            NvmlState::Failed { code, .. } => {
                self.same(scenario, &Fact::known(*code, "nvmlInit_v2"), &theirs["init"]);
                return;
            }
            state @ (NvmlState::LibraryMissing { .. }
            | NvmlState::LibraryBroken { .. }
            | NvmlState::Hung { .. }
            | NvmlState::Crashed { .. }) => panic!("{scenario}: {state:?}"),
        }
        self.same(scenario, &ours.driver_version, &theirs["driver_version"]);
        self.same(scenario, &ours.nvml_version, &theirs["nvml_version"]);
        self.same(scenario, &ours.cuda_version, &theirs["cuda_version"]);
        let (gpus, their_gpus) = (ours.gpus.get().unwrap(), theirs["gpus"].as_array().unwrap());
        assert_eq!(gpus.len(), their_gpus.len(), "{scenario}");
        for (gpu, theirs) in gpus.iter().zip(their_gpus) {
            let place = format!("{scenario} GPU {}", gpu.index);
            match &gpu.handle {
                GpuHandle::Ready => self.gpu(&place, gpu, theirs),
                GpuHandle::Lost => self.same(&place, &Fact::known(LOST, ""), &theirs["handle"]),
                GpuHandle::Failed { code, .. } => {
                    self.same(&place, &Fact::known(*code, ""), &theirs["handle"]);
                }
            }
        }
    }
}

/// The three facts that come from one call.
pub(crate) fn memory(gpu: &GpuFacts) -> Fact<Value> {
    match (
        gpu.memory_total_bytes.get(),
        gpu.memory_reserved_bytes.get(),
        gpu.memory_used_bytes.get(),
    ) {
        (Ok(total), Ok(reserved), Ok(used)) => Fact::known(
            json!({"total": total, "reserved": reserved, "used": used}),
            gpu.memory_total_bytes.from(),
        ),
        _ => Fact::unread("memory", "memory"),
    }
}
