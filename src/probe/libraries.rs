//! Where the loader looks for libraries: ld.so(8), without its cache.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use super::{Options, files};

/// The loader's folders, in its order.
pub(super) struct Search {
    folders: Vec<PathBuf>,
}

impl Search {
    pub(super) fn new(options: &Options, variables: Option<&BTreeMap<String, String>>) -> Self {
        let given = variables.and_then(|variables| variables.get("LD_LIBRARY_PATH"));
        let given = given.map_or("", String::as_str).split(':').filter(|path| !path.is_empty());
        let mut folders: Vec<PathBuf> = given.map(|path| options.at(path)).collect();
        let configured = configured(options, &options.at("/etc/ld.so.conf"), &mut BTreeSet::new());
        let arch = std::env::consts::ARCH;
        let standard = [
            format!("/lib/{arch}-linux-gnu"),
            format!("/usr/lib/{arch}-linux-gnu"),
            "/lib64".to_owned(),
            "/usr/lib64".to_owned(),
            "/lib".to_owned(),
            "/usr/lib".to_owned(),
        ];
        folders.extend(configured);
        folders.extend(standard.iter().map(|path| options.at(path)));
        let mut unique = Vec::new();
        for folder in folders {
            if !unique.contains(&folder) {
                unique.push(folder);
            }
        }
        Search { folders: unique }
    }

    /// The same with `first` before everything else, as an RPATH is.
    pub(super) fn with(&self, first: Vec<PathBuf>) -> Self {
        let mut folders = first;
        folders.extend(self.folders.iter().cloned());
        Search { folders }
    }

    /// The file that the loader takes, links resolved.
    pub(super) fn find(&self, name: &str) -> Option<PathBuf> {
        self.all(name).into_iter().next()
    }

    /// All files of this name, links resolved, each once.
    pub(super) fn all(&self, name: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for folder in &self.folders {
            if let Ok(path) = folder.join(name).canonicalize()
                && !found.contains(&path)
            {
                found.push(path);
            }
        }
        found
    }

    pub(super) fn each_folder(&self) -> impl Iterator<Item = &Path> {
        self.folders.iter().map(PathBuf::as_path)
    }

    pub(super) fn folders(&self) -> Vec<String> {
        self.folders.iter().map(|folder| folder.display().to_string()).collect()
    }
}

/// Folders of ld.so.conf and the files that it includes.
fn configured(options: &Options, file: &Path, seen: &mut BTreeSet<PathBuf>) -> Vec<PathBuf> {
    // Files may include themselves, and each other.
    if !seen.insert(file.to_owned()) {
        return Vec::new();
    }
    let Ok(text) = files::text(file) else { return Vec::new() };
    let mut folders = Vec::new();
    for line in text.lines().map(|line| line.split('#').next().unwrap_or("").trim()) {
        if let Some(pattern) = line.strip_prefix("include ") {
            // Every distribution includes `FOLDER/*.conf`.
            let Some((folder, _stars)) = pattern.trim().rsplit_once('/') else { continue };
            let entries = fs::read_dir(options.at(folder)).into_iter().flatten().flatten();
            let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
            files.retain(|path| path.extension().is_some_and(|extension| extension == "conf"));
            files.sort();
            folders.extend(files.iter().flat_map(|file| configured(options, file, seen)));
        } else if !line.is_empty() {
            folders.push(options.at(line));
        }
    }
    folders
}
