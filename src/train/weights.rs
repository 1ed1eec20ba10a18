//! Loads the weights of a folder: safetensors or PyTorch shards, by memory map, with an audit.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor, pickle::PthTensors, safetensors::MmapedSafetensors};

use sha2::{Digest, Sha256};

use super::model::ModelError;

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

/// `*.safetensors` if there are any, else `*.bin`, as the official release ships them.
fn open(folder: &Path) -> Result<Source, ModelError> {
    let safetensors = files(folder, "safetensors")?;
    if !safetensors.is_empty() {
        let damaged = |source| ModelError::Damaged { path: safetensors[0].clone(), source };
        #[expect(unsafe_code, reason = "a memory map: all ranks of a node share one copy")]
        // SAFETY: the map stays valid as long as nobody shortens the file under us; weights are
        // read-only data, and a file that changes meanwhile would also break a plain read.
        let map = unsafe { MmapedSafetensors::multi(&safetensors) }.map_err(damaged)?;
        return Ok(Source::Safetensors(map));
    }
    let shards = files(folder, "bin")?;
    if shards.is_empty() {
        return Err(ModelError::NoWeights { folder: folder.to_owned() });
    }
    let open = |path: PathBuf| match PthTensors::new(&path, None) {
        Ok(tensors) => Ok((path, tensors)),
        Err(source) => Err(ModelError::Damaged { path, source }),
    };
    Ok(Source::Pickle(shards.into_iter().map(open).collect::<Result<_, _>>()?))
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
            refuse_pointer(&path)?;
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
            Source::Safetensors(map) => map.load(name, &Device::Cpu).map_err(damaged(folder)),
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
