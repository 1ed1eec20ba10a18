//! `qvl report`: the story of a run in one HTML file.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use clap::Args;

use super::{CliError, jobs};
use crate::{
    data::boxes,
    launch::state::RunState,
    telemetry::{
        contact_sheet::{self, SheetItem},
        metrics,
        report::{self, ReportInput},
    },
    wire::ExitStatus,
};

#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Name of the job, or its output folder.
    name: String,
    /// File to write; `report.html` in the output folder if not given.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// The parts of an answer that a contact sheet needs.
#[derive(serde::Deserialize)]
struct Judged {
    reference: String,
    answer: String,
    iou: Option<f64>,
    exact: bool,
    image: Option<PathBuf>,
}

pub(super) fn run(args: &ReportArgs, out: &mut impl Write) -> Result<ExitStatus, CliError> {
    let run = jobs::find(&args.name)?;
    let input = ReportInput {
        name: run.name.clone(),
        facts: facts(&run),
        records: metrics::read(&run.output)?,
        incidents: incidents(&run),
        pictures: pictures(&run.output)?,
        job: fs::read_to_string(run.output.join("job.yaml"))?,
    };
    let path = args.out.clone().unwrap_or_else(|| run.output.join("report.html"));
    fs::write(&path, report::html(&input)).map_err(|error| {
        let what = format!("failed to write `{}`", path.display());
        CliError::of(ExitStatus::Internal, anyhow::Error::new(error).context(what))
    })?;
    writeln!(out, "wrote {}", path.display())?;
    Ok(ExitStatus::Success)
}

fn facts(run: &RunState) -> Vec<(String, String)> {
    let mut facts = vec![
        ("status".to_owned(), jobs::word(run).to_owned()),
        ("steps".to_owned(), format!("{} of {}", run.step, run.total_steps)),
        ("attempts".to_owned(), run.attempt.to_string()),
        ("time".to_owned(), format!("{:.0} s", (run.updated_ms - run.started_ms) as f64 / 1000.0)),
    ];
    if let Some(loss) = run.loss {
        facts.push(("last loss".to_owned(), format!("{loss:.4}")));
    }
    if let Some(result) = &run.result {
        facts.push(("result".to_owned(), result.clone()));
    }
    facts
}

fn incidents(run: &RunState) -> Vec<String> {
    let story = run.incidents.iter().map(|incident| {
        let then = if incident.restarted {
            "all ranks were restarted from the newest checkpoint"
        } else {
            "the run was given up"
        };
        format!(
            "attempt {}, step {}: rank {} {}; {then}",
            incident.attempt, incident.step, incident.culprit, incident.what
        )
    });
    story.collect()
}

/// A contact sheet of the last answers of each set.
fn pictures(output: &Path) -> Result<Vec<(String, Vec<u8>)>, CliError> {
    let folder = output.join("eval");
    let mut files: Vec<PathBuf> = match fs::read_dir(&folder) {
        Ok(entries) => entries.filter_map(|entry| Some(entry.ok()?.path())).collect(),
        Err(_no_evaluations) => return Ok(Vec::new()),
    };
    files.sort();
    let mut last: std::collections::BTreeMap<String, PathBuf> = std::collections::BTreeMap::new();
    for path in files {
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        if let Some((set, _step)) = stem.rsplit_once("-step-") {
            last.insert(set.to_owned(), path.clone());
        }
    }
    let mut pictures = Vec::new();
    for (set, path) in last {
        let text = fs::read_to_string(&path)?;
        let answers = text.lines().filter_map(|line| serde_json::from_str::<Judged>(line).ok());
        let items: Vec<SheetItem> = answers.filter_map(item).collect();
        let png = tempfile::Builder::new().suffix(".png").tempfile()?;
        // Pictures that were moved away are no reason to have no report.
        if contact_sheet::write(png.path(), &items).is_ok() {
            pictures.push((format!("Answers: {set}"), fs::read(png.path())?));
        }
    }
    Ok(pictures)
}

fn item(answer: Judged) -> Option<SheetItem> {
    let rectangle = |text: &str| {
        let found = boxes::parse_answer(text).filter(|_found| answer.iou.is_some())?;
        Some([found.x1, found.y1, found.x2, found.y2].map(|side| side / 1000.0))
    };
    Some(SheetItem {
        expected: rectangle(&answer.reference),
        found: rectangle(&answer.answer),
        caption: answer.iou.map_or_else(|| answer.answer.clone(), |iou| format!("IoU {iou:.2}")),
        good: answer.iou.map_or(answer.exact, |iou| 0.5 <= iou),
        image: answer.image?,
    })
}
