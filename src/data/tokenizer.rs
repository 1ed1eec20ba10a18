//! The tokenizer of Qwen-VL: byte-level BPE over `qwen.tiktoken`, and the special tokens that
//! follow its ranks.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use sha2::{Digest, Sha256};
use tiktoken_rs::CoreBPE;
use unicode_normalization::UnicodeNormalization;

/// Name of the vocabulary in a model folder.
pub const VOCABULARY: &str = "qwen.tiktoken";

/// How text is cut before byte pairs are merged, from the official tokenizer.
const PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Special tokens in the order of their ids, which follow the ranks of the vocabulary. Between
/// `<|im_end|>` and `<ref>` lie the 205 tokens `<|extra_0|>` to `<|extra_204|>`.
const HEAD: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
const EXTRAS: u32 = 205;
const TAIL: [&str; 9] =
    ["<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>"];

/// Why a vocabulary cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    #[error("failed to read vocabulary `{}`", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("vocabulary `{}` is a Git LFS pointer, not the file itself", .path.display())]
    LfsPointer { path: PathBuf },
    #[error("vocabulary `{}`, line {line}: expected `base64 rank`, found `{text}`", .path.display())]
    Line { path: PathBuf, line: usize, text: String },
    #[error("vocabulary `{}` has {ranks} tokens and lacks single bytes: it is truncated", .path.display())]
    Truncated { path: PathBuf, ranks: usize },
    #[error("failed to build the tokenizer of `{}`: {reason}", .path.display())]
    Build { path: PathBuf, reason: String },
}

impl TokenizerError {
    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            TokenizerError::Read { .. } => "the model folder must hold qwen.tiktoken",
            TokenizerError::LfsPointer { .. } => {
                "run `git lfs pull` in that folder, or download the file again"
            }
            TokenizerError::Line { .. }
            | TokenizerError::Truncated { .. }
            | TokenizerError::Build { .. } => {
                "take qwen.tiktoken from the release of the model (2,561,218 bytes)"
            }
        }
    }
}

/// Ids of the special tokens that the rest of the program names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Specials {
    pub end_of_text: u32,
    pub im_start: u32,
    pub im_end: u32,
    pub ref_start: u32,
    pub ref_end: u32,
    pub box_start: u32,
    pub box_end: u32,
    pub quad_start: u32,
    pub quad_end: u32,
    pub img_start: u32,
    pub img_end: u32,
    pub img_pad: u32,
}

/// Which special tokens are recognised in text; others are spelled out as ordinary text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// All of them, as in the official training.
    All,
    /// Those of pictures, references and boxes, as in the official inference.
    Image,
    /// None.
    Nothing,
}

/// Text to token ids and back.
pub struct Tokenizer {
    bpe: CoreBPE,
    specials: Specials,
    slots: usize,
    digest: String,
    all: Vec<String>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("digest", &self.digest).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Loads `qwen.tiktoken` from a model folder, or a vocabulary file itself. `slots` is the
    /// number of positions of a picture (256 in the official model).
    pub fn load(path: &Path, slots: usize) -> Result<Self, TokenizerError> {
        let path = if path.is_dir() { path.join(VOCABULARY) } else { path.to_owned() };
        let bytes = fs::read(&path)
            .map_err(|source| TokenizerError::Read { path: path.clone(), source })?;
        Self::parse(&bytes, &path, slots)
    }

    /// Parses a vocabulary; lines may end in CR LF.
    pub fn parse(bytes: &[u8], path: &Path, slots: usize) -> Result<Self, TokenizerError> {
        let path = path.to_owned();
        if bytes.starts_with(b"version https://git-lfs") {
            return Err(TokenizerError::LfsPointer { path });
        }
        let mut ranks: Vec<(Vec<u8>, u32)> = Vec::new();
        let mut hash = Sha256::new();
        for (i, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.is_empty() {
                continue;
            }
            hash.update(line);
            hash.update(b"\n");
            let entry = parse_line(line).ok_or_else(|| TokenizerError::Line {
                path: path.clone(),
                line: i + 1,
                text: String::from_utf8_lossy(&line[..line.len().min(40)]).into_owned(),
            })?;
            ranks.push(entry);
        }
        let count = u32::try_from(ranks.len()).unwrap_or(u32::MAX);
        let complete = ranks.iter().enumerate().all(|(i, (_token, rank))| *rank as usize == i);
        let single = ranks.iter().filter(|(token, _rank)| token.len() == 1).count();
        if single != 256 || !complete {
            return Err(TokenizerError::Truncated { path, ranks: ranks.len() });
        }
        let all = special_names();
        let numbered = all.iter().cloned().zip(count..).collect();
        let bpe = CoreBPE::new(ranks.into_iter().collect(), numbered, PATTERN)
            .map_err(|error| TokenizerError::Build { path, reason: error.to_string() })?;
        let digest = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Tokenizer { bpe, specials: specials(count), slots, digest, all })
    }

    /// Ids of the special tokens.
    pub fn specials(&self) -> Specials {
        self.specials
    }

    /// Number of ids, special tokens included.
    pub fn vocabulary(&self) -> usize {
        self.specials.img_pad as usize + 1
    }

    /// Positions of a picture between `<img>` and `</img>`.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Sha256 of the vocabulary with LF line ends, as hexadecimal digits.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Token ids of text in NFC. A picture, `<img>path</img>`, is not text: see
    /// [`chatml`](super::chatml).
    pub fn encode(&self, text: &str, allowed: Allowed) -> Vec<u32> {
        let text: String = text.nfc().collect();
        let allowed: HashSet<&str> = match allowed {
            Allowed::All => self.all.iter().map(String::as_str).collect(),
            Allowed::Image => TAIL.into_iter().collect(),
            Allowed::Nothing => HashSet::new(),
        };
        match self.bpe.encode(&text, &allowed) {
            Ok((ids, _last)) => ids,
            // The pattern cannot fail on text; if it ever does, bytes are still exact.
            Err(_error) => self.bpe.encode_ordinary(&text),
        }
    }

    /// Text of token ids. Bytes that are no UTF-8 become replacement characters. Special tokens
    /// are left out, except those of references and boxes.
    pub fn decode(&self, ids: &[u32]) -> String {
        let s = self.specials;
        let keep = |id: &u32| *id < s.end_of_text || (s.ref_start..=s.quad_end).contains(id);
        let ids: Vec<u32> = ids.iter().copied().filter(keep).collect();
        self.decode_all(&ids)
    }

    /// Text of token ids, special tokens included.
    pub fn decode_all(&self, ids: &[u32]) -> String {
        let mut bytes = Vec::new();
        for id in ids {
            if let Ok(piece) = self.bpe.decode_bytes(&[*id]) {
                bytes.extend(piece);
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

fn parse_line(line: &[u8]) -> Option<(Vec<u8>, u32)> {
    let space = line.iter().position(|byte| *byte == b' ')?;
    let token = STANDARD.decode(&line[..space]).ok()?;
    let rank = std::str::from_utf8(&line[space + 1..]).ok()?.trim().parse().ok()?;
    Some((token, rank))
}

fn special_names() -> Vec<String> {
    let extras = (0..EXTRAS).map(|i| format!("<|extra_{i}|>"));
    let head = HEAD.into_iter().map(str::to_owned);
    head.chain(extras).chain(TAIL.into_iter().map(str::to_owned)).collect()
}

fn specials(first: u32) -> Specials {
    let tail = first + 3 + EXTRAS;
    Specials {
        end_of_text: first,
        im_start: first + 1,
        im_end: first + 2,
        ref_start: tail,
        ref_end: tail + 1,
        box_start: tail + 2,
        box_end: tail + 3,
        quad_start: tail + 4,
        quad_end: tail + 5,
        img_start: tail + 6,
        img_end: tail + 7,
        img_pad: tail + 8,
    }
}

/// A vocabulary of the 256 bytes, for models that are trained from scratch.
pub fn byte_vocabulary() -> String {
    (0..=255_u8).map(|byte| format!("{} {byte}\n", STANDARD.encode([byte]))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes() -> Tokenizer {
        Tokenizer::parse(byte_vocabulary().as_bytes(), Path::new("v"), 64).unwrap()
    }

    #[test]
    fn special_tokens_follow_the_ranks() {
        let tokenizer = bytes();
        assert_eq!(tokenizer.specials().end_of_text, 256);
        assert_eq!(tokenizer.specials().img_start, 470);
        assert_eq!(tokenizer.vocabulary(), 473);
        // The official vocabulary has 151,643 ranks.
        assert_eq!(specials(151_643).img_pad, 151_859);
        assert_eq!(specials(151_643).box_start, 151_853);
    }

    #[test]
    fn what_is_not_allowed_is_spelled_out() {
        let tokenizer = bytes();
        assert_eq!(tokenizer.encode("<ref>a", Allowed::Image), [464, 97]);
        assert_eq!(tokenizer.encode("<ref>a", Allowed::Nothing).len(), 6);
        assert_eq!(tokenizer.encode("<|im_end|>", Allowed::Image).len(), 10);
        assert_eq!(tokenizer.encode("<|im_end|>", Allowed::All), [258]);
        assert_eq!(tokenizer.decode(&[464, 97, 258, 465]), "<ref>a</ref>");
    }

    #[test]
    fn carriage_returns_change_nothing() {
        let text = byte_vocabulary();
        let other = Tokenizer::parse(text.replace('\n', "\r\n").as_bytes(), Path::new("v"), 64);
        assert_eq!(other.unwrap().digest(), bytes().digest());
    }

    #[test]
    fn bad_vocabularies_are_named() {
        let error =
            |bytes: &[u8]| Tokenizer::parse(bytes, Path::new("v"), 64).unwrap_err().to_string();
        let text = byte_vocabulary();
        assert_eq!(
            error(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n"),
            "vocabulary `v` is a Git LFS pointer, not the file itself"
        );
        assert!(error(&text.as_bytes()[..100]).starts_with("vocabulary `v`"));
        let whole_lines: String = text.split_inclusive('\n').take(10).collect();
        assert!(error(whole_lines.as_bytes()).ends_with("it is truncated"));
        assert!(error(b"hello world\n").contains("line 1: expected `base64 rank`"));
    }
}
