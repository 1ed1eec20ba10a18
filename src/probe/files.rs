//! Reading files of a machine, which may be anything: larger than memory, or a pipe without a writer.

use std::{
    fs::File,
    io::{self, ErrorKind, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Largest text that is read. Those of the kernel are smaller by a factor of a thousand.
const LARGEST: u64 = 16 << 20;

/// Opens a regular file; anything else, such as a pipe, is an error at once.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let file = File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    Err(io::Error::new(ErrorKind::InvalidInput, "it is not a regular file"))
}

/// A whole file of at most 16 MiB.
pub(super) fn bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.take(LARGEST + 1).read_to_end(&mut bytes)?;
    if LARGEST < bytes.len() as u64 {
        let what = format!("it has more than {} MiB", LARGEST >> 20);
        return Err(io::Error::new(ErrorKind::FileTooLarge, what));
    }
    Ok(bytes)
}

/// The same as text; what is no UTF-8 becomes a replacement character.
pub(super) fn text(path: &Path) -> io::Result<String> {
    Ok(String::from_utf8_lossy(&bytes(path)?).into_owned())
}

/// The same without the white space around it; `None` if it cannot be read.
pub(super) fn word(path: &Path) -> Option<String> {
    Some(text(path).ok()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_file_or_too_large_is_an_error_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(text(&pipe).unwrap_err().to_string().contains("regular file"));
        assert!(text(folder.path()).is_err());
        assert!(text(Path::new("/dev/zero")).unwrap_err().to_string().contains("regular file"));
        let huge = folder.path().join("huge");
        File::create(&huge).unwrap().set_len(1 << 40).unwrap();
        assert!(text(&huge).unwrap_err().to_string().contains("16 MiB"));
        std::fs::write(&huge, b" a\xff\n").unwrap();
        assert_eq!(word(&huge).unwrap(), "a\u{fffd}");
    }
}
