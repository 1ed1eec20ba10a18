//! `bad-cuda-env` and `env-skew`.

use crate::{
    doctor::{
        Agreement, Applies, Area, Check, Demand, Evidence, Judgement, Outcome, Problem, Rule,
        Severity,
    },
    facts::NodeFacts,
};

pub(super) static BAD_CUDA_ENV: Rule = Rule {
    id: "bad-cuda-env",
    summary: "no debugging variable of CUDA is set",
    area: Area::Ranks,
    severity: Severity::Warn,
    applies: Applies::Gpus,
    source: "leptonai/gpud, component bad-envs; CUDA-GDB manual",
    docs: "Variables for debugging and profiling make kernels run one after another, write core \
           dumps of the whole GPU memory, or load a profiler into every rank.",
    reads: "the environment",
    fix: "unset the variable",
    check: Check::Node(bad),
};

pub(super) static ENV_SKEW: Rule = Rule {
    id: "env-skew",
    summary: "NCCL, CUDA and OpenMP variables are equal on all nodes",
    area: Area::Ranks,
    severity: Severity::Warn,
    applies: Applies::Nodes,
    source: "Google cluster-health-scanner configcheck",
    docs: "Ranks that read different settings choose different paths and protocols, and may then \
           wait for each other. Variables that must differ, such as RANK, are not compared.",
    reads: "the environment on all nodes",
    fix: "set the same variables on all nodes",
    check: Check::Agree(Agreement {
        what: "variables of NCCL, CUDA and OpenMP",
        read: |node, _demand| {
            let own = ["NCCL_HOSTID", "CUDA_VISIBLE_DEVICES"];
            let shared: Vec<String> = node
                .env
                .variables
                .get()?
                .iter()
                .filter(|(name, _value)| {
                    ["NCCL_", "CUDA_", "OMP_"].iter().any(|p| name.starts_with(p))
                })
                .filter(|(name, _value)| !own.contains(&name.as_str()))
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            Ok(if shared.is_empty() { "none".to_owned() } else { shared.join(" ") })
        },
        impact: "ranks choose different paths, and may hang in the first collective",
        fix: "set the same variables on all nodes, in the job or the image",
        see: "env | grep -E '^(NCCL|CUDA|OMP)_' | sort",
    }),
};

/// Variables that slow ranks down or write dumps, and what they do.
const BAD: &[(&str, &str)] = &[
    ("CUDA_LAUNCH_BLOCKING", "kernels run one after another"),
    ("CUDA_ENABLE_COREDUMP_ON_EXCEPTION", "a fault writes the whole GPU memory to disk"),
    ("CUDA_COREDUMP_FILE", "a fault writes the whole GPU memory to disk"),
    ("CUDA_ENABLE_USER_TRIGGERED_COREDUMP", "a pipe waits in every rank"),
    ("CUDA_DEVICE_WAITS_ON_EXCEPTION", "a rank with a fault waits for a debugger for ever"),
    ("CUDA_INJECTION64_PATH", "a profiler is loaded into every rank"),
    ("CUDA_PROFILE", "every rank is profiled"),
    ("COMPUTE_PROFILE", "every rank is profiled"),
    ("OPENCL_PROFILE", "every rank is profiled"),
    ("NSYS_PROFILING_SESSION_ID", "a profiler is loaded into every rank"),
    ("CUDA_FORCE_PTX_JIT", "all kernels are compiled at every start"),
    ("CUDA_DISABLE_PTX_JIT", "kernels that are PTX cannot be loaded"),
];

/// Names of variables that slow ranks down or write dumps.
pub(in crate::doctor) fn debugging_variables() -> impl Iterator<Item = &'static str> {
    BAD.iter().map(|(name, _effect)| *name)
}

fn bad(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.env.variables;
    let variables = fact.get()?;
    let set: Vec<String> = BAD
        .iter()
        .filter_map(|(name, effect)| {
            let value = variables.get(*name).filter(|value| !value.is_empty() && *value != "0")?;
            Some(format!("{name}={value} ({effect})"))
        })
        .collect();
    let evidence = Evidence::of(fact, set.clone(), "none set");
    let problem = (!set.is_empty()).then(|| Problem {
        severity: Severity::Warn,
        what: format!("set for debugging: {}", set.join(", ")),
        impact: format!("ranks of {} run slower or hang at a fault", demand.name()),
        fix: "unset them".to_owned(),
        see: "env | grep -E '^CUDA_|PROFILE'".to_owned(),
    });
    Ok(Judgement::from_option(problem, evidence))
}
