//! `qvl plan`: what a job will do, before it does it.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use clap::Args;

use super::CliError;
use crate::{
    data::{
        lint::{self, FileSummary, LintReport, Options},
        sample, tokenizer,
    },
    job::{
        self, Compute, Dtype, FineTuneJob,
        memory::{self, MemoryPlan, ModelShape, cpu::Reads},
        plan::{JobPlan, SetFacts},
    },
    wire::ExitStatus,
};

/// Findings of the lint that a plan repeats.
const FINDINGS: usize = 5;

#[derive(Debug, Args)]
pub struct PlanArgs {
    /// Job file.
    job: PathBuf,
    /// Number of ranks, instead of `spec.world.gpus`.
    #[arg(long)]
    gpus: Option<u32>,
    /// Form of the plan.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// The same as `--format json`.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Text,
    Json,
}

/// Reads, parses and checks a job file; `gpus` replaces its number of ranks.
pub(super) fn read_job(path: &Path, gpus: Option<u32>) -> Result<FineTuneJob, CliError> {
    let text = fs::read_to_string(path).map_err(|error| {
        let what = format!("failed to read job file `{}`", path.display());
        CliError::of(ExitStatus::Usage, anyhow::Error::new(error).context(what))
            .hint("`qvl explain job` describes the format")
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
    /// Tokens of the longest sample, and the number format of the base: the memory is for these.
    pub longest: u64,
    pub dtype: Dtype,
    pub data: LintReport,
    pub steps: JobPlan,
}

/// Makes the plan of a job whose paths are relative to `folder`.
pub(super) fn make(job: FineTuneJob, folder: &Path) -> Result<Plan, CliError> {
    make_to(job, folder, Depth::All)
}

/// How much of the data a plan looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    /// All that the lint knows.
    All,
    /// Samples and their lengths, which decide the memory; not their pictures.
    Lengths,
}

/// As [`make`], with less of the lint.
pub(super) fn make_to(job: FineTuneJob, folder: &Path, depth: Depth) -> Result<Plan, CliError> {
    let base = folder.join(&job.spec.model.path);
    let shape = shape(&base)?;
    let files: Vec<PathBuf> =
        job.spec.data.train.iter().map(|set| folder.join(&set.path)).collect();
    let lengths_only = depth == Depth::Lengths;
    let options = Options { lengths_only, ..Options::of_job(&job.spec.data, folder, base) };
    let data = lint::lint(&files, &options).map_err(|error| {
        let hint = error.hint();
        CliError::of(ExitStatus::Usage, error).hint(hint)
    })?;
    let sets = set_facts(&job, &files, &data);
    let longest = sets.iter().map(|set| set.max_tokens).max().unwrap_or(0).max(1);
    let dtype = match (job.spec.model.dtype, job.spec.world.compute) {
        (Dtype::Auto, Compute::Cpu) => Dtype::F32,
        (Dtype::Auto, Compute::Auto | Compute::Cuda) => Dtype::Bf16,
        (chosen, _) => chosen,
    };
    let mut steps = job::plan::plan(&job, &sets);
    let memory = if job.spec.world.compute == Compute::Cpu {
        memory::cpu::plan(&job, &shape, &reads(&job, folder, &data, &steps), dtype)
    } else {
        memory::plan(&job, &shape, longest, dtype)
    };
    steps.warnings.extend(data_warnings(&data));
    Ok(Plan { job, shape, memory, longest, dtype, data, steps })
}

impl Plan {
    /// The most samples at a time, each as long as the longest, for so many bytes of a GPU.
    pub(super) fn most_samples(&self, usable: u64) -> Option<u64> {
        memory::largest(usable, memory::MOST_SAMPLES, |samples| {
            let mut job = self.job.clone();
            job.spec.batch.unit = u32::try_from(samples).unwrap_or(u32::MAX);
            memory::plan(&job, &self.shape, self.longest, self.dtype)
        })
    }

    /// The most tokens of a sample for so many bytes of a GPU.
    pub(super) fn most_tokens(&self, usable: u64) -> Option<u64> {
        memory::largest(usable, memory::MOST_TOKENS, |tokens| {
            memory::plan(&self.job, &self.shape, tokens, self.dtype)
        })
    }
}

/// What a rank will read, for its memory. What cannot be read counts as nothing: the lint says why.
fn reads(job: &FineTuneJob, folder: &Path, data: &LintReport, steps: &JobPlan) -> Reads {
    let sum = |of: fn(&FileSummary) -> u64| data.files.iter().map(of).sum();
    let vocabulary = fs::read(folder.join(&job.spec.model.path).join(tokenizer::VOCABULARY));
    let lines = |text: Vec<u8>| text.split(|byte| *byte == b'\n').filter(|l| !l.is_empty()).count();
    let measured = job.spec.data.eval.iter().map(|set| {
        let samples = sample::read(&folder.join(&set.path)).map_or(0, |file| file.samples.len());
        (samples as u64).min(set.limit.map_or(u64::MAX, u64::from))
    });
    Reads {
        longest: data.files.iter().map(|file| file.max_tokens as u64).max().unwrap_or(0).max(1),
        tokens: sum(|file| file.tokens),
        samples: sum(|file| file.samples as u64),
        pictures: sum(|file| file.pictures as u64),
        labels: sum(|file| file.label_tokens as u64),
        measured: measured.sum(),
        vocabulary: vocabulary.map_or(0, lines) as u64,
        steps: steps.total_steps,
    }
}

/// The numbers of each training set. A file that could not be read has none; the lint says why.
fn set_facts(job: &FineTuneJob, files: &[PathBuf], data: &LintReport) -> Vec<SetFacts> {
    let sets = job.spec.data.train.iter().zip(files);
    sets.map(|(set, path)| {
        let path = path.display().to_string();
        let measured = data.files.iter().find(|file| file.file == path);
        SetFacts {
            name: set.name.clone(),
            samples: measured.map_or(0, |file| file.samples as u64),
            mean_tokens: measured.map_or(0.0, |file| file.mean_tokens),
            max_tokens: measured.map_or(0, |file| file.max_tokens as u64),
        }
    })
    .collect()
}

/// Findings of the lint, the first few in full.
fn data_warnings(data: &LintReport) -> Vec<String> {
    let findings = data.findings.iter().map(|finding| format!("data: {finding}"));
    let mut warnings: Vec<String> = findings.collect();
    if FINDINGS < warnings.len() {
        let more = warnings.len() - FINDINGS;
        warnings.truncate(FINDINGS);
        warnings.push(format!("data: {more} findings more; `qvl data lint` shows all"));
    }
    warnings
}

/// The numbers of `config.json` that decide memory.
fn shape(base: &Path) -> Result<ModelShape, CliError> {
    let path = base.join("config.json");
    let failed = |error: anyhow::Error| {
        let what = format!("failed to read `{}`", path.display());
        CliError::of(ExitStatus::Usage, error.context(what))
            .hint("spec.model.path must be the folder of a Qwen-VL release")
    };
    let text = fs::read_to_string(&path).map_err(|error| failed(error.into()))?;
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
    let value = serde_json::json!({"v": 1, "job": plan.job, "plan": plan.steps,
        "memory": plan.memory.components, "memoryTotalBytes": plan.memory.total(),
        "parameters": plan.shape.parameters(),
        "trainedParameters": memory::trained_parameters(&plan.job, &plan.shape),
        "data": plan.data.files});
    serde_json::to_string_pretty(&value).expect("plain data")
}

pub(super) fn run(args: &PlanArgs, out: &mut impl Write) -> Result<ExitStatus, CliError> {
    let job = read_job(&args.job, args.gpus)?;
    let plan = make(job, args.job.parent().unwrap_or(Path::new(".")))?;
    if args.json || args.format == Format::Json {
        writeln!(out, "{}", json(&plan))?;
    } else {
        print(&plan, out)?;
    }
    Ok(if plan.data.blocks() { ExitStatus::Blocked } else { ExitStatus::Success })
}

pub(super) use super::plan_text::{human, print};
