//! Installed packages of the official stack: `torch-pair-invalid`, `torch-driver-too-old`,
//! `torch-arch-missing`, `deepspeed-incompatible`, `deepspeed-python`, `deepspeed-nvcc`,
//! `transformers-unsupported`, `nccl-wheels-clash`.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    doctor::{
        Applies, Area, Check, Demand, Evidence, Judgement, Outcome, Rule, Severity, Stack, Stop,
        gpus::{GpuVerdict, Texts, each_gpu},
        table,
    },
    facts::{NodeFacts, Unread},
};

pub(super) static TORCH_PAIR_INVALID: Rule = Rule {
    id: "torch-pair-invalid",
    summary: "this release of PyTorch exists for this CUDA",
    area: Area::Software,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "src/doctor/data/torch.tsv",
    docs: "Each release of PyTorch is built for two or three versions of CUDA. A pair that does \
           not exist means packages of two releases in one environment, such as a torch 2.6 with \
           the CUDA 12.1 libraries of 2.5.",
    reads: "names of *.dist-info in site-packages",
    fix: "install torch anew from the index of one CUDA version",
    check: Check::Node(pair),
};

pub(super) static TORCH_DRIVER_TOO_OLD: Rule = Rule {
    id: "torch-driver-too-old",
    summary: "the driver is new enough for PyTorch's CUDA",
    area: Area::Software,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "CUDA release notes, minimum driver by major version",
    docs: "Packages of PyTorch bring their CUDA along. On a driver below the minimum of its major \
           version, torch.cuda.is_available() is False and training goes on the CPU.",
    reads: "torch and nvidia-cuda-runtime in site-packages, nvmlSystemGetDriverVersion",
    fix: "upgrade the driver, or install torch for an older CUDA (cu118)",
    check: Check::Node(driver),
};

pub(super) static TORCH_ARCH_MISSING: Rule = Rule {
    id: "torch-arch-missing",
    summary: "PyTorch has code for the GPUs",
    area: Area::Software,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "src/doctor/data/torch_arch.tsv",
    docs: "A build of PyTorch has code for a range of GPUs. On newer ones every kernel fails with \
           `no kernel image is available`: torch 2.3 knows nothing after Hopper.",
    reads: "torch in site-packages, nvmlDeviceGetCudaComputeCapability",
    fix: "install a torch that is built for this GPU: Blackwell needs cu128 or newer",
    check: Check::Node(arch),
};

pub(super) static DEEPSPEED_INCOMPATIBLE: Rule = Rule {
    id: "deepspeed-incompatible",
    summary: "the installed packages work together",
    area: Area::Software,
    severity: Severity::Block,
    applies: Applies::Always,
    source: "src/doctor/data/deepspeed.tsv; microsoft/DeepSpeed#5337",
    docs: "DeepSpeed before 0.14.1 does not import beside torch 2.4 or newer, and old packages do \
           not know NumPy 2 or pydantic 2. It shows on the launcher's way only: a run on one GPU \
           without DeepSpeed works.",
    reads: "names of *.dist-info in site-packages",
    fix: "pin the packages: deepspeed 0.11.1 with torch 2.3, pydantic<2, numpy<2; or deepspeed 0.14.1 or newer",
    check: Check::Node(together),
};

pub(super) static DEEPSPEED_PYTHON: Rule = Rule {
    id: "deepspeed-python",
    summary: "DeepSpeed finds distutils",
    area: Area::Software,
    severity: Severity::Block,
    applies: Applies::Always,
    source: "DeepSpeed 0.11 (imports distutils); PEP 632",
    docs: "Python 3.12 has no distutils any more, and DeepSpeed 0.11 imports it. The package \
           setuptools brings a copy.",
    reads: "path of site-packages, deepspeed and setuptools in it",
    fix: "pip install setuptools, or use Python 3.11",
    check: Check::Node(python),
};

pub(super) static DEEPSPEED_NVCC: Rule = Rule {
    id: "deepspeed-nvcc",
    summary: "nvcc is of a version that DeepSpeed takes",
    area: Area::Software,
    severity: Severity::Warn,
    applies: Applies::Gpus,
    source: "DeepSpeed 0.11 op_builder/builder.py (cuda_minor_mismatch_ok)",
    docs: "DeepSpeed compiles its kernels when the job starts, and refuses an nvcc of another \
           minor version than torch's CUDA; of CUDA 12 it takes 12.0 and 12.1 for each other only.",
    reads: "version.json of /usr/local/cuda, deepspeed and torch in site-packages",
    fix: "install the toolkit of torch's CUDA, or set DS_SKIP_CUDA_CHECK=1",
    check: Check::Node(nvcc),
};

pub(super) static TRANSFORMERS_UNSUPPORTED: Rule = Rule {
    id: "transformers-unsupported",
    summary: "transformers is of a version that the model's code knows",
    area: Area::Software,
    severity: Severity::Warn,
    applies: Applies::Always,
    source: "QwenLM/Qwen-VL requirements.txt (4.32.0); QwenLM/Qwen-VL#475, #480",
    docs: "The model's own Python code was written for transformers 4.31 and 4.32. Newer ones \
           moved what it imports, from the cache of keys to the tokenizer, and it fails at \
           loading or at generation.",
    reads: "transformers in site-packages",
    fix: "pip install transformers==4.32.0",
    check: Check::Node(transformers),
};

pub(super) static NCCL_WHEELS_CLASH: Rule = Rule {
    id: "nccl-wheels-clash",
    summary: "one package brings NCCL",
    area: Area::Software,
    severity: Severity::Block,
    applies: Applies::GpuGroup,
    source: "PyPI nvidia-nccl-cu11, -cu12, -cu13: one path, nvidia/nccl/lib/libnccl.so.2",
    docs: "The packages for CUDA 11, 12 and 13 write one file. The last one wins, so torch may \
           load an NCCL for another CUDA; ranks then fail at start, on some nodes only when the \
           order differed.",
    reads: "names of *.dist-info in site-packages",
    fix: "uninstall all nvidia-nccl-* and torch, then install torch again",
    check: Check::Node(wheels),
};

type Installed = BTreeMap<String, String>;

fn packages<'n>(node: &'n NodeFacts, demand: &Demand) -> Result<&'n Installed, Stop> {
    if demand.stack != Stack::Official {
        return Err(Stop::skip("the job runs qvl-train (--stack official asks for PyTorch)"));
    }
    let packages = node.official.distributions.get()?.as_ref();
    packages.ok_or_else(|| Stop::skip("no Python environment was named (--python DIR)"))
}

/// The version of a package, or that the check has nothing to judge.
fn version<'n>(packages: &'n Installed, name: &str) -> Result<&'n str, Stop> {
    let found = packages.get(name).map(String::as_str);
    found.ok_or_else(|| Stop::skip(format!("{name} is not installed there")))
}

/// `2.3` of `2.3.0+cu121`.
fn release(version: &str) -> String {
    version.split('.').take(2).collect::<Vec<_>>().join(".")
}

/// The CUDA build of torch: the end of its version, else what its runtime package says.
fn build(packages: &Installed, torch: &str) -> Option<String> {
    if let Some((_version, build)) = torch.split_once('+') {
        return build.starts_with("cu").then(|| build.to_owned());
    }
    let runtimes = ["nvidia-cuda-runtime-cu11", "nvidia-cuda-runtime-cu12", "nvidia-cuda-runtime"];
    let runtime = runtimes.iter().find_map(|name| packages.get(*name))?;
    Some(format!("cu{}", release(runtime).replace('.', "")))
}

fn torch_build<'n>(node: &'n NodeFacts, demand: &Demand) -> Result<(&'n str, String), Stop> {
    let packages = packages(node, demand)?;
    let torch = version(packages, "torch")?;
    let unknown = || Unread {
        why: format!("torch {torch} does not tell its CUDA, and no nvidia-cuda-runtime is there"),
        from: node.official.distributions.from().to_owned(),
    };
    let build = build(packages, torch).ok_or_else(unknown)?;
    Ok((torch, build))
}

fn pair(node: &NodeFacts, demand: &Demand) -> Outcome {
    let (torch, build) = torch_build(node, demand)?;
    let Some(builds) = table::torch_builds(&release(torch)) else {
        return Err(Stop::skip(format!("the builds of torch {torch} are not in the table")));
    };
    let problem = (!builds.contains(&build.as_str())).then(|| {
        TORCH_PAIR_INVALID.problem(
            format!("torch {torch} with {build}; there are {}", builds.join(", ")),
            format!("importing torch fails in {}, or its kernels crash", demand.name()),
            "pip list | grep -E 'torch|nvidia'",
        )
    });
    Judgement::of(&node.official.distributions, build, builds.join(", "), problem)
}

/// `cu121` is of CUDA 12.
fn major(build: &str) -> Option<u32> {
    let digits = build.strip_prefix("cu")?;
    digits.get(..digits.len().checked_sub(1)?)?.parse().ok()
}

fn driver(node: &NodeFacts, demand: &Demand) -> Outcome {
    let (torch, build) = torch_build(node, demand)?;
    let Some(minimum) = major(&build).and_then(table::minimum_driver) else {
        return Err(Stop::skip(format!("no minimum driver is known for {build}")));
    };
    let fact = &node.nvml.driver_version;
    let driver = fact.get()?;
    let problem = (table::version(driver) < table::version(minimum)).then(|| {
        TORCH_DRIVER_TOO_OLD.problem(
            format!("driver {driver}; torch {torch} ({build}) needs {minimum}"),
            format!("{} finds no GPU", demand.name()),
            "python -c 'import torch; print(torch.cuda.is_available())'",
        )
    });
    Judgement::of(fact, driver.as_str(), format!("at least {minimum}"), problem)
}

fn arch(node: &NodeFacts, demand: &Demand) -> Outcome {
    let (torch, build) = torch_build(node, demand)?;
    let Some((lowest, highest)) = table::torch_arch(&build) else {
        return Err(Stop::skip(format!("the GPUs of {build} are not in the table")));
    };
    let texts = Texts {
        impact: "every kernel fails with `no kernel image is available for execution`",
        fix: TORCH_ARCH_MISSING.fix,
        see: "python -c 'import torch; print(torch.cuda.get_arch_list())'",
    };
    each_gpu(node, demand, texts, |gpu| {
        let fact = &gpu.compute_capability;
        let have = *fact.get()?;
        let evidence = Evidence::of(fact, have, format!("{lowest} to {highest}"));
        if (lowest..=highest).contains(&have) {
            return Ok(GpuVerdict::Fine(evidence));
        }
        let first =
            table::first_cuda(have).map_or(String::new(), |cuda| format!(", needs CUDA {cuda}"));
        let what =
            format!("is sm_{have}{first}; torch {torch} ({build}) has sm_{lowest} to sm_{highest}");
        Ok(GpuVerdict::Bad(Severity::Block, what, evidence))
    })
}

fn together(node: &NodeFacts, demand: &Demand) -> Outcome {
    let packages = packages(node, demand)?;
    let found = table::incompatible(packages);
    let list: Vec<String> = found
        .iter()
        .map(|[a, b, trouble]| {
            let version = |name: &str| packages.get(name).map_or("?", String::as_str);
            format!("{a} {} and {b} {}: {trouble}", version(a), version(b))
        })
        .collect();
    let problem = (!list.is_empty()).then(|| {
        DEEPSPEED_INCOMPATIBLE.problem(
            list.join("; "),
            format!("{} ends at start on several GPUs, though one GPU works", demand.name()),
            "pip list | grep -iE 'deepspeed|torch|pydantic|numpy'",
        )
    });
    Judgement::of(&node.official.distributions, list, "none", problem)
}

fn python(node: &NodeFacts, demand: &Demand) -> Outcome {
    let packages = packages(node, demand)?;
    let deepspeed = version(packages, "deepspeed")?;
    let fact = &node.official.python;
    let Some(python) = fact.get()? else {
        return Err(Stop::skip("no Python environment was named (--python DIR)"));
    };
    let bad = vec![3, 12] <= table::version(python)
        && table::version(deepspeed) < vec![0, 12]
        && !packages.contains_key("setuptools");
    let problem = bad.then(|| {
        DEEPSPEED_PYTHON.problem(
            format!("DeepSpeed {deepspeed} on Python {python} without setuptools"),
            format!("{} ends with `No module named 'distutils'`", demand.name()),
            "python -c 'import distutils'",
        )
    });
    Judgement::of(fact, python.as_str(), "under 3.12, or setuptools", problem)
}

fn nvcc(node: &NodeFacts, demand: &Demand) -> Outcome {
    let packages = packages(node, demand)?;
    version(packages, "deepspeed")?;
    let (_torch, build) = torch_build(node, demand)?;
    let fact = &node.official.nvcc;
    let Some(nvcc) = fact.get()? else {
        return Err(Stop::skip("there is no CUDA toolkit in /usr/local/cuda"));
    };
    let skipped =
        node.env.variables.get()?.get("DS_SKIP_CUDA_CHECK").is_some_and(|value| value == "1");
    let own = format!("cu{}", nvcc.replace('.', ""));
    let alike: [&[&str]; 2] = [
        &["cu110", "cu111", "cu112", "cu113", "cu114", "cu115", "cu116", "cu117", "cu118"],
        &["cu120", "cu121"],
    ];
    let fits = own == build
        || alike.iter().any(|set| set.contains(&own.as_str()) && set.contains(&build.as_str()));
    let problem = (!fits && !skipped).then(|| {
        DEEPSPEED_NVCC.problem(
            format!("nvcc is {nvcc}, torch is built for {build}"),
            format!("DeepSpeed refuses to build its kernels when {} starts", demand.name()),
            "nvcc --version; python -c 'import torch; print(torch.version.cuda)'",
        )
    });
    Judgement::of(fact, nvcc.as_str(), build, problem)
}

fn transformers(node: &NodeFacts, demand: &Demand) -> Outcome {
    let found = version(packages(node, demand)?, "transformers")?;
    let known = ["4.31", "4.32"].contains(&release(found).as_str());
    let problem = (!known).then(|| {
        TRANSFORMERS_UNSUPPORTED.problem(
            format!("transformers {found} (4.31 or 4.32 wanted)"),
            format!("the model's code fails when {} loads it or generates", demand.name()),
            "pip show transformers | grep Version",
        )
    });
    Judgement::of(&node.official.distributions, found, "4.31 or 4.32", problem)
}

fn wheels(node: &NodeFacts, demand: &Demand) -> Outcome {
    let packages = packages(node, demand)?;
    let found: BTreeSet<&String> =
        packages.keys().filter(|name| name.starts_with("nvidia-nccl-cu")).collect();
    let list: Vec<String> = found.iter().map(|name| (*name).clone()).collect();
    let problem = (1 < found.len()).then(|| {
        NCCL_WHEELS_CLASH.problem(
            format!("{} write one file", list.join(" and ")),
            format!("ranks of {} may load an NCCL for another CUDA and fail", demand.name()),
            "pip list | grep nvidia-nccl",
        )
    });
    Judgement::of(&node.official.distributions, list, "at most one", problem)
}
