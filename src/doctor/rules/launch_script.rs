//! The official stack's launch script: `quantised-zero3`, `rank-env-missing`,
//! `launcher-count-mismatch`, `script-dtype-unsupported`, `nccl-timeout-low`,
//! `unused-parameters`, `save-never-fires`, `embedding-trained`.

use std::collections::BTreeMap;

use crate::{
    doctor::{
        Applies, Area, Check, Demand, Evidence, Judgement, Outcome, Rule, Severity, Stack, Stop,
        gpus::{GpuVerdict, Texts, each_gpu},
    },
    facts::{LaunchScript, Launcher, NodeFacts},
};

pub(super) static QUANTISED_ZERO3: Rule = Rule {
    id: "quantised-zero3",
    summary: "a quantised base is not split by ZeRO-3",
    area: Area::Ranks,
    severity: Severity::Block,
    applies: Applies::Always,
    source: "QwenLM/Qwen-VL README (Q-LoRA and DeepSpeed ZeRO-3)",
    docs: "ZeRO-3 splits the weights over the ranks, and packed 4-bit weights cannot be split. \
           The official README says so; the script fails after the model was loaded.",
    reads: "--q_lora of the launch script, zero_optimization.stage of the DeepSpeed file",
    fix: "use ds_config_zero2.json with Q-LoRA",
    check: Check::Node(zero3),
};

pub(super) static RANK_ENV_MISSING: Rule = Rule {
    id: "rank-env-missing",
    summary: "the script starts one process for each GPU",
    area: Area::Ranks,
    severity: Severity::Block,
    applies: Applies::GpuGroup,
    source: "https://pytorch.org/docs/stable/elastic/run.html; finetune_qlora_single_gpu.sh",
    docs: "Plain `python finetune.py` is one process. With several GPUs the Trainer falls back to \
           DataParallel, and DeepSpeed waits for variables that only a launcher sets.",
    reads: "the command of the launch script",
    fix: "start it with torchrun --nproc_per_node <GPUs>",
    check: Check::Node(plain_python),
};

pub(super) static LAUNCHER_COUNT_MISMATCH: Rule = Rule {
    id: "launcher-count-mismatch",
    summary: "the launcher starts as many processes as there are GPUs",
    area: Area::Ranks,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "torchrun --nproc_per_node; NVIDIA/nccl#418",
    docs: "More processes than GPUs share one, which NCCL refuses. Fewer leave GPUs idle and \
           change the batch of a step.",
    reads: "--nproc_per_node or --num_gpus of the launch script, nvmlDeviceGetCount_v2",
    fix: "set --nproc_per_node to the number of GPUs",
    check: Check::Node(count),
};

pub(super) static SCRIPT_DTYPE_UNSUPPORTED: Rule = Rule {
    id: "script-dtype-unsupported",
    summary: "the GPUs compute in the number format of the script",
    area: Area::Ranks,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "CUDA programming guide (bf16 from compute capability 8.0); official scripts",
    docs: "The official scripts ask for bf16 without Q-LoRA and for fp16 with it. GPUs before \
           Ampere (V100, T4) have no bf16: the Trainer refuses, or computes very slowly.",
    reads: "--bf16 of the launch script, nvmlDeviceGetCudaComputeCapability",
    fix: "--fp16 True --bf16 False, or GPUs from Ampere on",
    check: Check::Node(dtype),
};

pub(super) static NCCL_TIMEOUT_LOW: Rule = Rule {
    id: "nccl-timeout-low",
    summary: "ranks wait long enough for the slowest to load",
    area: Area::Ranks,
    severity: Severity::Warn,
    applies: Applies::GpuGroup,
    source: "awslabs hyperpod-nccl (nodes x 5 s + 600 s)",
    docs: "The time limit of a collective also runs while a rank still loads the model or makes \
           its data ready. A limit below that ends a healthy job.",
    reads: "--ddp_timeout of the launch script",
    fix: "--ddp_timeout 1800, the default, or more",
    check: Check::Node(timeout),
};

pub(super) static UNUSED_PARAMETERS: Rule = Rule {
    id: "unused-parameters",
    summary: "recomputation and the search for unused parameters do not meet",
    area: Area::Ranks,
    severity: Severity::Block,
    applies: Applies::GpuGroup,
    source: "huggingface/peft#313; huggingface/accelerate#2017",
    docs: "DistributedDataParallel with find_unused_parameters counts each gradient once. With \
           gradient checkpointing a layer is run twice, and training ends with `marked as ready \
           twice`. DeepSpeed has its own way and is not hit. Without the search, batches without \
           pictures leave the visual parameters without a gradient.",
    reads: "--gradient_checkpointing, --ddp_find_unused_parameters, --deepspeed of the script",
    fix: "--ddp_find_unused_parameters False, or DeepSpeed",
    check: Check::Node(unused),
};

pub(super) static SAVE_NEVER_FIRES: Rule = Rule {
    id: "save-never-fires",
    summary: "the script saves before the end",
    area: Area::Ranks,
    severity: Severity::Warn,
    applies: Applies::Always,
    source: "QwenLM/Qwen-VL finetune scripts (--save_steps 1000)",
    docs: "The official scripts save every 1000 steps. On eight GPUs, 5000 samples are 195 steps \
           in five epochs, so nothing is saved until the end, and a crash loses all.",
    reads: "--save_steps, --max_steps, batch options and data of the launch script",
    fix: "--save_steps: a tenth of the steps",
    check: Check::Node(save),
};

pub(super) static EMBEDDING_TRAINED: Rule = Rule {
    id: "embedding-trained",
    summary: "the path of the model does not decide what is trained",
    area: Area::Ranks,
    severity: Severity::Warn,
    applies: Applies::Always,
    source: "QwenLM/Qwen-VL finetune.py (modules_to_save by `chat` in the path)",
    docs: "With LoRA finetune.py also trains the embedding and the output layer, unless the path \
           of the model has `chat` in it: 1.2 billion more parameters, 37 GB instead of 23. A \
           folder that was renamed flips it without a message.",
    reads: "--use_lora, --q_lora, --model_name_or_path of the launch script",
    fix: "keep `chat` in the path for a Chat model, or expect the memory of a base model",
    check: Check::Node(embedding),
};

pub(super) fn script<'n>(node: &'n NodeFacts, demand: &Demand) -> Result<&'n LaunchScript, Stop> {
    if demand.stack != Stack::Official {
        return Err(Stop::skip("the job runs qvl-train (--stack official asks for a script)"));
    }
    let script = node.official.script.get()?.as_ref();
    script.ok_or_else(|| Stop::skip("no launch script was named (--script FILE)"))
}

type Pairs = BTreeMap<String, String>;

fn is_on(options: &Pairs, name: &str) -> bool {
    options.get(name).is_some_and(|value| value.eq_ignore_ascii_case("true"))
}

fn number(options: &Pairs, name: &str) -> Option<u64> {
    options.get(name)?.parse().ok()
}

/// Processes of the launcher on this node; `None` = one for each GPU, or what is not known.
fn processes(script: &LaunchScript) -> Option<u64> {
    if script.launcher == Launcher::Python {
        return Some(1);
    }
    let names = ["nproc_per_node", "num_gpus", "num_processes"];
    names.iter().find_map(|name| number(&script.launcher_options, name))
}

fn zero3(node: &NodeFacts, demand: &Demand) -> Outcome {
    let script = script(node, demand)?;
    let Some(config) = &script.deepspeed else {
        return Err(Stop::skip("the script does not use DeepSpeed"));
    };
    let quantised = is_on(&script.options, "q_lora");
    let text = format!("ZeRO-{}, q_lora {quantised}", config.zero_stage);
    let problem = (quantised && config.zero_stage == 3).then(|| {
        QUANTISED_ZERO3.problem(
            "Q-LoRA with ZeRO-3",
            format!("{} fails after the model was loaded", demand.name()),
            format!("grep -n 'q_lora\\|deepspeed' {}", script.path),
        )
    });
    Judgement::of(&node.official.script, text, "not both", problem)
}

fn plain_python(node: &NodeFacts, demand: &Demand) -> Outcome {
    let script = script(node, demand)?;
    let plain = script.launcher == Launcher::Python;
    let several = demand.ranks.is_none_or(|ranks| 1 < ranks);
    let problem = (plain && several).then(|| {
        RANK_ENV_MISSING.problem(
            "the script starts python without a launcher",
            format!(
                "{} runs as one process, or waits for variables that nobody sets",
                demand.name()
            ),
            format!("grep -n 'python\\|torchrun' {}", script.path),
        )
    });
    Judgement::of(&node.official.script, format!("{:?}", script.launcher), "a launcher", problem)
}

fn count(node: &NodeFacts, demand: &Demand) -> Outcome {
    let script = script(node, demand)?;
    if script.launcher == Launcher::Python {
        return Err(Stop::skip("there is no launcher: see rank-env-missing"));
    }
    let Some(wanted) = processes(script) else {
        return Err(Stop::skip("the launcher starts one process for each GPU"));
    };
    node.nvml.gpus.get()?;
    let visible = super::visible::indices(node).len() as u64;
    let ranks = u64::from(demand.ranks_on(node));
    let problem = (visible < wanted || wanted != ranks).then(|| {
        let problem = LAUNCHER_COUNT_MISMATCH.problem(
            format!(
                "the launcher starts {wanted} processes on {visible} GPUs ({ranks} ranks asked for)"
            ),
            format!("processes of {} share a GPU, or GPUs are idle", demand.name()),
            format!("grep -n nproc_per_node {}; nvidia-smi -L", script.path),
        );
        if visible < wanted { problem } else { problem.at(Severity::Warn) }
    });
    Judgement::of(&node.official.script, wanted, ranks.to_string(), problem)
}

fn dtype(node: &NodeFacts, demand: &Demand) -> Outcome {
    let script = script(node, demand)?;
    let bf16 = is_on(&script.options, "bf16") || script.deepspeed.as_ref().is_some_and(|d| d.bf16);
    if !bf16 {
        return Err(Stop::skip("the script does not ask for bf16"));
    }
    let texts = Texts {
        impact: "the Trainer refuses, or computes very slowly",
        fix: SCRIPT_DTYPE_UNSUPPORTED.fix,
        see: "nvidia-smi --query-gpu=index,compute_cap --format=csv",
    };
    each_gpu(node, demand, texts, |gpu| {
        let fact = &gpu.compute_capability;
        let have = *fact.get()?;
        let evidence = Evidence::of(fact, have, "at least 80");
        if 80 <= have {
            return Ok(GpuVerdict::Fine(evidence));
        }
        let what = format!("is sm_{have}, which has no bf16, and the script asks for it");
        Ok(GpuVerdict::Bad(Severity::Block, what, evidence))
    })
}

fn timeout(node: &NodeFacts, demand: &Demand) -> Outcome {
    let script = script(node, demand)?;
    let Some(seconds) = number(&script.options, "ddp_timeout") else {
        return Err(Stop::skip("the script keeps the default of 1800 s"));
    };
    let wanted = u64::from(demand.nodes) * 5 + 600;
    let problem = (seconds < wanted).then(|| {
        NCCL_TIMEOUT_LOW.problem(
            format!("--ddp_timeout {seconds} ({wanted} wanted for {} nodes)", demand.nodes),
            format!("{} ends while a rank still loads", demand.name()),
            format!("grep -n ddp_timeout {}", script.path),
        )
    });
    Judgement::of(&node.official.script, seconds, format!("at least {wanted}"), problem)
}

fn unused(node: &NodeFacts, demand: &Demand) -> Outcome {
    let script = script(node, demand)?;
    if script.deepspeed.is_some() {
        return Err(Stop::skip("DeepSpeed does not count gradients that way"));
    }
    let recomputes = is_on(&script.options, "gradient_checkpointing");
    let searches = is_on(&script.options, "ddp_find_unused_parameters");
    let text = format!("gradient_checkpointing {recomputes}, find_unused_parameters {searches}");
    let problem = (recomputes && searches).then(|| {
        UNUSED_PARAMETERS.problem(
            "gradient checkpointing with find_unused_parameters",
            format!("{} ends in the first step: `marked as ready twice`", demand.name()),
            format!("grep -n 'checkpointing\\|unused' {}", script.path),
        )
    });
    Judgement::of(&node.official.script, text, "not both", problem)
}

/// Steps that the script will run.
fn steps(script: &LaunchScript, node: &NodeFacts, demand: &Demand) -> Option<u64> {
    if let Some(steps) = number(&script.options, "max_steps").filter(|steps| 0 < *steps) {
        return Some(steps);
    }
    let of = |name, default| number(&script.options, name).unwrap_or(default);
    let batch = of("per_device_train_batch_size", 8) * of("gradient_accumulation_steps", 1);
    let epochs: f64 =
        script.options.get("num_train_epochs").map_or(Some(3.0), |e| e.parse().ok())?;
    let processes = processes(script).unwrap_or_else(|| u64::from(demand.ranks_on(node)));
    let per_step = batch.checked_mul(processes)?.checked_mul(u64::from(demand.nodes.max(1)))?;
    let per_epoch = (script.samples? as f64 / per_step.max(1) as f64).floor().max(1.0);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of steps")]
    Some((per_epoch * epochs).ceil() as u64)
}

fn save(node: &NodeFacts, demand: &Demand) -> Outcome {
    let script = script(node, demand)?;
    let by_steps = script.options.get("save_strategy").is_none_or(|s| s == "steps");
    if !by_steps {
        return Err(Stop::skip("the script does not save by steps"));
    }
    let every = number(&script.options, "save_steps").unwrap_or(500);
    let Some(steps) = steps(script, node, demand) else {
        return Err(Stop::skip("the number of samples is not known"));
    };
    let problem = (steps < every).then(|| {
        SAVE_NEVER_FIRES.problem(
            format!("it saves every {every} steps and runs {steps}"),
            format!("a crash of {} loses everything", demand.name()),
            format!("grep -n 'save_steps\\|epochs\\|batch_size' {}", script.path),
        )
    });
    Judgement::of(&node.official.script, every, format!("at most {steps}"), problem)
}

fn embedding(node: &NodeFacts, demand: &Demand) -> Outcome {
    let script = script(node, demand)?;
    if !is_on(&script.options, "use_lora") {
        return Err(Stop::skip("the script does not train LoRA"));
    }
    let path = script.options.get("model_name_or_path").map_or("", String::as_str);
    let chat = path.to_lowercase().contains("chat");
    let quantised = is_on(&script.options, "q_lora");
    let problem = (!chat && !quantised).then(|| {
        EMBEDDING_TRAINED.problem(
            format!(
                "the path `{path}` has no `chat` in it: embedding and output layer are trained"
            ),
            format!("{} needs about 14 GB more on each GPU", demand.name()),
            format!("grep -n model_name_or_path {}", script.path),
        )
    });
    Judgement::of(&node.official.script, path, "a path with `chat`, or --q_lora", problem)
}
