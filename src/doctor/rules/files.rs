//! Files of the job: `output-volatile`, `output-not-shared`, `model-remote`, `inodes-short`,
//! `data-skew`, `model-skew`, `step-count-unequal`, `weights-are-pointers`, `weights-missing`.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    doctor::{
        Applies, Area, Check, Conflict, Demand, Evidence, Judgement, Outcome, Rule, Severity, Stop,
        table,
    },
    facts::{NodeFacts, NodeName, Place, Snapshot, Storage, Weights},
};

pub(super) static OUTPUT_VOLATILE: Rule = Rule {
    id: "output-volatile",
    summary: "checkpoints survive the machine or the container",
    area: Area::Storage,
    severity: Severity::Warn,
    applies: Applies::Always,
    source: "statfs(2); tmpfs(5); overlay file system of containers",
    docs: "Files in memory (tmpfs) are gone after a reboot and take memory from the ranks. Files \
           in a container's own layer (overlay) are gone with the container. Checkpoints there \
           save nothing.",
    reads: "statfs of spec.output",
    fix: "name a folder on a disk or a mounted volume as spec.output",
    check: Check::Node(volatile),
};

pub(super) static OUTPUT_NOT_SHARED: Rule = Rule {
    id: "output-not-shared",
    summary: "a rank that starts elsewhere finds the checkpoint",
    area: Area::Storage,
    severity: Severity::Warn,
    applies: Applies::Nodes,
    source: "this project: rank 0 writes, every rank reads at a restart",
    docs: "With a folder on a local disk the checkpoint is on the node of rank 0. After a restart \
           on other nodes, the job does not find it and begins anew.",
    reads: "statfs of spec.output on all nodes",
    fix: "name a folder on a shared file system (NFS, Lustre, a ReadWriteMany volume)",
    check: Check::Node(not_shared),
};

pub(super) static MODEL_REMOTE: Rule = Rule {
    id: "model-remote",
    summary: "the weights are not mapped from a slow file server",
    area: Area::Storage,
    severity: Severity::Warn,
    applies: Applies::Always,
    source: "mmap(2) on network file systems (SIGBUS when the server fails)",
    docs: "Weights are mapped, not copied. From a FUSE or CIFS mount every page is a request of \
           its own, so loading takes minutes, and a server that fails ends the rank with SIGBUS.",
    reads: "statfs of spec.model.path",
    fix: "copy the weights to a local disk once per node, and name that folder",
    check: Check::Node(remote),
};

pub(super) static INODES_SHORT: Rule = Rule {
    id: "inodes-short",
    summary: "the file system has room for more files",
    area: Area::Storage,
    severity: Severity::Warn,
    applies: Applies::Always,
    source: "statvfs(3), f_favail; the 1000 files are our own count",
    docs: "A file system can be full of files while `df` shows free bytes. Logs, metrics and \
           checkpoints are a few hundred files.",
    reads: "statvfs of the job's folders",
    fix: "remove small files (find <mount> -xdev -type f | wc -l), or use another disk",
    check: Check::Node(inodes),
};

pub(super) static DATA_SKEW: Rule = Rule {
    id: "data-skew",
    summary: "all nodes have the same training data",
    area: Area::Storage,
    severity: Severity::Block,
    applies: Applies::Nodes,
    source: "this project: every rank takes its samples by their place in the list",
    docs: "Each rank computes which samples are its own. With other data on one node, samples are \
           trained twice or never, and nothing says so. Content of files up to a megabyte is \
           compared, names and sizes of larger ones.",
    reads: "names, sizes and small files of spec.data on all nodes",
    fix: "copy the data of the majority to the outliers, or use a shared file system",
    check: Check::Fleet(data),
};

pub(super) static MODEL_SKEW: Rule = Rule {
    id: "model-skew",
    summary: "all nodes have the same base model",
    area: Area::Storage,
    severity: Severity::Block,
    applies: Applies::Nodes,
    source: "this project: base weights are never exchanged",
    docs: "Each rank loads the base from its own node. With another one on one node the ranks \
           train one adapter for two models, and it fits neither.",
    reads: "names, sizes and small files of spec.model.path on all nodes",
    fix: "copy the model of the majority to the outliers, or use a shared file system",
    check: Check::Fleet(model),
};

pub(super) static STEP_COUNT_UNEQUAL: Rule = Rule {
    id: "step-count-unequal",
    summary: "all ranks count the same number of samples",
    area: Area::Job,
    severity: Severity::Block,
    applies: Applies::Nodes,
    source: "pytorch/pytorch, DistributedDataParallel join (uneven inputs)",
    docs: "Ranks with more samples than others run more steps. At the end of the epoch they wait \
           for an exchange that the others do not make, until the time limit: the job hangs when \
           it is nearly done. Data sets of different size on the nodes do that.",
    reads: "sizes of spec.data on all nodes",
    fix: "put the same data on all nodes; shards for each rank must have equal numbers of samples",
    check: Check::Fleet(steps),
};

pub(super) static WEIGHTS_ARE_POINTERS: Rule = Rule {
    id: "weights-are-pointers",
    summary: "weight files are weights",
    area: Area::Storage,
    severity: Severity::Block,
    applies: Applies::Always,
    source: "Git LFS specification (pointer files)",
    docs: "Cloning a model without Git LFS leaves small text files in place of the weights. \
           Loading then fails with a message about the header of the file.",
    reads: "small weight files in spec.model.path",
    fix: "git lfs install && git lfs pull in the model's folder",
    check: Check::Node(pointers),
};

pub(super) static WEIGHTS_MISSING: Rule = Rule {
    id: "weights-missing",
    summary: "all weight files that the index names are there",
    area: Area::Storage,
    severity: Severity::Block,
    applies: Applies::Always,
    source: "Hugging Face, index of sharded checkpoints (weight_map)",
    docs: "A download that was cut short leaves some of the shards away. The loader notices after \
           minutes, when it comes to the first tensor of the missing file.",
    reads: "*.index.json and weight files in spec.model.path",
    fix: "download the missing files",
    check: Check::Node(missing),
};

fn folders(node: &NodeFacts, place: Place) -> Result<Vec<&Storage>, Stop> {
    let found: Vec<&Storage> =
        node.storage.get()?.iter().filter(|folder| folder.place == place).collect();
    if found.is_empty() {
        return Err(Stop::skip("no job was given (--job FILE)"));
    }
    Ok(found)
}

/// Kind of the file system of a folder.
fn kind(folder: &Storage) -> &str {
    folder.kind.as_deref().unwrap_or("another")
}

fn volatile(node: &NodeFacts, demand: &Demand) -> Outcome {
    let folders = folders(node, Place::Output)?;
    let in_container = node.container.kind.get()?.is_some();
    let is_lost = |folder: &&&Storage| match kind(folder) {
        "tmpfs" | "ramfs" => true,
        "overlay" => in_container,
        _ => false,
    };
    let lost = folders.iter().find(is_lost);
    let problem = lost.map(|folder| {
        OUTPUT_VOLATILE.problem(
            format!("`{}` is on {}", folder.path, kind(folder)),
            format!("checkpoints of {} are lost with the machine or container", demand.name()),
            format!("findmnt -T '{}'", folder.nearest),
        )
    });
    let kinds: Vec<String> = folders.iter().map(|folder| kind(folder).to_owned()).collect();
    Judgement::of(&node.storage, kinds, "a disk or a volume", problem)
}

/// File systems that several nodes can mount.
const SHARED: [&str; 8] = ["nfs", "cifs", "ceph", "lustre", "gpfs", "beegfs", "fuse", "9p"];

fn not_shared(node: &NodeFacts, demand: &Demand) -> Outcome {
    let folders = folders(node, Place::Output)?;
    // Files in memory are told by output-volatile.
    let elsewhere = |kind: &str| SHARED.contains(&kind) || ["tmpfs", "ramfs"].contains(&kind);
    let local =
        folders.iter().find(|folder| folder.kind.as_deref().is_some_and(|kind| !elsewhere(kind)));
    let problem = local.map(|folder| {
        OUTPUT_NOT_SHARED.problem(
            format!("`{}` is on {}, which other nodes do not see", folder.path, kind(folder)),
            format!("{} begins anew when it starts again on other nodes", demand.name()),
            format!("findmnt -T '{}'", folder.nearest),
        )
    });
    let kinds: Vec<String> = folders.iter().map(|folder| kind(folder).to_owned()).collect();
    Judgement::of(&node.storage, kinds, "a shared file system", problem)
}

fn remote(node: &NodeFacts, demand: &Demand) -> Outcome {
    let folders = folders(node, Place::Model)?;
    let slow = folders.iter().find(|folder| ["fuse", "cifs", "9p"].contains(&kind(folder)));
    let problem = slow.map(|folder| {
        MODEL_REMOTE.problem(
            format!("`{}` is on {}", folder.path, kind(folder)),
            format!(
                "{} loads for minutes, and ends with SIGBUS when the server fails",
                demand.name()
            ),
            format!("findmnt -T '{}'", folder.nearest),
        )
    });
    let kinds: Vec<String> = folders.iter().map(|folder| kind(folder).to_owned()).collect();
    Judgement::of(&node.storage, kinds, "a disk, or a file system for many readers", problem)
}

fn inodes(node: &NodeFacts, demand: &Demand) -> Outcome {
    const WANTED: u64 = 1000;
    let fact = &node.storage;
    let written = fact
        .get()?
        .iter()
        .filter(|folder| matches!(folder.place, Place::Output | Place::Temporary));
    let counted: Vec<(&Storage, u64)> =
        written.filter_map(|folder| Some((folder, folder.free_inodes?))).collect();
    if counted.is_empty() {
        return Err(Stop::skip("no file system of the job counts its files"));
    }
    // None at all is told by disk-short.
    let short = counted.iter().find(|(_folder, free)| (1..WANTED).contains(free));
    let problem = short.map(|(folder, free)| {
        INODES_SHORT.problem(
            format!("`{}` has room for {free} more files", folder.path),
            format!("logs or checkpoints of {} cannot be created", demand.name()),
            format!("df -i '{}'", folder.nearest),
        )
    });
    let least = counted.iter().map(|(_folder, free)| *free).min().unwrap_or(0);
    Judgement::of(fact, least, format!("at least {WANTED}"), problem)
}

/// Values of folders of one place, by path and value, with the nodes that have them.
type Copies = BTreeMap<String, BTreeMap<String, Vec<String>>>;

fn copies(
    snapshot: &Snapshot,
    place: Place,
    value: impl Fn(&Storage) -> Option<String>,
) -> Result<(Copies, Judgement), Stop> {
    let mut copies = Copies::new();
    let mut judgement = Judgement::default();
    for (name, node) in &snapshot.nodes {
        match node.storage.get() {
            Ok(folders) => {
                for folder in folders.iter().filter(|folder| folder.place == place) {
                    let Some(value) = value(folder) else { continue };
                    let of_path = copies.entry(folder.path.clone()).or_default();
                    of_path.entry(value).or_default().push(name.0.clone());
                }
            }
            Err(unread) => judgement.unknown.push(unread),
        }
    }
    if copies.is_empty() && judgement.unknown.is_empty() {
        return Err(Stop::skip("no job was given (--job FILE), or its files were not looked at"));
    }
    judgement.evidence.push(Evidence::new("files of the job", copies.len(), "equal on all nodes"));
    Ok((copies, judgement))
}

/// Sizes are left to another check: values begin with the size.
fn same_size(values: &BTreeMap<String, Vec<String>>) -> bool {
    let sizes: BTreeSet<&str> = values.keys().filter_map(|v| v.split(' ').next()).collect();
    sizes.len() == 1
}

/// The value of the fewest nodes.
fn odd(values: &BTreeMap<String, Vec<String>>) -> Option<(&String, &Vec<String>)> {
    values.iter().min_by_key(|(_value, nodes)| nodes.len()).filter(|_| 1 < values.len())
}

fn sides(values: &BTreeMap<String, Vec<String>>) -> Conflict {
    let named = |names: &Vec<String>| names.iter().cloned().map(NodeName).collect();
    Conflict::of_values(values.iter().map(|(value, names)| (value, named(names))))
}

fn content(folder: &Storage) -> Option<String> {
    Some(format!("{} {}", folder.bytes?, folder.fingerprint.as_ref()?))
}

fn data(snapshot: &Snapshot, demand: &Demand) -> Outcome {
    let (copies, mut judgement) = copies(snapshot, Place::Data, content)?;
    for (path, values) in copies.iter().filter(|(_path, values)| same_size(values)) {
        if let Some((_value, nodes)) = odd(values) {
            judgement.conflicts.push(sides(values));
            judgement.problems.push(DATA_SKEW.problem(
                format!("`{path}` has the same size but another content on {}", nodes.join(", ")),
                format!("{} trains samples twice or never, without a message", demand.name()),
                format!("sha256sum '{path}' on all nodes"),
            ));
        }
    }
    Ok(judgement)
}

fn model(snapshot: &Snapshot, demand: &Demand) -> Outcome {
    let (copies, mut judgement) = copies(snapshot, Place::Model, content)?;
    for (path, values) in &copies {
        if let Some((_value, nodes)) = odd(values) {
            judgement.conflicts.push(sides(values));
            judgement.problems.push(MODEL_SKEW.problem(
                format!("`{path}` is another model on {}", nodes.join(", ")),
                format!("{} trains one adapter for two models", demand.name()),
                format!("ls -l '{path}'; sha256sum '{path}'/config.json on all nodes"),
            ));
        }
    }
    Ok(judgement)
}

fn steps(snapshot: &Snapshot, demand: &Demand) -> Outcome {
    let size = |folder: &Storage| folder.bytes.map(|bytes| bytes.to_string());
    let (copies, mut judgement) = copies(snapshot, Place::Data, size)?;
    for (path, values) in &copies {
        if let Some((bytes, nodes)) = odd(values) {
            judgement.conflicts.push(sides(values));
            let bytes = bytes.parse().map_or_else(|_error| bytes.clone(), table::bytes);
            judgement.problems.push(STEP_COUNT_UNEQUAL.problem(
                format!("`{path}` has another size on {} ({bytes})", nodes.join(", ")),
                format!(
                    "ranks of {} run different numbers of steps and hang at the end",
                    demand.name()
                ),
                format!("ls -l '{path}' on all nodes"),
            ));
        }
    }
    Ok(judgement)
}

/// Weight files of the model.
fn weights(node: &NodeFacts) -> Result<(&Storage, &Weights), Stop> {
    let folders = folders(node, Place::Model)?;
    let found = folders.into_iter().find_map(|folder| Some((folder, folder.weights.as_ref()?)));
    found.ok_or_else(|| Stop::skip("the model's folder was not looked at"))
}

fn pointers(node: &NodeFacts, demand: &Demand) -> Outcome {
    let (folder, weights) = weights(node)?;
    let problem = weights.pointers.first().map(|first| {
        WEIGHTS_ARE_POINTERS.problem(
            format!(
                "{} files in `{}` are pointers of Git LFS, such as {first}",
                weights.pointers.len(),
                folder.path
            ),
            format!("{} cannot load its base model", demand.name()),
            format!("head -c 200 '{}/{first}'", folder.path),
        )
    });
    Judgement::of(&node.storage, weights.pointers.clone(), "none", problem)
}

fn missing(node: &NodeFacts, demand: &Demand) -> Outcome {
    let (folder, weights) = weights(node)?;
    let problem = (!weights.missing.is_empty()).then(|| {
        WEIGHTS_MISSING.problem(
            format!("`{}` lacks {}", folder.path, weights.missing.join(", ")),
            format!("{} cannot load its base model", demand.name()),
            format!("ls -l '{}'", folder.path),
        )
    });
    Judgement::of(&node.storage, weights.missing.clone(), "none", problem)
}
