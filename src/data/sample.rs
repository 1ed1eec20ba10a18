//! The official JSON format: a list of `{id, conversations: [{from, value}]}`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;

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

/// One conversation; it begins with the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    pub id: String,
    pub turns: Vec<Turn>,
}

/// A file of samples.
#[derive(Clone, Debug)]
pub struct SampleFile {
    pub path: PathBuf,
    pub samples: Vec<Sample>,
    /// Samples whose first turn was dropped because it is not the user's, as the official
    /// training does.
    pub dropped_turns: Vec<String>,
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
            SampleError::Sample { .. } => "run `qvl data lint` to see all samples with problems",
        }
    }
}

#[derive(Deserialize)]
struct WireSample {
    #[serde(default)]
    id: serde_json::Value,
    conversations: Vec<WireTurn>,
}

#[derive(Deserialize)]
struct WireTurn {
    from: String,
    value: String,
}

/// Reads a file; the first bad sample is the error.
pub fn read(path: &Path) -> Result<SampleFile, SampleError> {
    let text =
        fs::read(path).map_err(|source| SampleError::Read { path: path.to_owned(), source })?;
    let wire: Vec<WireSample> = serde_json::from_slice(&text)
        .map_err(|source| SampleError::Json { path: path.to_owned(), source })?;
    if wire.is_empty() {
        return Err(SampleError::Empty { path: path.to_owned() });
    }
    let mut file =
        SampleFile { path: path.to_owned(), samples: Vec::new(), dropped_turns: Vec::new() };
    for (index, wire) in wire.into_iter().enumerate() {
        let id = match wire.id.as_str() {
            Some(id) => id.to_owned(),
            None if wire.id.is_null() => index.to_string(),
            None => wire.id.to_string(),
        };
        let sample = sample(&mut file.dropped_turns, id.clone(), wire.conversations)
            .map_err(|what| SampleError::Sample { path: path.to_owned(), index, id, what })?;
        file.samples.push(sample);
    }
    Ok(file)
}

fn sample(dropped: &mut Vec<String>, id: String, wire: Vec<WireTurn>) -> Result<Sample, String> {
    let mut turns = Vec::with_capacity(wire.len());
    for turn in wire {
        let role = match turn.from.as_str() {
            "user" => Role::User,
            "assistant" => Role::Assistant,
            other => return Err(format!("`from` is `{other}`, expected `user` or `assistant`")),
        };
        turns.push(Turn { role, text: turn.value });
    }
    if turns.first().is_some_and(|turn| turn.role == Role::Assistant) {
        turns.remove(0);
        dropped.push(id.clone());
    }
    if !turns.iter().any(|turn| turn.role == Role::Assistant) {
        return Err("no turn of the assistant, so there is nothing to learn".to_owned());
    }
    let alternates = turns.windows(2).all(|pair| pair[0].role != pair[1].role);
    if !alternates {
        return Err("user and assistant do not take turns".to_owned());
    }
    Ok(Sample { id, turns })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.json");
        fs::write(&path, text).unwrap();
        let error = read(&path).unwrap_err().to_string();
        error.replace(&path.display().to_string(), "d.json")
    }

    #[test]
    fn bad_samples_are_named() {
        assert_eq!(error("{}"), "data set `d.json` is not a JSON list of samples");
        assert_eq!(error("[]"), "data set `d.json` holds no sample");
        assert_eq!(
            error(r#"[{"id":"a","conversations":[{"from":"human","value":"x"}]}]"#),
            "data set `d.json`, sample 0 (id `a`): `from` is `human`, expected `user` or `assistant`"
        );
        assert_eq!(
            error(r#"[{"id":7,"conversations":[{"from":"user","value":"x"}]}]"#),
            "data set `d.json`, sample 0 (id `7`): no turn of the assistant, so there is nothing to learn"
        );
    }
}
