//! `trainer-missing`, `trainer-without-cuda`, `library-missing`, `binary-skew`.

use crate::{
    doctor::{
        Agreement, Applies, Area, Check, Demand, Evidence, Judgement, Outcome, Problem, Rule,
        Severity, Stop,
    },
    facts::NodeFacts,
};

pub(super) static TRAINER_MISSING: Rule = Rule {
    id: "trainer-missing",
    summary: "the trainer's file is there",
    area: Area::Software,
    severity: Severity::Warn,
    applies: Applies::Always,
    source: "this project",
    docs: "What a driver must be able to do depends on the trainer's file: which libraries it \
           needs, and which PTX is in it. Without the file these checks are not known.",
    reads: "the trainer's file",
    fix: "build it, or name it with --trainer",
    check: Check::Node(trainer_missing),
};

pub(super) static TRAINER_WITHOUT_CUDA: Rule = Rule {
    id: "trainer-without-cuda",
    summary: "the trainer is built for GPUs",
    area: Area::Software,
    severity: Severity::Block,
    applies: Applies::Gpus,
    source: "this project",
    docs: "A trainer that was built without the feature `cuda` has no GPU code in it and needs no \
           CUDA library. It would compute on CPUs, or refuse the job.",
    reads: "DT_NEEDED and PTX of the trainer",
    fix: "build it with --features nccl, or set spec.world.compute: cpu",
    check: Check::Node(without_cuda),
};

pub(super) static LIBRARY_MISSING: Rule = Rule {
    id: "library-missing",
    summary: "the loader finds all libraries of the trainer",
    area: Area::Software,
    severity: Severity::Block,
    applies: Applies::Always,
    source: "ELF DT_NEEDED; ld.so(8) for the order of the search",
    docs: "The loader refuses to start a program when one of its libraries is nowhere in its path.",
    reads: "DT_NEEDED of the trainer, the loader's folders",
    fix: "install the library, or add its folder to LD_LIBRARY_PATH",
    check: Check::Node(library_missing),
};

pub(super) static BINARY_SKEW: Rule = Rule {
    id: "binary-skew",
    summary: "all nodes run the same trainer",
    area: Area::Software,
    severity: Severity::Block,
    applies: Applies::Nodes,
    source: "this project: ranks exchange tensors in an order that the build decides",
    docs: "Ranks of different builds may exchange different tensors under the same name, and train \
           something that no single build would.",
    reads: "SHA-256 of the trainer on all nodes",
    fix: "copy the trainer of the majority to the outliers",
    check: Check::Agree(Agreement {
        what: "SHA-256 of the trainer",
        read: |node, _demand| Ok(node.trainer.sha256.get()?.clone()),
        impact: "ranks may hang in the first exchange, or train something else",
        fix: "copy the trainer of the majority to the outliers, or pin the image by digest",
        see: "sha256sum qvl-train",
    }),
};

#[expect(clippy::unnecessary_wraps, reason = "every check has this type")]
fn trainer_missing(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.trainer.path;
    if let Ok(path) = fact.get() {
        return Ok(Judgement::pass(Evidence::of(fact, path.as_str(), "an ELF file")));
    }
    let why = fact.get().err().map_or_else(String::new, |unread| unread.why);
    let problem = Problem {
        severity: Severity::Warn,
        what: format!("the trainer cannot be looked at: {why}"),
        impact: format!("libraries and PTX of {} are not judged", demand.name()),
        fix: "build it (cargo build --release --bin qvl-train), or name it with --trainer"
            .to_owned(),
        see: "ls -l qvl-train".to_owned(),
    };
    Ok(Judgement::problem(problem, Evidence::new(fact.from(), why, "an ELF file")))
}

fn without_cuda(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.trainer.needed;
    let needed = fact.get()?;
    let marks = ["libcuda.", "libcudart.", "libcublas", "libnccl."];
    let cuda: Vec<String> = needed
        .iter()
        .filter(|library| marks.iter().any(|mark| library.name.starts_with(mark)))
        .map(|library| library.name.clone())
        .collect();
    // A build that opens libcuda at run time needs no library, but has PTX.
    let ptx = node.trainer.ptx.get()?.len();
    let evidence = Evidence::of(fact, cuda.clone(), "CUDA libraries or PTX");
    let problem = (cuda.is_empty() && ptx == 0).then(|| Problem {
        severity: Severity::Block,
        what: "the trainer has neither PTX nor CUDA libraries: it is a CPU build".to_owned(),
        impact: format!("{} cannot use the GPUs", demand.name()),
        fix: "build it with --features nccl, or set spec.world.compute: cpu".to_owned(),
        see: "readelf -d qvl-train | grep NEEDED".to_owned(),
    });
    Ok(Judgement::from_option(problem, evidence))
}

fn library_missing(node: &NodeFacts, demand: &Demand) -> Outcome {
    let fact = &node.trainer.needed;
    let needed = match fact.get() {
        Ok(needed) => needed,
        // A check on CPUs must not stop a launch because the file has no readable table.
        Err(_unread) if node.trainer.path.get().is_err() => {
            return Err(Stop::skip("there is no trainer to look at: see trainer-missing"));
        }
        Err(unread) => return Err(unread.into()),
    };
    let missing: Vec<String> = needed
        .iter()
        .filter(|library| library.path.is_none())
        .map(|library| library.name.clone())
        .collect();
    let evidence = Evidence::of(fact, missing.clone(), "none missing");
    let searched = node.trainer.library_path.value().map_or_else(String::new, |p| p.join(", "));
    let problem = (!missing.is_empty()).then(|| Problem {
        severity: Severity::Block,
        what: format!("{} not found in {searched}", missing.join(", ")),
        impact: format!(
            "the loader refuses to start the trainer, so no rank of {} runs",
            demand.name()
        ),
        fix: "install the library, or add its folder to LD_LIBRARY_PATH".to_owned(),
        see: "ldd qvl-train".to_owned(),
    });
    Ok(Judgement::from_option(problem, evidence))
}
