//! `qvl bundle`: everything about a job in one file for whoever helps, without secrets.

use std::{
    fs,
    path::{Path, PathBuf},
};

use flate2::{Compression, write::GzEncoder};
use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::{Api, api::LogParams};
use serde_json::Value;

use super::{
    Call, Cluster, explain,
    objects::{self, Objects, name},
    redact,
    tar::Archive,
};
use crate::{api::labels, cli::CliError, wire::ExitStatus};

/// Lines of each pod's own log; the collector has all of them.
const LOG_LINES: i64 = 2000;

/// Writes the bundle and says what is in it.
pub(crate) async fn bundle(
    cluster: &Cluster,
    job: &str,
    file: Option<&Path>,
    out: &mut impl std::io::Write,
) -> Result<ExitStatus, CliError> {
    let objects = objects::collect(cluster, job).await?;
    let now = Timestamp::now();
    let path = file.map_or_else(|| PathBuf::from(format!("{job}-bundle.tar.gz")), Path::to_owned);
    let mut files = files(&objects, now);
    for pod in &objects.pods {
        let pod = name(pod);
        let log = log(cluster, pod).await;
        files.push((format!("logs/{pod}.log"), redact::text(&log)));
    }
    let time = u64::try_from(now.as_second()).unwrap_or(0);
    write(&path, job, time, &files).map_err(|error| {
        let what = format!("failed to write `{}`", path.display());
        CliError::of(ExitStatus::Usage, anyhow::Error::new(error).context(what))
    })?;
    writeln!(out, "wrote {} files to {}, without secrets", files.len(), path.display())?;
    objects.not_read.iter().try_for_each(|blind| writeln!(out, "not in it: {blind}"))?;
    writeln!(out, "look into it before you give it away: `tar -tzf {}`", path.display())?;
    Ok(ExitStatus::Success)
}

/// Names and texts of all files but the logs.
fn files(objects: &Objects, now: Timestamp) -> Vec<(String, String)> {
    let mut objects = objects.clone();
    let mut files = Vec::new();
    let groups = [
        ("jobs", &mut objects.jobs),
        ("pods", &mut objects.pods),
        ("services", &mut objects.services),
        ("configmaps", &mut objects.config_maps),
        ("workloads", &mut objects.workloads),
        ("nodes", &mut objects.nodes),
        ("nodereports", &mut objects.reports),
    ];
    for (folder, group) in groups {
        for object in group.iter_mut() {
            redact::object(object);
            files.push((format!("{folder}/{}.json", name(object)), pretty(object)));
        }
    }
    redact::object(&mut objects.job);
    objects.events.iter_mut().for_each(redact::object);
    files.push(("job.json".to_owned(), pretty(&objects.job)));
    files.push(("events.json".to_owned(), pretty(&Value::from(objects.events.clone()))));
    let mut told = Vec::new();
    explain::print(&explain::chain(&objects, now), &mut told).expect("memory takes everything");
    files.push(("explain.txt".to_owned(), String::from_utf8_lossy(&told).into_owned()));
    let about = format!("qvl {}\ntaken {now}\n", env!("CARGO_PKG_VERSION"));
    files.push(("about.txt".to_owned(), about));
    files
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).expect("plain data") + "\n"
}

/// The end of a pod's log, or why there is none.
async fn log(cluster: &Cluster, pod: &str) -> String {
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let params = LogParams {
        container: Some(labels::CONTAINER.to_owned()),
        tail_lines: Some(LOG_LINES),
        timestamps: true,
        ..LogParams::default()
    };
    let call = Call::one("get", "pods/log", &cluster.namespace, pod);
    cluster.call(call, pods.logs(pod, &params)).await.unwrap_or_else(|error| error.to_string())
}

/// Writes the archive as a whole or not at all.
fn write(path: &Path, job: &str, time: u64, files: &[(String, String)]) -> std::io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let new = tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new(".")))?;
    let gzip = GzEncoder::new(new.as_file(), Compression::default());
    let mut archive = Archive::new(gzip, time);
    for (name, text) in files {
        archive.file(&shortened(&format!("{job}/{name}")), text.as_bytes())?;
    }
    archive.finish()?.finish()?;
    new.persist(path).map_err(|error| error.error)?;
    fs::metadata(path).map(|_written| ())
}

/// Names of Kubernetes may be longer than an archive takes: the middle is left out.
fn shortened(name: &str) -> String {
    const LONGEST: usize = 100;
    if name.len() <= LONGEST {
        return name.to_owned();
    }
    format!("{}~{}", &name[..49], &name[name.len() - 50..])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_bundle_holds_the_objects_and_no_secret() {
        let secret = "hunter2-hunter2";
        let pod = json!({"kind": "Pod", "metadata": {"name": "a-a1-0-x"}, "spec": {"containers":
            [{"env": [{"name": "HF_TOKEN", "value": secret}]}]}});
        let event = json!({"message": format!("password={secret}")});
        let objects = Objects {
            job: json!({"metadata": {"name": "a"}, "spec": {"note": format!("token: {secret}")}}),
            pods: vec![pod],
            events: vec![event],
            ..Objects::default()
        };
        let files = files(&objects, Timestamp::from_second(0).unwrap());
        let names: Vec<&str> = files.iter().map(|(name, _text)| name.as_str()).collect();
        let expected =
            ["pods/a-a1-0-x.json", "job.json", "events.json", "explain.txt", "about.txt"];
        assert_eq!(names, expected);
        assert!(files.iter().all(|(_name, text)| !text.contains(secret)));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b.tar.gz");
        write(&path, "a", 0, &files).unwrap();
        let list = std::process::Command::new("tar").arg("-tzf").arg(&path).output().unwrap();
        assert!(String::from_utf8(list.stdout).unwrap().starts_with("a/pods/a-a1-0-x.json\n"));
        assert!(shortened(&"x".repeat(300)).len() <= 100);
    }
}
