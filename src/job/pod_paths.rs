//! Paths of a job as its pods see them: relative ones are relative to `cluster.workDir`, or to the
//! mount path of the first volume.

use super::spec::JobSpec;

/// The job with absolute paths.
pub fn resolved(spec: &JobSpec) -> JobSpec {
    let mut spec = spec.clone();
    let base = base(&spec);
    for path in paths(&mut spec) {
        *path = absolute(&base, path);
    }
    spec
}

/// Relative paths that have nothing to be relative to.
pub fn homeless(spec: &JobSpec) -> Vec<String> {
    if spec.cluster.work_dir.is_some() || !spec.cluster.volumes.is_empty() {
        return Vec::new();
    }
    let mut spec = spec.clone();
    paths(&mut spec).filter(|path| !path.starts_with('/')).map(|path| path.clone()).collect()
}

fn base(spec: &JobSpec) -> String {
    let first = spec.cluster.volumes.first().map(|volume| volume.mount_path.clone());
    spec.cluster.work_dir.clone().or(first).unwrap_or_else(|| "/".to_owned())
}

fn paths(spec: &mut JobSpec) -> impl Iterator<Item = &mut String> {
    let first = [&mut spec.model.path, &mut spec.output].into_iter();
    let adapter = spec.model.adapter.iter_mut();
    let train = spec.data.train.iter_mut().map(|set| &mut set.path);
    let eval = spec.data.eval.iter_mut().map(|set| &mut set.path);
    first.chain(adapter).chain(train).chain(eval)
}

/// `..` is taken away by the letter, as a person reads it, whatever links there are.
fn absolute(base: &str, path: &str) -> String {
    let whole = if path.starts_with('/') { path.to_owned() } else { format!("{base}/{path}") };
    let mut parts: Vec<&str> = Vec::new();
    for part in whole.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::absolute;

    #[test]
    fn paths_are_relative_to_the_folder_of_the_job_in_the_pod() {
        for (path, expected) in [
            ("base", "/qvl/examples/base"),
            ("./base", "/qvl/examples/base"),
            ("../demo/run", "/qvl/demo/run"),
            ("../../../../x", "/x"),
            ("/data//run/", "/data/run"),
        ] {
            assert_eq!(absolute("/qvl/examples/", path), expected);
        }
        assert_eq!(absolute("/", "a"), "/a");
    }
}
