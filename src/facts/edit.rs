//! Facts as a tree: one of them replaced, and two of them compared.
//!
//! A path is that of the JSON of a node's facts without the wrapping of a [`Fact`](super::Fact):
//! `memory.available_bytes` or `nvml.gpus.0.name`. `*` means every item of a list.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::{NodeFacts, read};

/// Why a fact cannot be replaced.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// There is no such name.
    #[error("`{at}` has no field `{name}`")]
    NoField {
        /// Where the name was looked for.
        at: String,
        /// The name.
        name: String,
        /// Names that are there, the nearest first.
        near: Vec<String>,
    },
    /// The fact was not read, so there is nothing below it.
    #[error("`{at}` was not read ({why}), so it has no parts")]
    Unread {
        /// The fact.
        at: String,
        /// Why it was not read.
        why: String,
    },
    /// The value is not of the fact's type.
    #[error("`{value}` is no value for `{path}`: {why}")]
    WrongValue {
        /// The path.
        path: String,
        /// What was given.
        value: String,
        /// What was expected.
        why: String,
    },
}

/// Facts of a node with one of them replaced, and the text of what was there before.
///
/// `value` is JSON, a word that needs no quotes, or `unread` for a fact that could not be read.
pub fn edited(
    facts: &NodeFacts,
    path: &str,
    value: &str,
) -> Result<(NodeFacts, String), EditError> {
    let json: Option<Value> = serde_json::from_str(value).ok();
    let text = Value::String(value.to_owned());
    // `580.65` is a number to JSON, and may be a version here.
    let tries = json.into_iter().chain([text]);
    let mut first = None;
    for value in tries {
        match with(facts, path, &value) {
            Err(error @ EditError::WrongValue { .. }) => first = first.or(Some(error)),
            done => return done,
        }
    }
    Err(first.expect("a text was tried"))
}

fn with(facts: &NodeFacts, path: &str, value: &Value) -> Result<(NodeFacts, String), EditError> {
    let mut tree = serde_json::to_value(facts).expect("facts are plain data");
    let steps: Vec<&str> = path.split('.').collect();
    let mut edit = Edit::default();
    replace(&mut tree, "facts", &steps, value, &mut edit)?;
    let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let wrong =
        |why: String| EditError::WrongValue { path: path.to_owned(), value: shown.clone(), why };
    let edited: NodeFacts = read(&tree.to_string()).map_err(|error| wrong(error.into_message()))?;
    // Reading ignores names that it does not know; what is gone afterwards was such a name.
    let back = serde_json::to_value(&edited).expect("facts are plain data");
    match edit.added {
        Some(no_field) if leaves(&back) != leaves(&tree) => Err(no_field),
        Some(_) | None => Ok((edited, edit.before.join(", "))),
    }
}

/// What was done to the tree.
#[derive(Default)]
struct Edit {
    /// What was there, for each place.
    before: Vec<String>,
    /// A name that was not there: the error, should it turn out that facts have no such name.
    added: Option<EditError>,
}

/// The value of a fact, if this is one.
fn known(value: &Value) -> Option<&Map<String, Value>> {
    let fact = value.as_object().filter(|object| object.len() == 1)?;
    let inner = fact.get("known").or_else(|| fact.get("unread"))?.as_object()?;
    inner.contains_key("from").then_some(inner)
}

fn replace(
    tree: &mut Value,
    at: &str,
    steps: &[&str],
    value: &Value,
    edit: &mut Edit,
) -> Result<(), EditError> {
    let Some((step, rest)) = steps.split_first() else {
        edit.before.push(short(tree));
        let from = known(tree).map(|fact| fact["from"].clone());
        *tree = match from {
            Some(from) if value == "unread" => {
                json!({ "unread": { "why": "asked: what if it is not known", "from": from } })
            }
            Some(_) => json!({ "known": { "value": value, "from": "what-if" } }),
            None => value.clone(),
        };
        return Ok(());
    };
    if let Some(fact) = known(tree) {
        if let Some(why) = fact.get("why").and_then(Value::as_str) {
            return Err(EditError::Unread { at: at.to_owned(), why: why.to_owned() });
        }
        let inner = tree.pointer_mut("/known/value").expect("a known fact has a value");
        return replace(inner, at, steps, value, edit);
    }
    let below = |name: &str| if at == "facts" { name.to_owned() } else { format!("{at}.{name}") };
    let missing = |names: Vec<String>| EditError::NoField {
        at: at.to_owned(),
        name: (*step).to_owned(),
        near: nearest(step, names),
    };
    match tree {
        Value::Array(items) if *step == "*" => {
            let parts = items.iter_mut().enumerate();
            parts.into_iter().try_for_each(|(index, item)| {
                replace(item, &below(&index.to_string()), rest, value, edit)
            })
        }
        Value::Array(items) => {
            let names = (0..items.len()).map(|index| index.to_string()).collect();
            let item = step.parse().ok().and_then(|index: usize| items.get_mut(index));
            let item = item.ok_or_else(|| missing(names))?;
            replace(item, &below(step), rest, value, edit)
        }
        Value::Object(fields) => {
            if !fields.contains_key(*step) && rest.is_empty() {
                // A new key of a map, a field that is left out while it is empty, or a wrong name.
                let names = fields.keys().cloned().collect();
                edit.added = Some(missing(names));
                edit.before.push("nothing".to_owned());
                fields.insert((*step).to_owned(), value.clone());
                return Ok(());
            }
            let names = fields.keys().cloned().collect();
            let field = fields.get_mut(*step).ok_or_else(|| missing(names))?;
            replace(field, &below(step), rest, value, edit)
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            Err(missing(Vec::new()))
        }
    }
}

fn nearest(name: &str, mut names: Vec<String>) -> Vec<String> {
    names.sort_by_key(|known| strsim::damerau_levenshtein(known, name));
    names.truncate(5);
    names
}

/// A value in few characters, without the wrapping of a fact.
fn short(value: &Value) -> String {
    const LONGEST: usize = 120;
    let bare = match known(value) {
        Some(fact) => match fact.get("value") {
            Some(value) => value.clone(),
            None => return format!("unread ({})", fact["why"].as_str().unwrap_or_default()),
        },
        None => value.clone(),
    };
    let text = bare.as_str().map_or_else(|| bare.to_string(), str::to_owned);
    if text.chars().count() <= LONGEST {
        return text;
    }
    text.chars().take(LONGEST).chain("...".chars()).collect()
}

/// Every value by its path, without the wrapping of facts and without where they come from.
fn leaves(tree: &Value) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    collect(tree, String::new(), &mut found);
    found
}

fn collect(tree: &Value, at: String, found: &mut BTreeMap<String, String>) {
    if let Some(fact) = known(tree) {
        match fact.get("value") {
            Some(value) => collect(value, at, found),
            None => {
                found.insert(at, short(tree));
            }
        }
        return;
    }
    let below = |name: &str| if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") };
    match tree {
        Value::Object(fields) if !fields.is_empty() => {
            fields.iter().for_each(|(name, field)| collect(field, below(name), found));
        }
        Value::Array(items) if items.iter().any(|item| item.is_object() || item.is_array()) => {
            let parts = items.iter().enumerate();
            parts.for_each(|(index, item)| collect(item, below(&index.to_string()), found));
        }
        Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_)
        | Value::Array(_)
        | Value::Object(_) => {
            found.insert(at, short(tree));
        }
    }
}

/// A fact that is not the same on two sides; `None` where it is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Path of the fact.
    pub path: String,
    /// On the first side.
    pub first: Option<String>,
    /// On the second side.
    pub second: Option<String>,
}

/// What differs between the facts of two nodes, or of one node at two times.
pub fn differences(first: &NodeFacts, second: &NodeFacts) -> Vec<Difference> {
    let tree = |facts| leaves(&serde_json::to_value(facts).expect("facts are plain data"));
    let (first, second) = (tree(first), tree(second));
    let paths: BTreeSet<&String> = first.keys().chain(second.keys()).collect();
    let differ = paths.into_iter().filter(|path| {
        first.get(*path) != second.get(*path)
            && !is_told_elsewhere(path, &first, &second)
            && !is_told_elsewhere(path, &second, &first)
    });
    differ
        .map(|path| Difference {
            path: path.clone(),
            first: first.get(path).cloned(),
            second: second.get(path).cloned(),
        })
        .collect()
}

/// An empty list against items, or a part of a fact that the other side did not read: the items,
/// and the fact, tell the difference.
fn is_told_elsewhere(
    path: &str,
    here: &BTreeMap<String, String>,
    there: &BTreeMap<String, String>,
) -> bool {
    if there.contains_key(path) || !here.contains_key(path) {
        return false;
    }
    let inside = format!("{path}.");
    let items = there.range(inside.clone()..).next();
    let is_empty = here.get(path).is_some_and(|value| matches!(value.as_str(), "{}" | "[]"));
    if is_empty && items.is_some_and(|(path, _value)| path.starts_with(&inside)) {
        return true;
    }
    let above = path.match_indices('.').filter_map(|(at, _dot)| there.get(&path[..at]));
    above.into_iter().any(|value| value.starts_with("unread ("))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::FactsFile;

    fn healthy() -> NodeFacts {
        let text = include_str!("../../tests/facts/healthy-8xh100.json");
        read::<FactsFile>(text).unwrap().facts
    }

    #[track_caller]
    fn check(path: &str, value: &str, was: &str, now: &str) {
        let (facts, before) = edited(&healthy(), path, value).unwrap();
        assert_eq!(before, was);
        let found = differences(&healthy(), &facts);
        assert_eq!(found.iter().map(|d| d.second.as_deref()).collect::<Vec<_>>(), [Some(now)]);
    }

    #[test]
    fn facts_are_replaced_at_every_depth() {
        check("memory.available_bytes", "1000", "2000000000000", "1000");
        check("nvml.driver_version", "550.54", "580.65.06", "550.54");
        check(
            "nvml.driver_version",
            "unread",
            "580.65.06",
            "unread (asked: what if it is not known)",
        );
        check("nvml.gpus.3.name", "NVIDIA A100", "NVIDIA H100 80GB HBM3", "NVIDIA A100");
        check("env.variables.NCCL_IB_DISABLE", "1", "nothing", "1");
        // What was below a fact that is not known any more is one difference, not many.
        let (facts, _before) = edited(&healthy(), "kernel.log", "unread").unwrap();
        let found = differences(&healthy(), &facts);
        assert_eq!(found.iter().map(|d| &*d.path).collect::<Vec<_>>(), ["kernel.log"]);
        let (facts, _before) = edited(&healthy(), "nvml.gpus.*.name", "T4").unwrap();
        assert_eq!(differences(&healthy(), &facts).len(), 8);
    }

    #[test]
    fn wrong_names_and_values_are_told_apart() {
        let of = |path, value| edited(&healthy(), path, value).unwrap_err();
        let EditError::NoField { at, near, .. } = of("memory.available", "1") else {
            panic!("a name that does not exist")
        };
        assert_eq!((at.as_str(), near[0].as_str()), ("memory", "available_bytes"));
        assert!(matches!(of("memory.cgroup.memory_max", "1"), EditError::NoField { .. }));
        assert!(matches!(of("nvml.gpus.8.name", "x"), EditError::NoField { .. }));
        assert!(matches!(of("memory.available_bytes.x", "x"), EditError::NoField { .. }));
        assert!(matches!(of("memory.available_bytes", "much"), EditError::WrongValue { .. }));
        assert!(matches!(of("", "x"), EditError::NoField { .. }));
    }
}
