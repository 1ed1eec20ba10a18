//! Active tests: they write, compute and send, so they are made only when asked for, each in a
//! process of its own that is killed when it does not come back.

mod compute;
mod memory;
mod network;
mod storage;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};

use super::{
    Progress,
    child::{self, Errand, Silence},
};
use crate::{
    facts::{ActiveFacts, Ended, Fact, Place, StorageTest},
    wire::gputest::{ANSWER, CALL},
};

pub use compute::expected_product;

/// Environment variable that gives the secret of the peers to the child, so that it does not show
/// in the list of processes.
const SECRET: &str = "QVL_PEER_SECRET";
/// Most bytes that are written to a folder, and fewest; between them, a checkpoint's size.
const STORAGE_MOST: u64 = 256 << 20;
const STORAGE_LEAST: u64 = 16 << 20;

/// What to test.
#[derive(Clone, Debug)]
pub struct ActiveOptions {
    /// `qvl` itself, which calls [`serve`] when it is started with `probe-active`.
    pub program: PathBuf,
    /// `qvl-train`, which tests the GPUs.
    pub trainer: Option<PathBuf>,
    /// Folders to write to.
    pub folders: Vec<(Option<Place>, PathBuf)>,
    /// Size of a checkpoint of the job, if that is known.
    pub checkpoint_bytes: Option<u64>,
    /// Memory that a rank needs on its GPU, if that is known.
    pub rank_bytes: Option<u64>,
    /// Other hosts, as `host:port`.
    pub peers: Vec<String>,
    /// What opens their doors.
    pub secret: String,
    /// Name of this machine.
    pub host: String,
}

/// A test as the child is asked for it.
#[derive(Clone, Debug)]
pub enum ActiveTest {
    /// Write, fsync, read back, rename.
    Storage {
        /// Folder; the nearest one that exists is tested.
        folder: PathBuf,
        /// Bytes to write.
        bytes: u64,
        /// Begin of the names of its files.
        name: String,
    },
    /// STREAM triad on each NUMA node.
    Memory,
    /// A matrix product on each processor.
    Compute,
    /// Every pair of hosts.
    Network {
        /// Name of this machine.
        host: String,
        /// The others, as `host:port`.
        peers: Vec<String>,
    },
}

/// Makes all tests, one after another, because they would disturb each other.
pub fn run(options: &ActiveOptions) -> ActiveFacts {
    let folders: Vec<StorageTest> =
        options.folders.iter().map(|(place, path)| folder(options, *place, path)).collect();
    ActiveFacts {
        storage: Fact::known(folders, storage::FROM),
        memory: own(options, "memory", &[], memory::FROM, (60, 120)),
        compute: own(options, "compute", &[], compute::FROM, (30, 60)),
        gpus: gpus(options),
        network: (!options.peers.is_empty()).then(|| peers(options)),
    }
}

/// Nothing was tested, because `why`.
pub fn refused(options: &ActiveOptions, why: &str) -> ActiveFacts {
    ActiveFacts {
        storage: Fact::unread(why, storage::FROM),
        memory: Fact::unread(why, memory::FROM),
        compute: Fact::unread(why, compute::FROM),
        gpus: Fact::unread(why, GPUS),
        network: (!options.peers.is_empty()).then(|| Fact::unread(why, network::FROM)),
    }
}

/// What the tests of GPUs are called in evidence.
const GPUS: &str = "qvl-train gputest";

/// Runs a child of this program, for so many seconds of silence, and in all.
fn own<T: DeserializeOwned>(
    options: &ActiveOptions,
    test: &str,
    args: &[&str],
    from: &'static str,
    (silence, longest): (u64, u64),
) -> Fact<Ended<T>> {
    let args = ["probe-active", test].iter().chain(args).map(Into::into).collect();
    let errand = Errand {
        name: format!("{test} {}", options.host),
        program: options.program.clone(),
        args,
        variables: vec![(SECRET, options.secret.clone())],
        silence: Duration::from_secs(silence),
        longest: Duration::from_secs(longest),
    };
    Fact::known(ended(child::send(errand).answer()), from)
}

fn ended<T>(answer: Result<T, Silence>) -> Ended<T> {
    match answer {
        Ok(found) => Ended::Done(found),
        Err(Silence::Hung { call, after_ms }) => Ended::Hung { step: call, after_ms },
        Err(Silence::Crashed { message }) => Ended::Crashed { message },
    }
}

fn folder(options: &ActiveOptions, place: Option<Place>, path: &Path) -> StorageTest {
    let bytes = options.checkpoint_bytes.unwrap_or(STORAGE_LEAST);
    let bytes = bytes.clamp(STORAGE_LEAST, STORAGE_MOST);
    let name = storage::name();
    let errand = Errand {
        name: format!("storage {}", path.display()),
        program: options.program.clone(),
        args: vec![
            "probe-active".into(),
            "storage".into(),
            "--folder".into(),
            path.into(),
            "--bytes".into(),
            bytes.to_string().into(),
            "--name".into(),
            name.clone().into(),
        ],
        variables: Vec::new(),
        silence: storage::SILENCE,
        longest: storage::LONGEST,
    };
    let ended = ended(child::send(errand).answer());
    if !matches!(ended, Ended::Done(_)) {
        storage::clean(path, &name);
    }
    StorageTest { place, path: path.display().to_string(), ended }
}

/// `qvl-train` makes these: it may link CUDA, and `qvl` never does.
fn gpus(options: &ActiveOptions) -> Fact<Ended<crate::wire::gputest::GpuTests>> {
    let Some(trainer) = &options.trainer else {
        return Fact::unread("no qvl-train was found (--trainer FILE)", GPUS);
    };
    let mut args = vec!["gputest".into()];
    if let Some(bytes) = options.rank_bytes {
        args.extend(["--bytes".into(), bytes.to_string().into()]);
    }
    let errand = Errand {
        name: "gputest".to_owned(),
        program: trainer.clone(),
        args,
        variables: Vec::new(),
        silence: Duration::from_secs(20),
        longest: Duration::from_secs(180),
    };
    Fact::known(ended(child::send(errand).answer()), GPUS)
}

fn peers(options: &ActiveOptions) -> Fact<Ended<crate::facts::NetworkTest>> {
    let list = options.peers.join(",");
    let args = ["--host", &options.host, "--peers", &list];
    // As many rounds as hosts, if every way is broken.
    let round = network::ROUND_SECONDS;
    let all = round * (options.peers.len() as u64 + 1);
    own(options, "network", &args, network::FROM, (round, all))
}

/// The child's side: makes the test, tells `say` each step before, and gives the answer, one line.
pub fn serve(test: &ActiveTest, mut say: impl FnMut(&str) + Send + 'static) -> String {
    end_with_parent();
    let progress = Progress::to(move |step| say(&format!("{CALL}{step}")));
    match test {
        ActiveTest::Storage { folder, bytes, name } => {
            answer(&storage::test(folder, *bytes, name, &progress))
        }
        ActiveTest::Memory => answer(&memory::test(&progress)),
        ActiveTest::Compute => answer(&compute::test(&progress)),
        ActiveTest::Network { host, peers } => {
            let secret = std::env::var(SECRET).unwrap_or_default();
            answer(&network::test(host, peers, &secret, &progress))
        }
    }
}

fn answer(found: &impl Serialize) -> String {
    format!("{ANSWER}{}", serde_json::to_string(found).expect("plain data"))
}

/// A doctor that is killed takes its tests with it.
fn end_with_parent() {
    // Where the kernel cannot, a test ends by itself after some seconds.
    let _set = nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL);
}
