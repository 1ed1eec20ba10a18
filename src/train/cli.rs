//! Command line of `qvl-train`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::{gputest::GputestArgs, selftest::SelftestArgs};

/// Fine-tunes Qwen-VL. Normally started by `qvl launch`, once per rank; every command also
/// works by hand.
#[derive(Debug, Parser)]
#[command(name = "qvl-train", version, about)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run one rank of a job. Rank and world come from RANK and `WORLD_SIZE`; without them the
    /// job runs on one rank.
    Run(RunArgs),
    /// Measure a model, with or without an adapter, on a data set.
    Eval(EvalArgs),
    /// Ask a model about a picture.
    Chat(ChatArgs),
    /// Write a fresh model with random weights, to train a small base from scratch.
    Init(InitArgs),
    /// Check the numerics of this build on this machine against golden files.
    Selftest(SelftestArgs),
    /// Allocate, copy and verify on every GPU and between every two; `qvl doctor --active` starts
    /// it and reads its answer.
    Gputest(GputestArgs),
}

#[derive(Debug, Args)]
pub struct RunArgs {
    /// Job file.
    #[arg(long, value_name = "FILE")]
    pub job: PathBuf,
    /// Stop after so many steps of the whole job, as if the job ended there.
    #[arg(long, value_name = "N")]
    pub stop_after: Option<u64>,
}

#[derive(Debug, Args)]
pub struct EvalArgs {
    /// Folder of the base model.
    #[arg(long, value_name = "FOLDER")]
    pub model: PathBuf,
    /// Folder of a PEFT adapter.
    #[arg(long, value_name = "FOLDER")]
    pub adapter: Option<PathBuf>,
    /// Data set in the official JSON format.
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    /// What the answers are.
    #[arg(long, value_enum, default_value_t = TaskArg::Grounding)]
    pub task: TaskArg,
    /// How the question is put to the model. The official evaluation scripts use `raw`, the
    /// training uses `chatml`; the difference costs points.
    #[arg(long, value_enum, default_value_t = PromptArg::Chatml)]
    pub prompt: PromptArg,
    /// Measure only the first so many samples.
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Longest answer in tokens.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub max_new_tokens: usize,
    /// Write the answers, one JSON object per line.
    #[arg(long, value_name = "FILE")]
    pub answers: Option<PathBuf>,
    /// Write a contact sheet of the first pictures with true and predicted boxes.
    #[arg(long, value_name = "FILE")]
    pub sheet: Option<PathBuf>,
    /// Print JSON instead of text.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ChatArgs {
    /// Folder of the base model.
    #[arg(long, value_name = "FOLDER")]
    pub model: PathBuf,
    /// Folder of a PEFT adapter.
    #[arg(long, value_name = "FOLDER")]
    pub adapter: Option<PathBuf>,
    /// Picture; may be given several times.
    #[arg(long, value_name = "FILE")]
    pub image: Vec<PathBuf>,
    /// Question. Without it, questions are read line by line from the standard input.
    #[arg(value_name = "TEXT")]
    pub question: Option<String>,
    /// Longest answer in tokens.
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub max_new_tokens: usize,
}

#[derive(Debug, Args)]
pub struct InitArgs {
    /// Configuration in the format of the official config.json.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Vocabulary; without it a byte-level one is written.
    #[arg(long, value_name = "FILE")]
    pub vocab: Option<PathBuf>,
    /// Seed of the weights.
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Folder to write; must not exist.
    #[arg(long, value_name = "FOLDER")]
    pub out: PathBuf,
}

/// `job::Task` on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TaskArg {
    Grounding,
    Caption,
    Vqa,
    Text,
}

/// How a question is put to the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PromptArg {
    /// System, user and assistant turns, as in training.
    Chatml,
    /// The bare text of the question, as in the official evaluation scripts.
    Raw,
}
