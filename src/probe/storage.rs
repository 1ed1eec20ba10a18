//! Folders of the job and `/dev/shm`.

use std::path::{Path, PathBuf};

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

/// The path without links and `..`, as far as it exists.
fn resolved(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_error| path.to_owned());
    for existing in path.ancestors() {
        if let (Ok(real), Ok(rest)) = (existing.canonicalize(), path.strip_prefix(existing)) {
            // Joining an empty rest would end the path with a slash.
            return if rest.as_os_str().is_empty() { real } else { real.join(rest) };
        }
    }
    path
}

/// The folders that the job names; one that cannot be looked at is unread as a whole.
pub(super) fn folders(options: &Options) -> Fact<Vec<Storage>> {
    let found: Result<Vec<Storage>, String> = options
        .folders
        .iter()
        .map(|(place, path)| {
            let path = resolved(path);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::Place;

    #[test]
    fn a_folder_that_is_not_there_yet_is_judged_by_the_nearest_one() {
        let root = tempfile::tempdir().unwrap();
        let real = root.path().canonicalize().unwrap();
        std::fs::create_dir(real.join("a")).unwrap();
        let options = Options {
            folders: vec![
                (Place::Output, real.join("a/../runs/one")),
                (Place::Data, real.join("a")),
            ],
            ..Options::default()
        };
        let Fact::Known { value, .. } = folders(&options) else { panic!("unread") };
        assert_eq!(value[0].path, real.join("runs/one").display().to_string());
        assert_eq!(value[0].nearest, real.display().to_string());
        assert!(value[0].writable && !value[0].readable);
        assert_eq!(value[1].nearest, value[1].path);
        assert!(value[1].readable && 0 < value[1].mount.total_bytes);
    }
}
