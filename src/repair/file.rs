//! Files that are old or new, and nothing between.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
};

/// The text of a file; `None` if there is none.
pub(super) fn read(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Replaces the file, or removes it. Its owner and mode stay.
pub(super) fn replace(path: &Path, text: Option<&str>, id: u64) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    match text {
        Some(text) => {
            let draft = draft(path, id);
            write(&draft, text, fs::metadata(path).ok().as_ref())?;
            fs::rename(&draft, path)?;
        }
        None => fs::remove_file(path)?,
    }
    File::open(folder)?.sync_all()
}

/// Removes what a writer left that died.
pub(super) fn clean(path: &Path, id: u64) -> io::Result<()> {
    match fs::remove_file(draft(path, id)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Beside the file, so that the rename stays within a file system.
fn draft(path: &Path, id: u64) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.qvl-repair-{id}"))
}

fn write(draft: &Path, text: &str, like: Option<&fs::Metadata>) -> io::Result<()> {
    // Only a new file: a link that somebody laid there is not followed.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(draft)?;
    let written = (|| {
        file.write_all(text.as_bytes())?;
        let mode = like.map_or(0o644, |like| like.permissions().mode() & 0o7777);
        if let Some(like) = like {
            let own = file.metadata()?;
            if (own.uid(), own.gid()) != (like.uid(), like.gid()) {
                fchown(&file, Some(like.uid()), Some(like.gid()))?;
            }
        }
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()
    })();
    if written.is_err() {
        let _gone = fs::remove_file(draft);
    }
    written
}
