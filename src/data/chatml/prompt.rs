//! Prompts: what the model is given to go on with.

use std::fmt::Write as _;

use super::{Encoded, SYSTEM};
use crate::data::{
    boxes::{self, Box2d},
    tokenizer::{Allowed, Tokenizer},
};

/// How a question is put to the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromptStyle {
    /// System, user and assistant turns, as in training.
    ChatMl,
    /// The bare question, as in the official evaluation scripts.
    Raw,
}

/// Tokens of system message and history that the official chat keeps.
pub const MAX_WINDOW: usize = 6144;

/// A question with everything that stands before it.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    pub system: &'a str,
    /// Earlier turns, each a question and its answer.
    pub history: &'a [(String, String)],
    pub query: &'a str,
    /// Earlier turns are left out from the oldest on, so that system message and history stay
    /// below so many tokens. The question is not counted, as in the official chat.
    pub max_window: usize,
}

impl<'a> Context<'a> {
    /// With the official system message and window.
    pub fn new(history: &'a [(String, String)], query: &'a str) -> Self {
        Context { system: SYSTEM, history, query, max_window: MAX_WINDOW }
    }

    /// The tokens, ready for the model to go on with the answer.
    pub fn encode(&self, tokenizer: &Tokenizer) -> Encoded {
        let mut encoded = said(tokenizer, "system", self.system);
        let mut turns = Vec::new();
        let mut length = encoded.ids.len();
        for (question, answer) in self.history.iter().rev() {
            let mut turn = said(tokenizer, "user", question);
            turn.append(said(tokenizer, "assistant", answer));
            length += turn.ids.len();
            if self.max_window <= length {
                break;
            }
            turns.push(turn);
        }
        turns.into_iter().rev().for_each(|turn| encoded.append(turn));
        encoded.append(said(tokenizer, "user", self.query));
        encoded.push(tokenizer.specials().im_start, None);
        encoded.plain(tokenizer, "assistant\n", Allowed::Nothing, false);
        encoded
    }

    /// The text of those tokens if no turn is left out; for people, never for the model.
    pub fn text(&self) -> String {
        let turn = |role: &str, text: &str| format!("<|im_start|>{role}\n{text}<|im_end|>\n");
        let history: String = self
            .history
            .iter()
            .map(|(question, answer)| turn("user", question) + &turn("assistant", answer))
            .collect();
        let query = turn("user", self.query);
        format!("{}{history}{query}<|im_start|>assistant\n", turn("system", self.system))
    }
}

/// One finished turn of a prompt.
fn said(tokenizer: &Tokenizer, role: &str, text: &str) -> Encoded {
    let mut encoded = Encoded::default();
    encoded.push(tokenizer.specials().im_start, None);
    encoded.plain(tokenizer, &format!("{role}\n"), Allowed::Nothing, false);
    encoded.text(tokenizer, text, Allowed::Image, false);
    encoded.push(tokenizer.specials().im_end, None);
    encoded.plain(tokenizer, "\n", Allowed::Nothing, false);
    encoded
}

/// A question with the turns before it, ready for the model to go on.
pub fn encode_prompt(
    tokenizer: &Tokenizer,
    history: &[(String, String)],
    query: &str,
    style: PromptStyle,
) -> Encoded {
    match style {
        PromptStyle::ChatMl => Context::new(history, query).encode(tokenizer),
        PromptStyle::Raw => {
            let mut encoded = Encoded::default();
            encoded.text(tokenizer, query, Allowed::Image, false);
            encoded
        }
    }
}

/// What stands before a picture in a user turn. The two official releases differ by a space,
/// which is another prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PictureLabel {
    /// `Picture 1: <img>`, of the bf16 release.
    #[default]
    Spaced,
    /// `Picture 1:<img>`, of the Int4 release.
    Tight,
}

impl PictureLabel {
    /// The text before picture `number`, which counts from 1 over a conversation.
    pub fn text(self, number: usize) -> String {
        match self {
            PictureLabel::Spaced => format!("Picture {number}: "),
            PictureLabel::Tight => format!("Picture {number}:"),
        }
    }
}

/// An element of a user turn, as in the official `from_list_format`.
#[derive(Clone, Copy, Debug)]
pub enum Part<'a> {
    Image(&'a str),
    Text(&'a str),
    /// Boxes, with what they show if that is known.
    Boxes {
        reference: Option<&'a str>,
        boxes: &'a [Box2d],
    },
}

/// The text of a user turn made of parts; pictures are numbered from 1.
pub fn from_list_format(parts: &[Part], label: PictureLabel) -> String {
    let mut text = String::new();
    let mut pictures = 0;
    for part in parts {
        match part {
            Part::Image(path) => {
                pictures += 1;
                let _written = writeln!(text, "{}<img>{path}</img>", label.text(pictures));
            }
            Part::Text(words) => text.push_str(words),
            Part::Boxes { reference, boxes } => text.push_str(&boxes::markup(*reference, boxes)),
        }
    }
    text
}

/// The text of a user turn with pictures before the question: `Picture 1: <img>..</img>\n..`.
pub fn with_pictures(paths: &[String], question: &str) -> String {
    let pictures = paths.iter().map(|path| Part::Image(path));
    let parts: Vec<Part> = pictures.chain([Part::Text(question)]).collect();
    from_list_format(&parts, PictureLabel::default())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::data::{chatml::ImageSpan, tokenizer::byte_vocabulary};

    fn prompt(max_window: usize) -> String {
        let tokenizer = Tokenizer::parse(byte_vocabulary().as_bytes(), Path::new("v"), 4).unwrap();
        let history = [("q1", "a1"), ("q2", "a2")].map(|(q, a)| (q.to_owned(), a.to_owned()));
        let context = Context { system: "s", max_window, ..Context::new(&history, "q3<|im_end|>") };
        let encoded = context.encode(&tokenizer);
        assert!(encoded.labels.iter().all(Option::is_none));
        // What the user wrote as a special token is not one.
        let end = tokenizer.specials().im_end;
        let turns = encoded.ids.iter().filter(|id| **id == end).count();
        let text = tokenizer.decode_all(&encoded.ids);
        assert_eq!(text.matches("<|im_end|>").count(), turns + 1);
        if max_window == MAX_WINDOW {
            assert_eq!(text, context.text());
        }
        text
    }

    #[test]
    fn the_oldest_turns_leave_a_full_window_first() {
        assert!(prompt(MAX_WINDOW).contains("q1"));
        // The system turn has 11 tokens, the earlier turns 25 each.
        let text = prompt(37);
        assert!(text.contains("q2") && !text.contains("q1"));
        assert!(!prompt(36).contains("q2"));
        assert!(prompt(0).contains("q3"));
    }

    #[test]
    fn parts_become_the_official_text() {
        let boxes = [Box2d { x1: 1.0, y1: 2.0, x2: 3.0, y2: 4.0 }];
        let parts = [
            Part::Image("a.png"),
            Part::Image("b.png"),
            Part::Text("what is "),
            Part::Boxes { reference: Some("it"), boxes: &boxes },
        ];
        assert_eq!(
            from_list_format(&parts, PictureLabel::Spaced),
            "Picture 1: <img>a.png</img>\nPicture 2: <img>b.png</img>\nwhat is \
             <ref>it</ref><box>(1,2),(3,4)</box>"
        );
        assert_eq!(
            from_list_format(&parts[..1], PictureLabel::Tight),
            "Picture 1:<img>a.png</img>\n"
        );
    }

    #[test]
    fn prompts_may_be_bare() {
        let tokenizer = Tokenizer::parse(byte_vocabulary().as_bytes(), Path::new("v"), 4).unwrap();
        let encoded = encode_prompt(&tokenizer, &[], "<img>a</img>x", PromptStyle::Raw);
        assert_eq!(encoded.ids.len(), 4 + 2 + 1);
        assert_eq!(encoded.images, [ImageSpan { start: 1, path: "a".to_owned() }]);
    }
}
