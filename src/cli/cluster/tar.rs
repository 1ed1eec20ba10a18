//! Writes an archive of small text files in the POSIX ustar format. Pure.
//!
//! Layout of a header: POSIX.1-2017, `pax`, "ustar Interchange Format".

use std::io::{self, Write};

const BLOCK: usize = 512;
/// Longest name without the prefix field.
const LONGEST_NAME: usize = 100;

/// An archive that is being written.
pub(crate) struct Archive<W: Write> {
    out: W,
    /// Seconds since the Unix epoch, the same for all files.
    time: u64,
}

impl<W: Write> Archive<W> {
    pub(crate) fn new(out: W, time: u64) -> Self {
        Archive { out, time }
    }

    /// Adds a file.
    pub(crate) fn file(&mut self, name: &str, data: &[u8]) -> io::Result<()> {
        if LONGEST_NAME < name.len() {
            let what = format!("`{name}` is too long a name for an archive");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        self.out.write_all(&header(name, data.len(), self.time))?;
        self.out.write_all(data)?;
        self.out.write_all(&vec![0; data.len().next_multiple_of(BLOCK) - data.len()])
    }

    /// Writes the end mark and gives back what was written to.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        Ok(self.out)
    }
}

fn header(name: &str, size: usize, time: u64) -> [u8; BLOCK] {
    let mut header = [0; BLOCK];
    let mut put =
        |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000644\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{size:011o}\0"));
    put(136, &format!("{time:011o}\0"));
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn tar_reads_what_we_write() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tar");
        let mut archive = Archive::new(std::fs::File::create(&path).unwrap(), 1_700_000_000);
        archive.file("a/one.txt", b"1\n").unwrap();
        archive.file("a/long.txt", &[b'x'; 1025]).unwrap();
        archive.file("a/empty", b"").unwrap();
        archive.finish().unwrap();
        let run = |arguments: &[&str]| {
            let output = Command::new("tar").args(arguments).arg(&path).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        assert_eq!(run(&["-tf"]), "a/one.txt\na/long.txt\na/empty\n");
        assert_eq!(run(&["-xO", "-f"]), format!("1\n{}", "x".repeat(1025)));
    }

    #[test]
    fn a_name_that_does_not_fit_is_refused() {
        let error = Archive::new(Vec::new(), 0).file(&"x".repeat(101), b"").unwrap_err();
        assert!(error.to_string().contains("too long"), "{error}");
    }
}
