//! Facts from their JSON. Everything is read by this one function: the code that reads a type is
//! generated anew for each kind of reader, and facts have many types.

use std::fmt;

use serde::de::DeserializeOwned;

/// Why a text is not what it should be.
#[derive(Debug, thiserror::Error)]
pub struct ReadError {
    /// Where in the JSON, such as `facts.nvml.gpus[0]`; empty at the top.
    path: String,
    message: String,
}

impl fmt::Display for ReadError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.as_str() {
            "" => out.write_str(&self.message),
            path => write!(out, "{path}: {}", self.message),
        }
    }
}

impl ReadError {
    /// What is wrong, without the place.
    pub(super) fn into_message(self) -> String {
        self.message
    }
}

/// A value from JSON. The error names the place by its path.
pub fn read<T: DeserializeOwned>(json: &str) -> Result<T, ReadError> {
    serde_json::from_str(json).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        let (all, place) = (error.to_string(), format!(" at line {line} column {column}"));
        if !error.is_data() {
            return ReadError { path: String::new(), message: all };
        }
        let message = all.strip_suffix(place.as_str()).unwrap_or(&all).to_owned();
        ReadError { path: path_at(&json.as_bytes()[..offset(json, line, column)]), message }
    })
}

/// Bytes before a place: lines count from one, and columns are the bytes read of the line.
fn offset(json: &str, line: usize, column: usize) -> usize {
    let before: usize = json.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    (before + column).min(json.len())
}

/// Something that was begun and has not ended.
enum Open {
    Object { key: String },
    List { index: usize },
}

/// The path of the value that `json`, the beginning of a well-formed text, has come to.
fn path_at(json: &[u8]) -> String {
    let mut open = Vec::new();
    let mut text = String::new();
    let mut bytes = json.iter().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match (byte, open.last_mut()) {
            (b'"', _) => {
                let end = string_end(&json[at..]);
                text = serde_json::from_slice(&json[at..at + end]).unwrap_or_default();
                // `nth` takes one byte more than it is told.
                bytes.nth(end.saturating_sub(2));
            }
            (b':', Some(Open::Object { key })) => *key = std::mem::take(&mut text),
            (b',', Some(Open::List { index })) => *index += 1,
            (b'{', _) => open.push(Open::Object { key: String::new() }),
            (b'[', _) => open.push(Open::List { index: 0 }),
            (b'}' | b']', _) => drop(open.pop()),
            _ => {}
        }
    }
    let steps = open.iter().map(|step| match step {
        Open::Object { key } => format!(".{key}"),
        Open::List { index } => format!("[{index}]"),
    });
    steps.collect::<String>().trim_start_matches('.').to_owned()
}

/// Length of the string that `json` begins with, quotes included.
fn string_end(json: &[u8]) -> usize {
    let mut escaped = true; // the first quote does not end it
    let end = json.iter().position(|byte| {
        let ends = *byte == b'"' && !escaped;
        escaped = *byte == b'\\' && !escaped;
        ends
    });
    end.map_or(json.len(), |end| end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::FactsFile;

    const HEALTHY: &str = include_str!("../../tests/facts/healthy-8xh100.json");

    /// What is said of the healthy machine after a change.
    fn said(change: impl FnOnce(&mut serde_json::Value)) -> String {
        let mut value: serde_json::Value = read(HEALTHY).unwrap();
        change(&mut value);
        let compact = read::<FactsFile>(&value.to_string()).unwrap_err().to_string();
        let pretty = serde_json::to_string_pretty(&value).unwrap();
        assert_eq!(read::<FactsFile>(&pretty).unwrap_err().to_string(), compact);
        compact
    }

    #[test]
    fn an_error_names_its_place() {
        assert!(read::<FactsFile>(HEALTHY).is_ok());
        let gone = said(|file| drop(file["facts"].as_object_mut().unwrap().remove("nvml")));
        assert_eq!(gone, "facts: missing field `nvml`");
        let wrong = said(|file| {
            let gpu = &mut file["facts"]["nvml"]["gpus"]["known"]["value"][3];
            gpu["name"]["known"]["value"] = serde_json::json!(7);
        });
        let place = "facts.nvml.gpus.known.value[3].name.known.value";
        assert_eq!(wrong, format!("{place}: invalid type: integer `7`, expected a string"));
        let nameless = said(|file| {
            let gpu = &mut file["facts"]["nvml"]["gpus"]["known"]["value"][3];
            drop(gpu.as_object_mut().unwrap().remove("name"));
        });
        assert_eq!(nameless, "facts.nvml.gpus.known.value[3]: missing field `name`");
        assert!(
            said(|file| drop(file.as_object_mut().unwrap().remove("node"))).starts_with("missing")
        );
    }

    #[test]
    fn quotes_and_brackets_in_strings_are_no_structure() {
        let text = r#"{"a": ["x\"]}{", "\\", {"b\u0022": "y"}], "c": tru"#;
        assert_eq!(path_at(text.as_bytes()), "c");
        let inner = text.find(r#""y""#).unwrap();
        assert_eq!(path_at(&text.as_bytes()[..inner]), "a[2].b\"");
    }

    #[test]
    fn what_is_no_json_is_told_by_line_and_column() {
        let error = read::<FactsFile>("{\n\"format\": 1,,").unwrap_err();
        assert!(error.to_string().contains("at line 2 column"), "{error}");
    }
}
