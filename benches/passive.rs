//! Medians of what a user waits for, against their budgets: the doctor's passive pass as a process,
//! resizing a picture, tokenising text. `cargo bench --bench passive`
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark for people")]

use std::{
    hint::black_box,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use qvl::data::{
    image,
    tokenizer::{Allowed, Tokenizer},
};

/// Longest measuring time of one line.
const ENOUGH: Duration = Duration::from_secs(3);

fn main() {
    println!("{:<44} {:>10} {:>10} {:>7}", "", "median", "budget", "ratio");
    let doctor = median(|| {
        let status = Command::new(env!("CARGO_BIN_EXE_qvl"))
            .args(["doctor", "--format", "json"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        // 0, 1 or 3: it judged; anything else means that it did not run.
        assert!(matches!(status.code(), Some(0 | 1 | 3)), "{status}");
    });
    line("qvl doctor --format json, as a process", doctor, Some(Duration::from_millis(100)));
    let help = median(|| {
        let status = Command::new(env!("CARGO_BIN_EXE_qvl"))
            .arg("--version")
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
    });
    line("qvl --version, as a process", help, Some(Duration::from_millis(10)));
    resize();
    tokenise();
}

fn line(name: &str, median: Duration, budget: Option<Duration>) {
    let milliseconds = |time: Duration| format!("{:.2} ms", time.as_secs_f64() * 1e3);
    let (limit, ratio) = budget.map_or((String::new(), String::new()), |budget| {
        let ratio = median.as_secs_f64() / budget.as_secs_f64();
        (milliseconds(budget), format!("{ratio:.2}"))
    });
    println!("{name:<44} {:>10} {limit:>10} {ratio:>7}", milliseconds(median));
}

/// Of at least five runs after one that warms up.
fn median(mut run: impl FnMut()) -> Duration {
    run();
    let mut times = Vec::new();
    let started = Instant::now();
    while times.len() < 5 || started.elapsed() < ENOUGH {
        let began = Instant::now();
        run();
        times.push(began.elapsed());
    }
    times.sort();
    times[times.len() / 2]
}

/// One megapixel to the 448 pixels of Qwen-VL, as Pillow does it.
fn resize() {
    let rgb: Vec<u8> = (0..1024 * 1024 * 3_u32).map(|i| u8::try_from(i % 251).unwrap()).collect();
    let time = median(|| drop(black_box(image::resize(black_box(&rgb), 1024, 1024, 448, 448))));
    line("resize 1024x1024 to 448x448, bicubic", time, None);
}

fn tokenise() {
    let home = || format!("{}/.cache/qvl", std::env::var("HOME").unwrap());
    let cache = std::env::var("QVL_CACHE").unwrap_or_else(|_unset| home());
    let path = format!("{cache}/packages/qwen.tiktoken");
    let Ok(bytes) = std::fs::read(&path) else {
        println!("tokenizer: `{path}` is missing; `make setup` fetches it");
        return;
    };
    let load = median(|| drop(black_box(Tokenizer::parse(&bytes, Path::new(&path), 256).unwrap())));
    line("load the vocabulary of 151,643 tokens", load, None);
    let tokenizer = Tokenizer::parse(&bytes, Path::new(&path), 256).unwrap();
    let text =
        "The quick brown fox jumps over the lazy dog. 敏捷的棕色狐狸跳过了懒狗。 ".repeat(100);
    let time = median(|| drop(black_box(tokenizer.encode(black_box(&text), Allowed::All))));
    let tokens = tokenizer.encode(&text, Allowed::All).len();
    line(&format!("encode {} KiB of text, {tokens} tokens", text.len() / 1024), time, None);
}
