//! A shell script that starts a training, as far as it is plain: assignments and one command.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use super::files;
use crate::facts::{CodeMark, DeepSpeedConfig, LaunchScript, Launcher};

/// Value of something that the shell would have to run.
const COMPUTED: &str = "auto";
/// Training sets up to this size are counted.
const COUNTED: u64 = 16 << 20;

/// Reads a script and the files that it names.
pub(super) fn read(path: &Path) -> Result<LaunchScript, String> {
    let text = files::text(path).map_err(|error| error.to_string())?;
    let (launcher, words) = command(&text)
        .ok_or("no line of it starts torchrun, deepspeed, accelerate or python with a .py file")?;
    let at = words.iter().position(|word| is_program(word)).ok_or("it names no .py file")?;
    let options = pairs(&words[at + 1..]);
    let folder = path.parent().unwrap_or(Path::new("."));
    // A script is started in its own folder or in the one above.
    let find = |name: &str| {
        let near = [folder.join(name), folder.join("..").join(name)];
        near.into_iter().find(|path| path.is_file())
    };
    let program = find(&words[at]).and_then(|path| files::text(&path).ok());
    let config = options.get("deepspeed").and_then(|name| find(name));
    let config = config.and_then(|path| files::text(&path).ok());
    let data = options.get("data_path").and_then(|name| find(name));
    Ok(LaunchScript {
        path: path.display().to_string(),
        launcher,
        launcher_options: pairs(&words[1..at]),
        deepspeed: match (options.contains_key("deepspeed"), config) {
            (false, _) => None,
            (true, Some(text)) => Some(deepspeed(&text)?),
            (true, None) => {
                let name = &options["deepspeed"];
                return Err(format!("the DeepSpeed file `{name}` is not beside it"));
            }
        },
        options,
        program: program.map(|text| marks(&text)).unwrap_or_default(),
        samples: data.and_then(|path| samples(&path)),
    })
}

/// The command that starts the ranks, with variables replaced.
fn command(text: &str) -> Option<(Launcher, Vec<String>)> {
    let mut variables: BTreeMap<String, String> = BTreeMap::new();
    let mut found = None;
    for statement in statements(text) {
        let mut words = statement.into_iter().skip_while(|word| word == "export").peekable();
        while let Some((name, value)) = words.peek().and_then(|word| assignment(word)) {
            let value = resolve(value, &variables);
            variables.insert(name.to_owned(), value);
            words.next();
        }
        let words: Vec<String> = words
            .flat_map(|word| {
                let word = resolve(&word, &variables);
                word.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
            })
            .collect();
        let Some(first) = words.first() else { continue };
        let launcher = match first.rsplit('/').next().unwrap_or_default() {
            "torchrun" => Launcher::Torchrun,
            "deepspeed" => Launcher::DeepSpeed,
            "accelerate" => Launcher::Accelerate,
            "python" | "python3" => {
                let distributed = words.iter().any(|word| word.contains("torch.distributed"));
                if distributed { Launcher::Torchrun } else { Launcher::Python }
            }
            _ => continue,
        };
        if words.iter().any(|word| is_program(word)) {
            found = Some((launcher, words));
        }
    }
    found
}

fn is_program(word: &str) -> bool {
    Path::new(word).extension().is_some_and(|extension| extension == "py")
}

fn assignment(word: &str) -> Option<(&str, &str)> {
    let (name, value) = word.split_once('=')?;
    let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    is_name.then_some((name, value))
}

/// Statements of words: quotes join, a backslash at a line's end continues, `#` begins a comment.
fn statements(text: &str) -> Vec<Vec<String>> {
    let text = text.replace("\\\n", " ");
    let mut statements = vec![Vec::new()];
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (Some(_), _) => word.get_or_insert_default().push(c),
            (None, '"' | '\'' | '`') => {
                word.get_or_insert_default();
                if c == '`' {
                    word.get_or_insert_default().push(c);
                }
                quote = Some(c);
            }
            (None, '$') if chars.peek() == Some(&'(') => {
                // What a command would print is not known.
                let mut depth = 0;
                for inner in chars.by_ref() {
                    depth += i32::from(inner == '(') - i32::from(inner == ')');
                    if depth == 0 {
                        break;
                    }
                }
                word.get_or_insert_default().push_str(COMPUTED);
            }
            (None, '#') if word.is_none() => while chars.next_if(|next| *next != '\n').is_some() {},
            (None, '\n' | ';' | '&' | '|') => {
                end(&mut statements, &mut word);
                statements.push(Vec::new());
            }
            (None, _) if c.is_whitespace() => end(&mut statements, &mut word),
            (None, _) => word.get_or_insert_default().push(c),
        }
    }
    end(&mut statements, &mut word);
    statements.retain(|words| !words.is_empty());
    statements
}

fn end(statements: &mut [Vec<String>], word: &mut Option<String>) {
    if let (Some(last), Some(word)) = (statements.last_mut(), word.take()) {
        last.push(word);
    }
}

/// Replaces `$NAME`, `${NAME}` and `${NAME:-default}`; a name that is not set is empty.
fn resolve(text: &str, variables: &BTreeMap<String, String>) -> String {
    if text.starts_with('`') {
        return COMPUTED.to_owned();
    }
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out += before;
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let braces = after.strip_prefix('{').and_then(|rest| rest.split_once('}'));
        let (name, default, behind) = if let Some((inner, behind)) = braces {
            let (name, default) = inner.split_once(":-").unwrap_or((inner, ""));
            (name, default, behind)
        } else {
            let end = after.find(|c| !is_name(c)).unwrap_or(after.len());
            (&after[..end], "", &after[end..])
        };
        out += variables.get(name).map_or(default, String::as_str);
        rest = behind;
    }
    out + rest
}

/// `--name value`, `--name=value` and `--flag` by name without dashes.
fn pairs(words: &[String]) -> BTreeMap<String, String> {
    let mut pairs = BTreeMap::new();
    let mut words = words.iter().peekable();
    while let Some(word) = words.next() {
        let Some(name) = word.strip_prefix("--") else { continue };
        let (name, value) = if let Some((name, value)) = name.split_once('=') {
            (name, value.to_owned())
        } else {
            let value = words.next_if(|next| !next.starts_with("--"));
            (name, value.cloned().unwrap_or_else(|| "True".to_owned()))
        };
        pairs.insert(name.replace('-', "_"), value);
    }
    pairs
}

fn deepspeed(text: &str) -> Result<DeepSpeedConfig, String> {
    let json: serde_json::Value =
        serde_json::from_str(text).map_err(|error| format!("the DeepSpeed file: {error}"))?;
    let at = |pointer: &str| json.pointer(pointer);
    let on = |pointer: &str| at(pointer).and_then(serde_json::Value::as_bool) == Some(true);
    let cpu = |pointer: &str| at(pointer).and_then(serde_json::Value::as_str) == Some("cpu");
    let stage = at("/zero_optimization/stage").and_then(serde_json::Value::as_u64).unwrap_or(0);
    Ok(DeepSpeedConfig {
        zero_stage: u32::try_from(stage).unwrap_or(u32::MAX),
        fp16: on("/fp16/enabled"),
        bf16: on("/bf16/enabled"),
        offload: cpu("/zero_optimization/offload_optimizer/device")
            || cpu("/zero_optimization/offload_param/device"),
    })
}

/// What stands in a training program, comments left out.
fn marks(text: &str) -> BTreeSet<CodeMark> {
    let code: Vec<&str> = text.lines().map(|line| line.split('#').next().unwrap_or("")).collect();
    let has = |needles: &[&str]| code.iter().any(|line| needles.iter().any(|n| line.contains(n)));
    let mut found = BTreeSet::new();
    let mut mark = |mark, needles: &[&str]| {
        if has(needles) {
            found.insert(mark);
        }
    };
    mark(CodeMark::DeviceMapAuto, &["device_map=\"auto\"", "device_map='auto'"]);
    mark(CodeMark::DataParallel, &["nn.DataParallel(", " DataParallel("]);
    mark(CodeMark::DataLoader, &["DataLoader("]);
    mark(
        CodeMark::ShardedSampler,
        &["DistributedSampler", "Trainer(", "accelerator.prepare", "split_dataset_by_node"],
    );
    mark(CodeMark::Saves, &["torch.save(", "save_pretrained(", "save_model("]);
    mark(
        CodeMark::AsksForRank,
        &["local_rank", "get_rank(", "is_main_process", "should_save", "is_world_process_zero"],
    );
    found
}

/// Samples of a JSON list, or lines of a `.jsonl` file; `None` if it is large or no list.
fn samples(path: &Path) -> Option<u64> {
    if COUNTED < path.metadata().ok()?.len() {
        return None;
    }
    let text = files::text(path).ok()?;
    if path.extension().is_some_and(|extension| extension == "jsonl") {
        return Some(text.lines().filter(|line| !line.trim().is_empty()).count() as u64);
    }
    let list: Vec<serde::de::IgnoredAny> = serde_json::from_str(&text).ok()?;
    Some(list.len() as u64)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    const SCRIPT: &str = r#"#!/bin/bash
export CUDA_DEVICE_MAX_CONNECTIONS=1
DIR=`pwd`
GPUS_PER_NODE=$(python -c 'import torch; print(torch.cuda.device_count())')
NNODES=1
MASTER_PORT=${MASTER_PORT:-6001}
MODEL="base model" # a comment
DATA="train.json"
DISTRIBUTED_ARGS="
    --nproc_per_node $GPUS_PER_NODE \
    --nnodes $NNODES \
    --master_port $MASTER_PORT
"
torchrun $DISTRIBUTED_ARGS finetune.py \
    --model_name_or_path "$MODEL" \
    --data_path $DATA \
    --bf16 True \
    --gradient_checkpointing \
    --deepspeed ds.json
"#;

    #[test]
    fn a_script_like_the_official_ones_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("run.sh", SCRIPT);
        write("finetune.py", "trainer = Trainer(a)\n# device_map=\"auto\"\nx.save_pretrained(o)\n");
        write("ds.json", r#"{"zero_optimization": {"stage": 3}, "bf16": {"enabled": "auto"}}"#);
        write("train.json", r#"[{"a": 1}, {"a": [2]}]"#);
        let script = read(&folder.path().join("run.sh")).unwrap();
        assert_eq!(script.launcher, Launcher::Torchrun);
        assert_eq!(script.launcher_options["nproc_per_node"], "auto");
        assert_eq!(script.launcher_options["master_port"], "6001");
        assert_eq!(script.options["gradient_checkpointing"], "True");
        assert_eq!(script.options["bf16"], "True");
        assert_eq!(script.deepspeed.unwrap().zero_stage, 3);
        let marks: Vec<CodeMark> = script.program.into_iter().collect();
        assert_eq!(marks, [CodeMark::ShardedSampler, CodeMark::Saves]);
        assert_eq!(script.samples, Some(2));
    }

    #[test]
    fn a_script_that_starts_nothing_says_so() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "echo hello\n").unwrap();
        assert!(read(file.path()).unwrap_err().contains("no line of it starts"));
    }

    #[test]
    fn plain_python_is_no_launcher() {
        let (launcher, words) = command("CUDA_VISIBLE_DEVICES=0 python a.py --x 1").unwrap();
        assert_eq!((launcher, words.len()), (Launcher::Python, 4));
        let (launcher, _) = command("python -m torch.distributed.run a.py").unwrap();
        assert_eq!(launcher, Launcher::Torchrun);
    }

    proptest! {
        #[test]
        fn hostile_scripts_end(text in "[ -~\n$({`'\"\\\\#=})]{0,200}") {
            let _ended = command(&text);
        }
    }
}
