//! `qvl completions` and `qvl man`.

use std::{io::Write, path::PathBuf};

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, CliError};
use crate::wire::ExitStatus;

#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell.
    shell: Shell,
}

#[derive(Debug, Args)]
pub struct ManArgs {
    /// Folder for the pages.
    folder: PathBuf,
}

pub(super) fn completions(
    args: &CompletionsArgs,
    out: &mut impl Write,
) -> Result<ExitStatus, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "qvl", &mut script);
    out.write_all(&script)?;
    Ok(ExitStatus::Success)
}

pub(super) fn man(args: &ManArgs) -> Result<ExitStatus, CliError> {
    std::fs::create_dir_all(&args.folder)?;
    clap_mangen::generate_to(Cli::command(), &args.folder)?;
    Ok(ExitStatus::Success)
}
