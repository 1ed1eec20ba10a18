//! The same bits on any number of ranks, over threads and over TCP.

use std::{net::TcpListener, sync::Arc, thread, time::Duration};

use candle_core::{Device, Tensor};

use super::{
    batch::{ImageContent, ImageInput, Label, UnitBatch},
    collective::{Collective, Solo, Tcp, TcpConfig, Threads},
    model::{DropoutKey, ModelConfig, QwenVl, Trainable, init_random},
    optim::AdamW,
    order::Order,
    reduce::Tree,
    rng::Stream,
    step::{LabelInfo, StepPlan, Unit, step},
};
use crate::job::{Lora, Normalisation, Optimizer, Part, Task};

const STEPS: u64 = 5;
const UNITS: usize = 4;
const SAMPLES: usize = 24;

pub(super) fn tiny_config() -> ModelConfig {
    serde_json::from_value(serde_json::json!({
        "vocab_size": 480, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "kv_channels": 8, "intermediate_size": 64,
        "visual": {"image_size": 28, "patch_size": 7, "width": 24, "layers": 1, "heads": 2,
            "mlp_ratio": 2.0, "output_dim": 16, "image_start_id": 470, "n_queries": 4}}))
    .unwrap()
}

/// A sample that depends on its key alone; every fifth has no picture, lengths differ.
fn sample(key: u64) -> (Vec<u32>, Option<Arc<[f32]>>) {
    let stream = Stream::new(key);
    let length = 12 + stream.below(0, 6);
    let ids = (0..length as u64).map(|i| u32::try_from(stream.below(i + 1, 250)).unwrap());
    #[expect(clippy::cast_possible_truncation, reason = "pixels are f32")]
    let pixels = (0..3 * 28 * 28).map(|i| stream.normal(1000 + i) as f32).collect::<Vec<_>>();
    (ids.collect(), (!key.is_multiple_of(5)).then(|| pixels.into()))
}

fn unit(keys: &[usize]) -> Unit {
    let samples: Vec<_> = keys.iter().map(|key| sample(*key as u64)).collect();
    let length = samples.iter().map(|(ids, _picture)| ids.len()).max().unwrap();
    let mut unit = UnitBatch { rows: keys.len(), length, ..UnitBatch::default() };
    let mut info = Vec::new();
    for (row, (ids, picture)) in samples.iter().enumerate() {
        unit.ids.extend(ids);
        unit.ids.extend(std::iter::repeat_n(256, length - ids.len()));
        unit.lengths.push(ids.len());
        unit.samples.push(keys[row] as u64);
        let (task, weight) =
            if picture.is_some() { (Task::Grounding, 1.0) } else { (Task::Text, 0.5) };
        for position in 8..ids.len() - 1 {
            unit.labels.push(Label { row, position, target: ids[position + 1], weight });
            info.push(LabelInfo { task, content: position % 2 == 0, weight });
        }
        if let Some(pixels) = picture {
            let content = ImageContent::Pixels(Arc::clone(pixels));
            unit.images.push(ImageInput { row, start: 2, content });
        }
    }
    Unit { unit, info }
}

/// What a rank ends with: the bits of all losses, norms and weights.
#[derive(Clone, Debug, PartialEq)]
struct End {
    losses: Vec<u64>,
    norms: Vec<u64>,
    weights: Vec<u32>,
}

#[derive(Clone, Copy)]
enum Method {
    Lora,
    Full,
}

fn train(group: &mut dyn Collective, method: Method, normalisation: Normalisation) -> End {
    let config = tiny_config();
    let lora = Lora { r: 4, alpha: 8.0, dropout: 0.1, ..Lora::default() };
    let parts = [Part::Lm, Part::Resampler, Part::Vit];
    let trainable = match method {
        Method::Lora => Trainable::Lora { lora: &lora, seed: 3 },
        Method::Full => Trainable::Full(&parts),
    };
    let weights = init_random(&config, 1).unwrap();
    let mut model = QwenVl::from_tensors(config, weights, &Device::Cpu, &trainable).unwrap();
    let values: Vec<Tensor> = model.parameters().iter().map(|p| p.value.clone()).collect();
    let mut optimizer = AdamW::new(&Optimizer::default(), &values).unwrap();
    let mut order = Order::new(5, SAMPLES);
    let mut end = End { losses: Vec::new(), norms: Vec::new(), weights: Vec::new() };
    for done in 0..STEPS {
        let batch = order.batch(done * 8, 8);
        let units: Vec<&[usize]> = batch.chunks(8 / UNITS).collect();
        let share = Tree::new(UNITS).share(group.rank(), group.world());
        let units: Vec<Unit> = units[share].iter().map(|keys| unit(keys)).collect();
        let plan = StepPlan {
            done,
            learning_rate: 1e-2,
            max_grad_norm: 1.0,
            normalisation,
            units: UNITS,
            dropout: DropoutKey { seed: 9, step: done, probability: 0.1 },
            stop: false,
        };
        let result = step(&mut model, &mut optimizer, group, &units, &plan).unwrap();
        assert_eq!(result.sums.samples, 8.0);
        end.losses.push(result.loss.to_bits());
        end.norms.push(result.grad_norm.to_bits());
    }
    for parameter in model.parameters() {
        let values = parameter.value.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        end.weights.extend(values.into_iter().map(f32::to_bits));
    }
    end
}

fn all_equal(
    groups: Vec<Box<dyn Collective>>,
    method: Method,
    normalisation: Normalisation,
    expected: &End,
) {
    let world = groups.len();
    let ends: Vec<End> = thread::scope(|scope| {
        let spawn = |mut group: Box<dyn Collective>| {
            scope.spawn(move || train(group.as_mut(), method, normalisation))
        };
        let handles: Vec<_> = groups.into_iter().map(spawn).collect();
        handles.into_iter().map(|handle| handle.join().unwrap()).collect()
    });
    for (rank, end) in ends.iter().enumerate() {
        assert!(end == expected, "rank {rank} of {world} has other bits");
    }
}

fn threads(world: usize) -> Vec<Box<dyn Collective>> {
    let groups = Threads::group(world, Duration::from_secs(60)).into_iter();
    groups.map(|group| Box::new(group) as Box<dyn Collective>).collect()
}

fn tcp(world: usize) -> Vec<Box<dyn Collective>> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let master = listener.local_addr().unwrap().to_string();
    let config = |rank| TcpConfig {
        rank,
        world,
        master: master.clone(),
        token: "t".to_owned(),
        attempt: 1,
        job: "j".to_owned(),
        join_timeout: Duration::from_secs(30),
        peer_timeout: Duration::from_secs(60),
        stop: Arc::default(),
    };
    thread::scope(|scope| {
        let host = config(0);
        let mut handles = vec![scope.spawn(move || Tcp::host(&host, listener).unwrap())];
        for rank in 1..world {
            let peer = config(rank);
            handles.push(scope.spawn(move || Tcp::join(&peer).unwrap()));
        }
        let group = |handle: thread::ScopedJoinHandle<Tcp>| {
            Box::new(handle.join().unwrap()) as Box<dyn Collective>
        };
        handles.into_iter().map(group).collect()
    })
}

#[test]
fn one_two_three_and_four_ranks_give_the_same_bits() {
    for (method, normalisation) in [
        (Method::Lora, Normalisation::Tokens),
        (Method::Full, Normalisation::Tokens),
        (Method::Lora, Normalisation::Reference),
    ] {
        let expected = train(&mut Solo, method, normalisation);
        // The bits are those of a training: every step has a gradient, and the loss moves.
        assert!(expected.norms.iter().all(|bits| 0.0 < f64::from_bits(*bits)));
        assert!(expected.losses.windows(2).all(|pair| pair[0] != pair[1]));
        for world in [2, 3, 4] {
            all_equal(threads(world), method, normalisation, &expected);
            all_equal(tcp(world), method, normalisation, &expected);
        }
    }
}
