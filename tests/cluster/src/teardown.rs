//! Ending a cluster, whole or half-made: by pid file, network namespace and control group, never by
//! the name of a program.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use crate::{
    cgroup, daemon,
    error::{At, Error},
    namespace,
    places::Places,
};

const LIMIT: Duration = Duration::from_secs(30);

/// Ends everything of this cluster and removes its files.
pub(crate) fn all(places: &Places) -> Result<(), Error> {
    kill(places, || {
        let mut pids: BTreeSet<i32> = daemon::all(places).into_iter().collect();
        pids.extend(in_networks(&networks(places)));
        pids.extend(cgroup::processes(places, None));
        pids
    })?;
    for network in networks(places) {
        let name = network.file_name().unwrap_or_default().to_owned();
        crate::cluster::output(Command::new("ip").args(["netns", "del"]).arg(name))?;
    }
    if let Some(group) = cgroup::remove(places, None).first() {
        return Err(leftover(places, group));
    }
    remove_files(places)
}

/// Ends a node: all its daemons and containers.
pub(crate) fn node(places: &Places, node: &str) -> Result<(), Error> {
    let network = [namespace::file(&places.network(node))];
    kill(places, || {
        let mut pids: BTreeSet<i32> = in_networks(&network).into_iter().collect();
        pids.extend(cgroup::processes(places, Some(node)));
        pids
    })?;
    match cgroup::remove(places, Some(node)).first() {
        Some(group) => Err(leftover(places, group)),
        None => Ok(()),
    }
}

/// All that exists of this cluster, in words.
pub(crate) fn remains(places: &Places) -> Vec<String> {
    let networks = networks(places);
    let processes = daemon::all(places).into_iter().chain(in_networks(&networks));
    let processes: BTreeSet<i32> = processes.chain(cgroup::processes(places, None)).collect();
    let mut words: Vec<String> = processes.iter().map(|pid| format!("process {pid}")).collect();
    let name = |path: &PathBuf| path.display().to_string();
    words.extend(networks.iter().map(name));
    words.extend(cgroup::groups(places, None).iter().map(name));
    words.extend(mounts(places));
    words.extend(places.run().exists().then(|| name(&places.run())));
    words
}

/// Mounts that this process sees below the cluster's files.
fn mounts(places: &Places) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let below = format!("{}/", places.run().display());
    let mounted = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    mounted.filter(|mount| mount.starts_with(&below)).map(str::to_owned).collect()
}

/// Kills until nobody is left: a runtime may be starting somebody while we look.
fn kill(places: &Places, find: impl Fn() -> BTreeSet<i32>) -> Result<(), Error> {
    let begin = Instant::now();
    loop {
        let pids = find();
        if pids.is_empty() {
            return Ok(());
        }
        if LIMIT < begin.elapsed() {
            return Err(leftover(
                places,
                &PathBuf::from(format!("/proc/{}", pids.first().unwrap_or(&0))),
            ));
        }
        for pid in pids {
            daemon::kill(pid);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Network namespaces of this cluster.
pub(crate) fn networks(places: &Places) -> Vec<PathBuf> {
    let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let ours = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(&places.prefix())
    };
    entries.map(|entry| entry.path()).filter(ours).collect()
}

/// Processes in network namespaces, without zombies and without this one.
pub(crate) fn in_networks(networks: &[PathBuf]) -> Vec<i32> {
    let identity = |path: &Path| fs::metadata(path).ok().map(|data| (data.dev(), data.ino()));
    let wanted: BTreeSet<_> = networks.iter().filter_map(|path| identity(path)).collect();
    let own = i32::try_from(std::process::id()).unwrap_or_default();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid != own && daemon::alive(*pid))
        .filter(|pid| {
            identity(Path::new(&format!("/proc/{pid}/ns/net")))
                .is_some_and(|found| wanted.contains(&found))
        })
        .collect()
}

fn remove_files(places: &Places) -> Result<(), Error> {
    let run = places.run();
    // Removing files through a mount would remove somebody else's.
    if let Some(mount) = mounts(places).first() {
        return Err(leftover(places, Path::new(mount)));
    }
    match fs::remove_dir_all(&run) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).at("remove", run),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn leftover(places: &Places, what: &Path) -> Error {
    Error::Leftover { name: places.name().to_owned(), what: what.display().to_string() }
}
