//! Configuration files of a node.

use std::fmt::Write;

use crate::{
    cgroup,
    places::Places,
    runtime,
    topology::{self, Node, Topology},
};

/// The image that holds a pod's namespaces.
pub(crate) const PAUSE: &str = "qvl.test/pause:1";

/// Network of pods: one bridge per node.
pub(crate) fn cni(index: usize, mtu: u32) -> String {
    let pods = topology::pods(index);
    format!(
        r#"{{"cniVersion": "1.0.0", "name": "qvl", "plugins": [
 {{"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true, "mtu": {mtu},
  "ipam": {{"type": "host-local", "ranges": [[{{"subnet": "{pods}"}}]], "routes": [{{"dst": "0.0.0.0/0"}}]}}}},
 {{"type": "portmap", "capabilities": {{"portMappings": true}}}}]}}
"#
    )
}

/// containerd. Its folders are those of the node's mount namespace.
pub(crate) fn containerd(places: &Places, node: &str) -> String {
    let runtime = places.node(node).join(runtime::NAME);
    let runtime = runtime.display();
    let mut text = format!(
        r#"version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
# Two nodes would share their folders below /run and /opt.
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{PAUSE}"
[plugins."io.containerd.cri.v1.runtime"]
  # Without CAP_SYS_RESOURCE, runc cannot lower oom_score_adj, and no sandbox would start.
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/usr/lib/cni"]
    conf_dir = "/etc/cni/net.d"
"#
    );
    for handler in ["runc", "nvidia"] {
        let table =
            format!(r#"plugins."io.containerd.cri.v1.runtime".containerd.runtimes.{handler}"#);
        let _infallible = write!(
            text,
            "  [{table}]\n    runtime_type = \"io.containerd.runc.v2\"\n    [{table}.options]\n      \
             SystemdCgroup = false\n      BinaryName = \"{runtime}\"\n"
        );
    }
    text
}

/// kubelet. Leases are shorter than usual, so that a lost node is noticed sooner, and pods are looked at more often, so
/// that a Secret reaches them sooner: Kueue waits for the one with its own certificate.
pub(crate) fn kubelet(places: &Places, topology: &Topology, index: usize, node: &Node) -> String {
    let pki = places.pki();
    let (name, pki) = (&node.name, pki.display());
    let resolv = places.node(name).join("resolv.conf");
    let (root, resolv, address) =
        (cgroup::root(places, name), resolv.display(), topology::address(index));
    let mut text = format!(
        r#"apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: cgroupfs
cgroupRoot: {root}
failCgroupV1: false
failSwapOn: false
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
authentication: {{anonymous: {{enabled: false}}, webhook: {{enabled: true}}, x509: {{clientCAFile: {pki}/ca.crt}}}}
authorization: {{mode: Webhook}}
tlsCertFile: {pki}/{name}.crt
tlsPrivateKeyFile: {pki}/{name}.key
clusterDNS: [10.96.0.10]
clusterDomain: cluster.local
resolvConf: {resolv}
evictionHard: {{memory.available: 50Mi, nodefs.available: "1%", imagefs.available: "1%", nodefs.inodesFree: "1%"}}
imageGCHighThresholdPercent: 100
serializeImagePulls: false
volumePluginDir: /var/lib/kubelet/volume-plugins
address: {address}
healthzPort: 0
nodeStatusUpdateFrequency: 4s
nodeLeaseDurationSeconds: 12
syncFrequency: 10s
"#
    );
    if let Some(reserved) = node.memory_mib.and_then(|wanted| memory_mib()?.checked_sub(wanted)) {
        let _infallible = writeln!(text, "systemReserved: {{memory: {reserved}Mi}}");
    }
    if !topology.feature_gates.is_empty() {
        text.push_str("featureGates:\n");
        for (gate, on) in &topology.feature_gates {
            let _infallible = writeln!(text, "  {gate}: {on}");
        }
    }
    text
}

/// Labels of a node: its own and those of NVIDIA's feature discovery.
pub(crate) fn labels(node: &Node, driver: Option<&simgpu::scenario::Scenario>) -> String {
    let mut labels = node.labels.clone();
    if let Some((driver, gpu)) = driver.and_then(|driver| Some((driver, driver.gpus.first()?))) {
        let profile = gpu.profile();
        let product = profile.name.replace(' ', "-");
        for (label, value) in [
            ("nvidia.com/gpu.present", "true".to_owned()),
            ("nvidia.com/gpu.count", driver.gpus.len().to_string()),
            ("nvidia.com/gpu.product", product),
            ("nvidia.com/gpu.memory", profile.memory_mib.to_string()),
            ("nvidia.com/cuda.driver-version.full", driver.driver.clone()),
        ] {
            labels.entry(label.to_owned()).or_insert(value);
        }
    }
    labels.iter().map(|(label, value)| format!("{label}={value}")).collect::<Vec<_>>().join(",")
}

/// Memory of this machine.
fn memory_mib() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib = text.lines().next()?.split_whitespace().nth(1)?.parse::<u64>().ok()?;
    Some(kib / 1024)
}
