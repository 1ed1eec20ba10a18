//! The rules, as a table of values.

use serde::Serialize;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// The training runs, but may learn something else than was meant.
    Warn,
    /// The training would fail, or learn nonsense.
    Block,
}

/// Something that can be wrong with data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Stable name in kebab-case.
    pub id: &'static str,
    pub severity: Severity,
    /// What the user can do about it.
    pub hint: &'static str,
}

const fn block(id: &'static str, hint: &'static str) -> Rule {
    Rule { id, severity: Severity::Block, hint }
}

const fn warn(id: &'static str, hint: &'static str) -> Rule {
    Rule { id, severity: Severity::Warn, hint }
}

pub(super) static FORMAT: Rule =
    block("format", "expected a JSON list of {id, conversations: [{from, value}]}");
pub(super) static SAMPLE: Rule =
    block("sample", "expected {id, conversations: [{from: user or assistant, value: text}]}");
pub(super) static FIRST_TURN: Rule = warn("first-turn", "begin with the user");
pub(super) static EMPTY_ANSWER: Rule = block("empty-answer", "remove the sample");
pub(super) static SPECIAL_TOKEN: Rule = block(
    "special-token",
    "remove it from the text: in training it ends or begins a turn, in use it is plain text",
);

pub(super) static IMAGE_TAG: Rule = block("image-tag", "write <img>path</img>");
pub(super) static REMOTE_IMAGE: Rule =
    block("remote-image", "download the pictures first, and give their paths");
pub(super) static LONG_PATH: Rule = warn(
    "long-path",
    "qvl has no such limit; the official tokenizer fails, so shorten it if others use the data",
);
pub(super) static IMAGE_UNREADABLE: Rule = block(
    "image-unreadable",
    "PNG and JPEG are supported; paths are relative to the folder of the JSON file",
);
pub(super) static IMAGE_HUGE: Rule =
    block("image-huge", "scale it down first: the model sees 448x448 pixels of it");

pub(super) static BOX_FORM: Rule =
    block("box-form", "write <box>(x1,y1),(x2,y2)</box> without spaces");
pub(super) static BOX_DECIMAL: Rule =
    block("box-decimal", "whole thousandths: pixel * 1000 / size, rounded down");
pub(super) static BOX_RANGE: Rule =
    block("box-range", "coordinates are thousandths of the picture, 0 to 999, not pixels");
pub(super) static BOX_REVERSED: Rule = block("box-reversed", "the upper left corner comes first");
pub(super) static BOX_EMPTY: Rule = block("box-empty", "a box needs width and height");
pub(super) static BOX_UNCLOSED: Rule = block("box-unclosed", "write <box>..</box>");
pub(super) static BOX_PIXELS: Rule = warn(
    "box-pixels",
    "if they are pixels: thousandth = pixel * 1000 / size, rounded down, 0 to 999",
);
pub(super) static REF_UNCLOSED: Rule = block("ref-unclosed", "write <ref>name</ref>");
pub(super) static REF_WITHOUT_BOX: Rule =
    warn("ref-without-box", "in an answer, <box>..</box> follows <ref>..</ref>");

pub(super) static PROMPT_FORMAT: Rule = warn(
    "prompt-format",
    "the chat model knows `Picture 1: <img>path</img>` and a line feed; use one form for training and use",
);
pub(super) static PROMPT_MIXED: Rule =
    warn("prompt-mixed", "use one form, the same as when the model is used");
pub(super) static PROMPT_MISMATCH: Rule = warn(
    "prompt-mismatch",
    "evaluate with the prompts of the training, or train on those of the use",
);

pub(super) static DUPLICATE: Rule =
    warn("duplicate", "remove one, or give the set a higher weight if that was meant");
pub(super) static LEAK: Rule =
    warn("leak", "what was trained on says nothing about new data; remove it from one of the sets");
pub(super) static PICTURE_LEAK: Rule =
    warn("picture-leak", "split by picture, so that evaluation pictures are new");

pub(super) static TOO_LONG: Rule = block(
    "too-long",
    "raise data.maxLength, or set data.onOverlong to `drop`; the official code cuts the end off, \
     </img> included",
);
pub(super) static DROPPED: Rule =
    warn("dropped", "the job leaves it out; raise data.maxLength to use it");

/// All rules; ids are never used again for something else.
pub static RULES: [&Rule; 27] = [
    &FORMAT,
    &SAMPLE,
    &FIRST_TURN,
    &EMPTY_ANSWER,
    &SPECIAL_TOKEN,
    &IMAGE_TAG,
    &REMOTE_IMAGE,
    &LONG_PATH,
    &IMAGE_UNREADABLE,
    &IMAGE_HUGE,
    &BOX_FORM,
    &BOX_DECIMAL,
    &BOX_RANGE,
    &BOX_REVERSED,
    &BOX_EMPTY,
    &BOX_UNCLOSED,
    &BOX_PIXELS,
    &REF_UNCLOSED,
    &REF_WITHOUT_BOX,
    &PROMPT_FORMAT,
    &PROMPT_MIXED,
    &PROMPT_MISMATCH,
    &DUPLICATE,
    &LEAK,
    &PICTURE_LEAK,
    &TOO_LONG,
    &DROPPED,
];
