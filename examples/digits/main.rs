//! Makes the data of the demo: real handwritten digits on real photographs, with exact boxes.
//!
//! `digits --packages FOLDER --out FOLDER`; `examples/digits/fetch` fills the first folder.

mod glyph;
mod picture;
mod sets;

use std::path::PathBuf;

use clap::Parser;

/// Writes pictures and data sets in the official JSON format.
#[derive(Debug, Parser)]
struct Args {
    /// Folder with the files of the packages.
    #[arg(long, value_name = "FOLDER")]
    packages: PathBuf,
    /// Folder to write.
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Seed of everything that is drawn.
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// Pictures to train the base on; 0 leaves the base's sets out.
    #[arg(long, default_value_t = 0)]
    base: usize,
    /// Pictures to fine-tune on.
    #[arg(long, default_value_t = 4000)]
    train: usize,
    /// Pictures of each evaluation set.
    #[arg(long, default_value_t = 200)]
    eval: usize,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let source = sets::Source::read(&args.packages)?;
    let counts = sets::Counts { base: args.base, train: args.train, eval: args.eval };
    sets::write(&source, &args.out, args.seed, counts)
}
