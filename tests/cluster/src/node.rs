//! One node: its namespaces, containerd, kube-proxy, kubelet and device plugin.

use std::{
    fs,
    os::unix::{fs::symlink, net::UnixStream},
    path::Path,
    process::Command,
    time::Duration,
};

use nix::{
    mount::{MsFlags, mount},
    unistd::sethostname,
};

use crate::{
    cgroup, daemon, device_folder, driver,
    error::{At, Error},
    module, namespace, node_files,
    places::Places,
    runtime,
    topology::{self, Node, Topology},
};

const LIMIT: Duration = Duration::from_secs(60);

/// Folders that belong to a node alone; the kubelet and containerd know them by fixed paths.
const OWN: [(&str, &str); 7] = [
    ("kubelet", "/var/lib/kubelet"),
    ("containerd", "/var/lib/containerd"),
    ("run", "/run/containerd"),
    ("cni", "/etc/cni/net.d"),
    ("ipam", "/var/lib/cni"),
    ("pods", "/var/log/pods"),
    ("containers", "/var/log/containers"),
];

/// Boots a node up to containerd with its images. The API server need not run yet.
pub(crate) fn boot(places: &Places, index: usize, node: &Node) -> Result<(), Error> {
    let folder = places.node(&node.name);
    Places::make(&folder)?;
    // A real machine forgets /run when it boots.
    let state = folder.join("run");
    if state.exists() {
        fs::remove_dir_all(&state).at("remove", &state)?;
    }
    let driver = driver::install_once(places, node)?;
    for (name, text) in [
        ("containerd.toml", node_files::containerd(places, &node.name)),
        ("resolv.conf", String::new()),
        // A kernel has always said something.
        ("kmsg", "6,0,0,-;Linux version 6.8.0 (a node of the test cluster)\n".to_owned()),
    ] {
        let path = folder.join(name);
        fs::write(&path, text).at("write", path)?;
    }
    let link = folder.join(runtime::NAME);
    if !link.exists() {
        symlink(places.run().join("qvl-cluster"), &link).at("link", &link)?;
    }
    cgroup::make(places, &node.name)?;
    namespace::fresh(&places.network(&node.name), || {
        mounts(&folder)?;
        device_folder::make(&folder, driver.as_ref(), node.shm_mib)?;
        if let Some(driver) = &driver {
            module::write(&folder, driver)?;
            module::show(&folder, Path::new("/"))?;
        }
        propagate(MsFlags::MS_SHARED)?;
        sethostname(&node.name).at("name the node in", &folder)?;
        let cni = Path::new("/etc/cni/net.d/10-qvl.conflist");
        fs::write(cni, node_files::cni(index, node.mtu)).at("write", cni)?;
        containerd(places, &node.name)?;
        import_all(places)
    })
}

/// Starts what needs the API server.
pub(crate) fn join(places: &Places, topology: &Topology, index: usize) -> Result<(), Error> {
    let node = &topology.nodes[index];
    inside(places, &node.name, || {
        proxy(places, topology, &node.name)?;
        kubelet(places, topology, index)?;
        let has_driver = driver::folder(places, &node.name).exists();
        if has_driver { device_plugin(places, &node.name) } else { Ok(()) }
    })
}

/// Runs `work` in all namespaces of a node that runs.
pub(crate) fn inside<T: Send>(
    places: &Places,
    node: &str,
    work: impl FnOnce() -> Result<T, Error> + Send,
) -> Result<T, Error> {
    let name = format!("containerd-{node}");
    let pid = daemon::running(places, &name).ok_or_else(|| Error::Command {
        command: format!("enter node `{node}`"),
        message: "the node does not run".to_owned(),
    })?;
    namespace::beside(pid, work)
}

/// Starts the kubelet; call it inside of the node.
pub(crate) fn kubelet(places: &Places, topology: &Topology, index: usize) -> Result<(), Error> {
    let node = &topology.nodes[index];
    let folder = places.node(&node.name);
    let config = folder.join("kubelet.yaml");
    let text = node_files::kubelet(places, topology, index, node);
    fs::write(&config, text).at("write", &config)?;
    let labels = node_files::labels(node, driver::current(&folder)?.as_ref());
    let mut kubelet = Command::new(places.program("kubelet"));
    kubelet
        .arg(format!("--config={}", config.display()))
        .arg(format!("--kubeconfig={}/{}.kubeconfig", places.pki().display(), node.name))
        .arg(format!("--hostname-override={}", node.name))
        .arg(format!("--node-ip={}", topology::address(index)))
        .arg(format!("--node-labels={labels}"));
    daemon::start(places, &format!("kubelet-{}", node.name), &mut kubelet)
}

/// Starts NVIDIA's device plugin over the simulated driver; call it inside of the node.
pub(crate) fn device_plugin(places: &Places, node: &str) -> Result<(), Error> {
    // It registers once when it starts, and gives up for half a minute if nobody listens. The
    // socket of an earlier life may still be there.
    let socket = Path::new("/var/lib/kubelet/device-plugins/kubelet.sock");
    answers(places, "the kubelet's device socket", socket)?;
    let mut plugin = Command::new(places.program("nvidia-device-plugin"));
    plugin
        .args(["--device-discovery-strategy=nvml", "--device-list-strategy=envvar"])
        .args(["--pass-device-specs=false", "--mig-strategy=none"])
        .env("LD_LIBRARY_PATH", driver::folder(places, node))
        .env("NODE_NAME", node)
        .env_remove("NVIDIA_VISIBLE_DEVICES");
    daemon::start(places, &format!("device-plugin-{node}"), &mut plugin)
}

/// Imports an image archive; call it inside of the node.
pub(crate) fn import(places: &Places, archive: &Path) -> Result<(), Error> {
    let mut ctr = Command::new(places.program("ctr"));
    ctr.args(["-n", "k8s.io", "images", "import"]).arg(archive);
    crate::cluster::output(&mut ctr).map(|_list| ())
}

fn import_all(places: &Places) -> Result<(), Error> {
    let folder = places.images();
    let entries = fs::read_dir(&folder).at("read", &folder)?;
    entries.flatten().try_for_each(|entry| import(places, &entry.path()))
}

fn mounts(folder: &Path) -> Result<(), Error> {
    propagate(MsFlags::MS_PRIVATE)?;
    for (name, target) in OWN {
        let own = folder.join(name);
        Places::make(&own)?;
        Places::make(Path::new(target))?;
        device_folder::bind(&own, Path::new(target))?;
    }
    Ok(())
}

/// Private while we mount, so that nothing reaches the machine; shared afterwards, or volumes
/// would not reach containers.
fn propagate(how: MsFlags) -> Result<(), Error> {
    mount(None::<&str>, "/", None::<&str>, how | MsFlags::MS_REC, None::<&str>).at("remount", "/")
}

fn containerd(places: &Places, node: &str) -> Result<(), Error> {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut containerd = Command::new(places.program("containerd"));
    containerd
        .arg("-c")
        .arg(places.node(node).join("containerd.toml"))
        .env("PATH", format!("{}:{path}:/usr/sbin:/sbin", places.bin().display()));
    daemon::start(places, &format!("containerd-{node}"), &mut containerd)?;
    let socket = Path::new("/run/containerd/containerd.sock");
    answers(places, "containerd", socket)
}

fn proxy(places: &Places, topology: &Topology, node: &str) -> Result<(), Error> {
    let mut proxy = Command::new(places.program("kube-proxy"));
    proxy
        .arg(format!("--kubeconfig={}/proxy.kubeconfig", places.pki().display()))
        .arg(format!("--hostname-override={node}"))
        .args(["--cluster-cidr=10.244.0.0/16", "--proxy-mode=nftables"])
        // These settings belong to the machine, not to a namespace.
        .args(["--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0"])
        .args(["--conntrack-tcp-timeout-close-wait=0"])
        .args(["--healthz-bind-address=127.0.0.1:10256", "--metrics-bind-address=127.0.0.1:10249"])
        .args(crate::control_plane::gates(topology));
    daemon::start(places, &format!("proxy-{node}"), &mut proxy)
}

/// Waits until somebody listens.
fn answers(places: &Places, who: &str, socket: &Path) -> Result<(), Error> {
    let what = format!("{who} does not answer");
    places.wait(&what, LIMIT, Duration::from_millis(30), || UnixStream::connect(socket).is_ok())
}
