//! Files that a user names, read with a bound.

use std::{
    fs::File,
    io::{self, ErrorKind, Read},
    path::Path,
};

/// Largest file of facts, report or verdict. Facts of a node with sixteen GPUs have about 200 KB, a report of a
/// thousand nodes some 100 MB.
const LARGEST: u64 = 512 << 20;

/// Text of a file or pipe.
///
/// # Errors
///
/// If it cannot be read, is no UTF-8, or has more than 512 MiB.
pub(super) fn text(path: &Path) -> io::Result<String> {
    bounded(File::open(path)?, LARGEST)
}

fn bounded(from: impl Read, largest: u64) -> io::Result<String> {
    let mut text = String::new();
    from.take(largest + 1).read_to_string(&mut text)?;
    if largest < text.len() as u64 {
        let what = format!("it has more than {} MiB, at most that is read", largest >> 20);
        return Err(io::Error::new(ErrorKind::FileTooLarge, what));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_large_is_refused_before_it_fills_the_memory() {
        let endless = io::repeat(b' ');
        let error = bounded(endless, 3 << 20).unwrap_err();
        assert!(error.to_string().contains("more than 3 MiB"), "{error}");
        assert_eq!(bounded(&b"abc"[..], 3).unwrap(), "abc");
        assert!(bounded(&b"abcd"[..], 3).is_err());
        assert!(bounded(&b"\xff"[..], 3).is_err());
    }
}
