//! Work inside of namespaces: on a thread of its own, so that this process stays where it is.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    thread,
};

use nix::sched::{CloneFlags, setns};

use crate::error::{At, Error};

/// A network namespace by name, as `ip netns` knows it.
pub(crate) fn file(name: &str) -> PathBuf {
    PathBuf::from("/run/netns").join(name)
}

/// Runs `work` in the network namespace `network`. Processes that it starts live there too.
pub(crate) fn inside<T: Send>(
    network: &str,
    work: impl FnOnce() -> Result<T, Error> + Send,
) -> Result<T, Error> {
    on_thread(|| {
        enter(&file(network), CloneFlags::CLONE_NEWNET)?;
        work()
    })
}

/// Runs `work` in the network, mount and UTS namespaces of process `pid`.
pub(crate) fn beside<T: Send>(
    pid: i32,
    work: impl FnOnce() -> Result<T, Error> + Send,
) -> Result<T, Error> {
    on_thread(|| {
        // Opened first: after the change of mounts /proc may be another one.
        let open = |kind: &str| {
            let path = PathBuf::from(format!("/proc/{pid}/ns/{kind}"));
            File::open(&path).at("open", path)
        };
        let (net, uts, mnt) = (open("net")?, open("uts")?, open("mnt")?);
        unshare(CloneFlags::CLONE_FS)?;
        for (file, flag) in [
            (net, CloneFlags::CLONE_NEWNET),
            (uts, CloneFlags::CLONE_NEWUTS),
            (mnt, CloneFlags::CLONE_NEWNS),
        ] {
            setns(file, flag).at("enter the namespace of", format!("/proc/{pid}/ns"))?;
        }
        work()
    })
}

/// Runs `work` in a network namespace and in a new mount and UTS namespace.
pub(crate) fn fresh<T: Send>(
    network: &str,
    work: impl FnOnce() -> Result<T, Error> + Send,
) -> Result<T, Error> {
    inside(network, || {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS)?;
        work()
    })
}

fn on_thread<T: Send>(work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    thread::scope(|scope| {
        scope.spawn(work).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Moves the calling thread.
pub(crate) fn enter(path: &Path, kind: CloneFlags) -> Result<(), Error> {
    let file = File::open(path).at("open", path)?;
    setns(file, kind).at("enter the namespace", path)
}

fn unshare(flags: CloneFlags) -> Result<(), Error> {
    nix::sched::unshare(flags).map_err(|error| Error::System {
        what: "make a namespace".to_owned(),
        source: io::Error::from(error),
    })
}
