//! One process at a time changes a cluster, or builds its programs.

use std::{fs::File, path::Path};

use nix::fcntl::{Flock, FlockArg};

use crate::{
    error::{At, Error},
    places::Places,
};

/// Waits for the lock, which is free again when the answer is dropped.
pub(crate) fn hold(path: &Path) -> Result<Flock<File>, Error> {
    Places::make(path.parent().unwrap_or(Path::new("/")))?;
    let file = File::create(path).at("write", path)?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_file, error)| error).at("lock", path)
}
