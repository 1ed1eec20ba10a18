use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use candle_core::{DType, Device, Tensor};

use super::*;
use crate::wire::TrainerExit;

fn identity() -> Identity {
    Identity { job: "job-hash".to_owned(), base: "base-hash".to_owned() }
}

fn state(step: u64) -> State {
    State { step, stage_step: step, optimizer_step: step, seed: 42, ..State::default() }
}

type Weights = Vec<(String, Tensor)>;
type Moments = Vec<(String, Tensor, Tensor)>;

/// Tensors that tell the step at which they were saved; `rows` × 256 numbers each.
fn tensors(step: u64, rows: usize) -> (Weights, Moments) {
    let tensor = |value: u64| {
        Tensor::full(u32::try_from(value).unwrap(), (rows, 256), &Device::Cpu)
            .and_then(|tensor| tensor.to_dtype(DType::F32))
            .unwrap()
    };
    let weights = vec![("b".to_owned(), tensor(step)), ("a".to_owned(), tensor(step + 1))];
    let moments = vec![
        ("b".to_owned(), tensor(step + 2), tensor(step + 3)),
        ("a".to_owned(), tensor(step + 4), tensor(step + 5)),
    ];
    (weights, moments)
}

fn save(store: &Store, step: u64, score: Option<f64>) -> Result<Saved, CheckpointError> {
    let (weights, moments) = tensors(step, 16);
    store.save(&state(step), &weights, &moments, score)
}

#[track_caller]
fn check_loaded(loaded: &Loaded, step: u64) {
    let value = |tensor: &Tensor| {
        let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(values.iter().all(|value| value.to_bits() == values[0].to_bits()));
        f64::from(values[0])
    };
    let mut found: Vec<(&str, f64)> =
        loaded.weights.iter().map(|(name, tensor)| (name.as_str(), value(tensor))).collect();
    for (name, mean, square) in &loaded.moments {
        found.extend([(name.as_str(), value(mean)), (name.as_str(), value(square))]);
    }
    let names = ["b", "a", "b", "b", "a", "a"];
    let expected: Vec<_> = names.into_iter().zip(step..).map(|(n, v)| (n, v as f64)).collect();
    assert_eq!(found, expected);
    assert_eq!(loaded.state, state(step));
}

fn latest(output: &Path) -> Result<Found, CheckpointError> {
    load_latest(output, &identity(), &Device::Cpu)
}

/// What is in the folder of the checkpoints.
fn names(output: &Path) -> Vec<String> {
    let entries = fs::read_dir(output.join("checkpoints")).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn pointer(output: &Path, name: &str) -> String {
    fs::read_to_string(output.join("checkpoints").join(name)).unwrap()
}

#[test]
fn a_checkpoint_reads_back_to_the_bit() {
    let output = tempfile::tempdir().unwrap();
    assert!(latest(output.path()).unwrap().checkpoint.is_none());
    let store = Store::open(output.path(), 0, identity(), 3).unwrap();
    assert!(latest(output.path()).unwrap().checkpoint.is_none());

    let odd = [f32::MIN_POSITIVE / 3.0, -0.0, f32::INFINITY, f32::from_bits(0x7fc0_0123), 1e-30];
    let tensor = Tensor::from_slice(&odd, (5,), &Device::Cpu).unwrap();
    let turned = Tensor::arange(0f32, 6.0, &Device::Cpu).unwrap().reshape((2, 3)).unwrap();
    let weights = vec![
        ("odd".to_owned(), tensor.clone()),
        ("scalar".to_owned(), Tensor::new(2.5f32, &Device::Cpu).unwrap()),
        ("empty".to_owned(), Tensor::zeros((0, 7), DType::F32, &Device::Cpu).unwrap()),
        ("turned".to_owned(), turned.t().unwrap()),
    ];
    let moments = vec![("odd".to_owned(), tensor.clone(), tensor)];
    let saved = store.save(&state(7), &weights, &moments, None).unwrap();
    let loaded = load(&saved.path, &identity(), &Device::Cpu).unwrap();

    assert_eq!(loaded.state, state(7));
    let form = |list: &Weights| -> Vec<_> {
        let bits = |tensor: &Tensor| -> Vec<u32> {
            let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            values.iter().map(|value| value.to_bits()).collect()
        };
        list.iter().map(|(name, t)| (name.clone(), t.dims().to_vec(), bits(t))).collect()
    };
    assert_eq!(form(&loaded.weights), form(&weights));
    assert_eq!(loaded.moments.len(), 1);
    let size = |name: &str| fs::metadata(saved.path.join(name)).unwrap().len();
    let files = ["manifest.json", "optimizer.safetensors", "state.json", "weights.safetensors"];
    assert_eq!(saved.bytes, files.iter().map(|name| size(name)).sum::<u64>());

    // Any other reader of safetensors understands the files too.
    let bytes = fs::read(saved.path.join("weights.safetensors")).unwrap();
    let other = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(other.tensor("turned").unwrap().shape(), [3, 2]);
    let bytes = fs::read(saved.path.join("optimizer.safetensors")).unwrap();
    let mut keys: Vec<_> = safetensors::SafeTensors::deserialize(&bytes)
        .unwrap()
        .names()
        .into_iter()
        .map(str::to_owned)
        .collect();
    keys.sort();
    assert_eq!(keys, ["odd.exp_avg", "odd.exp_avg_sq"]);
}

#[test]
fn the_newest_and_the_best_are_kept() {
    let output = tempfile::tempdir().unwrap();
    let store = Store::open(output.path(), 1, identity(), 2).unwrap();
    let scores = [(10, Some(0.5)), (20, Some(0.9)), (30, Some(f64::NAN)), (40, None)];
    let best: Vec<_> =
        scores.iter().map(|&(step, score)| save(&store, step, score).unwrap().best).collect();
    assert_eq!(best, [true, true, false, false]);
    let saved = save(&store, 50, Some(0.7)).unwrap();
    assert!(!saved.best);
    assert_eq!(saved.removed, [output.path().join("checkpoints/step-00000030")]);
    assert_eq!(
        names(output.path()),
        ["attempt", "best", "latest", "lock", "step-00000020", "step-00000040", "step-00000050"]
    );
    assert_eq!(pointer(output.path(), "latest"), "step-00000050\n");
    assert_eq!(pointer(output.path(), "best"), "step-00000020\n");
    // The same step again, as after a fall-back, replaces the folder.
    let again = save(&store, 50, Some(1.0)).unwrap();
    assert!(again.best);
    check_loaded(&load(&again.path, &identity(), &Device::Cpu).unwrap(), 50);
    assert_eq!(
        names(output.path()).len(),
        6,
        "the former best is gone: {:?}",
        names(output.path())
    );
}

#[test]
fn a_later_attempt_is_newer_even_at_an_earlier_step() {
    let output = tempfile::tempdir().unwrap();
    let first = Store::open(output.path(), 1, identity(), 3).unwrap();
    save(&first, 10, None).unwrap();
    save(&first, 20, None).unwrap();
    let second = Store::open(output.path(), 2, identity(), 3).unwrap();
    save(&second, 15, None).unwrap();
    check_loaded(&latest(output.path()).unwrap().checkpoint.unwrap(), 15);
}

/// Damages one file of the newest of two checkpoints.
#[track_caller]
fn check_damage(file: &str, expected: &str, damage: impl Fn(&Path)) {
    let output = tempfile::tempdir().unwrap();
    let store = Store::open(output.path(), 1, identity(), 3).unwrap();
    save(&store, 10, None).unwrap();
    let saved = save(&store, 20, None).unwrap();
    damage(&saved.path.join(file));
    let found = latest(output.path()).unwrap();
    check_loaded(&found.checkpoint.unwrap(), 10);
    let [warning] = &found.warnings[..] else { panic!("{:?}", found.warnings) };
    let path = saved.path.join(file);
    assert!(warning.starts_with(&format!("skipped: {}", path.display())), "{warning}");
    assert!(warning.contains(expected), "{warning}");
    let error = load(&saved.path, &identity(), &Device::Cpu).unwrap_err();
    assert_eq!(format!("skipped: {error}"), *warning);
    assert_eq!(error.exit(), TrainerExit::CheckpointIo);
    // The next save does not stumble over it.
    save(&store, 20, None).unwrap();
    check_loaded(&latest(output.path()).unwrap().checkpoint.unwrap(), 20);
}

#[test]
fn damage_of_the_newest_leads_to_the_one_before() {
    let truncate = |path: &Path| {
        let file = fs::File::options().write(true).open(path).unwrap();
        file.set_len(file.metadata().unwrap().len() - 1).unwrap();
    };
    let flip = |at: fn(usize) -> usize| {
        move |path: &Path| {
            let mut bytes = fs::read(path).unwrap();
            let at = at(bytes.len());
            bytes[at] ^= 4;
            fs::write(path, bytes).unwrap();
        }
    };
    let delete = |path: &Path| fs::remove_file(path).unwrap();
    for file in ["weights.safetensors", "optimizer.safetensors", "state.json"] {
        check_damage(file, "bytes, expected", truncate);
        check_damage(file, "its SHA-256 is", flip(|length| length - 2));
        check_damage(file, "is missing", delete);
    }
    check_damage("weights.safetensors", "its header is longer than the file", flip(|_| 5));
    check_damage("optimizer.safetensors", "its header is not valid", flip(|_| 8));
    check_damage("manifest.json", "it is not a manifest", truncate_to_half);
    check_damage("manifest.json", "it is not a manifest", flip(|_| 0));
    check_damage("manifest.json", "is missing", delete);
    check_damage("manifest.json", "it does not list", |path| {
        let text = fs::read_to_string(path).unwrap();
        fs::write(path, text.replace("weights.safetensors", "elsewhere.safetensors")).unwrap();
    });
}

fn truncate_to_half(path: &Path) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
}

#[test]
fn without_an_intact_checkpoint_nothing_starts_over_silently() {
    let output = tempfile::tempdir().unwrap();
    let store = Store::open(output.path(), 1, identity(), 3).unwrap();
    let saved = save(&store, 10, None).unwrap();
    fs::remove_file(saved.path.join("state.json")).unwrap();
    let error = latest(output.path()).unwrap_err();
    assert!(matches!(&error, CheckpointError::NoneUsable { .. }), "{error}");
    assert!(error.to_string().contains("state.json is missing"), "{error}");
    let missing = output.path().join("checkpoints/step-00000099");
    let error = load(&missing, &identity(), &Device::Cpu).unwrap_err();
    assert!(matches!(error, CheckpointError::Missing { .. }), "{error}");
}

#[test]
fn a_checkpoint_of_another_base_or_job_is_refused() {
    let output = tempfile::tempdir().unwrap();
    let store = Store::open(output.path(), 1, identity(), 3).unwrap();
    let path = save(&store, 10, None).unwrap().path;
    let other = Identity { base: "other".to_owned(), ..identity() };
    let error = load_latest(output.path(), &other, &Device::Cpu).unwrap_err();
    let expected =
        format!("{} was saved for another base model: base-hash, expected other", path.display());
    assert_eq!(error.to_string(), expected);
    assert_eq!(error.exit(), TrainerExit::Config);
    let other = Identity { job: "other".to_owned(), ..identity() };
    let error = load(&path, &other, &Device::Cpu).unwrap_err();
    assert!(error.to_string().contains("another job"), "{error}");
}

#[test]
fn wrong_tensors_are_refused_and_leave_nothing() {
    let output = tempfile::tempdir().unwrap();
    let store = Store::open(output.path(), 1, identity(), 3).unwrap();
    let tensor = Tensor::zeros((2,), DType::F32, &Device::Cpu).unwrap();
    let twice = vec![("a".to_owned(), tensor.clone()), ("a".to_owned(), tensor)];
    let error = store.save(&state(1), &twice, &[], None).unwrap_err();
    assert_eq!(error.to_string(), "two tensors are named `a`");
    let half = Tensor::zeros((2,), DType::BF16, &Device::Cpu).unwrap();
    let error = store.save(&state(1), &[("h".to_owned(), half)], &[], None).unwrap_err();
    assert_eq!(error.to_string(), "failed to save or load tensor `h`");
    assert_eq!(names(output.path()), ["attempt", "lock"]);
}

#[test]
fn too_little_space_is_known_before_anything_is_written() {
    let path = Path::new("somewhere");
    let error = disk::check_space(path, 1000, Some(999)).unwrap_err();
    assert_eq!(error.to_string(), "no space to write somewhere: 1000 bytes needed, 999 bytes free");
    disk::check_space(path, 1000, Some(1000)).unwrap();
    disk::check_space(path, 1000, None).unwrap();
}

// --- processes -------------------------------------------------------------------------------

const CHILD: &str = "QVL_TEST_CHECKPOINT_CHILD";

/// A command that runs this test binary with only the test `name`, as a child of it.
fn child_of(name: &str, output: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([&format!("train::checkpoint::tests::{name}"), "--exact", "--nocapture"])
        .env(CHILD, output)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    command
}

fn child() -> Option<std::path::PathBuf> {
    std::env::var_os(CHILD).map(Into::into)
}

fn say(what: &dyn std::fmt::Display) {
    println!("\nchild: {what}");
    std::io::stdout().flush().unwrap();
}

/// The next thing that the child said; `None` when it has ended.
fn hear(lines: &mut impl BufRead) -> Option<String> {
    let mut line = String::new();
    while lines.read_line(&mut line).unwrap() > 0 {
        if let Some(said) = line.strip_prefix("child: ") {
            return Some(said.trim_end().to_owned());
        }
        line.clear();
    }
    None
}

fn lines(child: &mut Child) -> impl BufRead + use<> {
    BufReader::new(child.stdout.take().unwrap())
}

#[test]
fn an_older_attempt_cannot_write_any_more() {
    const NAME: &str = "an_older_attempt_cannot_write_any_more";
    if let Some(output) = child() {
        let store = Store::open(&output, 1, identity(), 3).unwrap();
        save(&store, 10, None).unwrap();
        say(&"saved");
        std::io::stdin().read_exact(&mut [0]).unwrap();
        say(&save(&store, 20, None).unwrap_err());
        return say(&Store::open(&output, 1, identity(), 3).unwrap_err());
    }
    let output = tempfile::tempdir().unwrap();
    let mut zombie = child_of(NAME, output.path()).spawn().unwrap();
    let mut said = lines(&mut zombie);
    assert_eq!(hear(&mut said).as_deref(), Some("saved"));
    let store = Store::open(output.path(), 2, identity(), 3).unwrap();
    save(&store, 20, None).unwrap();
    zombie.stdin.take().unwrap().write_all(b"x").unwrap();
    let folder = output.path().join("checkpoints");
    let expected =
        format!("attempt 1 may not write to {}: attempt 2 has taken over", folder.display());
    assert_eq!(hear(&mut said), Some(expected.clone()));
    assert_eq!(hear(&mut said), Some(expected));
    zombie.wait().unwrap();
    let loaded = latest(output.path()).unwrap().checkpoint.unwrap();
    check_loaded(&loaded, 20);
    assert_eq!(loaded.manifest.attempt, 2);
    assert!(!names(output.path()).iter().any(|name| name.starts_with('.')));
}

#[test]
fn an_attempt_that_is_fenced_while_it_writes_leaves_nothing() {
    let output = tempfile::tempdir().unwrap();
    let old = Store::open(output.path(), 1, identity(), 3).unwrap();
    let folder = output.path().join("checkpoints");
    // The new attempt starts after the old one has begun to write its files.
    fs::create_dir(folder.join(".saving-step-00000010.1.99")).unwrap();
    let new = Store::open(output.path(), 2, identity(), 3).unwrap();
    assert_eq!(names(output.path()), ["attempt", "lock"]);
    let error = save(&old, 10, None).unwrap_err();
    assert!(matches!(error, CheckpointError::Fenced { own: 1, newer: 2, .. }), "{error}");
    assert_eq!(names(output.path()), ["attempt", "lock"]);
    save(&new, 10, None).unwrap();
}

#[test]
fn a_full_disk_leaves_the_checkpoints_that_were_there() {
    const NAME: &str = "a_full_disk_leaves_the_checkpoints_that_were_there";
    if let Some(output) = child() {
        let store = Store::open(&output, 1, identity(), 3).unwrap();
        save(&store, 10, None).unwrap();
        let (weights, moments) = tensors(20, 1000);
        return say(&store.save(&state(20), &weights, &moments, None).unwrap_err());
    }
    let output = tempfile::tempdir().unwrap();
    // A limit on the size of files stands for the full disk: the write fails half-way.
    let mut limited = Command::new("bash");
    let inner = child_of(NAME, output.path());
    limited.args(["-c", "trap '' XFSZ; ulimit -f 500; exec \"$@\"", "bash"]);
    limited.arg(inner.get_program()).args(inner.get_args()).env(CHILD, output.path());
    limited.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = limited.spawn().unwrap();
    let said = hear(&mut lines(&mut child)).unwrap();
    child.wait().unwrap();
    let folder = output.path().join("checkpoints");
    let begin = format!("no space to write {}/.saving-step-00000020.1.", folder.display());
    assert!(said.starts_with(&begin), "{said}");
    let needed = 6 * 1000 * 256 * 4 + (1 << 16);
    assert!(said.contains(&format!("weights.safetensors: {needed} bytes needed, ")), "{said}");
    assert_eq!(names(output.path()), ["attempt", "latest", "lock", "step-00000010"]);
    check_loaded(&latest(output.path()).unwrap().checkpoint.unwrap(), 10);
}

/// Saves one checkpoint after another until it is killed.
fn save_for_ever(output: &Path) {
    let found = latest(output).unwrap();
    let (attempt, mut step) =
        found.checkpoint.map_or((1, 0), |loaded| (loaded.manifest.attempt + 1, loaded.state.step));
    let store = Store::open(output, attempt, identity(), 2).unwrap();
    assert!(!names(output).iter().any(|name| name.starts_with('.')), "debris");
    loop {
        step += 1;
        let (weights, moments) = tensors(step, 64);
        let score = step.is_multiple_of(3).then_some(step as f64);
        store.save(&state(step), &weights, &moments, score).unwrap();
        say(&step);
    }
}

#[test]
fn two_hundred_kills_while_saving_lose_nothing() {
    const NAME: &str = "two_hundred_kills_while_saving_lose_nothing";
    if let Some(output) = child() {
        return save_for_ever(&output);
    }
    let output = tempfile::tempdir().unwrap();
    let (mut random, mut acknowledged, mut interrupted) = (0x2545_f491_4f6c_dd1d_u64, 0, 0);
    for _kill in 0..200 {
        let mut child = child_of(NAME, output.path()).spawn().unwrap();
        let mut said = lines(&mut child);
        acknowledged = hear(&mut said).expect("the child saves").parse().unwrap();
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        std::thread::sleep(Duration::from_micros(random % 15_000));
        child.kill().unwrap();
        child.wait().unwrap();
        while let Some(step) = hear(&mut said) {
            acknowledged = step.parse().unwrap();
        }
        interrupted += usize::from(names(output.path()).iter().any(|name| name.starts_with('.')));
        let found = latest(output.path()).unwrap();
        assert_eq!(found.warnings, [] as [&str; 0], "a half checkpoint has a name");
        let loaded = found.checkpoint.unwrap();
        let step = loaded.state.step;
        // What was acknowledged is there; one more may have been completed before the kill.
        assert!((acknowledged..=acknowledged + 1).contains(&step), "{step} of {acknowledged}");
        check_loaded(&loaded, step);
        for name in ["latest", "best"] {
            let pointer = output.path().join("checkpoints").join(name);
            if let Ok(target) = fs::read_to_string(pointer) {
                assert!(names(output.path()).contains(&target.trim_end().to_owned()), "{target}");
            }
        }
    }
    assert!(acknowledged > 200, "the run went on from every checkpoint: {acknowledged}");
    assert!(interrupted > 20, "only {interrupted} kills hit a save");
}
