//! Variables of NCCL, CUDA and ranks: `nccl-debug-verbose`, `nccl-p2p-disabled`,
//! `nccl-shm-disabled`, `nccl-algorithm-forced`, `nccl-net-forced`, `nccl-errors-ignored`,
//! `omp-threads`, `cuda-device-order`, `cuda-eager-loading`, `rank-env-partial`,
//! `local-rank-mismatch`, `container-runtime`.

use std::collections::BTreeMap;

use crate::{
    doctor::{Applies, Area, Check, Demand, Judgement, Outcome, Rule, Severity, Stop, gpus, table},
    facts::NodeFacts,
};

pub(super) static NCCL_DEBUG_VERBOSE: Rule = Rule {
    id: "nccl-debug-verbose",
    summary: "NCCL does not log every call",
    area: Area::Ranks,
    severity: Severity::Warn,
    applies: Applies::GpuGroup,
    source: "NCCL user guide, NCCL_DEBUG and NCCL_DEBUG_SUBSYS",
    docs: "At level TRACE, or INFO with all subsystems, NCCL writes lines for every operation of \
           every rank: gigabytes an hour, and slower steps.",
    reads: "NCCL_DEBUG, NCCL_DEBUG_SUBSYS",
    fix: "NCCL_DEBUG=WARN, or INFO without NCCL_DEBUG_SUBSYS",
    check: Check::Node(debug),
};

pub(super) static NCCL_P2P_DISABLED: Rule = Rule {
    id: "nccl-p2p-disabled",
    summary: "NCCL may use NVLink",
    area: Area::Ranks,
    severity: Severity::Warn,
    applies: Applies::GpuGroup,
    source: "NCCL user guide, NCCL_P2P_DISABLE and NCCL_P2P_LEVEL",
    docs: "Peer copies are often switched off to get around a fault, and stay off. On boards with \
           NVLink every exchange then goes through the host's memory, ten times slower.",
    reads: "NCCL_P2P_DISABLE, NCCL_P2P_LEVEL, nvmlDeviceGetName",
    fix: "unset NCCL_P2P_DISABLE and NCCL_P2P_LEVEL",
    check: Check::Node(p2p),
};

pub(super) static NCCL_SHM_DISABLED: Rule = Rule {
    id: "nccl-shm-disabled",
    summary: "NCCL may use shared memory",
    area: Area::Ranks,
    severity: Severity::Warn,
    applies: Applies::GpuGroup,
    source: "NCCL user guide, NCCL_SHM_DISABLE",
    docs: "Without shared memory, GPUs of one node that have no peer access exchange over the \
           network, even when there is none but the loopback.",
    reads: "NCCL_SHM_DISABLE",
    fix: "unset NCCL_SHM_DISABLE, and make /dev/shm large enough",
    check: Check::Node(shm),
};

pub(super) static NCCL_ALGORITHM_FORCED: Rule = Rule {
    id: "nccl-algorithm-forced",
    summary: "NCCL chooses algorithm and protocol itself",
    area: Area::Ranks,
    severity: Severity::Warn,
    applies: Applies::GpuGroup,
    source: "NCCL user guide, NCCL_ALGO and NCCL_PROTO (not to be set but to look for a fault)",
    docs: "NCCL knows which protocols are safe on the hardware. LL128 in particular gives wrong \
           data where writes of 128 bytes are split. A choice that was fast for one size is slow \
           for others.",
    reads: "NCCL_ALGO, NCCL_PROTO",
    fix: "unset NCCL_ALGO and NCCL_PROTO",
    check: Check::Node(algorithm),
};

pub(super) static NCCL_NET_FORCED: Rule = Rule {
    id: "nccl-net-forced",
    summary: "NCCL is not held to TCP beside RDMA",
    area: Area::Ranks,
    severity: Severity::Warn,
    applies: Applies::GpuNodes,
    source: "NCCL user guide, NCCL_NET",
    docs: "NCCL_NET=Socket forces TCP, whatever cards there are.",
    reads: "NCCL_NET, /sys/class/infiniband",
    fix: "unset NCCL_NET",
    check: Check::Node(net),
};

pub(super) static NCCL_ERRORS_IGNORED: Rule = Rule {
    id: "nccl-errors-ignored",
    summary: "a failed exchange ends the rank",
    area: Area::Ranks,
    severity: Severity::Warn,
    applies: Applies::GpuGroup,
    source: "https://pytorch.org/docs/stable/torch_nccl_environment_variables.html",
    docs: "With error handling off a rank whose peer died waits for ever instead of ending, so \
           nothing restarts the job and the GPUs stay busy.",
    reads: "TORCH_NCCL_ASYNC_ERROR_HANDLING, NCCL_ASYNC_ERROR_HANDLING, TORCH_NCCL_ENABLE_MONITORING",
    fix: "unset these variables",
    check: Check::Node(errors),
};

pub(super) static OMP_THREADS: Rule = Rule {
    id: "omp-threads",
    summary: "ranks do not start more threads than there are processors",
    area: Area::Ranks,
    severity: Severity::Warn,
    applies: Applies::Always,
    source: "OpenMP specification, OMP_NUM_THREADS; torchrun sets 1",
    docs: "Each rank starts OMP_NUM_THREADS threads. More threads than processors take turns, and \
           each step waits for the last.",
    reads: "OMP_NUM_THREADS, Cpus_allowed_list of /proc/self/status",
    fix: "OMP_NUM_THREADS = processors / ranks of the node",
    check: Check::Node(omp),
};

pub(super) static CUDA_DEVICE_ORDER: Rule = Rule {
    id: "cuda-device-order",
    summary: "CUDA and nvidia-smi number mixed GPUs alike",
    area: Area::Ranks,
    severity: Severity::Warn,
    applies: Applies::Gpus,
    source: "CUDA programming guide, CUDA_DEVICE_ORDER (FASTEST_FIRST)",
    docs: "Unless told otherwise CUDA puts the fastest GPU first, nvidia-smi goes by the bus. On \
           a machine with several products the number in CUDA_VISIBLE_DEVICES then means another \
           GPU than nvidia-smi shows.",
    reads: "nvmlDeviceGetName of all GPUs, CUDA_DEVICE_ORDER",
    fix: "export CUDA_DEVICE_ORDER=PCI_BUS_ID, or name GPUs by UUID",
    check: Check::Node(order),
};

pub(super) static CUDA_EAGER_LOADING: Rule = Rule {
    id: "cuda-eager-loading",
    summary: "CUDA loads kernels when they are needed",
    area: Area::Ranks,
    severity: Severity::Warn,
    applies: Applies::Gpus,
    source: "CUDA programming guide, lazy loading (CUDA_MODULE_LOADING)",
    docs: "With eager loading each rank loads all kernels of all libraries at start, which takes \
           seconds and hundreds of megabytes of GPU memory that the plan does not know of.",
    reads: "CUDA_MODULE_LOADING",
    fix: "unset CUDA_MODULE_LOADING",
    check: Check::Node(eager),
};

pub(super) static RANK_ENV_PARTIAL: Rule = Rule {
    id: "rank-env-partial",
    summary: "all variables of a rank are set, or none",
    area: Area::Ranks,
    severity: Severity::Warn,
    applies: Applies::Always,
    source: "https://pytorch.org/docs/stable/distributed.html#environment-variable-initialization",
    docs: "A program that finds WORLD_SIZE believes that it is a rank, and then misses the rest. \
           The variables are left over from another launcher, or the program was started without \
           its own.",
    reads: "RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT",
    fix: "unset RANK WORLD_SIZE MASTER_ADDR MASTER_PORT, or start the ranks with a launcher",
    check: Check::Node(partial),
};

pub(super) static LOCAL_RANK_MISMATCH: Rule = Rule {
    id: "local-rank-mismatch",
    summary: "LOCAL_RANK and LOCAL_WORLD_SIZE fit this node",
    area: Area::Ranks,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "https://pytorch.org/docs/stable/elastic/run.html#environment-variables",
    docs: "A rank takes the GPU with the number LOCAL_RANK. Programs that use RANK for it work on \
           the first node and fail on the second; a LOCAL_WORLD_SIZE from another machine type \
           asks for GPUs that are not here.",
    reads: "LOCAL_RANK, LOCAL_WORLD_SIZE, nvmlDeviceGetCount_v2",
    fix: "unset both; the launcher sets them",
    check: Check::Node(local),
};

pub(super) static CONTAINER_RUNTIME: Rule = Rule {
    id: "container-runtime",
    summary: "the container was given GPUs to compute on",
    area: Area::Driver,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "NVIDIA container toolkit, NVIDIA_VISIBLE_DEVICES and NVIDIA_DRIVER_CAPABILITIES",
    docs: "NVIDIA's runtime mounts GPUs and libraries by two variables of the container. `void` \
           or `none` mean no GPU; capabilities without `compute` mean no libcuda, and without \
           `utility` no NVML.",
    reads: "NVIDIA_VISIBLE_DEVICES, NVIDIA_DRIVER_CAPABILITIES",
    fix: "ask for GPUs (docker run --gpus all; limits nvidia.com/gpu) and set NVIDIA_DRIVER_CAPABILITIES=compute,utility",
    check: Check::Node(runtime),
};

type Variables = BTreeMap<String, String>;

/// Variables of `names` that are set, as `NAME=value`.
fn set(variables: &Variables, names: &[&str]) -> Vec<String> {
    names.iter().filter_map(|name| Some(format!("{name}={}", variables.get(*name)?))).collect()
}

/// A problem when the list is not empty.
fn unwanted(
    node: &NodeFacts,
    rule: &Rule,
    found: Vec<String>,
    impact: String,
    see: &str,
) -> Outcome {
    let problem = (!found.is_empty()).then(|| rule.problem(found.join(" "), impact, see));
    Judgement::of(&node.env.variables, found, "not set so", problem)
}

fn debug(node: &NodeFacts, demand: &Demand) -> Outcome {
    let variables = node.env.variables.get()?;
    let is = |name: &str, values: &[&str]| {
        variables
            .get(name)
            .is_some_and(|v| values.iter().any(|known| v.eq_ignore_ascii_case(known)))
    };
    let subsystems = variables.get("NCCL_DEBUG_SUBSYS");
    let wide =
        subsystems.is_some_and(|list| ["ALL", "COLL", "P2P"].iter().any(|s| list.contains(s)));
    let verbose = is("NCCL_DEBUG", &["TRACE"]) || (is("NCCL_DEBUG", &["INFO"]) && wide);
    let names = ["NCCL_DEBUG", "NCCL_DEBUG_SUBSYS"];
    let found = if verbose { set(variables, &names) } else { Vec::new() };
    let impact = format!("logs of {} grow by gigabytes an hour", demand.name());
    unwanted(node, &NCCL_DEBUG_VERBOSE, found, impact, "env | grep NCCL_DEBUG")
}

fn p2p(node: &NodeFacts, demand: &Demand) -> Outcome {
    let variables = node.env.variables.get()?;
    let off = variables.get("NCCL_P2P_DISABLE").is_some_and(|v| v == "1")
        || variables.get("NCCL_P2P_LEVEL").is_some_and(|v| v == "LOC" || v == "0");
    let products = super::peers::products(node, demand)?;
    if !products.iter().any(|name| table::has_nvlink(name)) {
        return Err(Stop::skip("the GPUs are no boards with NVLink"));
    }
    let names = ["NCCL_P2P_DISABLE", "NCCL_P2P_LEVEL"];
    let found = if off { set(variables, &names) } else { Vec::new() };
    let impact = format!("{} exchanges through the host's memory, ten times slower", demand.name());
    unwanted(node, &NCCL_P2P_DISABLED, found, impact, "env | grep NCCL_P2P")
}

fn shm(node: &NodeFacts, demand: &Demand) -> Outcome {
    let variables = node.env.variables.get()?;
    let off = variables.get("NCCL_SHM_DISABLE").is_some_and(|v| v == "1");
    let found = if off { set(variables, &["NCCL_SHM_DISABLE"]) } else { Vec::new() };
    let impact = format!("ranks of {} on one node exchange over the network", demand.name());
    unwanted(node, &NCCL_SHM_DISABLED, found, impact, "env | grep NCCL_SHM")
}

fn algorithm(node: &NodeFacts, demand: &Demand) -> Outcome {
    let found = set(node.env.variables.get()?, &["NCCL_ALGO", "NCCL_PROTO"]);
    let impact = format!("{} is slower than it could be, or gets wrong sums", demand.name());
    unwanted(node, &NCCL_ALGORITHM_FORCED, found, impact, "env | grep -E 'NCCL_(ALGO|PROTO)'")
}

fn net(node: &NodeFacts, demand: &Demand) -> Outcome {
    if !node.network.rdma_ports.get()?.iter().any(|port| port.state == "ACTIVE") {
        return Err(Stop::skip("no RDMA port is active"));
    }
    let variables = node.env.variables.get()?;
    let socket = variables.get("NCCL_NET").is_some_and(|v| v.eq_ignore_ascii_case("socket"));
    let found = if socket { set(variables, &["NCCL_NET"]) } else { Vec::new() };
    let impact = format!("{} exchanges gradients over TCP, many times slower", demand.name());
    unwanted(node, &NCCL_NET_FORCED, found, impact, "echo $NCCL_NET")
}

/// Variables that turn error handling off when they are 0.
pub(in crate::doctor) const ERROR_HANDLING: [&str; 3] = [
    "TORCH_NCCL_ASYNC_ERROR_HANDLING",
    "NCCL_ASYNC_ERROR_HANDLING",
    "TORCH_NCCL_ENABLE_MONITORING",
];

fn errors(node: &NodeFacts, demand: &Demand) -> Outcome {
    let variables = node.env.variables.get()?;
    let mut found = set(variables, &ERROR_HANDLING);
    found.retain(|text| text.ends_with("=0"));
    let impact = format!("when one rank of {} dies, the others wait for ever", demand.name());
    unwanted(node, &NCCL_ERRORS_IGNORED, found, impact, "env | grep NCCL_")
}

fn omp(node: &NodeFacts, demand: &Demand) -> Outcome {
    let variables = node.env.variables.get()?;
    let Some(text) = variables.get("OMP_NUM_THREADS") else {
        return Err(Stop::skip("OMP_NUM_THREADS is not set"));
    };
    // A list has one number for each level of nesting.
    let Some(threads) = text.split(',').next().and_then(|n| n.parse::<u32>().ok()) else {
        return Err(Stop::skip("OMP_NUM_THREADS is not a number"));
    };
    let cpus = *node.memory.cpus.get()?;
    let ranks = demand.ranks_on(node);
    let all = threads.saturating_mul(ranks);
    let problem = (cpus < all).then(|| {
        OMP_THREADS.problem(
            format!("{ranks} ranks x OMP_NUM_THREADS={threads} on {cpus} processors"),
            format!("threads of {} take turns, so every step takes longer", demand.name()),
            "echo $OMP_NUM_THREADS; nproc",
        )
    });
    Judgement::of(&node.env.variables, threads, format!("at most {}", cpus / ranks.max(1)), problem)
}

fn order(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.nvml.gpus;
    let mut names = std::collections::BTreeSet::new();
    for gpu in fact.get()? {
        names.insert(gpu.name.get()?.clone());
    }
    let by_bus =
        node.env.variables.get()?.get("CUDA_DEVICE_ORDER").is_some_and(|v| v == "PCI_BUS_ID");
    let list: Vec<String> = names.into_iter().collect();
    let problem = (1 < list.len() && !by_bus).then(|| {
        CUDA_DEVICE_ORDER.problem(
            format!(
                "several products ({}), and CUDA_DEVICE_ORDER is not PCI_BUS_ID",
                list.join(", ")
            ),
            format!("ranks of {} may take other GPUs than the ones that were meant", demand.name()),
            "nvidia-smi -L; echo $CUDA_DEVICE_ORDER",
        )
    });
    Judgement::of(fact, list, "one product, or PCI_BUS_ID", problem)
}

fn eager(node: &NodeFacts, demand: &Demand) -> Outcome {
    let variables = node.env.variables.get()?;
    let eager =
        variables.get("CUDA_MODULE_LOADING").is_some_and(|v| v.eq_ignore_ascii_case("eager"));
    let found = if eager { set(variables, &["CUDA_MODULE_LOADING"]) } else { Vec::new() };
    let impact = format!("ranks of {} start slower and have less memory", demand.name());
    unwanted(node, &CUDA_EAGER_LOADING, found, impact, "echo $CUDA_MODULE_LOADING")
}

fn partial(node: &NodeFacts, demand: &Demand) -> Outcome {
    let variables = node.env.variables.get()?;
    let names = ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"];
    let found = set(variables, &names);
    // The address of rank 0 alone is a setting for a launcher.
    let claims = variables.contains_key("RANK") || variables.contains_key("WORLD_SIZE");
    let missing: Vec<&str> =
        names.into_iter().filter(|name| !variables.contains_key(*name)).collect();
    let problem = (claims && !missing.is_empty()).then(|| {
        RANK_ENV_PARTIAL.problem(
            format!("{} is set, {} is not", found.join(" "), missing.join(" ")),
            format!("programs of {} that are started by hand wait or fail", demand.name()),
            "env | grep -E 'WORLD_SIZE|RANK|MASTER_'",
        )
    });
    Judgement::of(&node.env.variables, found, "all or none", problem)
}

fn local(node: &NodeFacts, demand: &Demand) -> Outcome {
    let variables = node.env.variables.get()?;
    let number = |name: &str| variables.get(name)?.parse::<usize>().ok();
    let (rank, size) = (number("LOCAL_RANK"), number("LOCAL_WORLD_SIZE"));
    if rank.is_none() && size.is_none() {
        return Err(Stop::skip("neither LOCAL_RANK nor LOCAL_WORLD_SIZE is set"));
    }
    node.nvml.gpus.get()?;
    let visible = super::visible::indices(node);
    let count = visible.len();
    let found = set(variables, &["LOCAL_RANK", "LOCAL_WORLD_SIZE"]);
    let bad = rank.is_some_and(|rank| count <= rank || size.is_some_and(|size| size <= rank))
        || size.is_some_and(|size| count < size);
    let problem = bad.then(|| {
        LOCAL_RANK_MISMATCH.problem(
            format!("{} on a node with GPUs {}", found.join(" "), gpus::list(&visible)),
            format!("a rank of {} asks for a GPU that is not there", demand.name()),
            "env | grep LOCAL_; nvidia-smi -L",
        )
    });
    Judgement::of(&node.env.variables, found, format!("below {count}, at most {count}"), problem)
}

fn runtime(node: &NodeFacts, demand: &Demand) -> Outcome {
    if node.container.kind.get()?.is_none() {
        return Err(Stop::skip("this is no container"));
    }
    let variables = node.env.variables.get()?;
    let devices = variables.get("NVIDIA_VISIBLE_DEVICES").map(String::as_str);
    let capabilities = variables.get("NVIDIA_DRIVER_CAPABILITIES").map(String::as_str);
    // The device plugin may mount devices without these variables.
    let none = matches!(devices, Some("void" | "none"));
    let lacks = capabilities.is_some_and(|list| {
        let has = |name: &str| list.split(',').any(|one| one.trim() == name || one.trim() == "all");
        !has("compute") || !has("utility")
    });
    let mounted = node.nvml.gpus.value().is_some_and(|gpus| !gpus.is_empty());
    let found = set(variables, &["NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"]);
    let problem = ((none && !mounted) || lacks).then(|| {
        CONTAINER_RUNTIME.problem(
            found.join(" "),
            format!("ranks of {} in this container find no GPU or no CUDA", demand.name()),
            "env | grep NVIDIA_; ls /dev/nvidia*",
        )
    });
    Judgement::of(&node.env.variables, found, "GPUs, with compute and utility", problem)
}
