//! The trainer that will run, as its ELF file shows it.

use serde::{Deserialize, Serialize};

use super::Fact;

/// What the trainer's file needs from the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrainerFacts {
    /// Path of the file.
    pub path: Fact<String>,
    /// SHA-256 of the file, hexadecimal.
    pub sha256: Fact<String>,
    /// Shared libraries that the loader must find (`DT_NEEDED`), in order.
    pub needed: Fact<Vec<Needed>>,
    /// PTX programs in it: the driver compiles them when the trainer starts.
    pub ptx: Fact<Vec<PtxModule>>,
    /// Machine code for GPUs in it, by architecture.
    pub sass: Fact<Vec<Sass>>,
    /// All `libnccl.so*` files that the loader could take, in its order.
    pub nccl: Fact<Vec<Library>>,
    /// Folders in which the loader looks, in its order.
    pub library_path: Fact<Vec<String>>,
    /// PTX beside the machine code: compiled only on a GPU that no machine code is for.
    #[serde(default = "Fact::not_recorded")]
    pub fat_ptx: Fact<Vec<PtxModule>>,
    /// What the file itself says.
    #[serde(default = "Fact::not_recorded")]
    pub file: Fact<TrainerFile>,
    /// NCCL's network plugins (`libnccl-net*.so`) in the loader's path.
    #[serde(default = "Fact::not_recorded")]
    pub net_plugins: Fact<Vec<String>>,
}

/// The head of an ELF file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrainerFile {
    /// Machine that it is for, `x86_64`.
    pub machine: String,
    /// Whether this user may run it.
    pub executable: bool,
    /// The loader that it names; `None` for a static program.
    pub interpreter: Option<String>,
    /// Whether that loader is there.
    pub interpreter_exists: bool,
    /// Newest version of the C library that it asks for, `2.34`; `None` if it asks for none.
    pub glibc: Option<String>,
}

/// A library that the loader must find.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Needed {
    /// `libcublas.so.12`.
    pub name: String,
    /// Where it was found; `None` if nowhere.
    pub path: Option<String>,
}

/// A PTX program.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PtxModule {
    /// Version of the PTX language as `major * 10 + minor`: 87 is 8.7.
    pub version: u32,
    /// Target, `sm_80`.
    pub target: String,
    /// How many programs have this version and target.
    pub count: u32,
}

/// GPU machine code.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Sass {
    /// Architecture, 80 for `sm_80`.
    pub arch: u32,
    /// How many objects are for it.
    pub count: u32,
}

/// A library file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Library {
    /// Path with links resolved.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 of the file, hexadecimal; `None` if it was not asked for.
    pub sha256: Option<String>,
    /// Version, if the file says so: `2.21.5`.
    pub version: Option<String>,
}
