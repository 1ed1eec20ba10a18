//! What the model is fed with.

use std::sync::Arc;

use candle_core::Tensor;

/// One unit: samples that are computed together on one rank, padded on the right.
#[derive(Clone, Debug, Default)]
pub struct UnitBatch {
    /// Samples.
    pub rows: usize,
    /// Length of the longest sample, in tokens.
    pub length: usize,
    /// Token ids, `rows * length`, row by row.
    pub ids: Vec<u32>,
    /// Length of each sample without padding; at least 1.
    pub lengths: Vec<usize>,
    /// The tokens that carry a loss.
    pub labels: Vec<Label>,
    /// The pictures.
    pub images: Vec<ImageInput>,
    /// A key for each sample, the same in every epoch; dropout depends on it.
    pub samples: Vec<u64>,
}

/// One token that carries a loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Label {
    /// Row of the sample.
    pub row: usize,
    /// Position whose output predicts the token, so one before the token itself.
    pub position: usize,
    /// The token.
    pub target: u32,
    /// Factor of its cross-entropy.
    pub weight: f32,
}

/// One picture and where its features go.
#[derive(Clone, Debug)]
pub struct ImageInput {
    /// Row of the sample.
    pub row: usize,
    /// First of the positions that the features overwrite (the one after `<img>`).
    pub start: usize,
    /// The picture itself, or what the frozen vision tower made of it.
    pub content: ImageContent,
}

/// A picture, before or after the vision tower.
#[derive(Clone, Debug)]
pub enum ImageContent {
    /// Normalised pixels, f32, `3 * size * size`, channel by channel.
    Pixels(Arc<[f32]>),
    /// Features `[n_queries, hidden]`, only allowed while the vision tower is frozen.
    Features(Tensor),
}
