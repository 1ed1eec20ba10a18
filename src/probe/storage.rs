//! Folders of the job and `/dev/shm`.

use std::path::Path;

use nix::{
    sys::statvfs::{Statvfs, statvfs},
    unistd::{AccessFlags, access},
};

use super::Options;
use crate::facts::{Fact, Mount, ShmFacts, Storage};

pub(super) fn shm(options: &Options) -> ShmFacts {
    let mount = statvfs(&options.at("/dev/shm")).map(|stat| mount(&stat));
    ShmFacts { mount: Fact::from_result(mount, "statvfs /dev/shm") }
}

fn mount(stat: &Statvfs) -> Mount {
    let unit = stat.fragment_size();
    Mount {
        total_bytes: stat.blocks().saturating_mul(unit),
        free_bytes: stat.blocks_available().saturating_mul(unit),
    }
}

/// The folders that the job names; one that cannot be looked at is unread as a whole.
pub(super) fn folders(options: &Options) -> Fact<Vec<Storage>> {
    let found: Result<Vec<Storage>, String> = options
        .folders
        .iter()
        .map(|(place, path)| {
            let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            let nearest = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
            let stat = statvfs(nearest).map_err(|e| format!("{}: {e}", nearest.display()))?;
            let exists = nearest == path;
            Ok(Storage {
                place: *place,
                path: path.display().to_string(),
                nearest: nearest.display().to_string(),
                mount: mount(&stat),
                free_inodes: (0 < stat.files()).then(|| stat.files_available()),
                readable: exists && access(nearest, AccessFlags::R_OK).is_ok(),
                writable: access(nearest, AccessFlags::W_OK).is_ok() && nearest.is_dir(),
            })
        })
        .collect();
    Fact::from_result(found, "statvfs, access")
}
