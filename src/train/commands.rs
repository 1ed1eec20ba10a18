//! What each subcommand of `qvl-train` does.

use std::{
    io::{BufRead, Write},
    path::{Path, PathBuf},
};

use candle_core::{DType, Device};

use super::{
    adapter,
    cli::{ChatArgs, Cli, Command, EvalArgs, InitArgs, PromptArg, RunArgs, TaskArg},
    collective::Solo,
    corpus,
    eval::{self, EvalCorpus},
    events::Events,
    failure::Failure,
    features::FeatureCache,
    gputest,
    model::{self, ModelConfig, Prompt, QwenVl, Trainable},
    place::Place,
    run, selftest,
};
use crate::{
    data::{
        chatml::{PromptStyle, encode_prompt, with_pictures},
        tokenizer::{VOCABULARY, byte_vocabulary},
    },
    job::{self, FineTuneJob, Task},
    telemetry::{
        answers::{self, Answer},
        contact_sheet,
    },
    wire::{EvalMetrics, Interval, TrainerExit},
};

/// Runs the command; its exit status is the process's.
pub fn dispatch(
    cli: &Cli,
    variable: impl Fn(&str) -> Option<String>,
    out: Box<dyn Write + Send>,
) -> Result<(), Failure> {
    match &cli.command {
        Command::Run(args) => run_job(args, variable, out),
        Command::Eval(args) => evaluate(args, out),
        Command::Chat(args) => chat(args, out),
        Command::Init(args) => init(args, out),
        Command::Selftest(args) => check(args, out),
        Command::Gputest(args) => {
            let mut out = out;
            gputest::run(args, &mut *out)
        }
    }
}

/// A job runs with its event stream on `out`; the last event tells how it ended.
fn run_job(
    args: &RunArgs,
    variable: impl Fn(&str) -> Option<String>,
    out: Box<dyn Write + Send>,
) -> Result<(), Failure> {
    let place = Place::read(variable)?;
    let events = Events::new(u32::try_from(place.rank).unwrap_or(0), place.attempt, out);
    let job = read_job(&args.job).inspect_err(|failure| events.send(failure.event()))?;
    let folder = args.job.parent().unwrap_or(Path::new("."));
    run::run(&job, folder, &place, args.stop_after, &events)
        .inspect_err(|failure| events.send(failure.event()))
}

fn read_job(path: &Path) -> Result<FineTuneJob, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        let what = format!("failed to read job file `{}`", path.display());
        Failure::of(TrainerExit::InputMissing, anyhow::Error::new(error).context(what))
    })?;
    job::parse(&text, &path.display().to_string())
        .map_err(|error| Failure::of(TrainerExit::Config, error))
}

/// A base with or without an adapter, for use.
struct Loaded {
    model: QwenVl,
    tokenizer: crate::data::tokenizer::Tokenizer,
}

fn load(base: &Path, adapter: Option<&PathBuf>) -> Result<Loaded, Failure> {
    let device = Device::Cpu;
    let model = match adapter {
        None => QwenVl::load(base, &device, DType::F32, &Trainable::Nothing)?,
        Some(folder) => {
            let lora = adapter::load(folder)?.lora;
            let trainable = Trainable::Lora { lora: &lora, seed: 0 };
            let mut model = QwenVl::load(base, &device, DType::F32, &trainable)?;
            super::apply::adapter(&mut model, folder)?;
            model
        }
    };
    let tokenizer = corpus::tokenizer(base, model.config())?;
    Ok(Loaded { model, tokenizer })
}

fn evaluate(args: &EvalArgs, mut out: Box<dyn Write + Send>) -> Result<(), Failure> {
    let Loaded { model, tokenizer } = load(&args.model, args.adapter.as_ref())?;
    let task = match args.task {
        TaskArg::Grounding => Task::Grounding,
        TaskArg::Caption => Task::Caption,
        TaskArg::Vqa => Task::Vqa,
        TaskArg::Text => Task::Text,
    };
    let style = match args.prompt {
        PromptArg::Chatml => PromptStyle::ChatMl,
        PromptArg::Raw => PromptStyle::Raw,
    };
    let set = EvalCorpus::read("eval", &args.data, task, args.limit, &tokenizer, style)?;
    let mut features = FeatureCache::default();
    let most = args.max_new_tokens;
    let measured = eval::measure(&model, &tokenizer, &set, most, &mut Solo, &mut features)?;
    if let Some(path) = &args.answers {
        eval::write(path, &measured.answers)?;
    }
    if let Some(path) = &args.sheet {
        write_sheet(path, &measured.answers)?;
    }
    let text = if args.json {
        serde_json::to_string_pretty(&measured.metrics).expect("plain data") + "\n"
    } else {
        describe(&measured.metrics)
    };
    print(&mut out, &text)
}

fn write_sheet(path: &Path, answers: &[Answer]) -> Result<(), Failure> {
    contact_sheet::write(path, &answers::sheet_items(answers)).map_err(|error| {
        let what = format!("failed to write contact sheet `{}`", path.display());
        Failure::of(TrainerExit::CheckpointIo, anyhow::Error::new(error).context(what))
    })
}

/// The numbers of a set, one line each.
fn describe(metrics: &EvalMetrics) -> String {
    let line = |name: &str, value: Option<Interval>| {
        value.map_or(String::new(), |Interval { value, low, high }| {
            format!("{name:<12} {value:.3}  (95 % interval {low:.3} to {high:.3})\n")
        })
    };
    let loss = metrics.loss.map_or(String::new(), |loss| format!("{:<12} {loss:.4}\n", "loss"));
    format!("{:<12} {}\n{loss}", "samples", metrics.samples)
        + &line("parse rate", metrics.parse_rate)
        + &line("mean IoU", metrics.mean_iou)
        + &line("Acc@0.5", metrics.acc_at_50)
        + &line("exact match", metrics.exact_match)
}

fn chat(args: &ChatArgs, mut out: Box<dyn Write + Send>) -> Result<(), Failure> {
    let loaded = load(&args.model, args.adapter.as_ref())?;
    let mut features = FeatureCache::default();
    let paths: Vec<String> = args.image.iter().map(|path| path.display().to_string()).collect();
    if let Some(question) = &args.question {
        let query = with_pictures(&paths, question);
        let answer = loaded.answer(&[], &query, args.max_new_tokens, &mut features)?;
        return print(&mut out, &(answer + "\n"));
    }
    let mut history: Vec<(String, String)> = Vec::new();
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|error| Failure::of(TrainerExit::InputMissing, error))?;
        // Pictures belong to the first question of a conversation.
        let query = if history.is_empty() { with_pictures(&paths, &line) } else { line };
        let answer = loaded.answer(&history, &query, args.max_new_tokens, &mut features)?;
        print(&mut out, &format!("{answer}\n"))?;
        history.push((query, answer));
    }
    Ok(())
}

impl Loaded {
    fn answer(
        &self,
        history: &[(String, String)],
        query: &str,
        most: usize,
        features: &mut FeatureCache,
    ) -> Result<String, Failure> {
        let prompt = encode_prompt(&self.tokenizer, history, query, PromptStyle::ChatMl);
        let mut images = Vec::new();
        for span in &prompt.images {
            let content = features.content(&self.model, Path::new(&span.path))?;
            images.push(super::batch::ImageInput { row: 0, start: span.start, content });
        }
        let specials = self.tokenizer.specials();
        let stop = [specials.im_end, specials.im_start, specials.end_of_text];
        let prompt = Prompt { ids: prompt.ids, images };
        let answers = self.model.generate(&[prompt], most, &stop)?;
        Ok(self.tokenizer.decode(&answers[0]))
    }
}

fn init(args: &InitArgs, mut out: Box<dyn Write + Send>) -> Result<(), Failure> {
    if args.out.exists() {
        return Err(Failure::new(
            TrainerExit::Usage,
            format!("`{}` exists already", args.out.display()),
        )
        .hint("choose another --out, or remove the folder"));
    }
    let config = ModelConfig::read_file(&args.config)?;
    let tensors = model::init_random(&config, args.seed)?;
    let numbers: usize = tensors.values().map(candle_core::Tensor::elem_count).sum();
    model::write_folder(&args.out, &config, &tensors, DType::F32)?;
    let target = args.out.join(VOCABULARY);
    let written = match &args.vocab {
        Some(path) => std::fs::copy(path, &target).map(|_bytes| ()),
        None => std::fs::write(&target, byte_vocabulary()),
    };
    written.map_err(|error| {
        let what = format!("failed to write `{}`", target.display());
        Failure::of(TrainerExit::CheckpointIo, anyhow::Error::new(error).context(what))
    })?;
    corpus::tokenizer(&args.out, &config)?;
    print(&mut out, &format!("wrote {} with {numbers} random weights\n", args.out.display()))
}

fn check(args: &selftest::SelftestArgs, mut out: Box<dyn Write + Send>) -> Result<(), Failure> {
    let passed = selftest::run(args, &mut out).map_err(|error| Failure {
        exit: TrainerExit::Data,
        error,
        hint: None,
        peer: None,
    })?;
    if passed {
        return Ok(());
    }
    Err(Failure::new(TrainerExit::Preflight, "the numerics of this build differ from the golden")
        .hint("see the lines marked FAIL; on a GPU, compare with `--features cuda` off"))
}

fn print(out: &mut dyn Write, text: &str) -> Result<(), Failure> {
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|error| Failure::of(TrainerExit::Internal, error))
}
