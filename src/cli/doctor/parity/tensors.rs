//! The first difference between two files of tensors.

use std::{collections::BTreeSet, fs, path::Path};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use crate::{cli::CliError, wire::ExitStatus};

/// How many tensors are the same, and the first that is not: its name with the place of the first
/// element that differs, and the two values.
pub(super) type Found = (usize, Option<(String, [String; 2])>);

/// Compares two files, tensor by tensor in the order of their names.
pub(super) fn compare(one: &Path, other: &Path) -> Result<Found, CliError> {
    let (a, b) = (read(one)?, read(other)?);
    let (a, b) = (parse(one, &a)?, parse(other, &b)?);
    let names: BTreeSet<String> =
        a.names().into_iter().chain(b.names()).map(ToString::to_string).collect();
    for (index, name) in names.iter().enumerate() {
        let difference = match (a.tensor(name), b.tensor(name)) {
            (Ok(a), Ok(b)) => differ(&a, &b),
            (a, b) => {
                let there = |is: bool| if is { "there" } else { "missing" }.to_owned();
                Some((String::new(), [there(a.is_ok()), there(b.is_ok())]))
            }
        };
        if let Some((place, values)) = difference {
            return Ok((index, Some((format!("`{name}`{place}"), values))));
        }
    }
    Ok((names.len(), None))
}

fn differ(a: &TensorView<'_>, b: &TensorView<'_>) -> Option<(String, [String; 2])> {
    if (a.dtype(), a.shape()) != (b.dtype(), b.shape()) {
        let form = |view: &TensorView<'_>| format!("{:?} {:?}", view.dtype(), view.shape());
        return Some((String::new(), [form(a), form(b)]));
    }
    if a.data() == b.data() {
        return None;
    }
    let first = a.data().iter().zip(b.data()).position(|(x, y)| x != y).unwrap_or(0);
    let width = (a.dtype().bitsize() / 8).max(1);
    let element = first / width;
    let value = |view: &TensorView<'_>| {
        show(view.dtype(), view.data().get(element * width..(element + 1) * width).unwrap_or(&[]))
    };
    Some((format!(" element {element}"), [value(a), value(b)]))
}

fn show(dtype: Dtype, bytes: &[u8]) -> String {
    match (dtype, bytes) {
        (Dtype::F32, &[a, b, c, d]) => format!("{:.9e}", f32::from_le_bytes([a, b, c, d])),
        // The upper half of an f32.
        (Dtype::BF16, &[a, b]) => format!("{:.4e}", f32::from_le_bytes([0, 0, a, b])),
        _ => bytes.iter().rev().map(|byte| format!("{byte:02x}")).collect(),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, CliError> {
    fs::read(path).map_err(|error| {
        let what = format!("failed to read `{}`", path.display());
        CliError::of(ExitStatus::Unknown, anyhow::Error::new(error).context(what))
            .hint("the trainer must save weights and optimizer after each step")
    })
}

fn parse<'d>(path: &Path, bytes: &'d [u8]) -> Result<SafeTensors<'d>, CliError> {
    SafeTensors::deserialize(bytes).map_err(|error| {
        let what = format!("`{}` is no file of tensors", path.display());
        CliError::of(ExitStatus::Unknown, anyhow::Error::new(error).context(what))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn file(folder: &Path, name: &str, tensors: &[(&str, Dtype, &[u8])]) -> std::path::PathBuf {
        let views: HashMap<String, TensorView<'_>> = tensors
            .iter()
            .map(|(name, dtype, data)| {
                let count = data.len() * 8 / dtype.bitsize();
                ((*name).to_owned(), TensorView::new(*dtype, vec![count], data).unwrap())
            })
            .collect();
        let path = folder.join(name);
        safetensors::serialize_to_file(&views, None, &path).unwrap();
        path
    }

    #[test]
    fn the_first_element_that_differs_is_named_with_both_values() {
        let folder = tempfile::tempdir().unwrap();
        let floats = |values: [f32; 3]| values.map(f32::to_le_bytes).concat();
        let (a, b) = (floats([1.0, 2.0, 3.0]), floats([1.0, 2.0, -3.0]));
        let one = file(folder.path(), "1", &[("a", Dtype::F32, &a), ("b", Dtype::F32, &a)]);
        let same = file(folder.path(), "2", &[("b", Dtype::F32, &a), ("a", Dtype::F32, &a)]);
        let other = file(folder.path(), "3", &[("a", Dtype::F32, &a), ("b", Dtype::F32, &b)]);
        let less = file(folder.path(), "4", &[("a", Dtype::F32, &a)]);
        assert_eq!(compare(&one, &same).unwrap(), (2, None));
        let values = ["3.000000000e0".to_owned(), "-3.000000000e0".to_owned()];
        assert_eq!(compare(&one, &other).unwrap(), (1, Some(("`b` element 2".to_owned(), values))));
        let values = ["there".to_owned(), "missing".to_owned()];
        assert_eq!(compare(&one, &less).unwrap(), (1, Some(("`b`".to_owned(), values))));
    }

    #[test]
    fn a_file_that_is_none_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let bad = folder.path().join("bad");
        fs::write(&bad, "no tensors").unwrap();
        let error = compare(&bad, &bad).unwrap_err();
        assert!(error.to_string().contains("is no file of tensors"), "{error}");
    }
}
