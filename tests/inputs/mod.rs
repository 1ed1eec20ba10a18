//! Model inputs as the Python scripts keep them: `input_ids`, `attention_mask`, `pixels`,
//! `labels`.

use std::collections::HashMap;

use candle_core::{DType, Tensor};
use qvl::train::{
    batch::{ImageContent, ImageInput, Label, UnitBatch},
    model::ModelConfig,
};

/// Tensors of a file by name.
pub(crate) type Tensors = HashMap<String, Tensor>;

/// All values of a tensor as f32, row by row.
pub(crate) fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The unit; the loss is the mean over its labels. Pictures go to the `<img>` tokens in reading order.
pub(crate) fn unit(config: &ModelConfig, tensors: &Tensors) -> UnitBatch {
    let ids = tensors["input_ids"].to_dtype(DType::U32).unwrap();
    let (rows, length) = ids.dims2().unwrap();
    let ids: Vec<u32> = ids.flatten_all().unwrap().to_vec1().unwrap();
    let lengths = match tensors.get("attention_mask") {
        Some(mask) => values(mask)
            .chunks(length)
            .map(|row| row.iter().filter(|m| 0.0 < **m).count())
            .collect(),
        None => vec![length; rows],
    };
    let places = (0..ids.len()).filter(|at| ids[*at] == config.visual.image_start_id);
    let image = |(n, at): (usize, usize)| ImageInput {
        row: at / length,
        start: at % length + 1,
        content: ImageContent::Pixels(values(&tensors["pixels"].get(n).unwrap()).into()),
    };
    UnitBatch {
        rows,
        length,
        lengths,
        labels: tensors
            .get("labels")
            .map(|labels| self::labels(labels, length))
            .unwrap_or_default(),
        images: places.enumerate().map(image).collect(),
        samples: (0..rows as u64).collect(),
        ids,
    }
}

fn labels(labels: &Tensor, length: usize) -> Vec<Label> {
    let labels: Vec<i64> = labels.flatten_all().unwrap().to_vec1().unwrap();
    let counted: Vec<usize> =
        (0..labels.len()).filter(|at| at % length != 0 && 0 <= labels[*at]).collect();
    let label = |at: &usize| Label {
        row: at / length,
        position: at % length - 1,
        target: u32::try_from(labels[*at]).unwrap(),
        weight: 1.0 / counted.len() as f32,
    };
    counted.iter().map(label).collect()
}
