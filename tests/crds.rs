//! The manifests of the repository are what the types say. `QVL_UPDATE=1 cargo test --test crds`
//! writes them anew.

use std::{env, fs};

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
