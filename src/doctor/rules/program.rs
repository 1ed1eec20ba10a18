//! The trainer's file and this machine: `cuda-major-mixed`, `glibc-too-old`,
//! `trainer-wrong-machine`, `trainer-not-executable`, `interpreter-missing`, `nccl-too-old`,
//! `jit-cache-off`.

use std::collections::BTreeSet;

use crate::{
    doctor::{Applies, Area, Check, Demand, Judgement, Outcome, Rule, Severity, Stop, table},
    facts::{NodeFacts, TrainerFile},
};

pub(super) static CUDA_MAJOR_MIXED: Rule = Rule {
    id: "cuda-major-mixed",
    summary: "the trainer's CUDA libraries are of one major version",
    area: Area::Software,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "CUDA release notes (libraries of one toolkit)",
    docs: "Libraries of two major versions in one process have two runtimes that do not know each \
           other's streams and memory: calls fail with `invalid handle` or crash.",
    reads: "DT_NEEDED of the trainer",
    fix: "build the trainer again with one CUDA toolkit in the path",
    check: Check::Node(mixed),
};

pub(super) static GLIBC_TOO_OLD: Rule = Rule {
    id: "glibc-too-old",
    summary: "the C library has what the trainer asks for",
    area: Area::Software,
    severity: Severity::Block,
    applies: Applies::Always,
    source: "ld.so(8), symbol versions",
    docs: "A program that was built on a newer system asks for symbols that an older C library \
           does not have: `version 'GLIBC_2.38' not found`.",
    reads: "symbol versions of the trainer and of libc.so.6",
    fix: "build the trainer on the oldest system that it must run on, or use the image",
    check: Check::Node(glibc),
};

pub(super) static TRAINER_WRONG_MACHINE: Rule = Rule {
    id: "trainer-wrong-machine",
    summary: "the trainer is built for this processor",
    area: Area::Software,
    severity: Severity::Block,
    applies: Applies::Always,
    source: "ELF e_machine; execve(2), ENOEXEC",
    docs: "A file for x86 does not run on an Arm machine such as a Grace node, nor the other way \
           round: `Exec format error`.",
    reads: "ELF header of the trainer, /proc/cpuinfo",
    fix: "use the build, or the image, for this processor",
    check: Check::Node(machine),
};

pub(super) static TRAINER_NOT_EXECUTABLE: Rule = Rule {
    id: "trainer-not-executable",
    summary: "this user may run the trainer",
    area: Area::Software,
    severity: Severity::Block,
    applies: Applies::Always,
    source: "execve(2), EACCES",
    docs: "The file lacks the permission to be run, or lies on a file system that is mounted \
           without it (noexec): `Permission denied`.",
    reads: "access(2) of the trainer's file",
    fix: "chmod +x qvl-train, or copy it to a file system that is mounted with exec",
    check: Check::Node(executable),
};

pub(super) static INTERPRETER_MISSING: Rule = Rule {
    id: "interpreter-missing",
    summary: "the loader that the trainer names is there",
    area: Area::Software,
    severity: Severity::Block,
    applies: Applies::Always,
    source: "ELF PT_INTERP; ld.so(8)",
    docs: "The file names the program that loads it. An image with another C library, such as \
           Alpine's, does not have it, and starting the trainer says `No such file or directory` \
           about a file that is there.",
    reads: "section .interp of the trainer",
    fix: "use an image with glibc, such as Debian or Ubuntu",
    check: Check::Node(interpreter),
};

pub(super) static NCCL_TOO_OLD: Rule = Rule {
    id: "nccl-too-old",
    summary: "NCCL is as new as the trainer's bindings",
    area: Area::Software,
    severity: Severity::Warn,
    applies: Applies::GpuGroup,
    source: "src/doctor/data/cudarc.tsv",
    docs: "The trainer is bound to the interface of NCCL 2.22 or newer. An older library lacks \
           functions, and the rank ends at the first call of one. PyTorch 2.3 brings 2.20.",
    reads: "name of the libnccl.so.2 that the loader takes",
    fix: "put a newer libnccl.so.2 first into LD_LIBRARY_PATH",
    check: Check::Node(nccl),
};

pub(super) static JIT_CACHE_OFF: Rule = Rule {
    id: "jit-cache-off",
    summary: "compiled kernels are kept for the next start",
    area: Area::Software,
    severity: Severity::Warn,
    applies: Applies::Gpus,
    source: "CUDA programming guide, CUDA_CACHE_DISABLE and CUDA_CACHE_MAXSIZE",
    docs: "Kernels that are PTX are compiled at the first start and kept in a cache. Without it \
           every rank compiles all of them at every start and restart.",
    reads: "PTX in the trainer, CUDA_CACHE_DISABLE, CUDA_CACHE_MAXSIZE",
    fix: "unset CUDA_CACHE_DISABLE and CUDA_CACHE_MAXSIZE",
    check: Check::Node(jit_cache),
};

const NO_TRAINER: &str = "there is no trainer to look at: see trainer-missing";

fn file(node: &NodeFacts) -> Result<&TrainerFile, Stop> {
    if node.trainer.path.get().is_err() {
        return Err(Stop::skip(NO_TRAINER));
    }
    Ok(node.trainer.file.get()?)
}

fn mixed(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.trainer.needed;
    // libcurand and libcufft count versions of their own.
    let names = ["libcudart.so.", "libcublas.so.", "libcublasLt.so.", "libnvrtc.so."];
    let libraries: Vec<&str> = fact
        .get()?
        .iter()
        .map(|library| library.name.as_str())
        .filter(|name| names.iter().any(|prefix| name.starts_with(prefix)))
        .collect();
    if libraries.is_empty() {
        return Err(Stop::skip("the trainer needs no versioned CUDA library"));
    }
    let majors: BTreeSet<&str> =
        libraries.iter().filter_map(|name| name.split(".so.").nth(1)?.split('.').next()).collect();
    let list: Vec<String> = libraries.iter().map(|name| (*name).to_owned()).collect();
    let problem = (1 < majors.len()).then(|| {
        CUDA_MAJOR_MIXED.problem(
            format!("the trainer needs {}", list.join(" and ")),
            format!("ranks of {} fail in the first CUDA call", demand.name()),
            "readelf -d qvl-train | grep NEEDED",
        )
    });
    Judgement::of(fact, list, "one major version", problem)
}

fn glibc(node: &NodeFacts, demand: &Demand) -> Outcome {
    let Some(wanted) = &file(node)?.glibc else {
        return Err(Stop::skip("the trainer asks for no glibc"));
    };
    let fact = &node.system.glibc;
    let Some(have) = fact.get()? else {
        return Err(Stop::skip("the loader finds no glibc: see library-missing"));
    };
    let problem = (table::version(have) < table::version(wanted)).then(|| {
        GLIBC_TOO_OLD.problem(
            format!("the trainer needs glibc {wanted}, here is {have}"),
            format!("the loader refuses to start ranks of {}", demand.name()),
            "ldd --version | head -1",
        )
    });
    Judgement::of(fact, have.as_str(), format!("at least {wanted}"), problem)
}

fn machine(node: &NodeFacts, demand: &Demand) -> Outcome {
    let built = &file(node)?.machine;
    let here = &node.system.cpu.get()?.architecture;
    let problem = (built != here).then(|| {
        TRAINER_WRONG_MACHINE.problem(
            format!("the trainer is for {built}, the processor is {here}"),
            format!("no rank of {} can start: `Exec format error`", demand.name()),
            "file qvl-train; uname -m",
        )
    });
    Judgement::of(&node.trainer.file, built.as_str(), here.as_str(), problem)
}

fn executable(node: &NodeFacts, demand: &Demand) -> Outcome {
    let may = file(node)?.executable;
    let problem = (!may).then(|| {
        TRAINER_NOT_EXECUTABLE.problem(
            "this user may not run the trainer",
            format!("no rank of {} can start: `Permission denied`", demand.name()),
            "ls -l qvl-train; findmnt -T qvl-train",
        )
    });
    Judgement::of(&node.trainer.file, may, "yes", problem)
}

fn interpreter(node: &NodeFacts, demand: &Demand) -> Outcome {
    let file = file(node)?;
    let Some(name) = &file.interpreter else {
        return Err(Stop::skip("the trainer is a static program"));
    };
    let problem = (!file.interpreter_exists).then(|| {
        INTERPRETER_MISSING.problem(
            format!("the loader {name} is not there"),
            format!("no rank of {} can start: `No such file or directory`", demand.name()),
            "readelf -l qvl-train | grep interpreter",
        )
    });
    Judgement::of(&node.trainer.file, name.as_str(), "a file that is there", problem)
}

fn nccl(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.trainer.nccl;
    let Some(library) = fact.get()?.first() else {
        return Err(Stop::skip("the loader finds no NCCL"));
    };
    let Some(version) = &library.version else {
        return Err(Stop::skip("the name of the file does not tell its version"));
    };
    let (oldest, _newest) = table::bound_nccl();
    let problem = (table::version(version) < table::version(oldest)).then(|| {
        NCCL_TOO_OLD.problem(
            format!("NCCL {version} ({oldest} or newer wanted)"),
            format!("ranks of {} may end at a function that is missing", demand.name()),
            "ldconfig -p | grep libnccl; echo $LD_LIBRARY_PATH",
        )
    });
    Judgement::of(fact, version.as_str(), format!("at least {oldest}"), problem)
}

fn jit_cache(node: &NodeFacts, demand: &Demand) -> Outcome {
    if node.trainer.ptx.get()?.is_empty() {
        return Err(Stop::skip("the trainer has no PTX in it"));
    }
    let fact = &node.env.variables;
    let variables = fact.get()?;
    let is = |name: &str, value: &str| variables.get(name).is_some_and(|found| found == value);
    let off = is("CUDA_CACHE_DISABLE", "1") || is("CUDA_CACHE_MAXSIZE", "0");
    let problem = off.then(|| {
        JIT_CACHE_OFF.problem(
            "the cache of compiled kernels is switched off",
            format!("every rank of {} compiles all kernels at every start", demand.name()),
            "env | grep CUDA_CACHE",
        )
    });
    Judgement::of(fact, if off { "off" } else { "on" }, "on", problem)
}
