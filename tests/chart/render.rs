//! Runs the real helm.

use std::{
    env,
    path::PathBuf,
    process::{Command, Output},
};

use serde_json::Value;

/// The chart, from the root of the repository.
pub(crate) const CHART: &str = "charts/qvl";
/// Values that turn everything on.
pub(crate) const EVERYTHING: &[&str] = &["-f", "charts/qvl/ci/everything-values.yaml"];
/// The defaults without the node agent.
pub(crate) const WITHOUT_AGENT: &[&str] = &["--set", "agent.enabled=false"];
/// The chart as it is.
pub(crate) const DEFAULTS: &[&str] = &[];

/// Helm with these arguments, whatever comes of it.
pub(crate) fn helm(args: &[&str]) -> Output {
    let cache = env::var_os("QVL_CACHE").map_or_else(
        || PathBuf::from(env::var_os("HOME").expect("a home folder")).join(".cache/qvl"),
        PathBuf::from,
    );
    let helm = cache.join("cluster/bin/helm");
    assert!(helm.exists(), "{} is missing; build it: make cluster-build", helm.display());
    // What a user has configured must not change a test.
    let home = env::temp_dir().join("qvl-chart-helm");
    Command::new(helm)
        .args(args)
        .env("HELM_CONFIG_HOME", home.join("config"))
        .env("HELM_CACHE_HOME", home.join("cache"))
        .env("HELM_DATA_HOME", home.join("data"))
        .output()
        .unwrap()
}

/// What the chart makes with these further arguments, as helm prints it.
pub(crate) fn text(args: &[&str]) -> String {
    let output = helm(&[&["template", "qvl", CHART, "-n", "qvl-system"], args].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The same as objects.
pub(crate) fn objects(args: &[&str]) -> Vec<Value> {
    documents(&text(args)).into_iter().map(|text| serde_saphyr::from_str(&text).unwrap()).collect()
}

/// The documents of a text, sorted by their names, without the marks between them.
pub(crate) fn documents(text: &str) -> Vec<String> {
    let text = format!("\n{text}");
    let mut documents: Vec<String> = text
        .split("\n---\n")
        .map(|document| format!("{}\n", document.trim()))
        .filter(|document| document.lines().any(|line| !line.starts_with('#') && !line.is_empty()))
        .collect();
    documents.sort();
    documents
}

/// Objects of a kind.
pub(crate) fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

/// Pods, and what pods are made of: the object's kind and name, and the pod's metadata and spec.
pub(crate) fn pods(objects: &[Value]) -> Vec<(String, &Value, &Value)> {
    let workload = |object: &Value| {
        ["Deployment", "StatefulSet", "DaemonSet", "Job"].iter().any(|kind| object["kind"] == *kind)
    };
    objects
        .iter()
        .filter_map(|object| {
            let pod = if object["kind"] == "Pod" { object } else { &object["spec"]["template"] };
            if object["kind"] != "Pod" && !workload(object) {
                return None;
            }
            Some((name(object), &pod["metadata"], &pod["spec"]))
        })
        .collect()
}

/// `Deployment qvl-operator`.
pub(crate) fn name(object: &Value) -> String {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    format!("{} {}", word(&object["kind"]), word(&object["metadata"]["name"]))
}

/// Elements of a list, none if it is not there.
pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
