//! `qvl plan`: what a job will do, before it does it.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use clap::Args;

use super::CliError;
use crate::{
    data::lint::{self, LintReport, Options, Purpose},
    job::{
        self, Compute, Dtype, FineTuneJob,
        memory::{self, MemoryPlan, ModelShape},
        schedule,
    },
    wire::ExitStatus,
};

/// Width of the learning-rate picture.
const COLUMNS: u64 = 60;

#[derive(Debug, Args)]
pub struct PlanArgs {
    /// Job file.
    job: PathBuf,
    /// Number of ranks, instead of `spec.world.gpus`.
    #[arg(long)]
    gpus: Option<u32>,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
}

/// Reads, parses and checks a job file; `gpus` replaces its number of ranks.
pub(super) fn read_job(path: &Path, gpus: Option<u32>) -> Result<FineTuneJob, CliError> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        let what = format!("failed to read job file `{}`", path.display());
        CliError::of(ExitStatus::Usage, anyhow::Error::new(error).context(what))
    })?;
    let parsed = |text: &str| {
        job::parse(text, &path.display().to_string())
            .map_err(|error| CliError::of(ExitStatus::Usage, error))
    };
    let mut job = parsed(&text)?;
    if let Some(gpus) = gpus {
        job.spec.world.gpus = gpus;
        let changed = serde_json::to_string(&job).expect("plain data");
        job = parsed(&changed)?;
    }
    Ok(job)
}

/// Everything that a plan shows.
pub(super) struct Plan {
    pub job: FineTuneJob,
    pub shape: ModelShape,
    pub memory: MemoryPlan,
    pub data: LintReport,
    pub stages: Vec<StageLine>,
}

/// One stage of a plan.
#[derive(Clone, Debug, serde::Serialize)]
pub(super) struct StageLine {
    pub name: String,
    pub samples: u64,
    pub steps: u64,
    pub warmup_steps: u64,
    pub peak: f64,
}

/// Makes the plan of a job whose paths are relative to `folder`.
pub(super) fn make(job: FineTuneJob, folder: &Path) -> Result<Plan, CliError> {
    let base = folder.join(&job.spec.model.path);
    let shape = shape(&base)?;
    let files: Vec<PathBuf> =
        job.spec.data.train.iter().map(|set| folder.join(&set.path)).collect();
    let options = Options::of_job(&job.spec.data, folder, base);
    let data = lint::lint(&files, &options).map_err(|error| {
        let hint = error.hint();
        CliError::of(ExitStatus::Usage, error).hint(hint)
    })?;
    let trained = data.files.iter().filter(|file| file.purpose == Purpose::Train);
    let longest = trained.map(|file| file.max_tokens).max().unwrap_or(0).max(1);
    let dtype = match (job.spec.model.dtype, job.spec.world.compute) {
        (Dtype::Auto, Compute::Cpu) => Dtype::F32,
        (Dtype::Auto, Compute::Auto | Compute::Cuda) => Dtype::Bf16,
        (chosen, _) => chosen,
    };
    let memory = memory::plan(&job, &shape, longest as u64, dtype);
    let stages = job.spec.stages.iter().map(|stage| stage_line(&job, stage, &data)).collect();
    Ok(Plan { job, shape, memory, data, stages })
}

fn stage_line(job: &FineTuneJob, stage: &job::Stage, data: &LintReport) -> StageLine {
    let wanted = |name: &String| stage.sets.as_ref().is_none_or(|sets| sets.contains(name));
    let sets = job.spec.data.train.iter().zip(&data.files);
    let samples: usize =
        sets.filter(|(set, _file)| wanted(&set.name)).map(|(_set, file)| file.samples).sum();
    let steps = schedule::stage_steps(stage, samples as u64, job.spec.batch.global);
    let chosen = stage.schedule.as_ref().unwrap_or(&job.spec.schedule);
    StageLine {
        name: stage.name.clone(),
        samples: samples as u64,
        steps,
        warmup_steps: schedule::warmup_steps(chosen, steps),
        peak: stage.learning_rate.unwrap_or(job.spec.optimizer.learning_rate),
    }
}

/// The numbers of `config.json` that decide memory.
fn shape(base: &Path) -> Result<ModelShape, CliError> {
    let path = base.join("config.json");
    let failed = |error: anyhow::Error| {
        let what = format!("failed to read `{}`", path.display());
        CliError::of(ExitStatus::Usage, error.context(what))
            .hint("spec.model.path must be the folder of a Qwen-VL release")
    };
    let text = std::fs::read_to_string(&path).map_err(|error| failed(error.into()))?;
    let config: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| failed(error.into()))?;
    let number = |pointer: &str, default: Option<u64>| {
        config.pointer(pointer).and_then(serde_json::Value::as_u64).or(default).ok_or_else(|| {
            failed(anyhow::Error::msg(format!(
                "`{}` is missing",
                pointer.replace('/', ".").trim_start_matches('.')
            )))
        })
    };
    let ratio = config.pointer("/visual/mlp_ratio").and_then(serde_json::Value::as_f64);
    let width = number("/visual/width", None)?;
    let side = number("/visual/image_size", None)? / number("/visual/patch_size", None)?.max(1);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a layer's width")]
    let visual_mlp = (width as f64 * ratio.unwrap_or(4.0)) as u64;
    Ok(ModelShape {
        vocabulary: number("/vocab_size", None)?,
        hidden: number("/hidden_size", None)?,
        layers: number("/num_hidden_layers", None)?,
        heads: number("/num_attention_heads", None)?,
        mlp: number("/intermediate_size", None)? / 2,
        visual_width: width,
        visual_layers: number("/visual/layers", None)?,
        visual_heads: number("/visual/heads", None)?,
        visual_mlp,
        patches: side * side,
        queries: number("/visual/n_queries", Some(256))?,
        patch_values: 3 * number("/visual/patch_size", None)?.pow(2),
    })
}

/// The plan for programs.
pub(super) fn json(plan: &Plan) -> String {
    let value = serde_json::json!({"v": 1, "job": plan.job, "stages": plan.stages,
        "memory": plan.memory.components, "memoryTotalBytes": plan.memory.total(),
        "data": plan.data.files, "warnings": warnings(plan)});
    serde_json::to_string_pretty(&value).expect("plain data")
}

pub(super) fn run(args: &PlanArgs, out: &mut impl Write) -> Result<ExitStatus, CliError> {
    let job = read_job(&args.job, args.gpus)?;
    let plan = make(job, args.job.parent().unwrap_or(Path::new(".")))?;
    if args.json {
        writeln!(out, "{}", json(&plan))?;
    } else {
        print(&plan, out)?;
    }
    Ok(if plan.data.blocks() { ExitStatus::Blocked } else { ExitStatus::Success })
}

/// The plan for a person.
pub(super) fn print(plan: &Plan, out: &mut impl Write) -> std::io::Result<()> {
    let spec = &plan.job.spec;
    let (gpus, global, unit) = (spec.world.gpus, spec.batch.global, spec.batch.unit);
    let total: u64 = plan.stages.iter().map(|stage| stage.steps).sum();
    writeln!(out, "plan of {}", plan.job.metadata.name)?;
    writeln!(
        out,
        "  ranks        {gpus}, each {:.1} units of {unit} samples a step",
        f64::from(global / unit) / f64::from(gpus)
    )?;
    writeln!(out, "  batch        {global} samples a step, the same on any number of ranks")?;
    let trained = memory::trained_parameters(&plan.job, &plan.shape);
    writeln!(out, "  trained      {trained} of {} parameters", plan.shape.parameters())?;
    for stage in &plan.stages {
        let StageLine { name, samples, steps, warmup_steps, peak } = stage;
        let epochs = *steps as f64 * f64::from(global) / (*samples).max(1) as f64;
        writeln!(
            out,
            "  stage        {name}: {steps} steps = {epochs:.2} epochs of {samples} samples; warm-up {warmup_steps} steps to {peak:.1e}"
        )?;
    }
    writeln!(out, "  saves        {}", saves(spec.checkpoint.every_steps, total))?;
    writeln!(out, "  evaluations  {}", evaluations(spec, total))?;
    for file in plan.data.files.iter().filter(|file| 0 < file.max_tokens) {
        let padded = f64::from(spec.data.max_length) / file.mean_tokens.max(1.0);
        writeln!(
            out,
            "  tokens       {}: mean {:.0}, longest {}; padding to maxLength would cost {padded:.1}x",
            file.file, file.mean_tokens, file.max_tokens
        )?;
    }
    writeln!(out, "\nmemory per rank")?;
    for part in &plan.memory.components {
        writeln!(out, "  {:<34} {:>10}  {}", part.name, human(part.bytes), part.from)?;
    }
    writeln!(
        out,
        "  {:<34} {:>10}  estimate; a CUDA context and libraries need about 1 GiB more",
        "total",
        human(plan.memory.total())
    )?;
    writeln!(out, "\nlearning rate over {total} steps")?;
    for row in chart(plan, total) {
        writeln!(out, "  {row}")?;
    }
    for warning in warnings(plan) {
        writeln!(out, "\nwarning: {warning}")?;
    }
    Ok(())
}

fn saves(every: u64, total: u64) -> String {
    match total.checked_div(every) {
        None => "at the end of each stage".to_owned(),
        Some(0) => format!("only at the end: every {every} steps never comes in {total}"),
        Some(times) => format!("every {every} steps: {times} times"),
    }
}

fn evaluations(spec: &job::JobSpec, total: u64) -> String {
    let sets = spec.data.eval.len();
    let start = if spec.evaluation.at_start { "before the first step, " } else { "" };
    match total.checked_div(spec.evaluation.every_steps) {
        None | Some(0) => format!("{sets} sets {start}at the end"),
        Some(times) => format!("{sets} sets {start}{times} times on the way, and at the end"),
    }
}

/// What a user should know before he starts.
fn warnings(plan: &Plan) -> Vec<String> {
    let spec = &plan.job.spec;
    let mut warnings = Vec::new();
    let total: u64 = plan.stages.iter().map(|stage| stage.steps).sum();
    if total < spec.checkpoint.every_steps {
        warnings.push(format!(
            "no checkpoint before the end: checkpoint.everySteps is {}, the job has {total} steps",
            spec.checkpoint.every_steps
        ));
    }
    if spec.data.eval.len() < 2 {
        warnings.push("give a second evaluation set from another distribution: a gain on the first alone may be memory".to_owned());
    }
    if spec.data.max_length > 2048 {
        warnings.push(
            "samples over 2048 tokens are trained without NTK scaling but used with it".to_owned(),
        );
    }
    for stage in &plan.stages {
        if stage.steps <= stage.warmup_steps {
            warnings.push(format!("stage `{}` ends within its warm-up", stage.name));
        }
    }
    for finding in &plan.data.findings {
        let sample = if finding.sample.is_empty() {
            String::new()
        } else {
            format!(" `{}`", finding.sample)
        };
        warnings.push(format!("data: {}{sample}: {}", finding.file, finding.what));
    }
    let shown = 8;
    if shown < warnings.len() {
        let more = warnings.len() - shown;
        warnings.truncate(shown);
        warnings.push(format!("and {more} more; see `qvl data lint`"));
    }
    warnings
}

/// Five lines of blocks.
fn chart(plan: &Plan, total: u64) -> Vec<String> {
    let rate = |step: u64| {
        let mut first = 0;
        for (stage, line) in plan.job.spec.stages.iter().zip(&plan.stages) {
            if step < first + line.steps {
                let chosen = stage.schedule.as_ref().unwrap_or(&plan.job.spec.schedule);
                return schedule::learning_rate(chosen, line.peak, step - first, line.steps);
            }
            first += line.steps;
        }
        0.0
    };
    let columns = COLUMNS.min(total.max(1));
    let rates: Vec<f64> = (0..columns).map(|c| rate(c * total / columns)).collect();
    let peak = rates.iter().fold(1e-30_f64, |max, rate| max.max(*rate));
    let rows = 5;
    (0..rows)
        .map(|row| {
            let floor = f64::from(rows - 1 - row) / f64::from(rows);
            let cells = rates.iter().map(|rate| if floor < rate / peak - 1e-9 { '█' } else { ' ' });
            let label = if row == 0 { format!("{peak:.1e}") } else { String::new() };
            format!("{label:>8} {}", cells.collect::<String>().trim_end())
        })
        .collect()
}

/// Bytes in the unit that people read.
pub(super) fn human(bytes: u64) -> String {
    let units = [("GiB", 1_u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    for (name, size) in units {
        if size <= bytes {
            return format!("{:.1} {name}", bytes as f64 / size as f64);
        }
    }
    format!("{bytes} B")
}
