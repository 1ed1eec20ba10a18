//! Fills [`crate::facts`] from this machine. Collection never fails: what cannot be read becomes
//! a fact that says why.
//!
//! Everything that is text or a file is read below [`Options::root`], so tests read folders. The
//! driver and calls of the kernel are asked only when the root is `/`.

mod calls;
pub mod cuda;
mod elf;
mod fatbin;
mod gpu;
mod host;
mod kmsg;
mod libraries;
mod native;
mod network;
pub mod nvml;
mod pci;
mod storage;
mod text;

use std::{
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

pub use calls::Progress;

use crate::facts::{
    ContainerFacts, CudaFacts, EnvFacts, IdentityFacts, NodeFacts, NodeName, NvmlFacts, Place,
};

/// Longest time that the driver gets to answer.
const DRIVER_TIMEOUT: Duration = Duration::from_secs(5);

/// What to look at.
#[derive(Clone, Debug)]
pub struct Options {
    /// Root of the file tree, `/` for this machine.
    pub root: PathBuf,
    /// The trainer that will run.
    pub trainer: Option<PathBuf>,
    /// Folders of the job.
    pub folders: Vec<(Place, PathBuf)>,
    /// Whether to hash the trainer and NCCL, which costs a second. Only nodes are compared by it.
    pub hashes: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options { root: PathBuf::from("/"), trainer: None, folders: Vec::new(), hashes: false }
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
        let bytes = std::fs::read(self.at(path)).map_err(|error| error.to_string())?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

const OTHER_ROOT: &str = "not asked: the facts come from the files of another root";

/// Everything about this machine. Never fails, and takes at most the driver's timeout twice.
pub fn node(options: &Options) -> NodeFacts {
    let (nvml, cuda) = ask_driver(options.is_live());
    let variables = host::variables(options);
    let search = libraries::Search::new(options, variables.value());
    NodeFacts {
        driver: pci::driver(options, &search),
        nvml,
        cuda,
        kernel: host::kernel(options),
        memory: host::memory(options),
        limits: host::limits(options),
        shm: storage::shm(options),
        network: network::network(options, variables.value()),
        storage: storage::folders(options),
        trainer: elf::trainer(options, &search),
        container: ContainerFacts { kind: host::container(options, variables.value()) },
        env: EnvFacts { variables },
        identity: IdentityFacts {
            hostname: host::line(options, "/proc/sys/kernel/hostname"),
            boot_id: host::line(options, "/proc/sys/kernel/random/boot_id"),
            machine_id: host::line(options, "/etc/machine-id"),
        },
    }
}

/// Name of the machine that `facts` are about.
pub fn name(facts: &NodeFacts) -> NodeName {
    NodeName(facts.identity.hostname.value().cloned().unwrap_or_else(|| "this-machine".to_owned()))
}

/// Asks NVML and CUDA at the same time. A driver that hangs costs the timeout and one thread,
/// which the end of the process takes with it.
fn ask_driver(live: bool) -> (NvmlFacts, CudaFacts) {
    if !live {
        return (nvml::unread(OTHER_ROOT), cuda::unread(OTHER_ROOT));
    }
    let (nvml_progress, cuda_progress) = (Progress::default(), Progress::default());
    let nvml_answer =
        in_thread(&nvml_progress, |progress| nvml::read(nvml::LIBRARY.as_ref(), progress));
    let cuda_answer =
        in_thread(&cuda_progress, |progress| cuda::read(cuda::LIBRARY.as_ref(), progress));
    (
        nvml_answer
            .recv_timeout(DRIVER_TIMEOUT)
            .unwrap_or_else(|error| nvml::silent(error, DRIVER_TIMEOUT, &nvml_progress)),
        cuda_answer
            .recv_timeout(DRIVER_TIMEOUT)
            .unwrap_or_else(|error| cuda::silent(error, DRIVER_TIMEOUT, &cuda_progress)),
    )
}

fn in_thread<T: Send + 'static>(progress: &Progress, ask: fn(&Progress) -> T) -> mpsc::Receiver<T> {
    let (sender, receiver) = mpsc::channel();
    let progress = progress.clone();
    thread::spawn(move || {
        // Nobody listens any more after the timeout.
        let _sent = sender.send(ask(&progress));
    });
    receiver
}
