//! The official stack as files show it: installed distributions, CUDA toolkit, launch script.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use super::{Options, script};
use crate::facts::{Fact, OfficialFacts};

pub(super) fn official(options: &Options) -> OfficialFacts {
    const PACKAGES: &str = "site-packages";
    const SCRIPT: &str = "launch script";
    let Some(official) = &options.official else {
        return OfficialFacts {
            distributions: Fact::known(None, PACKAGES),
            python: Fact::known(None, PACKAGES),
            nvcc: Fact::known(None, CUDA),
            script: Fact::known(None, SCRIPT),
        };
    };
    let packages = official.python.as_deref().map(|folder| {
        let why = || format!("there is no folder site-packages in `{}`", folder.display());
        site_packages(folder).ok_or_else(why)
    });
    let packages = packages.transpose();
    let of = |read: fn(&Path) -> Result<_, String>| {
        packages.clone().and_then(|folder| folder.as_deref().map(read).transpose())
    };
    let version = packages.clone().and_then(|folder| folder.as_deref().map(python).transpose());
    let script = official.script.as_deref().map(script::read).transpose();
    OfficialFacts {
        distributions: Fact::from_result(of(distributions), PACKAGES),
        python: Fact::from_result(version, PACKAGES),
        nvcc: nvcc(options),
        script: Fact::from_result(script, SCRIPT),
    }
}

const CUDA: &str = "/usr/local/cuda/version.json";

/// The folder itself, or the one in an environment.
fn site_packages(folder: &Path) -> Option<PathBuf> {
    if folder.file_name().is_some_and(|name| name == "site-packages" || name == "dist-packages") {
        return folder.exists().then(|| folder.to_owned());
    }
    for lib in ["lib", "lib64"] {
        let entries = fs::read_dir(folder.join(lib)).into_iter().flatten().flatten();
        let mut found: Vec<PathBuf> = entries
            .map(|entry| entry.path())
            .filter(|path| {
                path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python3"))
            })
            .map(|path| path.join("site-packages"))
            .filter(|path| path.is_dir())
            .collect();
        found.sort();
        if let Some(last) = found.pop() {
            return Some(last);
        }
    }
    None
}

/// `torch-2.3.0+cu121.dist-info` is torch of this version. Names are normalised as PEP 503 does.
fn distributions(folder: &Path) -> Result<BTreeMap<String, String>, String> {
    let entries = fs::read_dir(folder).map_err(|error| error.to_string())?;
    let found = entries.flatten().filter_map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let stem = name.strip_suffix(".dist-info").or_else(|| name.strip_suffix(".egg-info"))?;
        let (name, version) = stem.split_once('-')?;
        // An egg has the version of Python behind its own.
        let version = version.split("-py").next()?;
        Some((name.to_lowercase().replace(['_', '.'], "-"), version.to_owned()))
    });
    Ok(found.collect())
}

/// `lib/python3.10/site-packages` is of Python 3.10.
fn python(folder: &Path) -> Result<String, String> {
    let name = folder.parent().and_then(Path::file_name).map(|name| name.to_string_lossy());
    let version = name.as_deref().and_then(|name| name.strip_prefix("python"));
    version
        .filter(|version| version.contains('.'))
        .map(str::to_owned)
        .ok_or_else(|| format!("the path `{}` does not tell it", folder.display()))
}

/// Version of the CUDA toolkit in its usual place.
fn nvcc(options: &Options) -> Fact<Option<String>> {
    let Ok(text) = options.text(CUDA) else { return Fact::known(None, CUDA) };
    let json = serde_json::from_str::<serde_json::Value>(&text).ok();
    let part = |name: &str| {
        let version = json.as_ref()?.pointer(&format!("/{name}/version"))?.as_str()?;
        let mut numbers = version.split('.');
        Some(format!("{}.{}", numbers.next()?, numbers.next()?))
    };
    match part("cuda_nvcc").or_else(|| part("cuda")) {
        Some(version) => Fact::known(Some(version), CUDA),
        None => Fact::unread("it names no version of nvcc", CUDA),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::Official;

    #[test]
    fn an_environment_is_read_without_python() {
        let root = tempfile::tempdir().unwrap();
        let packages = root.path().join("venv/lib/python3.10/site-packages");
        for name in ["torch-2.3.0+cu121.dist-info", "DeepSpeed-0.11.1-py3.10.egg-info"] {
            fs::create_dir_all(packages.join(name)).unwrap();
        }
        let cuda = root.path().join("usr/local/cuda");
        fs::create_dir_all(&cuda).unwrap();
        let json = r#"{"cuda": {"version": "12.4.1"}, "cuda_nvcc": {"version": "12.4.131"}}"#;
        fs::write(cuda.join("version.json"), json).unwrap();
        let options = Options {
            root: root.path().to_owned(),
            official: Some(Official { python: Some(root.path().join("venv")), script: None }),
            ..Options::default()
        };
        let facts = official(&options);
        let found = facts.distributions.get().unwrap().as_ref().unwrap();
        assert_eq!(found["torch"], "2.3.0+cu121");
        assert_eq!(found["deepspeed"], "0.11.1");
        assert_eq!(facts.python.get().unwrap().as_deref(), Some("3.10"));
        assert_eq!(facts.nvcc.get().unwrap().as_deref(), Some("12.4"));
        assert_eq!(facts.script.get().unwrap(), &None);
        let nowhere = Official { python: Some(root.path().join("none")), script: None };
        let options = Options { official: Some(nowhere), ..options };
        assert!(official(&options).distributions.get().is_err());
    }
}
