//! The manifests of the repository are what the types say. `QVL_UPDATE=1 cargo test --test crds`
//! writes them anew.

use std::{collections::BTreeSet, env, fs};

use serde_json::Value;

#[test]
fn manifests_are_those_of_the_types() {
    let output = assert_cmd::Command::cargo_bin("qvl").unwrap().arg("crd").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let path = "manifests/crds.yaml";
    if env::var_os("QVL_UPDATE").is_some() {
        fs::create_dir_all("manifests").unwrap();
        fs::write(path, &text).unwrap();
    }
    let kept = fs::read_to_string(path).unwrap_or_default();
    assert!(kept == text, "{path} is not current: run QVL_UPDATE=1 cargo test --test crds");
}

/// The API server warns of a format that it does not know at every `kubectl apply`.
#[test]
fn formats_are_known_to_kubernetes_and_counts_are_not_negative() {
    let text = fs::read_to_string("manifests/crds.yaml").unwrap();
    let documents: Vec<Value> = text
        .split("\n---\n")
        .filter(|text| text.contains("kind:"))
        .map(|text| serde_saphyr::from_str(text).unwrap())
        .collect();
    assert_eq!(documents.len(), 2);
    let (mut formats, mut wrong) = (BTreeSet::new(), Vec::new());
    for document in &documents {
        let name = document["metadata"]["name"].as_str().unwrap();
        formats_of(name, document, &mut formats, &mut wrong);
    }
    assert_eq!(wrong, Vec::<String>::new());
    assert!(formats.contains("int64"), "{formats:?}");
    let schema = &documents[1]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
    let gpus = &schema["spec"]["properties"]["summary"]["properties"]["gpus"];
    assert_eq!((&gpus["format"], gpus["minimum"].as_f64()), (&"int64".into(), Some(0.0)));
}

/// Integers and floats of OpenAPI 3.0, and the formats of text that these types use.
const KNOWN: [&str; 5] = ["int32", "int64", "float", "double", "date-time"];

fn formats_of<'v>(
    path: &str,
    value: &'v Value,
    formats: &mut BTreeSet<&'v str>,
    wrong: &mut Vec<String>,
) {
    if let Some(format) = value["format"].as_str() {
        formats.insert(format);
        if !KNOWN.contains(&format) {
            wrong.push(format!("{path}: {format}"));
        }
    }
    let fields = value.as_object().into_iter().flatten();
    for (key, inner) in fields {
        formats_of(&format!("{path}.{key}"), inner, formats, wrong);
    }
    for (index, inner) in value.as_array().into_iter().flatten().enumerate() {
        formats_of(&format!("{path}[{index}]"), inner, formats, wrong);
    }
}
