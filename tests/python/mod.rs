//! Runs the Python side of a test in an environment that `tests/python/setup` made.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// PEFT 0.5.0, which the official fine-tuning code was released with, and the newest.
pub(crate) const PEFTS: [&str; 2] = ["venv-peft-0.5.0", "venv"];
/// The newest PEFT, and the real `tensorboard` package.
pub(crate) const NEWEST: &str = PEFTS[1];

/// Standard output of `tests/python/{script}`; anything but success fails the test.
pub(crate) fn run(environment: &str, script: &str, args: &[&Path]) -> String {
    let folder = cache().join(environment);
    assert!(
        folder.join("complete").is_file(),
        "`{}` is missing or incomplete, expected real PEFT and torch there\n  hint: run `make setup`",
        folder.display(),
    );
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python").join(script);
    let output = Command::new(folder.join("bin/python"))
        .arg(&script)
        .args(args)
        // No look-ups on any hub, and no warnings about being offline in the middle of a test.
        .env("HF_HUB_OFFLINE", "1")
        .env("OMP_NUM_THREADS", "1")
        .output()
        .expect("the environment is complete");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(
        output.status.success(),
        "`{}` failed: {}\n{text}{}",
        script.display(),
        output.status,
        String::from_utf8_lossy(&output.stderr),
    );
    text
}

fn cache() -> PathBuf {
    let home = || PathBuf::from(env::var_os("HOME").expect("HOME is set")).join(".cache/qvl");
    env::var_os("QVL_CACHE").map_or_else(home, PathBuf::from)
}
