//! Names that the chart and the documents share with the source.

use std::{collections::BTreeSet, fs, path::Path};

use crate::render::{EVERYTHING, text};

#[test]
fn alerts_and_dashboard_use_metrics_that_exist() {
    let source = source("src");
    let text = text(EVERYTHING);
    let names: BTreeSet<&str> = text
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.starts_with("qvl_"))
        .collect();
    assert!(10 <= names.len(), "{names:?}");
    for name in names {
        assert!(source.contains(&format!("\"{name}\"")), "no part of the program counts {name}");
    }
}

#[test]
fn reasons_of_the_documents_are_those_of_the_operator() {
    // These come from the scheduler and the kubelet.
    let foreign = ["Unschedulable", "ContainerCreating", "ErrImagePull", "ImagePullBackOff"];
    let source = source("src/operator");
    let page = fs::read_to_string("docs/troubleshooting.md").unwrap();
    let table = page.split("<!-- reasons -->").nth(1).unwrap();
    let table = table.split("<!-- end of reasons -->").next().unwrap();
    let rows: Vec<Vec<&str>> = table
        .trim()
        .lines()
        .skip(2)
        .map(|row| row.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    assert!(20 <= rows.len());
    for row in rows {
        let (condition, reason) = (row[0], row[1]);
        assert!(source.contains(&format!("\"{condition}\"")), "{condition} is no condition");
        let known = source.contains(&format!("\"{reason}\"")) || foreign.contains(&reason);
        assert!(known, "the operator never says {reason}");
    }
}

/// All source below a folder.
fn source(folder: &str) -> String {
    let mut text = String::new();
    let mut folders = vec![Path::new(folder).to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                text += &fs::read_to_string(path).unwrap();
            }
        }
    }
    text
}
