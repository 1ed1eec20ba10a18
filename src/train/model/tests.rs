//! The whole model against itself: gradients against differences, recomputing against keeping,
//! batches against single samples, one thread against several, decoding against reading.

use std::{process::Command, sync::Arc};

use candle_core::{DType, Device, Tensor};
use sha2::{Digest, Sha256};

use super::*;
use crate::{
    job::{Lora, LoraTarget},
    train::{
        batch::{ImageContent, ImageInput, Label, UnitBatch},
        rng::Stream,
    },
};

/// Grids that differ (positions are stretched), two resampler heads, `kv_proj`; the training
/// length is shorter than some inputs.
fn config() -> ModelConfig {
    let visual = serde_json::json!({"image_size": 42, "patch_size": 14, "width": 12, "layers": 2,
        "heads": 3, "mlp_ratio": 2.0, "output_dim": 16, "image_start_id": 44, "n_queries": 4});
    serde_json::from_value(serde_json::json!({"vocab_size": 48, "hidden_size": 16,
        "num_hidden_layers": 2, "num_attention_heads": 2, "kv_channels": 8,
        "intermediate_size": 40, "seq_length": 11, "visual": visual}))
    .unwrap()
}

/// Fresh weights, made large and uneven enough that no norm, bias or attention is trivial.
fn weights(dtype: DType) -> BTreeMap<String, Tensor> {
    let fresh = init_random(&config(), 3).unwrap();
    let uneven = |(name, tensor): (String, Tensor)| {
        let stream = Stream::new(4).named(&name);
        #[expect(clippy::cast_possible_truncation, reason = "test data is f32")]
        let noise: Vec<f32> =
            (0..tensor.elem_count() as u64).map(|i| (0.15 * stream.normal(i)) as f32).collect();
        let noise = Tensor::from_vec(noise, tensor.shape(), &Device::Cpu).unwrap();
        (name, (tensor + noise).unwrap().to_dtype(dtype).unwrap())
    };
    fresh.into_iter().map(uneven).collect()
}

fn model(dtype: DType, trainable: &Trainable) -> QwenVl {
    QwenVl::from_tensors(config(), weights(dtype), &Device::Cpu, trainable).unwrap()
}

/// `lengths[row]` tokens; two pictures in row 0, one in row 1, none in the others.
fn unit(lengths: &[usize]) -> UnitBatch {
    let (length, stream) = (*lengths.iter().max().unwrap(), Stream::new(5));
    let mut unit = UnitBatch { rows: lengths.len(), length, ..UnitBatch::default() };
    unit.lengths = lengths.to_vec();
    for (row, valid) in lengths.iter().enumerate() {
        let stream = stream.child(row as u64);
        let token = |i: usize| u32::try_from(stream.below(i as u64, 40)).unwrap();
        unit.ids.extend((0..length).map(|i| if i < *valid { token(i) } else { 47 }));
        unit.samples.push(row as u64);
        for start in [1, 6].into_iter().take(2_usize.saturating_sub(row)) {
            unit.images.push(ImageInput {
                row,
                start,
                content: picture(stream.child(start as u64)),
            });
        }
        for position in [*valid - 1, *valid / 2] {
            let weight = 0.3 + 0.1 * row as f32;
            unit.labels.push(Label { row, position, target: token(position + 1), weight });
        }
    }
    unit
}

#[expect(clippy::cast_possible_truncation, reason = "test data is f32")]
fn picture(stream: Stream) -> ImageContent {
    let pixels: Vec<f32> = (0..3 * 42 * 42).map(|i| stream.normal(i) as f32).collect();
    ImageContent::Pixels(Arc::from(pixels))
}

/// The row `row` of `unit`, by itself and without padding.
fn single(unit: &UnitBatch, row: usize) -> UnitBatch {
    let valid = unit.lengths[row];
    UnitBatch {
        rows: 1,
        length: valid,
        ids: unit.ids[row * unit.length..row * unit.length + valid].to_vec(),
        lengths: vec![valid],
        labels: unit
            .labels
            .iter()
            .filter(|label| label.row == row)
            .map(|label| Label { row: 0, ..*label })
            .collect(),
        images: unit
            .images
            .iter()
            .filter(|image| image.row == row)
            .map(|image| ImageInput { row: 0, ..image.clone() })
            .collect(),
        samples: vec![unit.samples[row]],
    }
}

/// Σ weight · cross-entropy in f64.
fn loss(model: &QwenVl, unit: &UnitBatch) -> f64 {
    let logits = model.logits(unit, Mode::Train).unwrap();
    let log_probs = candle_nn::ops::log_softmax(&logits, candle_core::D::Minus1).unwrap();
    let log_probs = log_probs.to_vec3::<f64>().unwrap();
    let nll = |l: &Label| -f64::from(l.weight) * log_probs[l.row][l.position][l.target as usize];
    unit.labels.iter().map(nll).sum()
}

fn flat(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// `value + h · direction` for every parameter in turn: the slope of the loss along it must be
/// the product of gradient and direction.
fn assert_slopes(mut model: QwenVl, unit: &UnitBatch, tolerance: f64) {
    let (_losses, grads) = model.forward_backward(unit, None).unwrap();
    for (i, grad) in grads.iter().enumerate() {
        let Parameter { name, value, .. } = model.parameters()[i].clone();
        let stream = Stream::new(6).named(&name);
        #[expect(clippy::cast_possible_truncation, reason = "test data is f32")]
        let steps: Vec<f32> =
            (0..value.elem_count() as u64).map(|j| (1e-3 * stream.normal(j)) as f32).collect();
        let step = Tensor::from_vec(steps, value.shape(), &Device::Cpu).unwrap();
        let (up, down) = ((&value + &step).unwrap(), (&value - &step).unwrap());
        model.set_parameter(i, up.clone()).unwrap();
        let above = loss(&model, unit);
        model.set_parameter(i, down.clone()).unwrap();
        let below = loss(&model, unit);
        model.set_parameter(i, value).unwrap();
        // What was really added, after rounding to f32.
        let way: Vec<f64> = flat(&up).iter().zip(flat(&down)).map(|(up, down)| up - down).collect();
        let grad = flat(grad);
        let slope: f64 = grad.iter().zip(&way).map(|(g, d)| g * d).sum();
        let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
        let size = norm(&grad) * norm(&way);
        assert!(0.0 < size, "{name} has no gradient");
        let error = (above - below - slope).abs() / size;
        assert!(error < tolerance, "{name}: {slope:e} is off by {error:e}");
    }
}

#[test]
fn gradients_are_the_slopes_of_the_loss() {
    assert_slopes(model(DType::F64, &Trainable::Everything), &unit(&[13, 9, 4]), 2e-5);
}

#[test]
fn gradients_of_adapters_are_the_slopes_of_the_loss() {
    let lora = Lora {
        r: 3,
        alpha: 5.0,
        dropout: 0.0,
        targets: vec![
            LoraTarget::CAttn,
            LoraTarget::AttnCProj,
            LoraTarget::W1,
            LoraTarget::W2,
            LoraTarget::MlpCProj,
        ],
    };
    let mut model = model(DType::F64, &Trainable::Lora { lora: &lora, seed: 7 });
    for i in 0..model.parameters().len() {
        // B begins as zeros, where the gradient of A would be zero.
        let value = (&model.parameters()[i].value + 0.05).unwrap();
        model.set_parameter(i, value).unwrap();
    }
    assert_eq!(model.parameters().len(), 2 * 2 * 5);
    assert_slopes(model, &unit(&[13, 9, 4]), 2e-5);
}

fn bits(tensors: &[Tensor]) -> Vec<u64> {
    tensors.iter().flat_map(flat).map(f64::to_bits).collect()
}

#[test]
fn recomputing_blocks_gives_the_same_bits_with_dropout_too() {
    let lora = Lora { r: 2, dropout: 0.3, ..Lora::default() };
    let key = DropoutKey { seed: 1, step: 5, probability: 0.3 };
    for trainable in [Trainable::Everything, Trainable::Lora { lora: &lora, seed: 7 }] {
        let kept = model(DType::F32, &trainable);
        let again = kept.clone().with_recompute(true);
        let unit = unit(&[13, 9]);
        let (losses, grads) = kept.forward_backward(&unit, Some(key)).unwrap();
        let (other_losses, other_grads) = again.forward_backward(&unit, Some(key)).unwrap();
        assert_eq!(losses, other_losses);
        assert_eq!(bits(&grads), bits(&other_grads));
    }
}

#[test]
fn dropout_depends_on_sample_and_step_and_not_on_the_batch() {
    let lora = Lora { r: 2, dropout: 0.3, ..Lora::default() };
    let mut model = model(DType::F32, &Trainable::Lora { lora: &lora, seed: 7 });
    for i in 0..model.parameters().len() {
        let value = (&model.parameters()[i].value + 0.3).unwrap();
        model.set_parameter(i, value).unwrap();
    }
    let key = |step| Some(DropoutKey { seed: 1, step, probability: 0.3 });
    let unit = unit(&[13, 9]);
    let losses = |unit: &UnitBatch, key| model.forward_backward(unit, key).unwrap().0;
    let (first, other) = (losses(&unit, key(1)), losses(&unit, key(2)));
    assert!(first.iter().zip(&other).all(|(a, b)| (a - b).abs() > 1e-4), "{first:?} {other:?}");
    assert!(first.iter().zip(losses(&unit, None)).all(|(a, b)| (a - b).abs() > 1e-4));
    let alone = losses(&single(&unit, 1), key(1));
    assert!(
        first[2..].iter().zip(&alone).all(|(a, b)| (a - b).abs() < 1e-5),
        "{first:?} {alone:?}"
    );
}

#[test]
fn a_sample_does_not_see_its_neighbours_or_its_padding() {
    let model = model(DType::F32, &Trainable::Everything);
    let unit = unit(&[13, 9, 1]);
    let (losses, grads) = model.forward_backward(&unit, None).unwrap();
    assert!(losses.iter().all(|loss| loss.is_finite()));
    let mut sums: Vec<Tensor> = grads.iter().map(|grad| grad.zeros_like().unwrap()).collect();
    for row in 0..3 {
        let (alone, grads) = model.forward_backward(&single(&unit, row), None).unwrap();
        for (a, b) in alone.iter().zip(&losses[2 * row..]) {
            assert!((a - b).abs() < 1e-5, "row {row}: {a} {b}");
        }
        sums.iter_mut().zip(grads).for_each(|(sum, grad)| *sum = (&*sum + grad).unwrap());
    }
    for ((sum, grad), parameter) in sums.iter().zip(&grads).zip(model.parameters()) {
        let size = flat(grad).iter().fold(0.0_f64, |max, x| max.max(x.abs()));
        let worst =
            flat(sum).iter().zip(flat(grad)).fold(0.0_f64, |max, (a, b)| max.max((a - b).abs()));
        assert!(worst <= 1e-5 * size, "{}: {worst:e} of {size:e}", parameter.name);
    }
    // All padding is finite, in evaluation mode too.
    for mode in [Mode::Train, Mode::Eval] {
        assert!(flat(&model.logits(&unit, mode).unwrap()).iter().all(|x| x.is_finite()));
    }
}

#[test]
fn features_may_be_given_instead_of_pixels_while_the_tower_is_frozen() {
    let frozen = model(DType::F32, &Trainable::Nothing);
    let mut unit = unit(&[13, 9]);
    let losses = frozen.losses(&unit).unwrap();
    for image in &mut unit.images {
        let ImageContent::Pixels(pixels) = &image.content else { panic!("pixels") };
        let pixels = Tensor::from_slice(pixels, (1, 3, 42, 42), &Device::Cpu).unwrap();
        let features = frozen.visual(&pixels).unwrap().squeeze(0).unwrap();
        image.content = ImageContent::Features(features);
    }
    assert_eq!(frozen.losses(&unit).unwrap(), losses);
    let trained = model(DType::F32, &Trainable::Everything);
    let refused = trained.forward_backward(&unit, None);
    assert!(matches!(refused, Err(ModelError::FeaturesWhileTraining)));
    unit.images[0].start = 12;
    assert!(matches!(frozen.losses(&unit), Err(ModelError::ImageOutside { row: 0, start: 12 })));
}

/// Reading a text at once and decoding it token by token see the same keys and values.
#[test]
fn decoding_is_reading_again() {
    let model = model(DType::F32, &Trainable::Nothing);
    let unit = unit(&[10, 8, 3]);
    let prompts: Vec<Prompt> = (0..3)
        .map(|row| {
            let one = single(&unit, row);
            Prompt { ids: one.ids, images: one.images }
        })
        .collect();
    let answers = model.generate(&prompts, 5, &[]).unwrap();
    for (row, answer) in answers.iter().enumerate() {
        let mut one = single(&unit, row);
        for token in answer {
            // NTK would stretch the angles of a longer text: compare below the limit only.
            if model.config().seq_length <= one.length {
                break;
            }
            let logits = model.logits(&one, Mode::Eval).unwrap();
            let last = logits.to_vec3::<f32>().unwrap()[0][one.length - 1].clone();
            let best = (0..last.len()).max_by(|a, b| last[*a].total_cmp(&last[*b])).unwrap();
            assert_eq!(best, *token as usize, "row {row}, after {} tokens", one.length);
            one.ids.push(*token);
            one.length += 1;
            one.lengths[0] += 1;
        }
        assert_eq!(answer.len(), 5);
    }
    // A stop token ends one answer and not the others.
    let stop = answers[0][0];
    let stopped = model.generate(&prompts, 5, &[stop]).unwrap();
    assert!(stopped[0].is_empty());
    for (answer, whole) in stopped.iter().zip(&answers) {
        assert_eq!(answer[..], whole[..answer.len()]);
    }
}

/// Name of the variable by which the test below asks a child process for its bits.
const CHILD: &str = "QVL_TEST_BITS_FILE";

/// candle decides on its threads once in a process, so each number of threads needs its own.
#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    if let Some(path) = std::env::var_os(CHILD) {
        let model = model_of_the_demo();
        let (losses, grads) = model.forward_backward(&unit_of_the_demo(), None).unwrap();
        let mut hash = Sha256::new();
        losses.iter().for_each(|loss| hash.update(loss.to_le_bytes()));
        bits(&grads).iter().for_each(|bits| hash.update(bits.to_le_bytes()));
        let digest: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        std::fs::write(path, digest).unwrap();
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let digest = |threads: &str| {
        let path = folder.path().join(threads);
        let name = "train::model::tests::the_number_of_threads_does_not_change_a_bit";
        let output = Command::new(std::env::current_exe().unwrap())
            .args([name, "--exact"])
            .env(CHILD, &path)
            .env("RAYON_NUM_THREADS", threads)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        std::fs::read_to_string(path).unwrap()
    };
    let one = digest("1");
    assert_eq!(one.len(), 64);
    for threads in ["2", "3", "8"] {
        assert_eq!(digest(threads), one, "{threads} threads");
    }
}

/// Large enough that every operation is cut into blocks.
fn model_of_the_demo() -> QwenVl {
    let text = include_str!("../../../examples/digits/base.config.json");
    let config: ModelConfig = serde_json::from_str(text).unwrap();
    let weights = init_random(&config, 1).unwrap();
    QwenVl::from_tensors(config, weights, &Device::Cpu, &Trainable::Everything).unwrap()
}

#[expect(clippy::cast_possible_truncation, reason = "test data is f32")]
fn unit_of_the_demo() -> UnitBatch {
    let (rows, length, stream) = (6, 100, Stream::new(9));
    let token = |i: usize| u32::try_from(stream.below(i as u64, 256)).unwrap();
    let picture = |row: usize| -> Arc<[f32]> {
        let stream = stream.child(row as u64);
        (0..3 * 112 * 112).map(|i| stream.normal(i) as f32).collect()
    };
    UnitBatch {
        rows,
        length,
        ids: (0..rows * length).map(token).collect(),
        lengths: (0..rows).map(|row| length - row).collect(),
        labels: (0..rows * 20)
            .map(|i| Label {
                row: i % rows,
                position: 70 + i / rows,
                target: token(i),
                weight: 1.0,
            })
            .collect(),
        images: (0..rows)
            .map(|row| ImageInput { row, start: 3, content: ImageContent::Pixels(picture(row)) })
            .collect(),
        samples: (0..rows as u64).collect(),
    }
}
