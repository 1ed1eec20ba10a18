//! Facts, logs and programs that nobody would write: a verdict or a refusal, never ready by accident.

use std::{fs, io::Write, process::Output};

use proptest::prelude::*;
use serde_json::Value;

use crate::{checked, qvl, report};

const FACTS: [&str; 3] = [
    include_str!("../facts/healthy-8xh100.json"),
    include_str!("../facts/broken-8xh100.json"),
    include_str!("../facts/cpu-only.json"),
];

fn judge(facts: &[u8]) -> Output {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(facts).unwrap();
    let mut command = qvl();
    command.args(["doctor", "--gpus", "8", "--format", "json", "--facts"]).arg(file.path());
    checked(&mut command)
}

/// JSON pointers of everything below `value`.
fn places(value: &Value, at: &str, all: &mut Vec<String>) {
    let mut below = |name: &str, value: &Value| {
        let name = name.replace('~', "~0").replace('/', "~1");
        let at = format!("{at}/{name}");
        all.push(at.clone());
        places(value, &at, all);
    };
    match value {
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(index, value)| below(&index.to_string(), value));
        }
        Value::Object(map) => map.iter().for_each(|(name, value)| below(name, value)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn hostile() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        Just(Value::from(u64::MAX)),
        Just(Value::from(i64::MIN)),
        any::<f64>().prop_map(Value::from),
        ".{0,40}".prop_map(Value::from),
        Just(Value::from("9".repeat(400))),
        Just(Value::from("0000:ff:ff.f")),
        Just(Value::from("-1.-2.999999999999999999999")),
        Just(serde_json::json!([])),
        Just(serde_json::json!({})),
        Just(serde_json::json!({"known": {"value": null, "from": ""}})),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// Facts of real form with some values replaced: a verdict or a refusal.
    #[test]
    fn changed_facts_end_in_a_verdict_or_a_refusal(
        base in 0..FACTS.len(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), hostile()), 1..8),
    ) {
        let mut facts: Value = serde_json::from_str(FACTS[base]).unwrap();
        let mut all = Vec::new();
        places(&facts["facts"], "/facts", &mut all);
        for (place, value) in changes {
            // An earlier change may have removed the place.
            if let Some(target) = facts.pointer_mut(&all[place.index(all.len())]) {
                *target = value;
            }
        }
        let output = judge(facts.to_string().as_bytes());
        if output.status.code() == Some(2) {
            prop_assert!(output.stdout.is_empty());
            prop_assert!(String::from_utf8_lossy(&output.stderr).contains("failed to read facts"));
        } else {
            report(&output);
        }
    }

    /// Bytes of a real file cut, doubled and overwritten: nearly always a refusal, never ready.
    #[test]
    fn damaged_files_are_refused(
        base in 0..FACTS.len(),
        cut in 0..100_usize,
        bytes in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..20),
    ) {
        let mut facts = FACTS[base].as_bytes().to_vec();
        facts.truncate(facts.len() * cut / 100);
        for (at, byte) in bytes {
            let length = facts.len().max(1);
            if let Some(place) = facts.get_mut(at % length) { *place = byte; }
        }
        let output = judge(&facts);
        prop_assert_eq!(output.status.code(), Some(2));
        prop_assert!(output.stdout.is_empty());
    }

    /// Logs of any bytes, with words that the table knows among them.
    #[test]
    fn hostile_logs_end_in_an_answer(
        parts in proptest::collection::vec(
            prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..80),
                Just(b"[rank3]: CUDA out of memory\n".to_vec()),
                Just(b"NVRM: Xid (PCI:0000:3b:00): 99999999999999999999, \xff\n".to_vec()),
                Just(b"{\"v\":1,\"event\":\"failed\",\"exit\":\"data\",\"rank\":18446744073709551616}\n".to_vec()),
                Just(b"2026-99-99 99:99:99 [rank99999999999999999999]: Bus error\r".to_vec()),
                Just(vec![b'['; 20_000]),
            ],
            0..12,
        ),
    ) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&parts.concat()).unwrap();
        let output = checked(qvl().args(["doctor", "why", "--format", "json"]).arg(file.path()));
        report(&output);
    }

    /// Programs with damaged headers and sections.
    #[test]
    fn hostile_programs_end_in_an_answer(
        bytes in proptest::collection::vec((0..4096_usize, any::<u8>()), 1..40),
        tail in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..20),
    ) {
        let mut program = small_program();
        let length = program.len();
        for (at, byte) in bytes { program[at % length] = byte; }
        for (at, byte) in tail { program[at % length] = byte; }
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&program).unwrap();
        checked(qvl().args(["doctor", "binary"]).arg(file.path()));
    }
}

/// A real program of some kilobytes, which every Debian has.
fn small_program() -> Vec<u8> {
    fs::read("/bin/true").unwrap()
}
