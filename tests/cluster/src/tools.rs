//! Programs of the cluster, built once from the Go modules in `tools/`.
//!
//! Each folder there pins one project by go.mod and go.sum, and may have a main.go of its own. A
//! program is built again when those files or its flags change.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use sha2::{Digest, Sha256};

use crate::{
    error::{At, Error},
    lock,
    places::Places,
};

struct Tool {
    /// Name of the program.
    name: &'static str,
    /// Folder in `tools/`.
    module: &'static str,
    package: &'static str,
    cgo: bool,
}

const KUBERNETES: &str = "1.37.2";

const fn tool(name: &'static str, module: &'static str, package: &'static str) -> Tool {
    Tool { name, module, package, cgo: false }
}

const TOOLS: [Tool; 15] = [
    tool("kube-apiserver", "kubernetes", "k8s.io/kubernetes/cmd/kube-apiserver"),
    tool("kube-controller-manager", "kubernetes", "k8s.io/kubernetes/cmd/kube-controller-manager"),
    tool("kube-scheduler", "kubernetes", "k8s.io/kubernetes/cmd/kube-scheduler"),
    tool("kubelet", "kubernetes", "k8s.io/kubernetes/cmd/kubelet"),
    tool("kube-proxy", "kubernetes", "k8s.io/kubernetes/cmd/kube-proxy"),
    tool("kubectl", "kubernetes", "k8s.io/kubernetes/cmd/kubectl"),
    tool("containerd", "containerd", "github.com/containerd/containerd/v2/cmd/containerd"),
    tool(
        "containerd-shim-runc-v2",
        "containerd",
        "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
    ),
    tool("ctr", "containerd", "github.com/containerd/containerd/v2/cmd/ctr"),
    tool("etcd", "etcd", "go.etcd.io/etcd/server/v3"),
    Tool {
        name: "nvidia-device-plugin",
        module: "nvidia-device-plugin",
        package: "github.com/NVIDIA/k8s-device-plugin/cmd/nvidia-device-plugin",
        cgo: true, // it opens the driver's library
    },
    tool("coredns", "coredns", "qvl.test/tools/coredns"),
    tool("helm", "helm", "helm.sh/helm/v4/cmd/helm"),
    tool("kwok", "kwok", "sigs.k8s.io/kwok/cmd/kwok"),
    tool("kueue", "kueue", "sigs.k8s.io/kueue/cmd/kueue"),
];

/// Folders of modules that are copied beside the programs: module, folder inside, name.
const SHARED: [(&str, &str, &str, &str); 2] = [
    ("kueue", "sigs.k8s.io/kueue", "charts/kueue", "kueue"),
    ("kwok", "sigs.k8s.io/kwok", "kustomize/stage", "kwok"),
];

/// Builds what is not up to date; `say` is told of each program.
pub fn build(places: &Places, say: &mut dyn FnMut(&str)) -> Result<(), Error> {
    for folder in [places.bin(), places.share(), places.build_logs()] {
        Places::make(&folder)?;
    }
    let _lock = lock::hold(&places.bin().join(".lock"))?;
    for tool in &TOOLS {
        let (stamp, wanted) = (stamp(places, tool.name), fingerprint(tool)?);
        let is_current = fs::read_to_string(&stamp).is_ok_and(|old| old == wanted);
        if is_current && places.program(tool.name).exists() {
            continue;
        }
        let begin = Instant::now();
        compile(places, tool)?;
        fs::write(&stamp, wanted).at("write", &stamp)?;
        say(&format!("built {} in {} s", tool.name, begin.elapsed().as_secs()));
    }
    for (module, import, inside, name) in SHARED {
        share(places, module, import, inside, name)?;
    }
    Ok(())
}

/// Refuses when a program is missing; which version it has is the business of [`build`].
pub(crate) fn check(places: &Places) -> Result<(), Error> {
    let missing = TOOLS.iter().map(|tool| places.program(tool.name)).find(|path| !path.exists());
    match missing {
        Some(path) => Err(Error::NotBuilt { path, hint: "qvl-cluster build" }),
        None => Ok(()),
    }
}

fn folder(module: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tools").join(module)
}

fn stamp(places: &Places, name: &str) -> PathBuf {
    places.bin().join(format!(".{name}.stamp"))
}

fn flags(tool: &Tool) -> String {
    if tool.module != "kubernetes" {
        return "-s -w".to_owned();
    }
    // Without these the server calls itself v0.0.0-master.
    let package = "k8s.io/component-base/version";
    let minor = KUBERNETES.split('.').nth(1).unwrap_or_default();
    format!(
        "-s -w -X {package}.gitVersion=v{KUBERNETES} -X {package}.gitMajor=1 \
         -X {package}.gitMinor={minor} -X {package}.gitCommit=unknown -X {package}.gitTreeState=clean"
    )
}

fn fingerprint(tool: &Tool) -> Result<String, Error> {
    let mut hash = Sha256::new();
    for file in ["go.mod", "go.sum", "main.go"] {
        let path = folder(tool.module).join(file);
        if path.exists() {
            hash.update(fs::read(&path).at("read", &path)?);
        }
    }
    hash.update(format!("{} {} {}", tool.package, flags(tool), tool.cgo));
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn compile(places: &Places, tool: &Tool) -> Result<(), Error> {
    let log_path = places.build_logs().join(format!("{}.log", tool.name));
    let log = File::create(&log_path).at("write", &log_path)?;
    let draft = places.bin().join(format!(".{}.new", tool.name));
    let mut go = go(tool.module);
    go.args(["build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", &flags(tool)])
        .arg("-o")
        .arg(&draft)
        .arg(tool.package)
        .env("CGO_ENABLED", if tool.cgo { "1" } else { "0" })
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log);
    let status = go.status().map_err(|_error| Error::NoGo)?;
    if !status.success() {
        return Err(Error::Build { tool: tool.name, log: log_path });
    }
    let program = places.program(tool.name);
    fs::rename(&draft, &program).at("write", &program)
}

/// Go in the folder of a module. Nobody waits for a build as much as for what else runs here.
fn go(module: &str) -> Command {
    let mut command = Command::new("nice");
    command.args(["-n", "19", "go"]).current_dir(folder(module)).env("GOWORK", "off");
    command
}

fn share(
    places: &Places,
    module: &str,
    import: &str,
    inside: &str,
    name: &str,
) -> Result<(), Error> {
    let target = places.share().join(name);
    let (stamp, wanted) = (places.share().join(format!(".{name}.stamp")), sums(module)?);
    if target.exists() && fs::read_to_string(&stamp).is_ok_and(|old| old == wanted) {
        return Ok(());
    }
    let list = go(module).args(["list", "-m", "-f", "{{.Dir}}", import]).output();
    let list = list.map_err(|_error| Error::NoGo)?;
    let source = PathBuf::from(String::from_utf8_lossy(&list.stdout).trim()).join(inside);
    if target.exists() {
        fs::remove_dir_all(&target).at("remove", &target)?;
    }
    Places::copy(&source, &target)?;
    fs::write(&stamp, wanted).at("write", &stamp)
}

fn sums(module: &str) -> Result<String, Error> {
    let path = folder(module).join("go.sum");
    fs::read_to_string(&path).at("read", path)
}
