//! Driver, CUDA, trainer, NCCL, model and data.

use super::{BASE, Key, Label, Matters, NONE, Scope, agreed, joined, optional, text};
use crate::{
    doctor::{Stop, floor, table},
    facts::{Fact, Library, NodeFacts, Place, Storage},
};

/// Whether the kernel side and the library side of a driver start at all.
const STARTS: [&str; 2] = ["nvml-unavailable", "driver-module-mismatch"];

pub(super) static DRIVER: Key = Key {
    name: "driver version",
    rules: &["ptx-too-new", "cuda-too-new", STARTS[0], STARTS[1], "torch-driver-too-old"],
    reason: "each of these drivers runs the trainer's libraries and PTX as far as is known; look \
             at it first when one node fails alone",
    source: "AMD-AGI/Primus preflight, drift table; CUDA minor-version compatibility",
    read: |node, _demand| text(&node.nvml.driver_version),
    ..BASE
};

pub(super) static KERNEL_MODULE: Key = Key {
    name: "kernel module version",
    rules: &["driver-module-mismatch", "kernel-module-missing"],
    reason: "each module fits the library beside it",
    source: "/proc/driver/nvidia/version",
    read: |node, _demand| {
        let module = node.driver.kernel_module.get()?.as_ref();
        Ok(module.map_or(NONE, |module| module.version.as_str()).to_owned())
    },
    ..BASE
};

pub(super) static MODULE_KIND: Key = Key {
    name: "kind of kernel module",
    rules: &["closed-kernel-module", "open-kernel-module-unsupported"],
    otherwise: Label::Slow,
    reason: "DMA-BUF, and so GPUDirect without nvidia_peermem, needs the open module",
    source: "NVIDIA/open-gpu-kernel-modules; gpu-operator documentation",
    read: |node, _demand| {
        let module = node.driver.kernel_module.get()?.as_ref();
        Ok(module.map_or(NONE, |module| if module.open { "open" } else { "closed" }).to_owned())
    },
    ..BASE
};

pub(super) static NVML_LIBRARY: Key = Key {
    name: "NVML library",
    rules: &STARTS,
    reason: "it comes with the driver and only answers questions",
    source: "nvmlSystemGetNVMLVersion",
    read: |node, _demand| text(&node.nvml.nvml_version),
    ..BASE
};

pub(super) static CUDA_OF_DRIVER: Key = Key {
    name: "highest CUDA of the driver",
    rules: &["cuda-too-new", "cuda-driver-mismatch"],
    reason: "each is new enough for the trainer's CUDA libraries as far as is known",
    source: "nvmlSystemGetCudaDriverVersion_v2",
    read: |node, _demand| {
        let version = node.nvml.cuda_version.get()?;
        Ok(format!("{}.{}", version / 1000, version % 1000 / 10))
    },
    ..BASE
};

pub(super) static LIBCUDA_PATH: Key = Key {
    name: "libcuda that the loader takes",
    rules: &["stub-libcuda", "forward-compat-shadow", "cuda-unavailable"],
    reason: "another folder with a library that works is no difference for the trainer",
    source: "ld.so(8)",
    read: |node, _demand| optional(&node.driver.libcuda_path).map(|path| folder(&path)),
    ..BASE
};

pub(super) static LIBCUDA_LOADED: Key = Key {
    name: "libcuda that was loaded",
    rules: &["forward-compat-shadow", "cuda-unavailable", "cuda-driver-mismatch"],
    reason: "another folder with a library that works is no difference for the trainer",
    source: "/proc/self/maps",
    read: |node, _demand| text(&node.cuda.library_path).map(|path| folder(&path)),
    ..BASE
};

pub(super) static PTX_FLOOR: Key = Key {
    name: "driver floor of the trainer",
    scope: Scope::Trainer,
    rules: &["ptx-too-new", "cuda-too-new"],
    otherwise: Label::Fatal,
    reason: "the driver is older than what the trainer's file asks for",
    source: "PTX ISA release history; CUDA release notes, minimum driver",
    read: ptx_floor,
    ..BASE
};

pub(super) static TRAINER: Key = Key {
    name: "trainer",
    scope: Scope::Trainer,
    matters: Matters::Always,
    rules: &["binary-skew"],
    otherwise: Label::Fatal,
    reason: "ranks of different builds exchange tensors in different orders",
    source: "this project",
    read: |node, _demand| Ok(short(node.trainer.sha256.get()?)),
};

pub(super) static NCCL_VERSION: Key = Key {
    name: "NCCL version",
    scope: Scope::Rank,
    rules: &["nccl-skew", "nccl-too-old"],
    otherwise: Label::Fatal,
    reason: "ranks of one communicator must have one NCCL",
    source: "NVIDIA/nccl: ranks of one communicator must have one version",
    read: |node, demand| agreed("nccl-skew", node, demand),
    ..BASE
};

pub(super) static NCCL_FILE: Key = Key {
    name: "NCCL file",
    scope: Scope::Rank,
    rules: &["nccl-skew"],
    reason: "builds of one version speak the same protocol; look at it when a collective hangs",
    source: "awslabs hyperpod-nccl (wheels and system packages side by side)",
    read: |node, _demand| {
        let library = nccl(node)?;
        let size = || format!("{} bytes", library.bytes);
        Ok(library.sha256.as_ref().map_or_else(size, |hash| short(hash)))
    },
    ..BASE
};

pub(super) static NCCL_PATH: Key = Key {
    name: "folder of NCCL",
    scope: Scope::Rank,
    rules: &["nccl-skew"],
    reason: "the same file in another folder is no difference for the ranks",
    source: "ld.so(8)",
    read: |node, _demand| Ok(folder(&nccl(node)?.path)),
    ..BASE
};

pub(super) static NET_PLUGINS: Key = Key {
    name: "NCCL network plugins",
    scope: Scope::Rank,
    rules: &["net-plugin-missing"],
    otherwise: Label::Slow,
    reason: "a node without the plugin falls back to sockets, or chooses another protocol and hangs",
    source: "NCCL user guide, NCCL_NET_PLUGIN",
    read: |node, _demand| Ok(joined(node.trainer.net_plugins.get()?.iter().map(|path| name(path)))),
    ..BASE
};

pub(super) static LIBRARY_PATH: Key = Key {
    name: "folders of the loader",
    scope: Scope::Rank,
    matters: Matters::Always,
    rules: &["library-missing"],
    reason: "every library of the trainer is found on every node",
    source: "ld.so(8)",
    read: |node, _demand| Ok(node.trainer.library_path.get()?.join(":")),
    ..BASE
};

pub(super) static MODEL: Key = Key {
    name: "base model",
    scope: Scope::Rank,
    matters: Matters::Always,
    rules: &["model-skew", "weights-missing", "weights-are-pointers"],
    otherwise: Label::Fatal,
    reason: "ranks load the base from their own node and would train one adapter for two models",
    source: "this project: base weights are never exchanged",
    read: |node, _demand| content(&node.storage, Place::Model),
};

pub(super) static DATA: Key = Key {
    name: "training data",
    scope: Scope::Rank,
    matters: Matters::Always,
    rules: &["step-count-unequal", "data-skew"],
    otherwise: Label::Fatal,
    reason: "samples are trained twice or never, without a message",
    source: "this project: every rank takes its samples by their place in the list",
    read: |node, _demand| content(&node.storage, Place::Data),
};

/// Whether the driver is as new as the trainer's file asks.
fn ptx_floor(node: &NodeFacts, _demand: &super::Demand) -> Result<String, Stop> {
    let floor = floor(&node.trainer);
    if let Some(unread) = floor.unknown.into_iter().next() {
        return Err(unread.into());
    }
    let Some(asked) = floor.driver else {
        return Err(Stop::skip("the trainer asks for no driver"));
    };
    let have = table::version(node.nvml.driver_version.get()?);
    let met = table::version(&asked) <= have;
    Ok(format!("{asked}: {}", if met { "met" } else { "not met" }))
}

fn nccl(node: &NodeFacts) -> Result<&Library, Stop> {
    node.trainer.nccl.get()?.first().ok_or_else(|| Stop::skip("the loader finds no NCCL"))
}

/// Size and fingerprint of all folders or files of one kind.
fn content(storage: &Fact<Vec<Storage>>, place: Place) -> Result<String, Stop> {
    let of_place = |folder: &&Storage| folder.place == place;
    let parts: Vec<String> = storage
        .get()?
        .iter()
        .filter(of_place)
        .filter_map(|folder| {
            let bytes = crate::doctor::human_bytes(folder.bytes?);
            Some(format!("{bytes} {}", short(folder.fingerprint.as_ref()?)))
        })
        .collect();
    if parts.is_empty() {
        return Err(Stop::skip("no job was given (--job FILE), or its files were not looked at"));
    }
    Ok(parts.join(", "))
}

/// The beginning of a hash, enough to tell files apart.
fn short(hash: &str) -> String {
    hash.chars().take(12).collect()
}

fn folder(path: &str) -> String {
    path.rsplit_once('/').map_or(path, |(folder, _name)| folder).to_owned()
}

fn name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_folder, name)| name)
}
