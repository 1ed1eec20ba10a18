//! The chart as the real helm renders it. Goldens: `INSTA_UPDATE=always cargo test --release --test
//! chart`; tables of documents: `UPDATE_DOCS=1`.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod flows;
mod rbac;
mod render;
mod tls;
mod words;

use std::{collections::BTreeSet, fs};

use qvl::{api::job::FineTuneJob, job};
use render::{
    CHART, DEFAULTS, EVERYTHING, WITHOUT_AGENT, documents, helm, list, name, objects, of_kind,
    pods, text,
};
use serde_json::{Value, json};

#[test]
fn helm_finds_nothing_to_complain_about() {
    for values in [DEFAULTS, EVERYTHING, &["-f", "charts/qvl/ci/test-cluster-values.yaml"]] {
        let output = helm(&[&["lint", "--strict", CHART], values].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}

#[test]
fn defaults_render_as_before() {
    golden("defaults", DEFAULTS);
}

#[test]
fn everything_renders_as_before() {
    golden("everything", EVERYTHING);
}

/// Without the definitions of resources, which have a golden of their own.
fn golden(golden: &str, values: &[&str]) {
    let text = text(&[values, &["--set", "crds.install=false"]].concat());
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    // Without a cluster that has them already, certificates are made anew each time.
    settings.add_filter(r"((?:ca|tls)\.(?:crt|key)): \S{100,}", "$1: MADE");
    settings.add_filter(r#"qvl.dev/issued: "\d+""#, r#"qvl.dev/issued: "NOW""#);
    settings.bind(|| {
        insta::assert_snapshot!(format!("chart-{golden}"), documents(&text).join("---\n"));
    });
}

#[test]
fn the_schema_is_closed_and_knows_every_value() {
    for typo in [
        "typo=1",
        "operator.replica=3",
        "agent.resources.limits.memroy=1Gi",
        "metrics.dashboard.x=1",
        "tls.existingSecrets=ours",
    ] {
        let output = helm(&["template", "qvl", CHART, "--set", typo]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{typo} is accepted");
        assert!(error.contains("not allowed"), "{typo}: {error}");
    }
    let wrong = helm(&["template", "qvl", CHART, "--set", "agent.kernelLog=everything"]);
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("kernelLog"));

    let schema = fs::read_to_string(format!("{CHART}/values.schema.json")).unwrap();
    let schema: Value = serde_json::from_str(&schema).unwrap();
    let mut open = Vec::new();
    open_objects("", &schema, &mut open);
    // Free-form by nature: labels are maps of text; values of a parent chart; parts of a policy.
    let free = [
        "/properties/global",
        "/properties/networkPolicy/properties/jobEgress/items/properties/ports/items",
        "/properties/networkPolicy/properties/jobEgress/items/properties/to/items",
    ];
    assert_eq!(open, free);

    let values = fs::read_to_string(format!("{CHART}/values.yaml")).unwrap();
    let values: Value = serde_saphyr::from_str(&values).unwrap();
    let known: BTreeSet<&String> = schema["properties"].as_object().unwrap().keys().collect();
    let written: BTreeSet<&String> = values.as_object().unwrap().keys().collect();
    assert!(written.is_subset(&known));
}

/// Paths of objects whose schema accepts keys that it does not name.
fn open_objects(path: &str, schema: &Value, open: &mut Vec<String>) {
    let Some(fields) = schema.as_object() else { return };
    if schema["type"] == "object" {
        let closed = schema["additionalProperties"] == false
            || schema["additionalProperties"] == json!({"type": "string"});
        if !closed {
            open.push(path.to_owned());
        }
    }
    for (key, value) in fields {
        open_objects(&format!("{path}/{key}"), value, open);
    }
}

#[test]
fn every_container_is_locked_down() {
    for values in [DEFAULTS, WITHOUT_AGENT, EVERYTHING] {
        for (name, _meta, pod) in pods(&objects(values)) {
            assert_eq!(
                pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault",
                "{name}"
            );
            for field in ["hostNetwork", "hostPID", "hostIPC"] {
                assert!(pod[field].is_null(), "{name}: {field}");
            }
            let privileged = pod["containers"][0]["securityContext"]["privileged"] == true;
            assert!(
                !privileged || (name == "DaemonSet qvl-agent" && values == EVERYTHING),
                "{name}"
            );
            if !privileged {
                assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{name}");
                assert_eq!(pod["securityContext"]["runAsUser"], 65532, "{name}");
            }
            for container in list(&pod["containers"]).iter().chain(list(&pod["initContainers"])) {
                let security = &container["securityContext"];
                assert_eq!(security["readOnlyRootFilesystem"], true, "{name}");
                if !privileged {
                    assert_eq!(security["allowPrivilegeEscalation"], false, "{name}");
                    assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}), "{name}");
                }
                assert!(container["resources"]["requests"]["cpu"].is_string(), "{name}");
                assert!(container["resources"]["limits"]["memory"].is_string(), "{name}");
            }
        }
    }
}

#[test]
fn only_the_agent_sees_its_host_and_only_to_read() {
    for values in [DEFAULTS, WITHOUT_AGENT, EVERYTHING] {
        let objects = objects(values);
        for (name, _meta, pod) in pods(&objects) {
            for volume in
                list(&pod["volumes"]).iter().filter(|volume| !volume["hostPath"].is_null())
            {
                assert_eq!(name, "DaemonSet qvl-agent");
                let mounts = list(&pod["containers"][0]["volumeMounts"]);
                let mount = mounts.iter().find(|mount| mount["name"] == volume["name"]).unwrap();
                assert_eq!(mount["readOnly"], true, "{volume}");
            }
        }
    }
}

#[test]
fn images_are_our_own_and_pinned() {
    for values in [DEFAULTS, WITHOUT_AGENT, EVERYTHING] {
        let text = text(values);
        assert!(!text.contains("kubectl:") && !text.contains("/kubectl"), "an image pulls kubectl");
        for (name, _meta, pod) in pods(&objects(values)) {
            for container in list(&pod["containers"]) {
                let image = container["image"].as_str().unwrap();
                let (repository, version) = image.split_once(['@', ':']).unwrap();
                assert_eq!(repository.rsplit('/').next(), Some("qvl"), "{name}: {image}");
                assert_ne!(version, "latest", "{name}: {image}");
            }
        }
    }
}

#[test]
fn no_webhooks_or_jobs_are_made() {
    for values in [DEFAULTS, WITHOUT_AGENT, EVERYTHING] {
        let kinds: BTreeSet<String> = objects(values)
            .iter()
            .map(|object| object["kind"].as_str().unwrap().to_owned())
            .collect();
        for kind in ["Job", "ValidatingWebhookConfiguration", "MutatingWebhookConfiguration"] {
            assert!(!kinds.contains(kind), "{kind}");
        }
    }
}

#[test]
fn names_do_not_depend_on_the_release() {
    let names = |release: &str, namespace: &str| {
        let output = helm(&["template", release, CHART, "-n", namespace]);
        let text = String::from_utf8(output.stdout).unwrap();
        let objects: Vec<Value> =
            documents(&text).iter().map(|text| serde_saphyr::from_str(text).unwrap()).collect();
        for object in &objects {
            let place = &object["metadata"]["namespace"];
            assert!(place.is_null() || place == namespace, "{}", name(object));
        }
        objects.iter().map(name).collect::<Vec<_>>()
    };
    assert_eq!(names("qvl", "qvl-system"), names("other", "elsewhere"));
}

#[test]
fn resource_definitions_are_those_of_the_program_and_are_kept() {
    let manifest = fs::read_to_string("manifests/crds.yaml").unwrap();
    let chart = fs::read_to_string(format!("{CHART}/files/crds.yaml")).unwrap();
    assert!(manifest == chart, "old; run: cp manifests/crds.yaml {CHART}/files/crds.yaml");

    let objects = objects(DEFAULTS);
    let rendered = of_kind(&objects, "CustomResourceDefinition");
    let written = documents(&manifest);
    assert_eq!(rendered.len(), written.len());
    for text in written {
        let written: Value = serde_saphyr::from_str(&text).unwrap();
        let rendered = rendered.iter().find(|crd| name(crd) == name(&written)).unwrap();
        assert_eq!(rendered["metadata"]["annotations"]["helm.sh/resource-policy"], "keep");
        // Helm writes 1.0 as 1.
        let same = floats(&rendered["spec"]) == floats(&written["spec"]);
        assert!(same, "{} is not as written", name(&written));
    }
    let forgotten = render::objects(&["--set", "crds.keep=false"]);
    for crd in of_kind(&forgotten, "CustomResourceDefinition") {
        assert!(crd["metadata"]["annotations"]["helm.sh/resource-policy"].is_null());
    }
}

/// The value with all numbers as floats.
fn floats(value: &Value) -> Value {
    match value {
        Value::Number(number) => json!(number.as_f64()),
        Value::Array(items) => items.iter().map(floats).collect(),
        Value::Object(fields) => {
            fields.iter().map(|(key, value)| (key.clone(), floats(value))).collect()
        }
        Value::Null | Value::Bool(_) | Value::String(_) => value.clone(),
    }
}

#[test]
fn the_job_of_the_test_is_a_job() {
    let objects = objects(DEFAULTS);
    let [object] = of_kind(&objects, "FineTuneJob")[..] else { panic!("one job") };
    let job: FineTuneJob = serde_json::from_value(object.clone()).unwrap();
    assert_eq!(job.spec.world.gpus, 1);
    assert_eq!(job.spec.world.compute, job::Compute::Cpu);
    // A file of the user is checked the same way.
    let mut file = object.clone();
    file["metadata"] = json!({"name": "qvl-test"});
    let text = serde_json::to_string(&file).unwrap();
    let problems = job::parse(&text, "job.yaml").map(|_job| ()).map_err(|error| error.to_string());
    assert_eq!(problems, Ok(()));
}
