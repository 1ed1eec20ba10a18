//! Control groups of the nodes, version 1 and 2.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use crate::{
    error::{At, Error},
    places::Places,
};

/// Mounts of the version 1 controllers; a single mount is version 2.
enum Hierarchy {
    One(Vec<PathBuf>),
    Two(PathBuf),
}

/// Name of a node's group, as the kubelet's `cgroupRoot`.
pub(crate) fn root(places: &Places, node: &str) -> String {
    format!("/{}", places.network(node))
}

/// Makes the group of a node in every hierarchy.
pub(crate) fn make(places: &Places, node: &str) -> Result<(), Error> {
    let name = places.network(node);
    match hierarchy() {
        Hierarchy::One(mounts) => mounts.iter().try_for_each(|mount| make_one(mount, &name)),
        Hierarchy::Two(mount) => {
            // What the machine does not offer, the kubelet names better than we would.
            for controller in ["cpuset", "cpu", "io", "memory", "hugetlb", "pids"] {
                let _not_offered =
                    fs::write(mount.join("cgroup.subtree_control"), format!("+{controller}"));
            }
            Places::make(&mount.join(name))
        }
    }
}

fn make_one(mount: &Path, name: &str) -> Result<(), Error> {
    let group = mount.join(name);
    Places::make(&group)?;
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let from = mount.join(file);
        if from.exists() {
            // A new cpuset is empty, and nothing can be started in it.
            let value = fs::read_to_string(&from).at("read", &from)?;
            fs::write(group.join(file), value).at("write", group.join(file))?;
        }
    }
    Ok(())
}

/// Groups of this cluster, without those inside of them; of one node, or of all.
pub(crate) fn groups(places: &Places, node: Option<&str>) -> Vec<PathBuf> {
    // Beside version 1, runc makes groups in version 2 as well.
    let mounts = [mounts("cgroup"), mounts("cgroup2")].concat();
    let entries = mounts.iter().filter_map(|mount| fs::read_dir(mount).ok()).flatten().flatten();
    let ours = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        path.is_dir()
            && match node {
                Some(node) => name == places.network(node),
                None => name.starts_with(&places.prefix()),
            }
    };
    entries.map(|entry| entry.path()).filter(ours).collect()
}

/// Processes in the groups of this cluster.
pub(crate) fn processes(places: &Places, node: Option<&str>) -> Vec<i32> {
    let mut pids = Vec::new();
    for group in groups(places, node) {
        for folder in below(&group) {
            let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
        }
    }
    pids
}

/// Removes the groups of this cluster, which must be empty; answers with those that stay.
pub(crate) fn remove(places: &Places, node: Option<&str>) -> Vec<PathBuf> {
    // The kernel counts a process for a moment after its end.
    for _attempt in 0..50 {
        let groups = groups(places, node);
        if groups.is_empty() {
            break;
        }
        for folder in groups.iter().flat_map(|group| below(group)) {
            let _busy = fs::remove_dir(folder);
        }
        thread::sleep(Duration::from_millis(20));
    }
    groups(places, node)
}

/// A group and all inside of it, innermost first.
fn below(group: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            all.extend(below(&entry.path()));
        }
    }
    all.push(group.to_owned());
    all
}

fn hierarchy() -> Hierarchy {
    // Where both are mounted, version 2 has no controllers.
    let one = mounts("cgroup");
    if one.is_empty() {
        let two = mounts("cgroup2").into_iter().next();
        Hierarchy::Two(two.unwrap_or_else(|| PathBuf::from("/sys/fs/cgroup")))
    } else {
        Hierarchy::One(one)
    }
}

/// Where a kind of file system is mounted.
fn mounts(kind: &str) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields.filter(|f| f.get(2) == Some(&kind)).map(|f| PathBuf::from(f[1])).collect()
}
