//! Named f32 tensors in a safetensors file, written and read one tensor at a time, so that
//! neither takes more memory than the largest tensor needs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::disk::{NewFile, hex};
use super::{CheckpointError, FileEntry};

/// Longest header that is read.
const HEADER_LIMIT: u64 = 100 << 20;

#[derive(Debug, Serialize, Deserialize)]
struct Info {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [u64; 2],
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Header {
    #[serde(rename = "__metadata__", default)]
    metadata: BTreeMap<String, String>,
    #[serde(flatten)]
    tensors: BTreeMap<String, Info>,
}

/// Writes `tensors` to the new file `name` in `folder`.
pub(super) fn write(
    folder: &Path,
    name: &str,
    tensors: &[(String, &Tensor)],
) -> Result<FileEntry, CheckpointError> {
    let path = folder.join(name);
    let header = describe(&path, tensors)?;
    let mut file = NewFile::create(path)?;
    file.write(&(header.len() as u64).to_le_bytes())?;
    file.write(&header)?;
    for (name, tensor) in tensors {
        let values = tensor.flatten_all().and_then(|flat| flat.to_vec1::<f32>());
        let values =
            values.map_err(|source| CheckpointError::Tensor { name: name.clone(), source })?;
        let mut bytes = vec![[0; 4]; 1 << 14];
        for piece in values.chunks(bytes.len()) {
            for (slot, value) in bytes.iter_mut().zip(piece) {
                *slot = value.to_le_bytes();
            }
            file.write(bytes[..piece.len()].as_flattened())?;
        }
    }
    file.finish(name)
}

fn describe(path: &Path, tensors: &[(String, &Tensor)]) -> Result<Vec<u8>, CheckpointError> {
    let mut header = Header::default();
    header.metadata.insert("format".to_owned(), "pt".to_owned());
    let mut names = BTreeSet::new();
    let mut start = 0;
    for (name, tensor) in tensors {
        if !names.insert(name) {
            return Err(CheckpointError::Duplicate { name: name.clone() });
        }
        let end = start + 4 * tensor.elem_count() as u64;
        let (dtype, shape) = ("F32".to_owned(), tensor.dims().to_vec());
        header.tensors.insert(name.clone(), Info { dtype, shape, data_offsets: [start, end] });
        start = end;
    }
    let mut text = serde_json::to_vec(&header)
        .map_err(|source| CheckpointError::Describe { path: path.to_owned(), source })?;
    // The data begins at a multiple of eight bytes.
    text.resize(text.len().next_multiple_of(8), b' ');
    Ok(text)
}

/// Reads the tensors of a file in the order of their data, and checks size and digest.
pub(super) fn read(
    folder: &Path,
    entry: &FileEntry,
    device: &Device,
) -> Result<Vec<(String, Tensor)>, CheckpointError> {
    let mut file = Source::open(folder, entry)?;
    let length = u64::from_le_bytes(file.take::<8>()?);
    if length > HEADER_LIMIT.min(file.left) {
        return Err(file.damaged("its header is longer than the file"));
    }
    let header: Header = serde_json::from_slice(&file.bytes(length)?)
        .map_err(|error| file.damaged(&format!("its header is not valid: {error}")))?;
    let mut infos: Vec<_> = header.tensors.into_iter().collect();
    infos.sort_by_key(|(_, info)| info.data_offsets);
    let mut start = 0;
    let mut tensors = Vec::with_capacity(infos.len());
    for (name, Info { dtype, shape, data_offsets: [from, to] }) in infos {
        let count = shape.iter().try_fold(1usize, |count, dim| count.checked_mul(*dim));
        let bytes = count.and_then(|count| count.checked_mul(4)).map(|bytes| bytes as u64);
        if dtype != "F32" || from != start || bytes != to.checked_sub(from) {
            return Err(file.damaged(&format!("tensor `{name}` is not laid out as f32 {shape:?}")));
        }
        let bytes = file.bytes(to - from)?;
        let words = bytes.as_chunks::<4>().0.iter();
        let values: Vec<f32> = words.map(|word| f32::from_le_bytes(*word)).collect();
        let tensor = Tensor::from_vec(values, shape, device)
            .map_err(|source| CheckpointError::Tensor { name: name.clone(), source })?;
        tensors.push((name, tensor));
        start = to;
    }
    file.finish()?;
    Ok(tensors)
}

/// Reads a small file and checks size and digest.
pub(super) fn read_bytes(folder: &Path, entry: &FileEntry) -> Result<Vec<u8>, CheckpointError> {
    let mut file = Source::open(folder, entry)?;
    let bytes = file.bytes(entry.bytes)?;
    file.finish()?;
    Ok(bytes)
}

/// A file whose digest is computed while it is read.
struct Source<'a> {
    file: BufReader<File>,
    path: PathBuf,
    entry: &'a FileEntry,
    digest: Sha256,
    left: u64,
}

impl<'a> Source<'a> {
    fn open(folder: &Path, entry: &'a FileEntry) -> Result<Self, CheckpointError> {
        let path = folder.join(&entry.name);
        let file = File::open(&path).map_err(|error| read_error(&path, error))?;
        let bytes = file.metadata().map_err(|error| read_error(&path, error))?.len();
        let source =
            Source { file: BufReader::new(file), path, entry, digest: Sha256::new(), left: bytes };
        if bytes != entry.bytes {
            return Err(source.damaged(&format!("it has {bytes} bytes, expected {}", entry.bytes)));
        }
        Ok(source)
    }

    fn bytes(&mut self, count: u64) -> Result<Vec<u8>, CheckpointError> {
        // The count comes from the file and may be anything; what is left bounds the memory.
        let size = usize::try_from(count).ok().filter(|_| count <= self.left);
        let Some(size) = size else {
            return Err(self.damaged("its data ends too early"));
        };
        let mut bytes = vec![0; size];
        self.file.read_exact(&mut bytes).map_err(|error| read_error(&self.path, error))?;
        self.digest.update(&bytes);
        self.left -= count;
        Ok(bytes)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], CheckpointError> {
        let bytes = self.bytes(N as u64)?;
        bytes.try_into().map_err(|_| self.damaged("its data ends too early"))
    }

    fn finish(self) -> Result<(), CheckpointError> {
        if self.left > 0 {
            return Err(self.damaged(&format!("{} bytes follow its data", self.left)));
        }
        let found = hex(&self.digest.clone().finalize());
        if found != self.entry.sha256 {
            let expected = &self.entry.sha256;
            return Err(self.damaged(&format!("its SHA-256 is {found}, expected {expected}")));
        }
        Ok(())
    }

    fn damaged(&self, what: &str) -> CheckpointError {
        CheckpointError::Damaged { path: self.path.clone(), what: what.to_owned() }
    }
}

/// The error for a file that cannot be read.
pub(super) fn read_error(path: &Path, source: std::io::Error) -> CheckpointError {
    let path = path.to_owned();
    if source.kind() == ErrorKind::NotFound {
        return CheckpointError::Missing { path };
    }
    CheckpointError::Read { path, source }
}
