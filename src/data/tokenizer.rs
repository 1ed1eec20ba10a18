//! The tokenizer of Qwen-VL: byte-level BPE over `qwen.tiktoken`, and the special tokens that
//! follow its ranks.
//!
//! Text is brought to NFC, cut by the pattern of the official tokenizer, and merged piece by piece.
//! The official vocabulary has 151,643 ranks, so that `<|endoftext|>` is 151643 and `<img>` is
//! 151857; with the 256 ranks of [`byte_vocabulary`] they are 256 and 470.

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    sync::LazyLock,
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

static NAMES: LazyLock<Vec<String>> = LazyLock::new(special_names);
static EVERY: LazyLock<HashSet<&'static str>> =
    LazyLock::new(|| NAMES.iter().map(String::as_str).collect());
static OF_IMAGES: LazyLock<HashSet<&'static str>> = LazyLock::new(|| TAIL.into_iter().collect());
static NONE: LazyLock<HashSet<&'static str>> = LazyLock::new(HashSet::new);

/// Text without a cut is encoded in parts of so many characters if the pattern gives up on it:
/// its engine has a limit on backtracking, which about a million spaces in a row exceed.
const PART: usize = 10_000;

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
    #[error(
        "vocabulary `{}` has {ranks} tokens, which puts <img> at id {found}; config.json expects {expected}", .path.display()
    )]
    OtherModel { path: PathBuf, ranks: usize, found: u32, expected: u64 },
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
            TokenizerError::OtherModel { .. } => {
                "the file is truncated, or not of the same release as config.json; take both \
                 from one release"
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
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("digest", &self.digest).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Loads `qwen.tiktoken` from a model folder, or a vocabulary file itself. `slots` is the
    /// number of positions of a picture (256 in the official model). Beside a `config.json`, the
    /// id of `<img>` must be the one given there: a file that lost whole lines shows only so.
    pub fn load(path: &Path, slots: usize) -> Result<Self, TokenizerError> {
        let path = if path.is_dir() { path.join(VOCABULARY) } else { path.to_owned() };
        let bytes = fs::read(&path)
            .map_err(|source| TokenizerError::Read { path: path.clone(), source })?;
        let tokenizer = Self::parse(&bytes, &path, slots)?;
        let found = tokenizer.specials.img_start;
        match image_start(&path) {
            Some(expected) if expected != u64::from(found) => {
                let ranks = tokenizer.specials.end_of_text as usize;
                Err(TokenizerError::OtherModel { path, ranks, found, expected })
            }
            Some(_) | None => Ok(tokenizer),
        }
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
        let numbered = NAMES.iter().cloned().zip(count..).collect();
        let bpe = CoreBPE::new(ranks.into_iter().collect(), numbered, PATTERN)
            .map_err(|error| TokenizerError::Build { path, reason: error.to_string() })?;
        let digest = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Tokenizer { bpe, specials: specials(count), slots, digest })
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
        let allowed = match allowed {
            Allowed::All => &*EVERY,
            Allowed::Image => &*OF_IMAGES,
            Allowed::Nothing => &*NONE,
        };
        match self.bpe.encode(&text, allowed) {
            Ok((ids, _last)) => ids,
            Err(_error) => self.encode_in_parts(&text, allowed),
        }
    }

    fn encode_in_parts(&self, text: &str, allowed: &HashSet<&str>) -> Vec<u32> {
        let mut ids = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let end = rest.char_indices().nth(PART).map_or(rest.len(), |(at, _char)| at);
            let (part, after) = rest.split_at(end);
            match self.bpe.encode(part, allowed) {
                Ok((part, _last)) => ids.extend(part),
                // The first 256 ranks are the bytes in another order; whatever happens, the text
                // is not lost.
                Err(_error) => ids.extend(part.bytes().filter_map(|byte| self.byte(byte))),
            }
            rest = after;
        }
        ids
    }

    fn byte(&self, byte: u8) -> Option<u32> {
        (0..256).find(|id| self.bpe.decode_bytes(&[*id]).is_ok_and(|bytes| bytes == [byte]))
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

/// `visual.image_start_id` of the `config.json` beside a vocabulary, if there is one.
fn image_start(vocabulary: &Path) -> Option<u64> {
    let text = fs::read(vocabulary.with_file_name("config.json")).ok()?;
    let config: serde_json::Value = serde_json::from_slice(&text).ok()?;
    config.pointer("/visual/image_start_id")?.as_u64()
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

/// A vocabulary of the 256 bytes, for models that are trained from scratch: the text of a
/// `qwen.tiktoken` of 256 lines.
pub fn byte_vocabulary() -> String {
    (0..=255_u8).map(|byte| format!("{} {byte}\n", STANDARD.encode([byte]))).collect()
}

/// Writes [`byte_vocabulary`] to a file.
pub fn write_byte_vocabulary(path: &Path) -> io::Result<()> {
    fs::write(path, byte_vocabulary())
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

    /// The real vocabulary still has all single bytes after it lost its second half.
    #[test]
    fn a_vocabulary_that_lost_lines_does_not_fit_its_model() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(VOCABULARY);
        write_byte_vocabulary(&path).unwrap();
        assert!(Tokenizer::load(folder.path(), 64).is_ok());
        let config = |id: u32| {
            let text = serde_json::json!({"visual": {"image_start_id": id}}).to_string();
            fs::write(folder.path().join("config.json"), text).unwrap();
            Tokenizer::load(folder.path(), 64)
        };
        assert!(config(470).is_ok());
        let error = config(151_857).unwrap_err().to_string();
        assert!(
            error.ends_with(
                "has 256 tokens, which puts <img> at id 470; config.json expects 151857"
            ),
            "{error}"
        );
    }

    #[test]
    fn a_million_spaces_are_tokens_too() {
        let tokenizer = bytes();
        let text = " ".repeat(1_200_000) + "<ref>é";
        let ids = tokenizer.encode(&text, Allowed::Image);
        assert_eq!(ids.len(), 1_200_000 + 3);
        assert_eq!(tokenizer.decode_all(&ids), text);
    }
}
