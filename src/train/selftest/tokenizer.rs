//! Replays a golden file of the official tokenizer and `finetune.py`.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::Layer;
use crate::{
    data::{
        chatml::{Encoded, PromptStyle, SYSTEM, encode_prompt, encode_training},
        image, numpy,
        sample::{Role, Sample, Turn},
        tokenizer::{Allowed, Tokenizer, TokenizerError},
    },
    job::Mask,
};

/// Positions of a picture in the official model, and its side in pixels.
const SLOTS: usize = 256;
const SIDE: usize = 448;
/// The label of a token without a loss.
const NO_LABEL: i64 = -100;

/// Why a golden file of the tokenizer cannot be replayed.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerGoldenError {
    #[error("failed to read golden `{}`", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("golden `{}` is not one of the tokenizer", .path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

#[derive(Deserialize)]
struct Golden {
    samples: Vec<GoldenSample>,
    encode: Vec<(String, Vec<u32>)>,
    contexts: Vec<GoldenContext>,
    resize: Vec<GoldenResize>,
}

#[derive(Deserialize)]
struct GoldenSample {
    conversations: Vec<GoldenTurn>,
    input_ids: Vec<u32>,
    labels: Vec<i64>,
}

#[derive(Deserialize)]
struct GoldenTurn {
    from: String,
    value: String,
}

#[derive(Deserialize)]
struct GoldenContext {
    query: String,
    history: Vec<(String, String)>,
    system: String,
    ids: Vec<u32>,
}

#[derive(Deserialize)]
struct GoldenResize {
    numpy_seed: u32,
    width: usize,
    height: usize,
    input_sha256: String,
    output_sha256: String,
}

/// Compares every case of `golden` with what the vocabulary `vocab` gives; differences count
/// wrong cases.
pub fn replay(golden: &Path, vocab: &Path) -> Result<Vec<Layer>, TokenizerGoldenError> {
    let path = golden.to_owned();
    let text = std::fs::read_to_string(golden)
        .map_err(|source| TokenizerGoldenError::Read { path: path.clone(), source })?;
    let golden: Golden = serde_json::from_str(&text)
        .map_err(|source| TokenizerGoldenError::Json { path, source })?;
    let tokenizer = Tokenizer::load(vocab, SLOTS)?;
    let samples = |right: fn(&GoldenSample, &Encoded) -> bool| -> Vec<bool> {
        let encoded = |sample| encode_training(&tokenizer, &conversation(sample), Mask::Reference);
        golden.samples.iter().map(|sample| right(sample, &encoded(sample))).collect()
    };
    let encode: Vec<bool> = golden.encode.iter().map(|case| encodes(&tokenizer, case)).collect();
    let contexts: Vec<bool> =
        golden.contexts.iter().map(|case| prompts(&tokenizer, case)).collect();
    let resize: Vec<bool> = golden.resize.iter().map(resizes).collect();
    Ok(vec![
        layer("samples, token ids", &samples(|sample, found| found.ids == sample.input_ids)),
        layer("samples, labels", &samples(|sample, found| labels(found) == sample.labels)),
        layer("encode", &encode),
        layer("contexts", &contexts),
        layer("resize (sha256)", &resize),
    ])
}

fn layer(name: &str, right: &[bool]) -> Layer {
    let wrong: Vec<String> = (1..)
        .zip(right)
        .filter(|(_case, right)| !**right)
        .map(|(case, _right)| case.to_string())
        .collect();
    let at = if wrong.is_empty() {
        format!("none of {} cases", right.len())
    } else {
        format!("case {} of {}", wrong.join(", "), right.len())
    };
    // A file without cases proves nothing.
    let difference = if right.is_empty() { f64::NAN } else { wrong.len() as f64 };
    Layer { name: name.to_owned(), difference, tolerance: 0.0, at }
}

fn conversation(sample: &GoldenSample) -> Sample {
    let turn = |turn: &GoldenTurn| Turn {
        role: if turn.from == "user" { Role::User } else { Role::Assistant },
        text: turn.value.clone(),
    };
    Sample { id: String::new(), turns: sample.conversations.iter().map(turn).collect() }
}

fn labels(encoded: &Encoded) -> Vec<i64> {
    let label = |(id, class): (&u32, &Option<_>)| class.map_or(NO_LABEL, |_class| i64::from(*id));
    encoded.ids.iter().zip(&encoded.labels).map(label).collect()
}

fn encodes(tokenizer: &Tokenizer, (text, ids): &(String, Vec<u32>)) -> bool {
    tokenizer.encode(text, Allowed::All) == *ids
}

fn prompts(tokenizer: &Tokenizer, case: &GoldenContext) -> bool {
    let prompt = encode_prompt(tokenizer, &case.history, &case.query, PromptStyle::ChatMl);
    case.system == SYSTEM && prompt.ids == case.ids
}

fn resizes(case: &GoldenResize) -> bool {
    let input = numpy::random_bytes(case.numpy_seed, case.width * case.height * 3);
    let output = image::resize(&input, case.width, case.height, SIDE, SIDE);
    hash(&input) == case.input_sha256 && hash(&output) == case.output_sha256
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
