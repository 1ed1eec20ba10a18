//! `qvl-train selftest` as a user runs it.
#![cfg(feature = "train")]

use std::path::PathBuf;

use assert_cmd::Command;

fn selftest() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qvl-train"));
    command.arg("selftest").current_dir(std::env::temp_dir());
    command
}

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name)
}

/// The vocabulary that `make setup` fetches from its package.
fn vocabulary() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").expect("a home")).join(".cache/qvl");
    let cache = std::env::var_os("QVL_CACHE").map_or_else(home, PathBuf::from);
    let path = cache.join("packages/qwen.tiktoken");
    assert!(path.is_file(), "`{}` is missing; run `make setup`", path.display());
    path
}

#[test]
fn without_options_the_golden_inside_the_binary_is_replayed() {
    let done = selftest().assert().success();
    let text = String::from_utf8_lossy(&done.get_output().stdout).into_owned();
    assert!(text.contains("lora weights at the end") && text.contains("selftest passed"), "{text}");
}

#[test]
fn the_official_golden_is_replayed_with_its_picture() {
    let path = golden("qwen_vl_tiny_a.safetensors");
    let done = selftest().arg("--golden").arg(&path).assert().success();
    let text = String::from_utf8_lossy(&done.get_output().stdout).into_owned();
    assert!(text.contains("pixels (sha256)"), "{text}");
    // Another picture is another input.
    let other = tempfile::tempdir().unwrap();
    let other = other.path().join("other.png");
    image::RgbImage::from_pixel(9, 9, image::Rgb([200, 10, 30])).save(&other).unwrap();
    let failed =
        selftest().arg("--golden").arg(&path).arg("--images").arg(&other).assert().failure();
    let text = String::from_utf8_lossy(&failed.get_output().stdout).into_owned();
    assert!(text.contains("FAIL") && text.contains("selftest FAILED"), "{text}");
}

#[test]
fn the_official_tokenizer_is_equalled_in_every_case() {
    let replay = |vocabulary: &PathBuf| {
        let mut command = selftest();
        command.arg("--tokenizer").arg(golden("tokenizer_a.json"));
        command.arg("--vocab").arg(vocabulary).assert()
    };
    let text =
        String::from_utf8_lossy(&replay(&vocabulary()).success().get_output().stdout).into_owned();
    assert_eq!(text.matches(" ok ").count(), 5, "{text}");
    // The same ranks in another order are another tokenizer.
    let folder = tempfile::tempdir().unwrap();
    let swapped = folder.path().join("qwen.tiktoken");
    let lines = std::fs::read_to_string(vocabulary()).unwrap();
    let token = |rank: &str| {
        let mut entries = lines.lines().filter_map(|line| line.split_once(' '));
        entries.find(|(_token, found)| *found == rank).unwrap().0
    };
    let exchange = |line: &str| match line.split_once(' ') {
        Some((_token, "14990")) => format!("{} 14990\n", token("1879")),
        Some((_token, "1879")) => format!("{} 1879\n", token("14990")),
        Some(_) | None => format!("{line}\n"),
    };
    let exchanged: String = lines.lines().map(exchange).collect();
    std::fs::write(&swapped, exchanged).unwrap();
    let failed = replay(&swapped).failure();
    let text = String::from_utf8_lossy(&failed.get_output().stdout).into_owned();
    assert!(text.contains("case 1 of 6"), "{text}");
}
