//! Memory of one rank on CPUs: the largest resident set that its process will have.
//!
//! On a GPU the tensors are nearly all. On a CPU they share the process with the program, the
//! vocabulary, the tokenised samples and what the allocator keeps, and what is counted is what the
//! kernel counts: `VmHWM`. The tensors follow from the code of `train::model` (which ones are alive
//! at the peak), the rest from measurements, each with the command that makes it. `tests/memory.rs`
//! holds the sum against real ranks.

use super::{
    Component, Dtype, FineTuneJob, LoraTarget, MemoryPlan, Method, ModelShape, Part, component,
    trained_parameters,
};

/// Resident pages of `qvl-train` itself, its libraries, stacks, the tables of the tokenizer's
/// pattern and a heap without tensors. Measured: `VmHWM` of `qvl-train run` for a model of one
/// block of width 8 was 13.3 MiB, of which 10.4 are pages of files; without optimisation 26.8.
const PROGRAM: u64 = if cfg!(debug_assertions) { 26 << 20 } else { 13 << 20 };
/// A token of the vocabulary: its bytes three times, two hash tables and a sorted list in
/// tiktoken-rs. Counted, not measured.
const VOCABULARY_ENTRY: u64 = 330;
/// A tokenised sample beside its tokens: path of the picture, name of the set, three allocations.
const SAMPLE: u64 = 400;
/// A token of a tokenised sample: its id and whether it is a label, in vectors that grow by
/// doubling.
const TOKEN: u64 = 8;
/// One more rank of the group: two threads and a buffer of 1 MiB (`train::collective::tcp`); the
/// frames that wait to be used are a part of the gradients.
const PEER: u64 = 1 << 20;
/// Share of the tensors that is lost between blocks of the heap, in percent. Measured: what
/// `VmHWM` has more than the formulas, over the runs of `tests/memory.rs`.
const HEAP_PERCENT: u64 = 6;
/// Bytes of pictures' features that a rank keeps (`train::features`).
const FEATURES_LIMIT: u64 = 4 << 30;
/// Samples that an evaluation computes together (`train::eval`).
const TOGETHER: u64 = 16;
/// Numbers of logits that exist at a time (`train::model`).
const LOGITS_AT_ONCE: u64 = 16 << 20;

/// What a rank reads, as far as its memory depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reads {
    /// Tokens of the longest training sample, and of all.
    pub longest: u64,
    pub tokens: u64,
    /// Training samples, their pictures and their labelled tokens.
    pub samples: u64,
    pub pictures: u64,
    pub labels: u64,
    /// Samples of the evaluation sets, as far as they are measured.
    pub measured: u64,
    /// Tokens of the vocabulary, special ones left out.
    pub vocabulary: u64,
    /// Optimizer steps of the whole job.
    pub steps: u64,
}

/// Everything that decides the plan.
struct Rank<'a> {
    job: &'a FineTuneJob,
    shape: &'a ModelShape,
    reads: &'a Reads,
    /// Bytes of a number of the base.
    width: u64,
    ranks: u64,
    trained: u64,
}

/// The largest resident set of one rank of `job`, by component.
pub fn plan(job: &FineTuneJob, shape: &ModelShape, reads: &Reads, dtype: Dtype) -> MemoryPlan {
    let width = if dtype == Dtype::F32 { 4 } else { 2 };
    let ranks = u64::from(job.spec.world.gpus.max(1));
    let rank = Rank { job, shape, reads, width, ranks, trained: trained_parameters(job, shape) };
    let mut tensors = rank.always();
    // The three do not meet: what one has freed the next one uses.
    let phases = [rank.unit(), rank.evaluation(), rank.update()];
    tensors.extend(phases.into_iter().max_by_key(|parts| sum(parts)).unwrap_or_default());
    tensors.retain(|part| 0 < part.bytes);
    let heap = sum(&tensors) * HEAP_PERCENT / 100;
    let mut components = rank.process();
    components.extend(tensors);
    let from = format!("{HEAP_PERCENT} % of the tensors, measured");
    components.push(component("gaps in the heap", heap, from));
    MemoryPlan { components }
}

fn sum(parts: &[Component]) -> u64 {
    parts.iter().map(|part| part.bytes).sum()
}

impl Rank<'_> {
    /// What is there before any tensor.
    fn process(&self) -> Vec<Component> {
        let Reads { samples, tokens, measured, vocabulary, .. } = *self.reads;
        // A measured sample is kept as its prompt and as a whole.
        let mean = tokens / samples.max(1);
        let data = samples * SAMPLE + tokens * TOKEN + 2 * measured * (SAMPLE + mean * TOKEN);
        let mut parts = vec![
            component("program", PROGRAM, "pages of the program and its libraries".to_owned()),
            component(
                "vocabulary",
                vocabulary * VOCABULARY_ENTRY,
                format!("{vocabulary} tokens x {VOCABULARY_ENTRY} bytes"),
            ),
            component(
                "samples, tokenised",
                data,
                format!("{samples} to train and {measured} to measure, {tokens} tokens"),
            ),
        ];
        if 1 < self.ranks {
            let peers = self.ranks - 1;
            let from = format!("{peers} x (two threads, a buffer of 1 MiB)");
            parts.push(component("other ranks", peers * PEER, from));
        }
        parts
    }

    /// Tensors that live as long as the rank.
    fn always(&self) -> Vec<Component> {
        let (all, width, trained) = (self.shape.parameters(), self.width, self.trained);
        // In f32 a trained weight of the base is its own master.
        let own = matches!(self.job.spec.method, Method::Lora(_)) || width == 2;
        vec![
            component("base weights", all * width, format!("{all} parameters x {width} bytes")),
            component(
                "trained weights (f32)",
                if own { trained * 4 } else { 0 },
                format!("{trained} parameters x 4 bytes"),
            ),
            component(
                "AdamW moments (f32)",
                trained * 8,
                format!("{trained} parameters x 8 bytes"),
            ),
            self.features(),
        ]
    }

    /// Features of the pictures that this rank meets; none while the vision tower is trained.
    fn features(&self) -> Component {
        let name = "features of pictures";
        if self.trains_vision() {
            return component(name, 0, String::new());
        }
        let Reads { samples, pictures, measured, steps, .. } = *self.reads;
        let seen = steps.saturating_mul(u64::from(self.job.spec.batch.global));
        // In each epoch a sample goes to any of the ranks; in a part of one, to none perhaps.
        let samples = samples.max(1);
        let (epochs, part) = (seen / samples, seen % samples);
        let passed_by = |missed: u64| (missed != 0).then(|| missed * (self.ranks - 1) / self.ranks);
        let epochs = usize::try_from(epochs).unwrap_or(usize::MAX);
        let mut after = std::iter::successors(Some(pictures), |missed| passed_by(*missed));
        let missed = after.nth(epochs).unwrap_or(0);
        let places = samples.saturating_mul(self.ranks);
        let missed = u128::from(missed) * u128::from(places - part) / u128::from(places);
        let met = pictures - u64::try_from(missed).expect("a part of the pictures");
        let met = met + measured.div_ceil(self.ranks);
        let each = self.shape.queries * self.shape.hidden * self.width;
        let from = format!("{met} of them x {each} bytes");
        component(name, (met * each).min(FEATURES_LIMIT), from)
    }

    /// The backward pass of the last unit: its gradient, sums of earlier ones, and all that the
    /// forward pass has kept.
    fn unit(&self) -> Vec<Component> {
        let (rows, length) = (u64::from(self.job.spec.batch.unit), self.reads.longest);
        let (tokens, d, m) = (rows * length, self.shape.hidden, self.shape.mlp);
        let units = u64::from(self.job.spec.batch.global).div_ceil(rows.max(1));
        let here = units.div_ceil(self.ranks);
        // Sums of 2^k units wait until as many have come.
        let sums = (0..here).map(|unit| u64::from(unit.count_ones())).max().unwrap_or(0);
        let kept = self.shape.layers * self.block(rows, length) + tokens * d;
        let scores = rows * self.shape.heads * length * length;
        // The three gradients of the MLP, then those of the attention or of its probabilities.
        let back = 3 * tokens * m + (13 * tokens * d).max(8 * tokens * d + scores);
        let labels = (self.reads.labels * rows).div_ceil(self.reads.samples.max(1));
        let at_once = labels * self.shape.vocabulary;
        let head = 2 * at_once.min(LOGITS_AT_ONCE) + (4 * labels + tokens) * d;
        let mut parts = vec![
            component(
                "gradients (f32)",
                self.trained * 4 * (sums + 1),
                format!("{} parameters x 4 bytes x (a unit and {sums} sums)", self.trained),
            ),
            component(
                "activations, language model",
                kept * self.width,
                format!("{} blocks, {tokens} tokens", self.shape.layers),
            ),
            component(
                "temporaries of the backward pass",
                back.max(head) * self.width,
                if back < head {
                    format!("logits of {labels} labels")
                } else {
                    "of one block".to_owned()
                },
            ),
        ];
        if self.trains_vision() {
            parts.push(self.pictures(rows));
        }
        parts
    }

    /// What one block keeps for its backward pass, in numbers: input, both norms, queries, keys,
    /// values, output and probabilities of the attention, middle, both halves of the MLP and their
    /// product; of each adapter its narrow side, and with dropout its input and the mask.
    fn block(&self, rows: u64, length: u64) -> u64 {
        let (tokens, d, m) = (rows * length, self.shape.hidden, self.shape.mlp);
        let plain = tokens * (8 * d + 3 * m) + rows * self.shape.heads * length * length;
        let Method::Lora(lora) = &self.job.spec.method else { return plain };
        let wide = |target: &LoraTarget| if *target == LoraTarget::MlpCProj { m } else { d };
        let masked: u64 = lora.targets.iter().map(wide).sum();
        let dropout = if 0.0 < lora.dropout { 2 * masked } else { 0 };
        plain + tokens * (lora.targets.len() as u64 * u64::from(lora.r) + dropout)
    }

    /// The trained vision tower and resampler: all pictures of a unit at once.
    fn pictures(&self, rows: u64) -> Component {
        let shape = self.shape;
        let (patches, w, d) = (shape.patches, shape.visual_width, shape.hidden);
        let here = u64::from(self.job.spec.batch.global).div_ceil(self.ranks);
        let pictures = (rows * self.reads.pictures).div_ceil(self.reads.samples.max(1));
        let block =
            patches * (8 * w + 2 * shape.visual_mlp) + shape.visual_heads * patches * patches;
        let resampler = patches * 6 * d + shape.queries * 6 * d;
        let back = patches * (11 * w + 2 * shape.visual_mlp);
        let each = shape.visual_layers * block + patches * (2 * w + 2 * shape.patch_values);
        let pixels = here * patches * shape.patch_values * 4;
        component(
            "activations, vision tower",
            pictures * (each + resampler + back) * self.width + pixels,
            format!("{pictures} pictures, all blocks, trained"),
        )
    }

    /// Sixteen answers, with the keys and values of all positions.
    fn evaluation(&self) -> Vec<Component> {
        if self.reads.measured == 0 {
            return Vec::new();
        }
        let rows = TOGETHER.min(self.reads.measured);
        let (tokens, d) = (rows * self.reads.longest, self.shape.hidden);
        let scores = rows * self.shape.heads * self.reads.longest * self.reads.longest;
        let block = tokens * (11 * d + 3 * self.shape.mlp) + scores;
        let caches = self.shape.layers * 2 * tokens * d;
        let from = format!("{rows} samples: keys and values, one block at a time");
        vec![component("evaluation", (block + caches) * self.width, from)]
    }

    /// The sum of all ranks, and new weights beside the old ones; with other ranks, the same
    /// numbers in a row before and after they travel.
    fn update(&self) -> Vec<Component> {
        let copies = if 1 < self.ranks { 3 } else { 2 };
        let from = format!("{} parameters x 4 bytes x {copies}", self.trained);
        vec![component("gradients and new weights (f32)", self.trained * 4 * copies, from)]
    }

    fn trains_vision(&self) -> bool {
        let Method::Full(full) = &self.job.spec.method else { return false };
        full.train.contains(&Part::Vit) || full.train.contains(&Part::Resampler)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::memory::QWEN_VL_CHAT;

    fn planned(change: &str, reads: &Reads) -> MemoryPlan {
        let batch = if change.contains("batch") { "" } else { "  batch: {global: 32, unit: 4}" };
        let text = format!(
            "apiVersion: qvl.dev/v1alpha1
kind: FineTuneJob
metadata: {{name: a}}
spec:
  model: {{path: m}}
  data: {{train: [{{name: t, path: t.json, task: grounding}}]}}
  stages: [{{name: s, steps: 10}}]
  output: out
{batch}
{change}
"
        );
        let job = crate::job::parse(&text, "j").unwrap();
        plan(&job, &QWEN_VL_CHAT, reads, Dtype::F32)
    }

    fn bytes(plan: &MemoryPlan, name: &str) -> u64 {
        plan.components.iter().find(|part| part.name == name).map_or(0, |part| part.bytes)
    }

    const READS: Reads = Reads {
        longest: 384,
        tokens: 3_000_000,
        samples: 10_000,
        pictures: 10_000,
        labels: 200_000,
        measured: 100,
        vocabulary: 151_643,
        steps: 100,
    };

    #[test]
    fn weights_dominate_a_large_model_and_features_grow_with_the_steps() {
        let plan = planned("", &READS);
        assert_eq!(bytes(&plan, "base weights"), 4 * QWEN_VL_CHAT.parameters());
        assert!(plan.total() < 2 * bytes(&plan, "base weights"));
        // 10 steps of 32 samples, and the 100 that are measured: 256 x 4096 numbers each.
        let short = planned("", &Reads { steps: 10, ..READS });
        assert_eq!(bytes(&short, "features of pictures"), 420 * 256 * 4096 * 4);
        let long = planned("", &Reads { steps: 100_000, ..READS });
        assert_eq!(bytes(&long, "features of pictures"), FEATURES_LIMIT);
    }

    #[test]
    fn more_ranks_share_units_and_meet_fewer_pictures() {
        let one = planned("", &READS);
        let four = planned("  world: {gpus: 4}", &READS);
        // Eight units: seven of them leave sums of 4, 2 and 1; two units leave one.
        let trained = 4 * QWEN_VL_CHAT.lora_parameters(64, &crate::job::Lora::default().targets);
        assert_eq!(bytes(&one, "gradients (f32)"), 4 * trained);
        assert_eq!(bytes(&four, "gradients (f32)"), 2 * trained);
        assert_eq!(bytes(&four, "other ranks"), 3 * PEER);
        assert_eq!(bytes(&four, "features of pictures"), 825 * 256 * 4096 * 4);
    }

    #[test]
    fn the_largest_phase_counts() {
        let small = planned("  batch: {global: 32, unit: 1}", &READS);
        let large = planned("  batch: {global: 32, unit: 16}", &READS);
        assert_ne!(bytes(&small, "evaluation"), 0);
        assert_eq!(bytes(&small, "activations, language model"), 0);
        assert_ne!(bytes(&large, "activations, language model"), 0);
        assert_eq!(bytes(&large, "evaluation"), 0);
    }
}
