//! `qvl-train selftest`: the numerics of this build, on this machine, against golden files.

mod golden;
mod tokenizer;

use std::{io::Write, path::PathBuf};

use clap::Args;

pub use golden::{Golden, GoldenError};
pub use tokenizer::{TokenizerGoldenError, replay as replay_tokenizer};

/// The golden inside the binary, made by `tests/python/make_golden.py`: three samples, pictures as
/// pixels, gradients and eight steps of LoRA.
static EMBEDDED: &[u8] = include_bytes!("../../../tests/goldens/batch.safetensors");

/// Options of `qvl-train selftest`.
#[derive(Debug, Args)]
pub struct SelftestArgs {
    /// Golden file; without it, the one inside the binary is replayed.
    #[arg(long, value_name = "FILE")]
    pub golden: Option<PathBuf>,
    /// Pictures of the golden in order, instead of those named in it.
    #[arg(long, value_name = "FILE", value_delimiter = ',', requires = "golden")]
    pub images: Vec<PathBuf>,
    /// Golden file of the tokenizer (JSON).
    #[arg(long, value_name = "FILE", requires = "vocab")]
    pub tokenizer: Option<PathBuf>,
    /// Vocabulary (`qwen.tiktoken`) for `--tokenizer`.
    #[arg(long, value_name = "FILE")]
    pub vocab: Option<PathBuf>,
}

/// One layer of a comparison.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// What is compared.
    pub name: String,
    /// Largest difference; relative to the tensor's largest value for gradients.
    pub difference: f64,
    /// Largest difference allowed.
    pub tolerance: f64,
    /// Where the largest difference was found.
    pub at: String,
}

impl Layer {
    /// Whether the layer is within its tolerance; NaN is not.
    pub fn holds(&self) -> bool {
        self.difference <= self.tolerance
    }
}

/// Replays what the options ask for; true if every layer holds.
pub fn run(args: &SelftestArgs, out: &mut impl Write) -> anyhow::Result<bool> {
    let mut holds = true;
    if let Some(golden) = &args.golden {
        let golden = Golden::read(golden, &args.images)?;
        holds &= print(&golden.replay()?, out)?;
    }
    if let (Some(golden), Some(vocab)) = (&args.tokenizer, &args.vocab) {
        holds &= print(&replay_tokenizer(golden, vocab)?, out)?;
    }
    if args.golden.is_none() && args.tokenizer.is_none() {
        holds &= print(&Golden::parse(EMBEDDED, "embedded", &[])?.replay()?, out)?;
    }
    writeln!(out, "{}", if holds { "selftest passed" } else { "selftest FAILED" })?;
    Ok(holds)
}

fn print(layers: &[Layer], out: &mut impl Write) -> std::io::Result<bool> {
    writeln!(out, "{:<28} {:>12} {:>10}  largest difference at", "layer", "difference", "allowed")?;
    for layer in layers {
        let mark = if layer.holds() { "ok" } else { "FAIL" };
        let Layer { name, difference, tolerance, at } = layer;
        writeln!(out, "{name:<28} {difference:>12.3e} {tolerance:>10.0e}  {mark} {at}")?;
    }
    Ok(layers.iter().all(Layer::holds))
}
