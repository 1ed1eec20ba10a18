//! `qvl data lint`.

use std::{io::Write, path::PathBuf};

use clap::{Args, Subcommand};

use super::CliError;
use crate::{
    data::lint::{self, Options},
    wire::ExitStatus,
};

#[derive(Debug, Args)]
pub struct DataArgs {
    #[command(subcommand)]
    command: DataCommand,
}

#[derive(Debug, Subcommand)]
enum DataCommand {
    /// Check data sets in the official JSON format: boxes, lengths, pictures, roles, duplicates.
    Lint(LintArgs),
}

#[derive(Debug, Args)]
struct LintArgs {
    /// Data sets.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Model folder: its tokenizer measures the samples.
    #[arg(long, value_name = "FOLDER")]
    model: Option<PathBuf>,
    /// Longest sample in tokens.
    #[arg(long, default_value_t = 2048)]
    max_length: u32,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &DataArgs, out: &mut impl Write) -> Result<ExitStatus, CliError> {
    let DataCommand::Lint(args) = &args.command;
    let options = Options { model: args.model.clone(), max_length: args.max_length };
    let report = lint::lint(&args.files, &options)
        .map_err(|error| CliError::of(ExitStatus::Usage, error))?;
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&report).expect("plain data"))?;
    } else {
        lint::print(&report, out)?;
    }
    Ok(if report.blocks() { ExitStatus::Blocked } else { ExitStatus::Success })
}
