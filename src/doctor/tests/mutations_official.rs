//! One broken thing for each rule about the official stack.

use super::{
    change,
    mutations::{Mutation, first},
};
use crate::{
    doctor::{Demand, Stack},
    facts::{CodeMark, LaunchScript, Launcher, NodeFacts, Snapshot},
};

fn official<'s>(snapshot: &'s mut Snapshot, demand: &mut Demand) -> &'s mut NodeFacts {
    demand.stack = Stack::Official;
    first(snapshot)
}

/// Installs a package of this version, or takes it away.
fn package(snapshot: &mut Snapshot, demand: &mut Demand, name: &str, version: &str) {
    change(&mut official(snapshot, demand).official.distributions, |packages| {
        let packages = packages.as_mut().expect("an environment");
        packages.insert(name.to_owned(), version.to_owned());
    });
}

fn script(snapshot: &mut Snapshot, demand: &mut Demand, f: impl FnOnce(&mut LaunchScript)) {
    let fact = &mut official(snapshot, demand).official.script;
    change(fact, |script| f(script.as_mut().expect("a script")));
}

fn option(script: &mut LaunchScript, name: &str, value: &str) {
    script.options.insert(name.to_owned(), value.to_owned());
}

pub(super) const OFFICIAL: &[(&str, Mutation)] = &[
    ("torch-pair-invalid", |s, d| {
        package(s, d, "torch", "2.3.0+cu118");
        package(s, d, "torch", "2.3.0+cu124");
        change(&mut official(s, d).official.nvcc, |nvcc| *nvcc = Some("12.4".to_owned()));
    }),
    ("torch-driver-too-old", |s, d| {
        package(s, d, "torch", "2.9.1+cu130");
        package(s, d, "deepspeed", "0.18.0");
        let node = official(s, d);
        change(&mut node.official.nvcc, |nvcc| *nvcc = Some("13.0".to_owned()));
        super::mutations::driver(s, "575.57.08");
    }),
    ("torch-arch-missing", |s, d| {
        d.stack = Stack::Official;
        super::mutations::gpu(s, |gpu| change(&mut gpu.compute_capability, |have| *have = 120));
    }),
    ("deepspeed-incompatible", |s, d| {
        package(s, d, "torch", "2.4.0+cu121");
    }),
    ("deepspeed-python", |s, d| {
        change(&mut official(s, d).official.python, |python| *python = Some("3.12".to_owned()));
    }),
    ("deepspeed-nvcc", |s, d| {
        change(&mut official(s, d).official.nvcc, |nvcc| *nvcc = Some("12.4".to_owned()));
    }),
    ("transformers-unsupported", |s, d| package(s, d, "transformers", "4.35.2")),
    ("nccl-wheels-clash", |s, d| package(s, d, "nvidia-nccl-cu13", "2.27.5")),
    ("device-map-auto", |s, d| {
        script(s, d, |script| {
            script.program.insert(CodeMark::DeviceMapAuto);
        });
    }),
    ("quantised-zero3", |s, d| {
        script(s, d, |script| {
            option(script, "q_lora", "True");
            script.deepspeed.as_mut().expect("DeepSpeed").zero_stage = 3;
        });
    }),
    ("rank-env-missing", |s, d| script(s, d, |script| script.launcher = Launcher::Python)),
    ("launcher-count-mismatch", |s, d| {
        script(s, d, |script| {
            script.launcher_options.insert("nproc_per_node".to_owned(), "8".to_owned());
        });
    }),
    ("script-dtype-unsupported", |s, d| {
        d.stack = Stack::Official;
        d.dtype = crate::job::Dtype::F32;
        super::mutations::gpu(s, |gpu| change(&mut gpu.compute_capability, |have| *have = 75));
    }),
    ("shared-output", |s, d| {
        script(s, d, |script| {
            script.program.remove(&CodeMark::AsksForRank);
        });
    }),
    ("nccl-timeout-low", |s, d| script(s, d, |script| option(script, "ddp_timeout", "120"))),
    ("sampler-not-sharded", |s, d| {
        script(s, d, |script| {
            script.program.remove(&CodeMark::ShardedSampler);
            script.program.insert(CodeMark::DataLoader);
        });
    }),
    ("unused-parameters", |s, d| {
        script(s, d, |script| {
            script.deepspeed = None;
            option(script, "ddp_find_unused_parameters", "True");
        });
    }),
    ("save-never-fires", |s, d| {
        script(s, d, |script| {
            script.samples = Some(5000);
            option(script, "save_steps", "1000");
        });
    }),
    ("embedding-trained", |s, d| {
        script(s, d, |script| option(script, "model_name_or_path", "/models/qwen-vl-base"));
    }),
];
