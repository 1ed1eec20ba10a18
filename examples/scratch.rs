use candle_core::Device;
use qvl::train::{batch::*, model::*};
use std::{sync::Arc, time::Instant};
fn main() {
    let width: usize = std::env::args().nth(1).unwrap().parse().unwrap();
    let rows: usize = std::env::args().nth(2).unwrap().parse().unwrap();
    let config: ModelConfig = serde_json::from_value(serde_json::json!({"vocab_size": 480, "hidden_size": width,
        "num_hidden_layers": 2, "num_attention_heads": 4, "kv_channels": width/4, "intermediate_size": width*4,
        "visual": {"image_size": 112, "patch_size": 14, "width": width, "layers": 2, "heads": 4, "mlp_ratio": 2.0, "output_dim": width, "image_start_id": 470, "n_queries": 64}})).unwrap();
    let t = init_random(&config, 1).unwrap();
    let n: usize = t.values().map(|t| t.elem_count()).sum();
    let model = QwenVl::from_tensors(config, t, &Device::Cpu, &Trainable::Everything).unwrap();
    let length = 100;
    let pixels: Arc<[f32]> = (0..3*112*112).map(|i| (i % 17) as f32 / 17.0).collect::<Vec<_>>().into();
    let unit = UnitBatch { rows, length, ids: (0..rows*length).map(|i| (i % 250) as u32).collect(), lengths: vec![length; rows],
        labels: (0..rows).flat_map(|row| (75..99).map(move |position| Label { row, position, target: 50, weight: 1.0 })).collect(),
        images: (0..rows).map(|row| ImageInput { row, start: 4, content: ImageContent::Pixels(pixels.clone()) }).collect(), samples: (0..rows as u64).collect() };
    for _ in 0..2 { model.forward_backward(&unit, None).unwrap(); }
    let t0 = Instant::now();
    let k = 10;
    for _ in 0..k { model.forward_backward(&unit, None).unwrap(); }
    let s = t0.elapsed().as_secs_f64() / k as f64;
    println!("params {n} width {width} rows {rows}: {:.1} ms, {:.1} images/s", s*1e3, rows as f64 / s);
}
