//! `qvl doctor binary FILE`: which driver a program needs.

use std::{io::Write, path::Path};

use serde::Serialize;

use crate::{
    cli::CliError,
    doctor,
    facts::{Needed, PtxModule, Sass},
    probe,
    wire::ExitStatus,
};

#[derive(Debug, Serialize)]
struct Answer<'a> {
    v: u32,
    /// The lowest driver; `null` if the program asks for none.
    min_driver: Option<&'a str>,
    reasons: Vec<Reason<'a>>,
    needed: &'a [Needed],
    ptx: &'a [PtxModule],
    /// PTX beside machine code.
    fat_ptx: &'a [PtxModule],
    sass: &'a [Sass],
    unknown: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Reason<'a> {
    what: &'a str,
    driver: &'a str,
    only_without_code: bool,
}

pub(super) fn run(file: &Path, json: bool, out: &mut impl Write) -> Result<ExitStatus, CliError> {
    let trainer = probe::program(file);
    if let Err(unread) = trainer.path.get() {
        return Err(CliError::new(ExitStatus::Usage, unread.why)
            .hint("name an ELF program, such as qvl-train, or a library"));
    }
    let floor = doctor::floor(&trainer);
    let unknown: Vec<String> = floor.unknown.iter().map(ToString::to_string).collect();
    let status = if unknown.is_empty() { ExitStatus::Success } else { ExitStatus::Unknown };
    let list = |sass: &Sass| format!("sm_{} x{}", sass.arch, sass.count);
    let sass = trainer.sass.value().map_or(&[][..], Vec::as_slice);
    if json {
        let answer = Answer {
            v: 1,
            min_driver: floor.driver.as_deref(),
            reasons: floor
                .reasons
                .iter()
                .map(|reason| Reason {
                    what: &reason.what,
                    driver: &reason.driver,
                    only_without_code: reason.only_without_code,
                })
                .collect(),
            needed: trainer.needed.value().map_or(&[][..], Vec::as_slice),
            ptx: trainer.ptx.value().map_or(&[][..], Vec::as_slice),
            fat_ptx: trainer.fat_ptx.value().map_or(&[][..], Vec::as_slice),
            sass,
            unknown,
        };
        writeln!(out, "{}", serde_json::to_string_pretty(&answer).expect("plain data"))?;
        return Ok(status);
    }
    match &floor.driver {
        Some(driver) => writeln!(out, "needs driver {driver} or newer")?,
        None => writeln!(out, "asks for no driver")?,
    }
    for reason in &floor.reasons {
        let only = if reason.only_without_code { ", on GPUs without machine code" } else { "" };
        writeln!(out, "  {:<12} {}{only}", reason.driver, reason.what)?;
    }
    if !sass.is_empty() {
        let list: Vec<String> = sass.iter().map(list).collect();
        writeln!(out, "  machine code for {}", list.join(", "))?;
    }
    unknown.iter().try_for_each(|why| writeln!(out, "  unknown      {why}"))?;
    Ok(status)
}
