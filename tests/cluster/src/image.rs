//! Container images without Docker: one layer in an archive that `ctr images import` accepts.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Cursor},
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use crate::error::{At, Error};

/// User of images that do not need root.
pub const USER: u32 = 65532;

/// What an image holds and how it starts.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// `qvl.test/qvl:dev`.
    pub name: String,
    /// Program and first arguments.
    pub entrypoint: Vec<String>,
    /// Files and folders: where they are, and where they will be in the image.
    pub files: Vec<(PathBuf, PathBuf)>,
    /// Symbolic links: where, and to what.
    pub links: Vec<(String, String)>,
    /// Whether it runs as root instead of [`USER`].
    pub root: bool,
}

impl Image {
    /// An image of programs: each goes to `/usr/local/bin`, with the libraries that it names and
    /// with certificate authorities.
    pub fn of_programs(
        name: &str,
        entrypoint: &[&str],
        programs: &[PathBuf],
    ) -> Result<Image, Error> {
        let mut image = Image {
            name: name.to_owned(),
            entrypoint: entrypoint.iter().map(|word| (*word).to_owned()).collect(),
            ..Image::default()
        };
        let authorities = PathBuf::from("/etc/ssl/certs/ca-certificates.crt");
        image.files.push((authorities.clone(), authorities));
        let mut all = BTreeSet::new();
        for program in programs {
            image.add(program, None)?;
            all.extend(libraries(program)?);
        }
        image.files.extend(all.into_iter().map(|library| (library.clone(), library)));
        Ok(image)
    }

    /// Adds a file or a folder, to `/usr/local/bin` unless told otherwise.
    pub fn add(&mut self, from: &Path, to: Option<&Path>) -> Result<(), Error> {
        let from = from.canonicalize().at("find", from)?;
        let name = from.file_name().unwrap_or_default();
        let to = to.map_or_else(|| Path::new("/usr/local/bin").join(name), Path::to_owned);
        self.files.push((from, to));
        Ok(())
    }

    /// Writes the archive.
    pub fn write(&self, target: &Path) -> Result<(), Error> {
        let layer = self.layer()?;
        let digest = hex(&layer);
        let path = "/usr/local/bin:/usr/bin:/bin";
        let user = if self.root { "0:0".to_owned() } else { format!("{USER}:{USER}") };
        let config = json!({
            "architecture": "amd64", "os": "linux",
            "config": {
                "Entrypoint": self.entrypoint, "User": user, "WorkingDir": "/",
                "Env": [format!("PATH={path}"), "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt"],
            },
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
        })
        .to_string();
        let config_name = format!("{}.json", hex(config.as_bytes()));
        let layer_name = format!("{digest}.tar");
        let manifest = json!([
            {"Config": config_name, "RepoTags": [self.name], "Layers": [layer_name]}
        ])
        .to_string();
        let draft = target.with_extension("new");
        let write = || {
            let mut archive = Builder::new(fs::File::create(&draft)?);
            file(&mut archive, &config_name, config.as_bytes(), 0o644)?;
            file(&mut archive, &layer_name, &layer, 0o644)?;
            file(&mut archive, "manifest.json", manifest.as_bytes(), 0o644)?;
            archive.into_inner()?;
            fs::rename(&draft, target)
        };
        write().at("write", target)
    }

    fn layer(&self) -> Result<Vec<u8>, Error> {
        let mut layer = Builder::new(Vec::new());
        let begin = |layer: &mut Builder<Vec<u8>>| {
            let mut folders: BTreeSet<PathBuf> =
                ["dev", "etc", "home/qvl", "proc", "sys"].iter().map(PathBuf::from).collect();
            for (_from, to) in &self.files {
                let to = inner(to);
                let parents = to.ancestors().skip(1).map(Path::to_owned);
                folders.extend(parents.filter(|parent| !parent.as_os_str().is_empty()));
            }
            for path in folders {
                entry(layer, &path, EntryType::Directory, 0o755, None)?;
            }
            entry(layer, Path::new("tmp"), EntryType::Directory, 0o1777, None)?;
            let users = format!("root:x:0:0::/:/\nqvl:x:{USER}:{USER}::/home/qvl:/\n");
            file(layer, "etc/passwd", users.as_bytes(), 0o644)?;
            file(layer, "etc/group", format!("root:x:0:\nqvl:x:{USER}:\n").as_bytes(), 0o644)
        };
        begin(&mut layer).at("write", &self.name)?;
        for (from, to) in &self.files {
            copy(&mut layer, from, &inner(to)).at("read", from)?;
        }
        for (at, to) in &self.links {
            entry(&mut layer, &inner(Path::new(at)), EntryType::Symlink, 0o777, Some(to))
                .at("write", at)?;
        }
        layer.into_inner().at("write", &self.name)
    }
}

/// Libraries that a program names, and its loader; none for a static one.
fn libraries(program: &Path) -> Result<Vec<PathBuf>, Error> {
    let output = Command::new("ldd").arg(program).output();
    let output = output.map_err(|source| Error::Start { program: "ldd".to_owned(), source })?;
    // A static program is an error to ldd.
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if let Some(line) = text.lines().find(|line| line.contains("not found")) {
        let (command, message) = (format!("ldd {}", program.display()), line.trim().to_owned());
        return Err(Error::Command { command, message });
    }
    let path = |line: &str| {
        let place = line.split_whitespace().find(|word| word.starts_with('/'))?;
        Some(PathBuf::from(place))
    };
    Ok(text.lines().filter_map(path).collect())
}

fn copy(layer: &mut Builder<Vec<u8>>, from: &Path, to: &Path) -> io::Result<()> {
    if !from.is_dir() {
        use std::os::unix::fs::PermissionsExt;
        let executable = fs::metadata(from)?.permissions().mode() & 0o111 != 0;
        let name = to.to_string_lossy();
        return file(layer, &name, &fs::read(from)?, if executable { 0o755 } else { 0o644 });
    }
    entry(layer, to, EntryType::Directory, 0o755, None)?;
    let mut entries: Vec<_> = fs::read_dir(from)?.collect::<io::Result<_>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    entries.iter().try_for_each(|entry| copy(layer, &entry.path(), &to.join(entry.file_name())))
}

fn file<W: io::Write>(
    archive: &mut Builder<W>,
    name: &str,
    data: &[u8],
    mode: u32,
) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_size(data.len() as u64);
    header.set_mode(mode);
    archive.append_data(&mut header, name, Cursor::new(data))
}

fn entry(
    layer: &mut Builder<Vec<u8>>,
    path: &Path,
    kind: EntryType,
    mode: u32,
    link: Option<&str>,
) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(0);
    header.set_mode(mode);
    if path == Path::new("home/qvl") {
        header.set_uid(u64::from(USER));
        header.set_gid(u64::from(USER));
    }
    match link {
        Some(target) => layer.append_link(&mut header, path, target),
        None => layer.append_data(&mut header, path, io::empty()),
    }
}

/// Paths in an archive have no leading slash.
fn inner(path: &Path) -> PathBuf {
    path.strip_prefix("/").unwrap_or(path).to_owned()
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_holds_its_program_with_its_loader_and_is_the_same_every_time() {
        let folder = tempfile::tempdir().unwrap();
        let program = [PathBuf::from("/usr/bin/env")];
        let image =
            Image::of_programs("qvl.test/env:1", &["/usr/local/bin/env"], &program).unwrap();
        let layer = image.layer().unwrap();
        let mut archive = tar::Archive::new(&layer[..]);
        let names: Vec<String> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert!(names.iter().any(|name| name == "usr/local/bin/env"), "{names:?}");
        assert!(names.iter().any(|name| name.contains("ld-linux")), "{names:?}");
        assert!(names.iter().any(|name| name == "tmp" || name == "tmp/"), "{names:?}");
        assert_eq!(layer, image.layer().unwrap());
        let target = folder.path().join("image.tar");
        image.write(&target).unwrap();
        assert!(layer.len() as u64 <= fs::metadata(target).unwrap().len());
    }

    #[test]
    fn a_missing_program_is_named() {
        let missing = [PathBuf::from("/no/such/program")];
        let error = Image::of_programs("x", &[], &missing).unwrap_err();
        assert!(error.to_string().contains("/no/such/program"), "{error}");
    }
}
