//! What is in the folders that a job reads, without reading large files.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use sha2::{Digest, Sha256};

use super::files;
use crate::facts::Weights;

/// Files up to this size are hashed; of larger ones the size counts.
const SMALL: u64 = 1 << 20;
/// Bytes that are hashed at most, so that a folder of many small files does not take long.
const BUDGET: u64 = 8 << 20;
/// More files than this are not looked at.
const FILES: usize = 10_000;
/// A pointer of Git LFS is about 130 bytes.
const POINTER: u64 = 1024;

/// Size and fingerprint of a file, or of the files right in a folder.
pub(super) struct Content {
    pub(super) bytes: u64,
    pub(super) fingerprint: String,
}

pub(super) fn of(path: &Path) -> Content {
    let mut files: BTreeMap<String, u64> = BTreeMap::new();
    if path.is_dir() {
        let entries = fs::read_dir(path).into_iter().flatten().flatten().take(FILES);
        for entry in entries {
            // Links are followed: a cache of models has nothing else.
            let Ok(metadata) = fs::metadata(entry.path()) else { continue };
            if metadata.is_file() {
                files.insert(entry.file_name().to_string_lossy().into_owned(), metadata.len());
            }
        }
    } else if let Ok(metadata) = path.metadata() {
        files.insert(String::new(), metadata.len());
    }
    let mut hash = Sha256::new();
    let mut budget = BUDGET;
    for (name, bytes) in &files {
        hash.update(format!("{name}\0{bytes}\0"));
        if *bytes <= SMALL && *bytes <= budget {
            budget -= bytes;
            let file = if name.is_empty() { path.to_owned() } else { path.join(name) };
            hash.update(files::bytes(&file).unwrap_or_default());
        }
    }
    let digest: String = hash.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect();
    Content { bytes: files.values().sum(), fingerprint: digest }
}

/// Weight files of a model's folder, and what its index misses.
pub(super) fn weights(folder: &Path) -> Weights {
    let mut weights = Weights::default();
    let mut named: BTreeSet<String> = BTreeSet::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten().take(FILES) {
        let name = entry.file_name().to_string_lossy().into_owned();
        let extension = Path::new(&name).extension().and_then(|extension| extension.to_str());
        if matches!(extension, Some("safetensors" | "bin")) {
            let Ok(metadata) = fs::metadata(entry.path()) else { continue };
            if metadata.len() < POINTER && is_pointer(&entry.path()) {
                weights.pointers.push(name.clone());
            }
            weights.files.insert(name, metadata.len());
        } else if name.ends_with(".index.json") {
            named.extend(index(&entry.path()));
        }
    }
    weights.pointers.sort();
    weights.missing = named.into_iter().filter(|n| !weights.files.contains_key(n)).collect();
    weights
}

fn is_pointer(path: &Path) -> bool {
    files::bytes(path).is_ok_and(|bytes| bytes.starts_with(b"version https://git-lfs"))
}

/// Files that an index of weights names; one that is not JSON names none.
fn index(path: &Path) -> Vec<String> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let bytes = files::bytes(path).unwrap_or_default();
    let index = serde_json::from_slice::<Index>(&bytes);
    index.map(|index| index.weight_map.into_values().collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_counts_and_large_files_are_not_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        fs::write(path.join("a"), "one").unwrap();
        let first = of(path);
        assert_eq!(first.bytes, 3);
        fs::write(path.join("a"), "two").unwrap();
        assert_ne!(of(path).fingerprint, first.fingerprint);
        let large = fs::File::create(path.join("b")).unwrap();
        large.set_len(1 << 40).unwrap();
        assert_eq!(of(path).bytes, (1 << 40) + 3);
    }

    #[test]
    fn pointers_and_missing_shards_are_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n";
        fs::write(path.join("model-1.safetensors"), pointer).unwrap();
        fs::write(
            path.join("model.safetensors.index.json"),
            r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#,
        )
        .unwrap();
        let found = weights(path);
        assert_eq!(found.pointers, ["model-1.safetensors"]);
        assert_eq!(found.missing, ["model-2.safetensors"]);
    }
}
