//! Fills [`crate::facts`] from this machine. Collection never fails: what cannot be read becomes
//! a fact that says why.
//!
//! Everything that is text or a file is read below [`Options::root`], so tests read folders. The
//! driver is the one that the loader of this process finds, whatever the root is.

pub mod active;
mod calls;
mod child;
mod content;
pub mod cuda;
mod elf;
mod fatbin;
mod files;
mod gpu;
mod host;
mod kernel_file;
mod kmsg;
mod libraries;
mod names;
mod native;
mod network;
mod nvlink;
pub mod nvml;
mod official;
mod pci;
mod persistence;
mod ranges;
mod rdma;
mod script;
mod storage;
mod system;
mod text;
pub mod way;

use std::path::{Path, PathBuf};

pub use calls::Progress;
pub use child::{DriverLibrary, serve};
pub use kernel_file::read_kernel_log;
pub use kmsg::KernelLogFollower;
pub use persistence::{persistence, serve_persistence};

use crate::facts::{
    ContainerFacts, CudaFacts, EnvFacts, Fact, IdentityFacts, KernelLog, NodeFacts, NodeName,
    NvmlFacts, Place, TrainerFacts,
};

/// What to look at.
#[derive(Clone, Debug)]
pub struct Options {
    /// Root of the file tree, `/` for this machine.
    pub root: PathBuf,
    /// The program that asks the driver in a process of its own: `qvl` itself, which calls
    /// [`serve`] when it is started with `probe-driver nvml` or `probe-driver cuda`. Without it
    /// the driver is not asked.
    pub program: Option<PathBuf>,
    /// The trainer that will run.
    pub trainer: Option<PathBuf>,
    /// Folders of the job.
    pub folders: Vec<(Place, PathBuf)>,
    /// Whether to hash the trainer and NCCL, which costs a second. Only nodes are compared by it.
    pub hashes: bool,
    /// `host:port` to connect to, each for a second at most.
    pub reach: Vec<String>,
    /// The official stack, if it is the one that will run.
    pub official: Option<Official>,
    /// The kernel log, if somebody follows it already or saved it; else it is read from its begin.
    pub kernel_log: Option<Fact<KernelLog>>,
}

/// Where the official stack is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Official {
    /// Folder of a Python environment, or a folder `site-packages`.
    pub python: Option<PathBuf>,
    /// The shell script that starts the ranks.
    pub script: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            root: PathBuf::from("/"),
            program: None,
            trainer: None,
            folders: Vec::new(),
            hashes: false,
            reach: Vec::new(),
            official: None,
            kernel_log: None,
        }
    }
}

impl Options {
    fn is_live(&self) -> bool {
        self.root == Path::new("/")
    }

    /// Where `path`, absolute on the machine, lies below the root.
    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Text of a file; the error names the reason only, the caller knows the file.
    fn text(&self, path: &str) -> Result<String, String> {
        files::text(&self.at(path)).map_err(|error| error.to_string())
    }
}

const OTHER_ROOT: &str = "not asked: the facts come from the files of another root";

/// Everything about this machine. Never fails; takes longer than a moment only when the driver
/// does not answer.
pub fn node(options: &Options) -> NodeFacts {
    // The driver thinks while the files are read.
    let start = |library| options.program.as_deref().map(|program| child::start(program, library));
    let (nvml, cuda) = (start(DriverLibrary::Nvml), start(DriverLibrary::Cuda));
    let variables = host::variables(options);
    let search = libraries::Search::new(options, variables.value());
    let hostname = host::line(options, "/proc/sys/kernel/hostname");
    let processes = system::processes(options);
    NodeFacts {
        driver: pci::driver(options, &search),
        kernel: host::kernel(options, &processes),
        memory: host::memory(options),
        limits: host::limits(options),
        shm: storage::shm(options),
        network: network::network(options, variables.value(), hostname.value()),
        storage: storage::folders(options),
        trainer: elf::trainer(options, &search),
        container: ContainerFacts { kind: host::container(options, variables.value()) },
        env: EnvFacts { variables },
        identity: IdentityFacts {
            hostname,
            boot_id: host::line(options, "/proc/sys/kernel/random/boot_id"),
            machine_id: host::line(options, "/etc/machine-id"),
        },
        system: system::system(options, &search, processes),
        official: official::official(options),
        nvml: nvml_answer(nvml),
        cuda: cuda_answer(cuda),
        offered_gpus: None,
        active: None,
    }
}

/// What a program's file says, and where its libraries are on this machine.
pub fn program(file: &Path) -> TrainerFacts {
    let options = Options { trainer: Some(file.to_owned()), ..Options::default() };
    let variables = host::variables(&options);
    elf::trainer(&options, &libraries::Search::new(&options, variables.value()))
}

/// Name of the machine that `facts` are about.
pub fn name(facts: &NodeFacts) -> NodeName {
    NodeName(facts.identity.hostname.value().cloned().unwrap_or_else(|| "this-machine".to_owned()))
}

const NOT_ASKED: &str = "the driver was not asked";

fn nvml_answer(question: Option<child::Question>) -> NvmlFacts {
    let Some(question) = question else { return nvml::unread(NOT_ASKED) };
    question.answer().unwrap_or_else(nvml::silent)
}

fn cuda_answer(question: Option<child::Question>) -> CudaFacts {
    let Some(question) = question else { return cuda::unread(NOT_ASKED) };
    question.answer().unwrap_or_else(cuda::silent)
}
