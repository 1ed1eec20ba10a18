//! `qvl data lint`.

use std::{io::Write, path::PathBuf};

use clap::{Args, Subcommand, ValueEnum};

use super::CliError;
use crate::{
    data::lint::{self, Options},
    wire::ExitStatus,
};

/// Work with data sets.
#[derive(Debug, Args)]
pub struct DataArgs {
    #[command(subcommand)]
    command: DataCommand,
}

#[derive(Debug, Subcommand)]
enum DataCommand {
    /// Check data sets in the official JSON format: boxes, lengths, pictures, roles, prompts,
    /// duplicates, and overlap of training and evaluation.
    Lint(LintArgs),
}

/// How a report is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

#[derive(Debug, Args)]
struct LintArgs {
    /// Training sets.
    #[arg(required_unless_present = "eval", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Evaluation set; may be given more than once.
    #[arg(long, value_name = "FILE")]
    eval: Vec<PathBuf>,
    /// Model folder: its tokenizer measures the samples.
    #[arg(long, value_name = "FOLDER")]
    model: Option<PathBuf>,
    /// Longest sample in tokens; needs --model.
    #[arg(long, value_name = "TOKENS", default_value_t = 2048)]
    max_length: u32,
    /// Decode every picture, not only its header and end.
    #[arg(long)]
    decode: bool,
    /// How to write the report.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

pub(super) fn run(args: &DataArgs, out: &mut impl Write) -> Result<ExitStatus, CliError> {
    let DataCommand::Lint(args) = &args.command;
    let mut options = Options::new(args.model.clone(), args.max_length);
    options.eval.clone_from(&args.eval);
    options.decode = args.decode;
    let report = lint::lint(&args.files, &options).map_err(|error| {
        let hint = error.hint();
        CliError::of(ExitStatus::Usage, error).hint(hint)
    })?;
    match args.format {
        Format::Text => lint::print(&report, out)?,
        Format::Json => {
            let mut value = serde_json::to_value(&report).expect("plain data");
            value["v"] = 1.into();
            writeln!(out, "{}", serde_json::to_string_pretty(&value).expect("plain data"))?;
        }
    }
    Ok(if report.blocks() { ExitStatus::Blocked } else { ExitStatus::Success })
}
