//! A whole life of a cluster: pods with GPUs on every node, DNS, networks, volumes, faults, and an
//! end that leaves nothing.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::{
    collections::BTreeSet,
    fs,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use qvl_cluster::{
    Cluster, runtime,
    testing::{TestCluster, must, reserve},
};
use simgpu::scenario::Scenario;

const GPU_JOB: &str = "
apiVersion: batch/v1
kind: Job
metadata: {name: gpus}
spec:
  completionMode: Indexed
  completions: 2
  parallelism: 2
  template:
    metadata: {labels: {app: gpus}}
    spec:
      restartPolicy: Never
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: gpus}}}
      containers:
      - name: main
        image: qvl.test/busybox:1
        args: [sh, -c, 'hostname; echo gpus=$NVIDIA_VISIBLE_DEVICES; ls /dev/ | grep nvidia; ls /usr/lib/x86_64-linux-gnu $(dirname $QVL_SIMGPU_SCENARIO)']
        resources: {limits: {nvidia.com/gpu: '2'}}
";

const SERVER: &str = "
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: server}
spec:
  serviceName: server
  selector: {matchLabels: {app: server}}
  template:
    metadata: {labels: {app: server}}
    spec:
      nodeSelector: {kubernetes.io/hostname: n1}
      terminationGracePeriodSeconds: 1 # the shell as process 1 ignores SIGTERM
      securityContext: {runAsUser: 65532, runAsNonRoot: true}
      containers:
      - name: main
        image: qvl.test/busybox:1
        args: [sh, -c, 'echo kept > /data/page; exec httpd -f -p 8080 -h /data']
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: Service
metadata: {name: server}
spec: {selector: {app: server}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  nodeName: n2
  restartPolicy: OnFailure
  containers:
  - name: main
    image: qvl.test/busybox:1
    args: [sh, -c, 'wget -qO- http://server.default.svc.cluster.local/page']
";

const AGENT: &str = "
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}}
    spec:
      containers:
      - name: main
        image: qvl.test/busybox:1
        args: [sleep, '100000']
        env: [{name: NVIDIA_VISIBLE_DEVICES, value: all}]
        volumeMounts: [{name: log, mountPath: /host/kmsg, readOnly: true}, {name: proc, mountPath: /host/proc, readOnly: true}]
      volumes:
      - {name: log, hostPath: {path: /dev/kmsg}}
      - {name: proc, hostPath: {path: /proc}}
";

#[test]
fn a_cluster_runs_pods_with_gpus_survives_faults_and_leaves_nothing() {
    let cluster = TestCluster::up("life");
    gpus_reach_the_pods_of_each_node(&cluster);
    services_and_volumes_work_across_nodes(&cluster);
    agents_see_the_driver_and_the_kernel_log(&cluster);
    the_driver_changes(&cluster);
    the_api_server_comes_back(&cluster);
    a_node_is_drained(&cluster);
    a_kubelet_stops_and_its_containers_go_on(&cluster);
    a_node_dies_and_comes_back(&cluster);
}

fn gpus_reach_the_pods_of_each_node(cluster: &TestCluster) {
    cluster.create(GPU_JOB);
    cluster.wait_for("get job gpus -o jsonpath={.status.conditions[*].type}", "Complete");
    let mut seen = BTreeSet::new();
    for index in 0..2 {
        let pod = format!("-l batch.kubernetes.io/job-completion-index={index}");
        let node = cluster.run(&format!("get pods {pod} -o jsonpath={{.items[0].spec.nodeName}}"));
        let log = cluster.run(&format!("logs {pod} --tail=-1"));
        let list = log.lines().find_map(|line| line.strip_prefix("gpus=")).unwrap();
        let expected = scenario(cluster, &node);
        let mut uuids: Vec<&str> = list.split(',').collect();
        uuids.sort_unstable();
        let mut all = [expected.uuid(0), expected.uuid(1)];
        all.sort_unstable();
        assert_eq!(uuids, all, "{node}");
        for name in [
            "nvidia0",
            "nvidia1",
            "nvidiactl",
            "libnvidia-ml.so.1",
            "libcuda.so.1",
            "scenario.json",
        ] {
            assert!(log.lines().any(|line| line == name), "{node}: no {name} in\n{log}");
        }
        seen.extend(all);
    }
    assert_eq!(seen.len(), 4, "{seen:?}");
}

fn services_and_volumes_work_across_nodes(cluster: &TestCluster) {
    cluster.create(SERVER);
    cluster.wait_for("logs client", "kept");
    let folder = cluster.places().volumes();
    let pages = fs::read_dir(folder).unwrap().filter(|entry| {
        let page = entry.as_ref().unwrap().path().join("page");
        fs::read_to_string(page).is_ok_and(|text| text == "kept\n")
    });
    assert_eq!(pages.count(), 1);
    assert!(must(cluster.flows("n2")).contains("dport=80"));
}

fn agents_see_the_driver_and_the_kernel_log(cluster: &TestCluster) {
    cluster.create(AGENT);
    cluster.run("rollout status daemonset/agent --timeout=60s");
    must(cluster.xid("n2", 1, 79, "GPU has fallen off the bus."));
    let address = scenario(cluster, "n2").pci(1);
    let expected =
        format!("Xid (PCI:{:04x}:{:02x}:{:02x}): 79, GPU has", address.0, address.1, address.2);
    let run = |node: &str, words: &str| {
        let pod = cluster
            .run(&format!("get pods -l app=agent --field-selector spec.nodeName={node} -o name"));
        cluster.run(&format!("exec {} -- {words}", pod.trim()))
    };
    let log = run("n2", "cat /host/kmsg");
    assert!(log.contains(&expected), "{log}");
    assert!(!run("n1", "cat /host/kmsg").contains("Xid"));
    assert!(run("n1", "cat /host/proc/driver/nvidia/version").contains("570.124.06"));
    assert!(run("n1", "ls /dev").contains("nvidia-uvm"));
    let error = cluster.xid("n2", 2, 79, "").unwrap_err();
    assert_eq!(error.to_string(), "node `n2` has no GPU 2");
}

fn the_driver_changes(cluster: &TestCluster) {
    let file = cluster.places().run().join("one.json");
    let text =
        r#"{"driver": "535.104.05", "cuda_driver": 12020, "gpus": [{"profile": "h100-sxm-80g"}]}"#;
    fs::write(&file, text).unwrap();
    must(cluster.set_scenario("n2", &file));
    must(cluster.restart_device_plugin("n2"));
    cluster.wait_for(
        "get node n2 -o jsonpath=gpus={.status.allocatable.nvidia\\.com/gpu}.",
        "gpus=1.",
    );
    assert_eq!(scenario(cluster, "n2").driver, "535.104.05");
}

fn the_api_server_comes_back(cluster: &TestCluster) {
    must(cluster.stop_apiserver());
    assert!(cluster.kubectl(&["get", "--raw", "/readyz"]).is_err());
    must(cluster.start_apiserver());
    cluster.wait_for("get --raw /readyz", "ok");
}

fn a_node_is_drained(cluster: &TestCluster) {
    must(cluster.drain("n1"));
    let pods = "get pods --field-selector spec.nodeName=n1 -o name";
    assert!(cluster.run(pods).lines().all(|pod| pod.starts_with("pod/agent")));
    assert_eq!(cluster.run("get node n1 -o jsonpath={.spec.unschedulable}"), "true");
    must(cluster.uncordon("n1"));
    cluster.run("rollout status statefulset/server --timeout=60s");
}

fn a_kubelet_stops_and_its_containers_go_on(cluster: &TestCluster) {
    let runs = |name: &str| {
        let daemons = cluster.daemons();
        daemons.iter().any(|(daemon, pid)| daemon == name && pid.is_some())
    };
    must(cluster.stop_kubelet("n1"));
    assert!(!runs("kubelet-n1") && runs("containerd-n1"));
    // Traffic from n2 still reaches the page on n1.
    cluster.run("run visitor --image=qvl.test/busybox:1 --restart=OnFailure --overrides={\"spec\":{\"nodeName\":\"n2\"}} -- wget -qO- http://server.default.svc.cluster.local/page");
    cluster.wait_for("logs visitor", "kept");
    must(cluster.start_kubelet("n1"));
    assert!(runs("kubelet-n1"));
    must(cluster.disconnect("n1"));
    cluster.run("run stranger --image=qvl.test/busybox:1 --restart=Never --overrides={\"spec\":{\"nodeName\":\"n2\"}} -- wget -T 2 -qO- http://server.default.svc.cluster.local/page");
    cluster.wait_for("get pod stranger -o jsonpath={.status.phase}", "Failed");
    must(cluster.connect("n1"));
}

fn a_node_dies_and_comes_back(cluster: &TestCluster) {
    let status = "get node n2 -o jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
    cluster.wait_for(status, "True");
    must(cluster.kill_node("n2"));
    cluster.wait_for(status, "Unknown");
    must(cluster.start_node("n2"));
    cluster.wait_for(status, "True");
    // Its DaemonSet pod runs again.
    cluster.run("rollout status daemonset/agent --timeout=120s");
    let error = cluster.kill_node("n3").unwrap_err();
    assert_eq!(error.to_string(), "cluster `life` has no node `n3`; it has n1, n2");
}

#[test]
fn a_crash_half_way_is_cleaned_up() {
    const NAME: &str = "crash";
    let _reservation = reserve(NAME);
    let mut child = Command::new(env!("CARGO_BIN_EXE_qvl-cluster"))
        .args(["--name", NAME, "up"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while !Cluster::remains(NAME).unwrap().iter().any(|word| word.starts_with("process")) {
        assert!(child.try_wait().unwrap().is_none(), "`up` ended before it started anything");
        thread::sleep(Duration::from_millis(50));
    }
    thread::sleep(Duration::from_secs(2));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!Cluster::remains(NAME).unwrap().is_empty());
    must(Cluster::down(NAME));
    assert_eq!(Cluster::remains(NAME).unwrap(), Vec::<String>::new());
    let error = Cluster::open(NAME).unwrap_err();
    assert_eq!(error.to_string(), "cluster `crash` is not up");
    assert_eq!(error.hint().unwrap(), "make cluster-up");
}

fn scenario(cluster: &TestCluster, node: &str) -> Scenario {
    let path = cluster.places().node(node).join("driver/scenario.json");
    Scenario::parse(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn the_runtime_is_called_by_its_name_alone() {
    assert!(!runtime::is_called());
}
