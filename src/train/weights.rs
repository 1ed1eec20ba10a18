//! Loads the weights of a folder: safetensors or PyTorch shards, by memory map, with an audit.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor, pickle::PthTensors, safetensors::MmapedSafetensors};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{memory, model::ModelError};

/// How a Git LFS pointer file begins.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";
/// Lines of an audit that are printed before the rest is only counted.
const AUDIT_LINES: usize = 10;

/// Names and shapes that a checkpoint must have, by name.
pub type Expected = BTreeMap<String, Vec<usize>>;

enum Source {
    Safetensors(MmapedSafetensors),
    Pickle(Vec<(PathBuf, PthTensors)>),
}

/// All tensors of `folder`, checked against `expected` before any of them is read.
pub fn load(
    folder: &Path,
    expected: &Expected,
    dtype: DType,
    device: &Device,
) -> Result<BTreeMap<String, Tensor>, ModelError> {
    let source = open(folder)?;
    audit(folder, &source.shapes(), expected)?;
    expected
        .keys()
        .map(|name| {
            let tensor = source.read(folder, name)?;
            Ok((name.clone(), tensor.to_device(device)?.to_dtype(dtype)?.contiguous()?))
        })
        .collect()
}

/// `*.safetensors` if there are any, else `*.bin`, as the official release ships them. An index
/// says which files belong together and how many bytes they hold.
fn open(folder: &Path) -> Result<Source, ModelError> {
    for (extension, index) in
        [("safetensors", "model.safetensors.index.json"), ("bin", "pytorch_model.bin.index.json")]
    {
        let index = Index::read(&folder.join(index))?;
        let paths = match &index {
            Some(index) => index.shards(folder)?,
            None => files(folder, extension)?,
        };
        if paths.is_empty() {
            continue;
        }
        paths.iter().try_for_each(|path| refuse_pointer(path))?;
        let source = if extension == "bin" { pickles(paths)? } else { maps(&paths)? };
        if let Some(index) = index {
            index.check_size(source.bytes())?;
        }
        return Ok(source);
    }
    Err(ModelError::NoWeights { folder: folder.to_owned() })
}

fn maps(paths: &[PathBuf]) -> Result<Source, ModelError> {
    let map = |paths: &[PathBuf]| {
        #[expect(unsafe_code, reason = "a memory map: all ranks of a node share one copy")]
        // SAFETY: the map stays valid as long as nobody shortens the file under us; weights are
        // read-only data, and a file that changes meanwhile would also break a plain read.
        unsafe {
            MmapedSafetensors::multi(paths)
        }
    };
    // One by one first, so that an error names the file.
    for path in paths {
        map(std::slice::from_ref(path))
            .map_err(|source| ModelError::Damaged { path: path.clone(), source })?;
    }
    let all =
        map(paths).map_err(|source| ModelError::Damaged { path: paths[0].clone(), source })?;
    Ok(Source::Safetensors(all))
}

fn pickles(paths: Vec<PathBuf>) -> Result<Source, ModelError> {
    let open = |path: PathBuf| match PthTensors::new(&path, None) {
        Ok(tensors) => Ok((path, tensors)),
        Err(source) => Err(ModelError::Damaged { path, source }),
    };
    Ok(Source::Pickle(paths.into_iter().map(open).collect::<Result<_, _>>()?))
}

/// `*.index.json` beside the shards of a model.
struct Index {
    path: PathBuf,
    content: IndexContent,
}

#[derive(Deserialize)]
struct IndexContent {
    #[serde(default)]
    metadata: IndexMetadata,
    weight_map: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
struct IndexMetadata {
    total_size: Option<u64>,
}

impl Index {
    fn read(path: &Path) -> Result<Option<Self>, ModelError> {
        let path = path.to_owned();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(ModelError::ReadFile { path, source }),
        };
        match serde_json::from_str(&text) {
            Ok(content) => Ok(Some(Index { path, content })),
            Err(source) => Err(ModelError::Index { path, source }),
        }
    }

    fn shards(&self, folder: &Path) -> Result<Vec<PathBuf>, ModelError> {
        let names: BTreeSet<&String> = self.content.weight_map.values().collect();
        let shard = |name: &String| {
            let path = folder.join(name);
            if path.is_file() {
                return Ok(path);
            }
            Err(ModelError::MissingShard { index: self.path.clone(), shard: name.clone() })
        };
        names.into_iter().map(shard).collect()
    }

    fn check_size(&self, found: u64) -> Result<(), ModelError> {
        match self.content.metadata.total_size {
            Some(expected) if expected != found => {
                Err(ModelError::TotalSize { index: self.path.clone(), expected, found })
            }
            Some(_) | None => Ok(()),
        }
    }
}

fn files(folder: &Path, extension: &str) -> Result<Vec<PathBuf>, ModelError> {
    let read = |source| ModelError::ReadFile { path: folder.to_owned(), source };
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(read)? {
        let path = entry.map_err(read)?.path();
        // Training state is often left beside the weights in `.bin` files of other names.
        let state = ["training_args", "optimizer", "scheduler", "adapter_model"];
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        if path.extension().is_some_and(|found| found == extension) && !state.contains(&stem) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn refuse_pointer(path: &Path) -> Result<(), ModelError> {
    let mut head = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(LFS_POINTER.len() as u64).read_to_end(&mut head))
        .map_err(|source| ModelError::ReadFile { path: path.to_owned(), source })?;
    if head == LFS_POINTER {
        return Err(ModelError::LfsPointer { path: path.to_owned() });
    }
    Ok(())
}

impl Source {
    /// Bytes of all tensors, in the number formats of the files.
    fn bytes(&self) -> u64 {
        let sizes: Vec<usize> = match self {
            Source::Safetensors(map) => {
                map.tensors().into_iter().map(|(_name, view)| view.data().len()).collect()
            }
            Source::Pickle(shards) => shards
                .iter()
                .flat_map(|(_path, shard)| shard.tensor_infos().values())
                .map(|info| info.layout.shape().elem_count() * info.dtype.size_in_bytes())
                .collect(),
        };
        sizes.into_iter().sum::<usize>() as u64
    }

    fn shapes(&self) -> Expected {
        match self {
            Source::Safetensors(map) => map
                .tensors()
                .into_iter()
                .map(|(name, view)| (name, view.shape().to_vec()))
                .collect(),
            Source::Pickle(shards) => shards
                .iter()
                .flat_map(|(_path, shard)| shard.tensor_infos())
                .map(|(name, info)| (name.clone(), info.layout.dims().to_vec()))
                .collect(),
        }
    }

    fn read(&self, folder: &Path, name: &str) -> Result<Tensor, ModelError> {
        let damaged = |path: &Path| {
            let path = path.to_owned();
            move |source| ModelError::Damaged { path, source }
        };
        match self {
            Source::Safetensors(map) => {
                let tensor = map.load(name, &Device::Cpu).map_err(damaged(folder))?;
                if let Ok(view) = map.get(name) {
                    memory::give_back(view.data());
                }
                Ok(tensor)
            }
            Source::Pickle(shards) => {
                for (path, shard) in shards {
                    if let Some(tensor) = shard.get(name).map_err(damaged(path))? {
                        return Ok(tensor);
                    }
                }
                unreachable!("the audit has seen `{name}`")
            }
        }
    }
}

/// Every difference at once, because a user who learns them one by one loads 20 GB each time.
fn audit(folder: &Path, found: &Expected, expected: &Expected) -> Result<(), ModelError> {
    let mut lines = Vec::new();
    for (name, shape) in expected {
        match found.get(name) {
            None => lines.push(format!("`{name}` {shape:?} is missing")),
            Some(other) if other != shape => {
                lines.push(format!("`{name}` has shape {other:?}, expected {shape:?}"));
            }
            Some(_) => {}
        }
    }
    let unexpected = found.keys().filter(|name| !expected.contains_key(*name));
    lines.extend(unexpected.map(|name| format!("`{name}` is not part of the model")));
    if lines.is_empty() {
        return Ok(());
    }
    let rest = lines.len().saturating_sub(AUDIT_LINES);
    let mut list: String =
        lines.iter().take(AUDIT_LINES).fold(String::new(), |list, line| list + "\n  " + line);
    if 0 < rest {
        list = format!("{list}\n  and {rest} more");
    }
    Err(ModelError::Audit { folder: folder.to_owned(), list })
}

/// A digest that tells two bases apart without reading them whole: names and sizes of the files,
/// `config.json`, and the first and last 64 KiB of each weight file.
pub fn fingerprint(folder: &Path) -> Result<String, ModelError> {
    const ENDS: usize = 64 << 10;
    let mut paths = files(folder, "safetensors")?;
    if paths.is_empty() {
        paths = files(folder, "bin")?;
    }
    paths.push(folder.join("config.json"));
    let mut hash = Sha256::new();
    for path in paths {
        let read = |source| ModelError::ReadFile { path: path.clone(), source };
        let mut file = fs::File::open(&path).map_err(read)?;
        let size = file.metadata().map_err(read)?.len();
        hash.update(path.file_name().unwrap_or_default().as_encoded_bytes());
        hash.update(size.to_le_bytes());
        let mut end = Vec::new();
        file.by_ref().take(ENDS as u64).read_to_end(&mut end).map_err(read)?;
        file.seek(SeekFrom::Start(size.saturating_sub(ENDS as u64))).map_err(read)?;
        file.read_to_end(&mut end).map_err(read)?;
        hash.update(&end);
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected() -> Expected {
        (0..13).map(|i| (format!("t.{i:02}"), vec![2, i + 1])).collect()
    }

    /// `names` of [`expected`] in `file`.
    fn write(folder: &Path, file: &str, names: std::ops::Range<usize>) {
        let tensors = names.map(|i| {
            let tensor = Tensor::full(i as f32, (2, i + 1), &Device::Cpu).unwrap();
            (format!("t.{i:02}"), tensor)
        });
        let tensors = tensors.collect::<std::collections::HashMap<_, _>>();
        candle_core::safetensors::save(&tensors, folder.join(file)).unwrap();
    }

    fn index(folder: &Path, total: u64) {
        let map: BTreeMap<String, &str> = expected()
            .into_keys()
            .map(|name| {
                let shard = if *name < *"t.05" { "a.safetensors" } else { "b.safetensors" };
                (name, shard)
            })
            .collect();
        let text = serde_json::json!({"metadata": {"total_size": total}, "weight_map": map});
        fs::write(folder.join("model.safetensors.index.json"), text.to_string()).unwrap();
    }

    fn load_f32(folder: &Path) -> Result<BTreeMap<String, Tensor>, ModelError> {
        load(folder, &expected(), DType::F32, &Device::Cpu)
    }

    /// 2 · (1 + .. + 13) numbers of four bytes.
    const TOTAL: u64 = 2 * 91 * 4;

    #[test]
    fn shards_are_read_with_and_without_an_index() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "a.safetensors", 0..5);
        write(folder.path(), "b.safetensors", 5..13);
        let check = |dtype| {
            let tensors = load(folder.path(), &expected(), dtype, &Device::Cpu).unwrap();
            assert_eq!(tensors.len(), 13);
            assert!(tensors.values().all(|tensor| tensor.dtype() == dtype));
            let last = tensors["t.12"].to_dtype(DType::F32).unwrap();
            assert_eq!(last.to_vec2::<f32>().unwrap(), vec![vec![12.0; 13]; 2]);
        };
        [DType::F32, DType::BF16, DType::F16].into_iter().for_each(check);
        // With an index, a file that it does not name is no part of the model.
        index(folder.path(), TOTAL);
        write(folder.path(), "stray.safetensors", 2..3);
        check(DType::F32);
    }

    #[test]
    fn an_index_that_lies_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "a.safetensors", 0..5);
        index(folder.path(), TOTAL + 1);
        let error = load_f32(folder.path()).unwrap_err().to_string();
        assert!(error.contains("names `b.safetensors`, which is missing"), "{error}");
        write(folder.path(), "b.safetensors", 5..13);
        let error = load_f32(folder.path()).unwrap_err().to_string();
        assert!(error.contains("promises 729 bytes of tensors, its files hold 728"), "{error}");
        fs::write(folder.path().join("model.safetensors.index.json"), "[]").unwrap();
        assert!(matches!(load_f32(folder.path()), Err(ModelError::Index { .. })));
    }

    #[test]
    fn every_difference_is_listed_at_once() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "a.safetensors", 1..13);
        let mut other = expected();
        other.insert("t.03".to_owned(), vec![4, 2]);
        other.remove("t.07");
        let load = |expected| load(folder.path(), expected, DType::F32, &Device::Cpu);
        let error = load(&other).unwrap_err().to_string();
        for line in [
            "`t.00` [2, 1] is missing",
            "`t.03` has shape [2, 4], expected [4, 2]",
            "`t.07` is not part of the model",
        ] {
            assert!(error.contains(line), "{error}");
        }
        assert_eq!(error.lines().count(), 4, "{error}");
        let none: Expected = (0..8).map(|i| (format!("other.{i}"), vec![1])).collect();
        let error = load(&none).unwrap_err().to_string();
        assert_eq!(error.lines().count(), 1 + AUDIT_LINES + 1, "{error}");
        assert!(error.ends_with("and 10 more"), "{error}");
    }

    #[test]
    fn files_that_are_no_weights_are_named() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(load_f32(folder.path()), Err(ModelError::NoWeights { .. })));
        write(folder.path(), "a.safetensors", 0..5);
        write(folder.path(), "b.safetensors", 5..13);
        let path = folder.path().join("b.safetensors");
        let whole = fs::read(&path).unwrap();
        for length in [0, 5, 200, whole.len() - 1] {
            fs::write(&path, &whole[..length]).unwrap();
            match load_f32(folder.path()) {
                Err(ModelError::Damaged { path, .. }) => assert!(path.ends_with("b.safetensors")),
                other => panic!("{length} bytes: {other:?}"),
            }
        }
        fs::write(&path, "version https://git-lfs.github.com/spec/v1\noid sha256:0\n").unwrap();
        match load_f32(folder.path()) {
            Err(ModelError::LfsPointer { path }) => assert!(path.ends_with("b.safetensors")),
            other => panic!("{other:?}"),
        }
    }
}
