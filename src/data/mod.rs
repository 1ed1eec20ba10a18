//! Samples, prompts, boxes, tokenizer and images: everything about data that needs no tensor.

pub mod boxes;
pub mod chatml;
pub mod image;
pub mod lint;
pub mod numpy;
pub mod sample;
pub mod tokenizer;
