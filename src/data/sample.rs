//! The official JSON format: a list of `{id, conversations: [{from, value}]}`.
//!
//! `from` is `user` or `assistant`. A first turn that is not the user's is dropped, as the
//! official training does. Paths of pictures are relative to the folder of the JSON file.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::Value;

/// Who says a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    User,
    Assistant,
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    pub role: Role,
    pub text: String,
}

/// One conversation; it begins with the user, and the two take turns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The `id` of the file; the position in the list if there is none.
    pub id: String,
    pub turns: Vec<Turn>,
}

/// A file of samples.
#[derive(Clone, Debug)]
pub struct SampleFile {
    pub path: PathBuf,
    pub samples: Vec<Sample>,
    /// Ids of samples whose first turn was dropped because it is not the user's.
    pub dropped_turns: Vec<String>,
}

impl SampleFile {
    /// The folder that paths of pictures are relative to.
    pub fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("."))
    }
}

/// Why a file is not a data set.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    #[error("failed to read data set `{}`", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("data set `{}` is not a JSON list of samples", .path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("data set `{}` holds no sample", .path.display())]
    Empty { path: PathBuf },
    #[error("data set `{}`, sample {index} (id `{id}`): {what}", .path.display())]
    Sample { path: PathBuf, index: usize, id: String, what: String },
}

impl SampleError {
    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            SampleError::Read { .. } => "paths of data sets are relative to the job file",
            SampleError::Json { .. } | SampleError::Empty { .. } => {
                "expected a list like [{\"id\": \"0\", \"conversations\": [{\"from\": \"user\", \
                 \"value\": \"..\"}, {\"from\": \"assistant\", \"value\": \"..\"}]}]"
            }
            SampleError::Sample { .. } => "`qvl data lint` shows all samples with problems",
        }
    }
}

#[derive(Deserialize)]
#[serde(expecting = "an object with `conversations`")]
struct WireSample {
    conversations: Vec<WireTurn>,
}

#[derive(Deserialize)]
#[serde(expecting = "an object with `from` and `value`")]
struct WireTurn {
    from: String,
    value: String,
}

/// Reads a file; the first bad sample is the error.
pub fn read(path: &Path) -> Result<SampleFile, SampleError> {
    let (file, bad) = read_all(path)?;
    match bad.into_iter().next() {
        Some(error) => Err(error),
        None => Ok(file),
    }
}

/// Reads a file: its good samples, and an error for each of the others.
pub fn read_all(path: &Path) -> Result<(SampleFile, Vec<SampleError>), SampleError> {
    let text =
        fs::read(path).map_err(|source| SampleError::Read { path: path.to_owned(), source })?;
    let list: Vec<Value> = serde_json::from_slice(&text)
        .map_err(|source| SampleError::Json { path: path.to_owned(), source })?;
    if list.is_empty() {
        return Err(SampleError::Empty { path: path.to_owned() });
    }
    let mut file =
        SampleFile { path: path.to_owned(), samples: Vec::new(), dropped_turns: Vec::new() };
    let mut bad = Vec::new();
    for (index, value) in list.into_iter().enumerate() {
        let id = match value.get("id") {
            Some(Value::String(id)) => id.clone(),
            Some(Value::Null) | None => index.to_string(),
            Some(id) => id.to_string(),
        };
        match sample(&id, value) {
            Ok((sample, dropped)) => {
                file.dropped_turns.extend(dropped.then_some(id));
                file.samples.push(sample);
            }
            Err(what) => bad.push(SampleError::Sample { path: path.to_owned(), index, id, what }),
        }
    }
    Ok((file, bad))
}

/// The sample, and whether its first turn was dropped.
fn sample(id: &str, value: Value) -> Result<(Sample, bool), String> {
    let wire: WireSample = serde_json::from_value(value).map_err(|error| error.to_string())?;
    let mut turns = Vec::with_capacity(wire.conversations.len());
    for turn in wire.conversations {
        let role = match turn.from.as_str() {
            "user" => Role::User,
            "assistant" => Role::Assistant,
            other => return Err(format!("`from` is `{other}`, expected `user` or `assistant`")),
        };
        turns.push(Turn { role, text: turn.value });
    }
    let dropped = turns.first().is_some_and(|turn| turn.role == Role::Assistant);
    if dropped {
        turns.remove(0);
    }
    if !turns.iter().any(|turn| turn.role == Role::Assistant) {
        return Err("no turn of the assistant, so there is nothing to learn".to_owned());
    }
    let alternates = turns.windows(2).all(|pair| pair[0].role != pair[1].role);
    if !alternates {
        return Err("user and assistant do not take turns".to_owned());
    }
    Ok((Sample { id: id.to_owned(), turns }, dropped))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<SampleFile, SampleError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.json");
        fs::write(&path, text).unwrap();
        read(&path)
    }

    /// The whole message, without the folder.
    fn error(text: &str) -> String {
        let error = read_text(text).unwrap_err().to_string();
        let (before, after) = error.split_once('`').unwrap();
        format!("{before}`{}", &after[after.find("d.json").unwrap()..])
    }

    fn one(conversations: &str) -> String {
        error(&format!(r#"[{{"id":"a","conversations":{conversations}}}]"#))
    }

    #[test]
    fn files_that_are_no_data_set_are_named() {
        assert_eq!(error("{}"), "data set `d.json` is not a JSON list of samples");
        assert_eq!(error("[{]"), "data set `d.json` is not a JSON list of samples");
        assert_eq!(error("[]"), "data set `d.json` holds no sample");
        let missing = read(Path::new("no.json")).unwrap_err();
        assert_eq!(missing.to_string(), "failed to read data set `no.json`");
    }

    #[test]
    fn bad_samples_are_named() {
        let sample = "data set `d.json`, sample 0 (id `a`): ";
        let check = |conversations: &str, what: &str| {
            assert_eq!(one(conversations), format!("{sample}{what}"));
        };
        check(
            r#"[{"from":"human","value":"x"}]"#,
            "`from` is `human`, expected `user` or `assistant`",
        );
        let silent = "no turn of the assistant, so there is nothing to learn";
        check(r#"[{"from":"user","value":"x"}]"#, silent);
        check(r#"[{"from":"assistant","value":"x"}]"#, silent);
        check("[]", silent);
        check(r#"[{"from":"user"}]"#, "missing field `value`");
        check(r#"[{"from":"user","value":7}]"#, "invalid type: integer `7`, expected a string");
        check(
            r#"[{"from":"user","value":"x"},{"from":"user","value":"y"},{"from":"assistant","value":"z"}]"#,
            "user and assistant do not take turns",
        );
        assert_eq!(
            error(r#"[{"id":7}]"#),
            "data set `d.json`, sample 0 (id `7`): missing field `conversations`"
        );
        assert_eq!(
            error("[3]"),
            "data set `d.json`, sample 0 (id `0`): invalid type: integer `3`, expected an object with `conversations`"
        );
    }

    #[test]
    fn a_first_turn_of_the_assistant_is_dropped_and_told() {
        let turns = r#"{"from":"assistant","value":"a"},{"from":"user","value":"b"},{"from":"assistant","value":"c"}"#;
        let file = read_text(&format!(r#"[{{"id":"x","conversations":[{turns}]}}]"#)).unwrap();
        assert_eq!(file.dropped_turns, ["x"]);
        assert_eq!(file.samples[0].turns.len(), 2);
        assert_eq!(file.samples[0].turns[0].text, "b");
    }
}
