//! The one place where a conversation becomes token ids: for training, evaluation and chat.
//!
//! A turn is `<|im_start|>role\ntext<|im_end|>\n`, and each of its pieces is encoded by itself. A
//! picture is `<img>`, one slot per query of the model, `</img>`. The labels of the two masks:
//!
//! | piece | [`Mask::Reference`] | [`Mask::AnswerOnly`] |
//! |---|---|---|
//! | `<\|im_start\|>` of every turn | label | none |
//! | role and its line feed; system and user text | none | none |
//! | text of the assistant | label | label |
//! | `<\|im_end\|>` of the assistant | label | label |
//! | other `<\|im_end\|>`, and the line feed after each | label | none |
//!
//! In training all special tokens of a text are recognised, as in the official finetune.py; in a
//! prompt only those of pictures, references and boxes, so that a user cannot end his own turn.

mod prompt;

pub use prompt::{
    Context, MAX_WINDOW, Part, PictureLabel, PromptStyle, encode_prompt, from_list_format,
    with_pictures,
};

use super::{
    sample::{Role, Sample},
    tokenizer::{Allowed, Tokenizer},
};
use crate::job::Mask;

/// The system message of the official code.
pub const SYSTEM: &str = "You are a helpful assistant.";

/// What a labelled token is. The share of template and structure in a loss is easy to learn and
/// hides what matters, so it is reported apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// `<|im_start|>`, `<|im_end|>` and the line feeds of the template.
    Template,
    /// Tags, brackets and commas of references and boxes.
    Structure,
    /// Everything else: words and coordinates.
    Content,
}

/// A picture in a token sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageSpan {
    /// First of the slots, the position after `<img>`.
    pub start: usize,
    /// What stands between `<img>` and `</img>`.
    pub path: String,
}

/// A token sequence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    pub ids: Vec<u32>,
    /// For each position, what it is as a label; `None` carries no loss.
    pub labels: Vec<Option<Class>>,
    pub images: Vec<ImageSpan>,
}

impl Encoded {
    fn append(&mut self, other: Encoded) {
        let shift = self.ids.len();
        let moved = other.images.into_iter();
        self.images.extend(moved.map(|span| ImageSpan { start: span.start + shift, ..span }));
        self.ids.extend(other.ids);
        self.labels.extend(other.labels);
    }

    fn push(&mut self, id: u32, label: Option<Class>) {
        self.ids.push(id);
        self.labels.push(label);
    }

    /// Text with pictures; every label is `class` of its token, or none.
    fn text(&mut self, tokenizer: &Tokenizer, text: &str, allowed: Allowed, labelled: bool) {
        let mut rest = text;
        while let Some((before, path, after)) = cut_image(rest) {
            self.plain(tokenizer, before, allowed, labelled);
            self.image(tokenizer, path, labelled);
            rest = after;
        }
        self.plain(tokenizer, rest, allowed, labelled);
    }

    fn plain(&mut self, tokenizer: &Tokenizer, text: &str, allowed: Allowed, labelled: bool) {
        if text.is_empty() {
            return;
        }
        let ids = tokenizer.encode(text, allowed);
        let classes = classes(tokenizer, &ids);
        for (id, class) in ids.into_iter().zip(classes) {
            self.push(id, labelled.then_some(class));
        }
    }

    /// `<img>`, the slots, `</img>`. The slots hold the bytes of the path, as in the official
    /// code, if they fit; the model never reads them, so a longer path is no problem here.
    fn image(&mut self, tokenizer: &Tokenizer, path: &str, labelled: bool) {
        let specials = tokenizer.specials();
        let label = labelled.then_some(Class::Structure);
        self.push(specials.img_start, label);
        self.images.push(ImageSpan { start: self.ids.len(), path: path.to_owned() });
        let fits = path.len() + 2 <= tokenizer.slots();
        for slot in 0..tokenizer.slots() {
            let byte = path.as_bytes().get(slot).filter(|_byte| fits);
            self.push(byte.map_or(specials.img_pad, |byte| u32::from(*byte)), label);
        }
        self.push(specials.img_end, label);
    }
}

/// Cuts at the first `<img>path</img>`: before, path, after.
fn cut_image(text: &str) -> Option<(&str, &str, &str)> {
    let (before, rest) = text.split_once("<img>")?;
    let (path, after) = rest.split_once("</img>")?;
    Some((before, path, after))
}

/// Paths of the pictures of a text, in order.
pub fn image_paths(text: &str) -> Vec<&str> {
    let mut paths = Vec::new();
    let mut rest = text;
    while let Some((_before, path, after)) = cut_image(rest) {
        paths.push(path);
        rest = after;
    }
    paths
}

fn classes(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<Class> {
    let specials = tokenizer.specials();
    let mut inside = false;
    ids.iter()
        .map(|id| {
            if *id == specials.box_start || *id == specials.quad_start {
                inside = true;
            }
            if *id == specials.box_end || *id == specials.quad_end {
                inside = false;
            }
            let digit = || tokenizer.decode_all(&[*id]).chars().any(|c| c.is_ascii_digit());
            if specials.end_of_text <= *id || (inside && !digit()) {
                Class::Structure
            } else {
                Class::Content
            }
        })
        .collect()
}

/// A conversation as the training sees it, without padding. With [`Mask::Reference`] the template
/// tokens of every turn carry a loss too, as in the official finetune.py.
pub fn encode_training(tokenizer: &Tokenizer, sample: &Sample, mask: Mask) -> Encoded {
    let mut encoded = Encoded::default();
    turn(&mut encoded, tokenizer, "system", SYSTEM, mask, false);
    for spoken in &sample.turns {
        match spoken.role {
            Role::User => turn(&mut encoded, tokenizer, "user", &spoken.text, mask, false),
            Role::Assistant => turn(&mut encoded, tokenizer, "assistant", &spoken.text, mask, true),
        }
    }
    encoded
}

/// `<|im_start|>role\ntext<|im_end|>\n`.
fn turn(
    encoded: &mut Encoded,
    tokenizer: &Tokenizer,
    role: &str,
    text: &str,
    mask: Mask,
    answers: bool,
) {
    let specials = tokenizer.specials();
    let template = (mask == Mask::Reference).then_some(Class::Template);
    encoded.push(specials.im_start, template);
    for id in tokenizer.encode(role, Allowed::Nothing) {
        encoded.push(id, None);
    }
    let newline = tokenizer.encode("\n", Allowed::Nothing);
    newline.iter().for_each(|id| encoded.push(*id, None));
    encoded.text(tokenizer, text, Allowed::All, answers);
    encoded.push(specials.im_end, if answers { Some(Class::Template) } else { template });
    newline.iter().for_each(|id| encoded.push(*id, template));
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::data::{sample::Turn, tokenizer::byte_vocabulary};

    #[test]
    fn masks_follow_the_tables() {
        let tokenizer = Tokenizer::parse(byte_vocabulary().as_bytes(), Path::new("v"), 4).unwrap();
        let sample = Sample {
            id: "0".to_owned(),
            turns: vec![
                Turn { role: Role::User, text: "<img>a</img>?".to_owned() },
                Turn { role: Role::Assistant, text: "<box>(1,2)</box>".to_owned() },
            ],
        };
        let count = |mask, class| {
            let encoded = encode_training(&tokenizer, &sample, mask);
            assert_eq!(encoded.ids.len(), encoded.labels.len());
            encoded.labels.iter().filter(|label| **label == Some(class)).count()
        };
        // Three turns with im_start, im_end and line feed each.
        assert_eq!(count(Mask::Reference, Class::Template), 9);
        assert_eq!(count(Mask::AnswerOnly, Class::Template), 1);
        for mask in [Mask::Reference, Mask::AnswerOnly] {
            assert_eq!(count(mask, Class::Content), 2);
            assert_eq!(count(mask, Class::Structure), 5);
        }
        let encoded = encode_training(&tokenizer, &sample, Mask::Reference);
        let span = &encoded.images[0];
        assert_eq!(encoded.ids[span.start - 1], tokenizer.specials().img_start);
        let pad = tokenizer.specials().img_pad;
        assert_eq!(encoded.ids[span.start..span.start + 4], [97, pad, pad, pad]);
        assert_eq!(encoded.ids[span.start + 4], tokenizer.specials().img_end);
    }
}
