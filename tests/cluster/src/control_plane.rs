//! etcd, API server, controllers, scheduler and cluster DNS, in the namespace `cp`.

use std::{
    fs,
    net::TcpStream,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use crate::{
    cluster::output,
    daemon,
    error::{At, Error},
    namespace,
    network::GATEWAY,
    places::Places,
    topology::Topology,
};

const LIMIT: Duration = Duration::from_secs(120);

/// Starts etcd and the API server, and does not wait for them.
pub(crate) fn begin(places: &Places, topology: &Topology) -> Result<(), Error> {
    namespace::inside(&places.network("cp"), || {
        let mut etcd = Command::new(places.program("etcd"));
        etcd.arg("--data-dir").arg(places.run().join("etcd")).args([
            // Nothing of it outlives the cluster.
            "--unsafe-no-fsync",
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
            "--log-level=warn",
        ]);
        daemon::start(places, "etcd", &mut etcd)?;
        daemon::start(places, "apiserver", &mut api_server(places, topology))
    })
}

/// Starts the API server again after [`crate::Cluster::stop_apiserver`].
pub(crate) fn start_api_server(places: &Places, topology: &Topology) -> Result<(), Error> {
    if daemon::running(places, "apiserver").is_some() {
        return Ok(());
    }
    namespace::inside(&places.network("cp"), || {
        daemon::start(places, "apiserver", &mut api_server(places, topology))
    })
}

/// Waits until the API server is ready.
pub(crate) fn wait(places: &Places) -> Result<(), Error> {
    let begin = Instant::now();
    namespace::inside(&places.network("cp"), || {
        loop {
            let ready = TcpStream::connect("127.0.0.1:6443").is_ok()
                && output(kubectl(places).args(["get", "--raw", "/readyz"])).is_ok();
            if ready {
                return Ok(());
            }
            daemon::check(places, "apiserver")?;
            if LIMIT < begin.elapsed() {
                let what = "the API server is not ready".to_owned();
                return Err(Error::Timeout { what, limit: LIMIT, log: places.logs() });
            }
            thread::sleep(Duration::from_millis(100));
        }
    })
}

/// Starts controllers, scheduler and DNS.
pub(crate) fn finish(places: &Places, topology: &Topology) -> Result<(), Error> {
    let pki = places.pki();
    let as_user = |command: &mut Command, user: &str| {
        let file = pki.join(format!("{user}.kubeconfig"));
        for flag in ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"] {
            command.arg(format!("--{flag}={}", file.display()));
        }
        command.arg("--leader-elect=false").args(gates(topology));
        if let Some(calls) = topology.calls_per_second {
            command.arg(format!("--kube-api-qps={calls}"));
            command.arg(format!("--kube-api-burst={}", calls.saturating_mul(2)));
        }
    };
    let mut controllers = Command::new(places.program("kube-controller-manager"));
    as_user(&mut controllers, "controller-manager");
    controllers
        .arg(format!("--service-account-private-key-file={}/sa.key", pki.display()))
        .arg(format!("--root-ca-file={}/ca.crt", pki.display()))
        .args(["--use-service-account-credentials", "--allocate-node-cidrs=false"]);
    controllers.args(if topology.is_driven_hard() {
        // The leases of a thousand simulated nodes would be most of what it writes, and come late.
        ["--node-monitor-period=5s", "--node-monitor-grace-period=10m"]
    } else {
        // Four missed leases of 3 s each: a lost node is noticed after 16 s instead of 50.
        ["--node-monitor-period=2s", "--node-monitor-grace-period=16s"]
    });
    let mut scheduler = Command::new(places.program("kube-scheduler"));
    as_user(&mut scheduler, "scheduler");
    namespace::inside(&places.network("cp"), || {
        daemon::start(places, "controller-manager", &mut controllers)?;
        daemon::start(places, "scheduler", &mut scheduler)
    })?;
    start_dns(places)
}

/// Starts the name server.
pub(crate) fn start_dns(places: &Places) -> Result<(), Error> {
    let corefile = places.run().join("Corefile");
    fs::write(&corefile, dns(places)).at("write", &corefile)?;
    let mut coredns = Command::new(places.program("coredns"));
    coredns.arg("-conf").arg(&corefile);
    namespace::inside(&places.network("cp"), || daemon::start(places, "coredns", &mut coredns))
}

/// kubectl as administrator, for the namespace `cp`.
pub(crate) fn kubectl(places: &Places) -> Command {
    let mut kubectl = Command::new(places.program("kubectl"));
    kubectl.arg("--kubeconfig").arg(places.pki().join("admin.kubeconfig"));
    kubectl.env("HOME", places.run());
    kubectl
}

/// Feature gates as every component takes them.
pub(crate) fn gates(topology: &Topology) -> Option<String> {
    let gates: Vec<String> =
        topology.feature_gates.iter().map(|(gate, on)| format!("{gate}={on}")).collect();
    (!gates.is_empty()).then(|| format!("--feature-gates={}", gates.join(",")))
}

fn api_server(places: &Places, topology: &Topology) -> Command {
    let pki = places.pki();
    let mut server = Command::new(places.program("kube-apiserver"));
    for (flag, file) in [
        ("tls-cert-file", "apiserver.crt"),
        ("tls-private-key-file", "apiserver.key"),
        ("client-ca-file", "ca.crt"),
        ("service-account-key-file", "sa.pub"),
        ("service-account-signing-key-file", "sa.key"),
        ("kubelet-client-certificate", "apiserver-kubelet.crt"),
        ("kubelet-client-key", "apiserver-kubelet.key"),
        ("kubelet-certificate-authority", "ca.crt"),
        ("requestheader-client-ca-file", "ca.crt"),
        ("proxy-client-cert-file", "front-proxy.crt"),
        ("proxy-client-key-file", "front-proxy.key"),
    ] {
        server.arg(format!("--{flag}={}", pki.join(file).display()));
    }
    server.args([
        "--etcd-servers=http://127.0.0.1:2379",
        "--secure-port=6443",
        "--bind-address=0.0.0.0",
        &format!("--advertise-address={GATEWAY}"),
        "--service-account-issuer=https://kubernetes.default.svc",
        "--service-cluster-ip-range=10.96.0.0/16",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        "--kubelet-preferred-address-types=InternalIP",
        "--requestheader-allowed-names=front-proxy",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-username-headers=X-Remote-User",
        // There is no kube-proxy here: webhooks and aggregated APIs are called at their pods.
        "--enable-aggregator-routing=true",
    ]);
    server.args(gates(topology));
    if !topology.apis.is_empty() {
        let apis: Vec<String> = topology.apis.iter().map(|api| format!("{api}=true")).collect();
        server.arg(format!("--runtime-config={}", apis.join(",")));
    }
    server
}

/// DNS knows the cluster alone; the machine's own names are not reachable from these networks.
fn dns(places: &Places) -> String {
    let file = places.pki().join("admin.kubeconfig");
    format!(
        "cluster.local:53 in-addr.arpa:53 {{\n  bind {GATEWAY}\n  errors\n  kubernetes cluster.local \
         in-addr.arpa {{\n    kubeconfig {}\n    pods insecure\n    ttl 5\n  }}\n}}\n\
         .:53 {{\n  bind {GATEWAY}\n  template ANY ANY {{\n    rcode NXDOMAIN\n  }}\n}}\n",
        file.display()
    )
}
