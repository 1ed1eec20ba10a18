//! Pictures per second of the demo's model: forward and backward of one unit.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark for people")]

use std::{path::Path, sync::Arc, time::Instant};

use candle_core::{Device, Tensor};
use qvl::{
    job,
    train::{
        batch::{ImageContent, ImageInput, Label, UnitBatch},
        memory,
        model::{DropoutKey, ModelConfig, QwenVl, Trainable, init_random},
        rng::Stream,
    },
};

/// Tokens of a grounding sample, and those of its answer.
const LENGTH: usize = 110;
const LABELS: usize = 26;

fn main() {
    memory::keep_freed();
    let config = ModelConfig::read_file(Path::new("examples/digits/base.config.json")).unwrap();
    let weights = init_random(&config, 1).unwrap();
    let model = |trainable: &Trainable| {
        QwenVl::from_tensors(config.clone(), weights.clone(), &Device::Cpu, trainable).unwrap()
    };
    let full = model(&Trainable::Everything);
    let adapters = job::Lora { r: 8, ..job::Lora::default() };
    let lora = model(&Trainable::Lora { lora: &adapters, seed: 1 });
    let key = DropoutKey { seed: 1, step: 1, probability: 0.05 };
    for rows in [8, 32] {
        let mut unit = unit(rows, config.visual.image_size);
        measure("full", rows, || drop(full.forward_backward(&unit, None).unwrap()));
        measure("losses only", rows, || drop(full.losses(&unit).unwrap()));
        keep_features(&mut unit, &lora);
        measure("lora, features kept", rows, || {
            drop(lora.forward_backward(&unit, Some(key)).unwrap());
        });
    }
}

fn measure(name: &str, rows: usize, step: impl Fn()) {
    step();
    let mut seconds = Vec::new();
    let started = Instant::now();
    while started.elapsed().as_secs_f64() < 3.0 {
        let started = Instant::now();
        step();
        seconds.push(started.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    let rate = rows as f64 / median;
    println!("{name:<20} unit of {rows:>2}: {:>7.2} ms, {rate:>7.1} pictures/s", median * 1e3);
}

fn unit(rows: usize, side: usize) -> UnitBatch {
    let stream = Stream::new(7);
    let token = |i: usize| u32::try_from(stream.below(i as u64, 255)).unwrap();
    let label = |i: usize| Label {
        row: i / LABELS,
        position: LENGTH - 4 - LABELS + i % LABELS,
        target: token(i),
        weight: 1.0,
    };
    let image = |row| ImageInput {
        row,
        start: 4,
        content: ImageContent::Pixels(pixels(stream.child(row as u64), side)),
    };
    UnitBatch {
        rows,
        length: LENGTH,
        ids: (0..rows * LENGTH).map(token).collect(),
        lengths: (0..rows).map(|row| LENGTH - row % 3).collect(),
        labels: (0..rows * LABELS).map(label).collect(),
        images: (0..rows).map(image).collect(),
        samples: (0..rows as u64).collect(),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "pixels are f32")]
fn pixels(stream: Stream, side: usize) -> Arc<[f32]> {
    (0..3 * side * side).map(|i| stream.normal(i as u64) as f32).collect()
}

fn keep_features(unit: &mut UnitBatch, model: &QwenVl) {
    let side = model.config().visual.image_size;
    for image in &mut unit.images {
        if let ImageContent::Pixels(pixels) = &image.content {
            let pixels = Tensor::from_slice(pixels, (1, 3, side, side), &Device::Cpu).unwrap();
            image.content =
                ImageContent::Features(model.visual(&pixels).unwrap().squeeze(0).unwrap());
        }
    }
}
