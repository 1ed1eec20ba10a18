//! `forward-compat-shadow` and `stub-libcuda`: which `libcuda.so.1` will load?

use crate::{
    doctor::{
        Applies, Area, Check, Demand, Evidence, Judgement, Outcome, Problem, Rule, Severity, Stop,
    },
    facts::{CudaState, NodeFacts},
};

pub(super) static FORWARD_COMPAT_SHADOW: Rule = Rule {
    id: "forward-compat-shadow",
    summary: "no compatibility library hides the driver's own",
    area: Area::Software,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "https://docs.nvidia.com/deploy/cuda-compatibility/ (errors 803 and 804)",
    docs: "The package cuda-compat has a newer libcuda for older drivers of data-center GPUs. On \
           other GPUs, or beside a driver that is newer than it, CUDA fails with 803 or 804. \
           Container images often carry it.",
    reads: "/proc/self/maps after dlopen libcuda.so.1, cuInit",
    fix: "take the compat folder out of LD_LIBRARY_PATH and ld.so.conf.d",
    check: Check::Node(forward_compat),
};

pub(super) static STUB_LIBCUDA: Rule = Rule {
    id: "stub-libcuda",
    summary: "libcuda is the driver's, not the toolkit's stub",
    area: Area::Software,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "CUDA driver API, CUDA_ERROR_STUB_LIBRARY (34)",
    docs: "The toolkit has an empty libcuda in a folder `stubs`, for linking on machines without a \
           driver. When LD_LIBRARY_PATH leads there, every CUDA call fails with error 34.",
    reads: "/proc/self/maps after dlopen libcuda.so.1, cuInit",
    fix: "take the folder stubs out of LD_LIBRARY_PATH",
    check: Check::Node(stub),
};

fn failed_with(node: &NodeFacts) -> Option<u32> {
    match node.cuda.state.value()? {
        CudaState::Failed { code, .. } => Some(*code),
        CudaState::Ready
        | CudaState::LibraryMissing { .. }
        | CudaState::Hung { .. }
        | CudaState::Crashed { .. } => None,
    }
}

/// Judges the path of libcuda and the code that `cuInit` gave.
fn judge(node: &NodeFacts, marks: &str, codes: &[u32], texts: [String; 3]) -> Outcome {
    // The file that was loaded; before that, the one that the loader should find.
    let loaded = &node.cuda.library_path;
    let found = &node.driver.libcuda_path;
    let (path, from) = match (loaded.value(), found.get()?) {
        (Some(path), _) => (path, loaded.from()),
        (None, Some(path)) => (path, found.from()),
        (None, None) => {
            return Err(Stop::skip("the loader finds no libcuda.so.1: see nvml-unavailable"));
        }
    };
    let code = failed_with(node).filter(|code| codes.contains(code));
    let evidence = Evidence::new(from, path.as_str(), format!("not in {marks}"));
    let [what, impact, fix] = texts;
    let shadowed = path.contains(marks);
    // The compatibility library is right when CUDA starts with it.
    let works = marks == "/compat/" && node.cuda.state.value() == Some(&CudaState::Ready);
    let severity = if works { Severity::Warn } else { Severity::Block };
    let problem = (shadowed || code.is_some()).then(|| Problem {
        severity,
        what: match code {
            Some(code) => format!("{what}: {path} (cuInit returned {code})"),
            None => format!("{what}: {path}"),
        },
        impact,
        fix,
        see: "ldconfig -p | grep libcuda; echo $LD_LIBRARY_PATH".to_owned(),
    });
    Ok(Judgement::from_option(problem, evidence))
}

fn forward_compat(node: &NodeFacts, demand: &Demand) -> Outcome {
    let texts = [
        "libcuda is the one of the package cuda-compat".to_owned(),
        format!("CUDA fails with 803 or 804 on ranks of {} when the driver differs", demand.name()),
        "remove the compat folder from LD_LIBRARY_PATH and ld.so.conf.d".to_owned(),
    ];
    judge(node, "/compat/", &[803, 804], texts)
}

fn stub(node: &NodeFacts, demand: &Demand) -> Outcome {
    let texts = [
        "libcuda is the toolkit's stub".to_owned(),
        format!("every CUDA call of {} fails with error 34", demand.name()),
        "remove the folder `stubs` from LD_LIBRARY_PATH".to_owned(),
    ];
    judge(node, "/stubs/", &[34], texts)
}
