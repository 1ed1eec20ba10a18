//! Folders of the job and `/dev/shm`.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

use nix::{
    sys::{
        statfs::statfs,
        statvfs::{Statvfs, statvfs},
    },
    unistd::{AccessFlags, access},
};

use super::{Options, content};
use crate::facts::{Fact, Mount, Place, ShmFacts, ShmFile, Storage};

pub(super) fn shm(options: &Options) -> ShmFacts {
    let mount = statvfs(&options.at("/dev/shm")).map(|stat| mount(&stat));
    ShmFacts { mount: Fact::from_result(mount, "statvfs /dev/shm"), files: left(options) }
}

/// Files in shared memory whose names NCCL or PyTorch give.
fn left(options: &Options) -> Fact<Vec<ShmFile>> {
    const FROM: &str = "/dev/shm";
    let entries = match fs::read_dir(options.at(FROM)) {
        Ok(entries) => entries,
        Err(error) => return Fact::unread(error.to_string(), FROM),
    };
    let known = ["nccl-", "torch_", "cuda.shm."];
    let mut files: Vec<ShmFile> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !known.iter().any(|prefix| name.starts_with(prefix)) {
                return None;
            }
            let metadata = entry.metadata().ok()?;
            let age = metadata.modified().ok()?.elapsed().unwrap_or_default();
            Some(ShmFile { name, bytes: metadata.len(), age_s: age.as_secs() })
        })
        .collect();
    files.sort();
    Fact::known(files, FROM)
}

fn mount(stat: &Statvfs) -> Mount {
    let unit = stat.fragment_size();
    Mount {
        total_bytes: stat.blocks().saturating_mul(unit),
        free_bytes: stat.blocks_available().saturating_mul(unit),
    }
}

/// Name of a file system, by the numbers of statfs(2).
fn kind(path: &Path) -> Option<String> {
    let number = statfs(path).ok()?.filesystem_type().0;
    // The type of the number differs between platforms.
    let number = u64::try_from(number).ok()? & 0xffff_ffff;
    let name = match number {
        0xef53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683e => "btrfs",
        0x2fc1_2fc1 => "zfs",
        0xf2f5_2010 => "f2fs",
        0x0102_1994 => "tmpfs",
        0x8584_58f6 => "ramfs",
        0x794c_7630 => "overlay",
        0x6969 => "nfs",
        0xff53_4d42 | 0xfe53_4d42 => "cifs",
        0x00c3_6400 => "ceph",
        0x0bd0_0bd0 => "lustre",
        0x6573_5546 => "fuse",
        0x4750_4653 => "gpfs",
        0x1983_0326 => "beegfs",
        0x0102_1997 => "9p",
        _ => return None,
    };
    Some(name.to_owned())
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

/// A file server that is gone never answers; a busy one may need seconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// The folders that the job names; one that cannot be looked at is unread as a whole.
pub(super) fn folders(options: &Options) -> Fact<Vec<Storage>> {
    const FROM: &str = "statvfs, access";
    if options.folders.is_empty() {
        return Fact::known(Vec::new(), FROM);
    }
    let folders = options.folders.clone();
    let found = within(PATIENCE, move || look(&folders));
    Fact::from_result(found.unwrap_or_else(|| Err(silent())), FROM)
}

fn silent() -> String {
    format!(
        "a file system did not answer within {} seconds, or nobody could ask",
        PATIENCE.as_secs()
    )
}

/// What `work` gives, or `None` if it takes longer or cannot be started. If it takes longer, its thread goes
/// on until the program ends.
fn within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (sender, receiver) = mpsc::channel();
    let listening = thread::Builder::new().spawn(move || {
        // Nobody listens any more if it took too long.
        let _unheard = sender.send(work());
    });
    // Without a thread more there is nobody to wait for.
    drop(listening);
    receiver.recv_timeout(limit).ok()
}

fn look(folders: &[(Place, PathBuf)]) -> Result<Vec<Storage>, String> {
    folders
        .iter()
        .map(|(place, path)| {
            let path = resolved(path);
            let nearest = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
            let stat = statvfs(nearest).map_err(|e| format!("{}: {e}", nearest.display()))?;
            let exists = nearest == path;
            let reads = matches!(place, Place::Model | Place::Data) && exists;
            let content = reads.then(|| content::of(&path));
            Ok(Storage {
                place: *place,
                path: path.display().to_string(),
                nearest: nearest.display().to_string(),
                mount: mount(&stat),
                free_inodes: (0 < stat.files()).then(|| stat.files_available()),
                readable: exists && access(nearest, AccessFlags::R_OK).is_ok(),
                writable: access(nearest, AccessFlags::W_OK).is_ok() && nearest.is_dir(),
                kind: kind(nearest),
                bytes: content.as_ref().map(|content| content.bytes),
                fingerprint: content.map(|content| content.fingerprint),
                weights: (reads && *place == Place::Model && path.is_dir())
                    .then(|| content::weights(&path)),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::Place;

    #[test]
    fn a_file_system_that_does_not_answer_is_not_waited_for() {
        assert_eq!(within(PATIENCE, || 7), Some(7));
        assert_eq!(within(Duration::from_millis(20), || thread::sleep(PATIENCE)), None);
        assert!(silent().contains("10 seconds"));
    }

    #[test]
    fn a_folder_that_is_not_there_yet_is_judged_by_the_nearest_one() {
        let root = tempfile::tempdir().unwrap();
        let real = root.path().canonicalize().unwrap();
        fs::create_dir(real.join("a")).unwrap();
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
