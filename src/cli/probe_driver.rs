//! `qvl probe-driver`: asks the driver in a process of its own, which may hang or crash.

use std::io::Write;

use clap::{Args, ValueEnum};

use super::CliError;
use crate::{probe, wire::ExitStatus};

#[derive(Debug, Args)]
pub struct ProbeDriverArgs {
    /// The library to ask.
    #[arg(value_enum)]
    library: LibraryArg,
    /// Ask NVML for the persistence mode of the GPU with this UUID, and for nothing else.
    #[arg(long, value_name = "GPU")]
    persistence: Option<String>,
    /// Set it first.
    #[arg(long, requires = "persistence", value_name = "ON")]
    set: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LibraryArg {
    /// `libnvidia-ml.so.1`.
    Nvml,
    /// `libcuda.so.1`.
    Cuda,
}

/// Asks the driver for the doctor that started this process, and may hang or crash in its place.
pub(super) fn run(args: &ProbeDriverArgs, out: &mut impl Write) -> Result<ExitStatus, CliError> {
    let library = match args.library {
        LibraryArg::Nvml => probe::DriverLibrary::Nvml,
        LibraryArg::Cuda => probe::DriverLibrary::Cuda,
    };
    let say = |call: &str| {
        let mut out = std::io::stdout();
        // Whoever listened may be gone; then nobody needs the answer either.
        let _said = writeln!(out, "{call}").and_then(|()| out.flush());
    };
    let answer = match &args.persistence {
        Some(gpu) => probe::serve_persistence(gpu, args.set, say),
        None => probe::serve(library, say),
    };
    writeln!(out, "{answer}")?;
    Ok(ExitStatus::Success)
}
