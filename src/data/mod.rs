//! Samples, prompts, boxes, tokenizer and images: everything about data that needs no tensor.

pub mod image;
