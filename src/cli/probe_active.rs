//! `qvl probe-active`: makes one active test in a process of its own, which may hang or be killed.

use std::{io::Write, path::PathBuf};

use clap::{Args, Subcommand};

use super::CliError;
use crate::{
    probe::active::{self, ActiveTest},
    wire::ExitStatus,
};

#[derive(Debug, Args)]
pub struct ProbeActiveArgs {
    #[command(subcommand)]
    test: TestArg,
}

#[derive(Debug, Subcommand)]
enum TestArg {
    /// Write, fsync, read back and rename in a folder.
    Storage {
        #[arg(long)]
        folder: PathBuf,
        #[arg(long)]
        bytes: u64,
        #[arg(long)]
        name: String,
    },
    /// Bandwidth of the host's memory.
    Memory,
    /// Arithmetic of each processor.
    Compute,
    /// Every pair of hosts.
    Network {
        #[arg(long)]
        host: String,
        #[arg(long, value_delimiter = ',')]
        peers: Vec<String>,
    },
}

/// Makes a test for the doctor that started this process.
pub(super) fn run(args: &ProbeActiveArgs, out: &mut impl Write) -> Result<ExitStatus, CliError> {
    let test = match &args.test {
        TestArg::Storage { folder, bytes, name } => {
            ActiveTest::Storage { folder: folder.clone(), bytes: *bytes, name: name.clone() }
        }
        TestArg::Memory => ActiveTest::Memory,
        TestArg::Compute => ActiveTest::Compute,
        TestArg::Network { host, peers } => {
            ActiveTest::Network { host: host.clone(), peers: peers.clone() }
        }
    };
    let answer = active::serve(&test, |step| {
        let mut out = std::io::stdout();
        // Whoever listened may be gone; then nobody needs the answer either.
        let _said = writeln!(out, "{step}").and_then(|()| out.flush());
    });
    writeln!(out, "{answer}")?;
    Ok(ExitStatus::Success)
}
