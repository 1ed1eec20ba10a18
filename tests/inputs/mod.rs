//! Model inputs as the Python scripts keep them: `input_ids`, `attention_mask`, `pixels`.

use std::collections::HashMap;

use candle_core::{DType, Tensor};
use qvl::train::{
    batch::{ImageContent, ImageInput, UnitBatch},
    model::ModelConfig,
};

/// Tensors of a file by name.
pub(crate) type Tensors = HashMap<String, Tensor>;

/// All values of a tensor as f32, row by row.
pub(crate) fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The unit without labels. Pictures go to the `<img>` tokens in reading order.
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
        labels: Vec::new(),
        images: places.enumerate().map(image).collect(),
        samples: (0..rows as u64).collect(),
        ids,
    }
}
