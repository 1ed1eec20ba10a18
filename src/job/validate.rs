//! Rules that a well-formed job can still break. In a cluster the API server applies them too:
//! `api::crd` holds them in its language.

mod cluster;
mod env;

use super::{FineTuneJob, JobSpec, Lora, Method, Schedule, Stage, parse::Problem};

/// Longest name of a job: a DNS-1035 label has 63 characters, and a cluster adds suffixes.
const LONGEST_NAME: usize = 40;
/// Shortest useful limit of a sample: the template of one turn and a picture's place.
const SHORTEST_LIMIT: u32 = 16;

/// Everything that is wrong with a job.
pub fn problems(job: &FineTuneJob) -> Vec<Problem> {
    let mut found = Found::default();
    let name = &job.metadata.name;
    found.refuse(
        !is_dns_label(name) || LONGEST_NAME < name.len(),
        "metadata.name",
        format!("`{name}` is not a name"),
        "use lower-case letters, digits and `-`, begin with a letter, at most 40 characters",
    );
    let spec = &job.spec;
    paths(spec, &mut found);
    names(spec, &mut found);
    data(spec, &mut found);
    method(&spec.method, &mut found);
    optimizer(spec, &mut found);
    schedule(&spec.schedule, "spec.schedule", &mut found);
    batch(spec, &mut found);
    stages(spec, &mut found);
    running(spec, &mut found);
    env::problems(&spec.env, &mut found);
    cluster::problems(&spec.cluster, spec.world.gpus, &mut found);
    found.problems
}

#[derive(Default)]
struct Found {
    problems: Vec<Problem>,
}

impl Found {
    fn refuse(&mut self, wrong: bool, path: &str, what: impl Into<String>, hint: &str) {
        if wrong {
            let (path, hint) = (path.to_owned(), hint.to_owned());
            self.problems.push(Problem { path, line: None, what: what.into(), hint });
        }
    }
}

fn paths(spec: &JobSpec, found: &mut Found) {
    let train = spec.data.train.iter().enumerate();
    let eval = spec.data.eval.iter().enumerate();
    let mut paths = vec![
        ("spec.model.path".to_owned(), &spec.model.path),
        ("spec.output".to_owned(), &spec.output),
    ];
    paths.extend(train.map(|(i, set)| (format!("spec.data.train[{i}].path"), &set.path)));
    paths.extend(eval.map(|(i, set)| (format!("spec.data.eval[{i}].path"), &set.path)));
    for (path, value) in paths {
        found.refuse(
            value.trim().is_empty(),
            &path,
            "the path is empty",
            "give a path, relative to the job file",
        );
    }
}

/// Names are keys of reports, metrics and files.
fn names(spec: &JobSpec, found: &mut Found) {
    let lists: [(&str, Vec<&str>); 3] = [
        ("spec.data.train", spec.data.train.iter().map(|set| set.name.as_str()).collect()),
        ("spec.data.eval", spec.data.eval.iter().map(|set| set.name.as_str()).collect()),
        ("spec.stages", spec.stages.iter().map(|stage| stage.name.as_str()).collect()),
    ];
    for (list, names) in lists {
        for (i, name) in names.iter().enumerate() {
            let path = format!("{list}[{i}].name");
            let earlier = names[..i].iter().position(|other| other == name);
            found.refuse(
                earlier.is_some(),
                &path,
                format!("`{name}` is the name of {list}[{}] already", earlier.unwrap_or(0)),
                "give each its own name",
            );
            let separates = |c: char| c == '/' || c.is_control();
            found.refuse(
                name.trim().is_empty() || name.starts_with('.') || name.contains(separates),
                &path,
                format!("`{name}` cannot be part of a file name"),
                "it must not be empty, begin with `.` or contain `/`",
            );
        }
    }
}

fn data(spec: &JobSpec, found: &mut Found) {
    found.refuse(
        spec.data.train.is_empty(),
        "spec.data.train",
        "no training set",
        "add `- {name: mine, path: mine.json, task: grounding}`",
    );
    for (i, set) in spec.data.train.iter().enumerate() {
        found.refuse(
            !is_positive(set.weight),
            &format!("spec.data.train[{i}].weight"),
            format!("expected a number above 0, got {}", set.weight),
            "a set is left out of a stage with the stage's `sets`",
        );
    }
    for (i, set) in spec.data.eval.iter().enumerate() {
        found.refuse(
            set.limit == Some(0),
            &format!("spec.data.eval[{i}].limit"),
            "a limit of 0 measures nothing",
            "leave it out to measure the whole set",
        );
    }
    found.refuse(
        spec.data.max_length < SHORTEST_LIMIT,
        "spec.data.maxLength",
        format!("expected {SHORTEST_LIMIT} tokens or more, got {}", spec.data.max_length),
        "a picture alone takes 258 tokens of Qwen-VL; the official value is 2048",
    );
    if let Some(best) = &spec.evaluation.best_by {
        found.refuse(
            !spec.data.eval.iter().any(|set| set.name == *best),
            "spec.evaluation.bestBy",
            format!("no evaluation set is named `{best}`"),
            &known(spec.data.eval.iter().map(|set| set.name.as_str()), "spec.data.eval"),
        );
    }
}

fn method(method: &Method, found: &mut Found) {
    match method {
        Method::Lora(lora) => self::lora(lora, found),
        Method::Full(full) => {
            found.refuse(
                full.train.is_empty(),
                "spec.method.full.train",
                "no part is trained",
                "the official choice is [lm, resampler]",
            );
            let repeated = has_repetition(&full.train);
            found.refuse(
                repeated,
                "spec.method.full.train",
                "a part is named twice",
                "name each once",
            );
        }
    }
}

fn lora(lora: &Lora, found: &mut Found) {
    found.refuse(lora.r == 0, "spec.method.lora.r", "rank 0 learns nothing", "use 8 to 64");
    found.refuse(
        !is_positive(lora.alpha),
        "spec.method.lora.alpha",
        format!("expected a number above 0, got {}", lora.alpha),
        "the official value is 16",
    );
    found.refuse(
        !(0.0..1.0).contains(&lora.dropout),
        "spec.method.lora.dropout",
        format!("expected a probability below 1, got {}", lora.dropout),
        "the official value is 0.05",
    );
    found.refuse(
        lora.targets.is_empty(),
        "spec.method.lora.targets",
        "no target",
        "leave it out for the official four",
    );
    found.refuse(
        has_repetition(&lora.targets),
        "spec.method.lora.targets",
        "a target is named twice",
        "name each once",
    );
}

fn optimizer(spec: &JobSpec, found: &mut Found) {
    let optimizer = &spec.optimizer;
    let path = |name: &str| format!("spec.optimizer.{name}");
    found.refuse(
        !is_positive(optimizer.learning_rate),
        &path("learningRate"),
        format!("expected a number above 0, got {}", optimizer.learning_rate),
        "adapters learn with about 1e-4",
    );
    found.refuse(
        !is_positive(optimizer.epsilon),
        &path("epsilon"),
        format!("expected a number above 0, got {}", optimizer.epsilon),
        "the usual value is 1e-8",
    );
    for (name, beta) in [("beta1", optimizer.beta1), ("beta2", optimizer.beta2)] {
        found.refuse(
            !(0.0..1.0).contains(&beta),
            &path(name),
            format!("expected a number from 0 to below 1, got {beta}"),
            "the usual values are 0.9 and 0.95",
        );
    }
    for (name, value) in
        [("weightDecay", optimizer.weight_decay), ("maxGradNorm", optimizer.max_grad_norm)]
    {
        found.refuse(
            !(value.is_finite() && 0.0 <= value),
            &path(name),
            format!("expected a number of 0 or more, got {value}"),
            "0 turns it off",
        );
    }
}

fn schedule(schedule: &Schedule, path: &str, found: &mut Found) {
    for (name, value) in
        [("warmupRatio", schedule.warmup_ratio), ("finalRatio", schedule.final_ratio)]
    {
        found.refuse(
            !(0.0..=1.0).contains(&value),
            &format!("{path}.{name}"),
            format!("expected a share from 0 to 1, got {value}"),
            "0.01 is one per cent",
        );
    }
}

fn batch(spec: &JobSpec, found: &mut Found) {
    let batch = &spec.batch;
    found.refuse(
        batch.global == 0,
        "spec.batch.global",
        "a step of 0 samples",
        "use 16, for example",
    );
    found.refuse(
        batch.unit == 0,
        "spec.batch.unit",
        "a unit of 0 samples",
        "use 1 if memory is scarce",
    );
    if batch.global == 0 || batch.unit == 0 {
        return;
    }
    let (global, unit, gpus) = (batch.global, batch.unit, spec.world.gpus);
    found.refuse(
        !global.is_multiple_of(unit),
        "spec.batch.unit",
        format!("units of {unit} samples do not make a batch of {global}"),
        "`unit` must divide `global`",
    );
    let units = global / unit;
    found.refuse(
        gpus == 0,
        "spec.world.gpus",
        "no rank",
        "a job on CPUs counts processes: use 1 or more",
    );
    found.refuse(
        global.is_multiple_of(unit) && units < gpus,
        "spec.world.gpus",
        format!("{gpus} ranks share {units} units of {unit} samples, so some have nothing to do"),
        "use fewer ranks, a larger batch.global or a smaller batch.unit",
    );
}

fn stages(spec: &JobSpec, found: &mut Found) {
    found.refuse(
        spec.stages.is_empty(),
        "spec.stages",
        "no stage",
        "add `- {name: main, epochs: 3}`",
    );
    for (i, stage) in spec.stages.iter().enumerate() {
        let path = format!("spec.stages[{i}]");
        length(stage, &path, found);
        let sets: Vec<&str> = spec.data.train.iter().map(|set| set.name.as_str()).collect();
        for (k, name) in stage.sets.iter().flatten().enumerate() {
            found.refuse(
                !sets.contains(&name.as_str()),
                &format!("{path}.sets[{k}]"),
                format!("no training set is named `{name}`"),
                &known(sets.iter().copied(), "spec.data.train"),
            );
        }
        found.refuse(
            stage.sets.as_ref().is_some_and(Vec::is_empty),
            &format!("{path}.sets"),
            "no set",
            "leave it out to train on all sets",
        );
        if let Some(rate) = stage.learning_rate {
            found.refuse(
                !is_positive(rate),
                &format!("{path}.learningRate"),
                format!("expected a number above 0, got {rate}"),
                "leave it out for the optimizer's",
            );
        }
        if let Some(own) = &stage.schedule {
            schedule(own, &format!("{path}.schedule"), found);
        }
    }
}

fn length(stage: &Stage, path: &str, found: &mut Found) {
    match (stage.epochs, stage.steps) {
        (None, None) => {
            found.refuse(true, path, "neither epochs nor steps", "give one of them");
        }
        (Some(_), Some(_)) => found.refuse(true, path, "both epochs and steps", "give one of them"),
        (Some(epochs), None) => found.refuse(
            !is_positive(epochs),
            &format!("{path}.epochs"),
            format!("expected a number above 0, got {epochs}"),
            "0.5 is half a pass over the data",
        ),
        (None, Some(steps)) => found.refuse(
            steps == 0,
            &format!("{path}.steps"),
            "expected 1 step or more, got 0",
            "leave the stage out instead",
        ),
    }
}

fn running(spec: &JobSpec, found: &mut Found) {
    let positive = [
        ("spec.world.peerTimeoutSeconds", u64::from(spec.world.peer_timeout_seconds)),
        ("spec.checkpoint.keep", u64::from(spec.checkpoint.keep)),
        ("spec.evaluation.maxNewTokens", u64::from(spec.evaluation.max_new_tokens)),
        ("spec.failure.startupSeconds", u64::from(spec.failure.startup_seconds)),
    ];
    for (path, value) in positive {
        found.refuse(value == 0, path, "expected 1 or more, got 0", "leave it out for the default");
    }
    let multiplier = spec.failure.stall_multiplier;
    found.refuse(
        !(multiplier.is_finite() && 1.0 < multiplier),
        "spec.failure.stallMultiplier",
        format!("expected a number above 1, got {multiplier}"),
        "a usual step would count as a stall; the default is 10",
    );
}

fn known<'a>(names: impl Iterator<Item = &'a str>, list: &str) -> String {
    let names: Vec<&str> = names.collect();
    if names.is_empty() {
        format!("{list} is empty")
    } else {
        format!("known: {}", names.join(", "))
    }
}

fn is_positive(value: f64) -> bool {
    value.is_finite() && 0.0 < value
}

fn has_repetition<T: PartialEq>(items: &[T]) -> bool {
    items.iter().enumerate().any(|(i, item)| items[..i].contains(item))
}

fn is_dns_label(name: &str) -> bool {
    let letters = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    letters && name.starts_with(|c: char| c.is_ascii_lowercase()) && !name.ends_with('-')
}

#[cfg(test)]
mod tests;
