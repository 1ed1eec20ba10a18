//! `qvl crd`.

use std::io::Write;

use super::CliError;
use crate::{api::crd, wire::ExitStatus};

pub(super) fn run(out: &mut impl Write) -> Result<ExitStatus, CliError> {
    for definition in crd::all() {
        let text = serde_saphyr::to_string(&definition)
            .map_err(|error| CliError::of(ExitStatus::Internal, error))?;
        writeln!(out, "---\n{}", text.trim_end())?;
    }
    Ok(ExitStatus::Success)
}
