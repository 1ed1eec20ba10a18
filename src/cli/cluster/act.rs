//! `qvl stop`, `suspend`, `resume` and `retry` for jobs of a cluster.

use std::{fs, io::Write, path::PathBuf, time::Duration};

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, Preconditions},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{
    Call, Cluster,
    follow::{self, End, Limits, follow},
    launch::{MANAGER, finish},
    seen::Seen,
    show::Show,
    trouble::{JOBS, no_job},
};
use crate::{
    api::labels,
    cli::{CliError, home, launch::Output},
    wire::ExitStatus,
};

/// A large checkpoint on a slow disk takes its time.
const SAVE_WITHIN: Duration = Duration::from_secs(600);
/// The operator lets the pods save before the object goes.
const DELETE_WITHIN: Duration = Duration::from_secs(180);

/// The job of that name, as an object and as we see it.
pub(crate) async fn read(cluster: &Cluster, name: &str) -> Result<(DynamicObject, Seen), CliError> {
    let call = Call::one("get", JOBS, &cluster.namespace, name);
    let object = cluster.call(call, cluster.jobs().get(name)).await?;
    let seen = Seen::of(object.clone()).map_err(follow::other_version)?;
    Ok((object, seen))
}

async fn set_suspend(cluster: &Cluster, name: &str, suspend: bool) -> Result<(), CliError> {
    let call = Call::one("patch", JOBS, &cluster.namespace, name);
    let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..Default::default() };
    let patch = Patch::Merge(json!({"spec": {"suspend": suspend}}));
    cluster.call(call, cluster.jobs().patch(name, &params, &patch)).await.map(|_object| ())
}

/// How a job is stopped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stop {
    /// Do not wait for a checkpoint.
    pub now: bool,
    /// Delete the object afterwards.
    pub delete: bool,
}

/// Saves a checkpoint, frees the GPUs and waits until that is done.
pub(crate) async fn stop(
    cluster: &Cluster,
    name: &str,
    how: Stop,
    out: &mut impl Write,
) -> Result<ExitStatus, CliError> {
    let (_object, seen) = read(cluster, name).await?;
    if seen.end().is_some() {
        writeln!(out, "{name} does not run ({})", seen.word())?;
    } else {
        set_suspend(cluster, name, true).await?;
        if how.now {
            kill(cluster, name).await?;
        }
        let mut show = Show::new(Output::Text, &cluster.namespace, name);
        let limits = Limits { start: None, end: Some(SAVE_WITHIN) };
        let end = follow(cluster, name, &mut show, limits).await?;
        show.clear();
        if let Some(status) = stopped(cluster, name, end, out)? {
            return Ok(status);
        }
    }
    if how.delete {
        delete(cluster, name).await?;
        writeln!(out, "{name} is deleted; its files and logs stay")?;
    } else if !seen.is_over() {
        writeln!(out, "`qvl resume {name}` goes on; `qvl stop --delete {name}` removes it")?;
    }
    Ok(ExitStatus::Success)
}

/// Says how the stop went; a status ends the command.
fn stopped(
    cluster: &Cluster,
    name: &str,
    end: End,
    out: &mut impl Write,
) -> Result<Option<ExitStatus>, CliError> {
    match end {
        End::Over(status, seen) => {
            let progress = &seen.status.progress;
            let (step, total) = (progress.step, progress.total_steps);
            let saved = progress.checkpoint_step;
            let saved = saved.map_or(String::new(), |step| format!(", checkpoint of step {step}"));
            let steps =
                if total == 0 { String::new() } else { format!(" at step {step} of {total}") };
            writeln!(out, "{name} is {}{steps}{saved}", seen.word())?;
            Ok((status == ExitStatus::JobFailed).then_some(status))
        }
        End::Deleted => {
            writeln!(out, "{name} was deleted")?;
            Ok(Some(ExitStatus::Success))
        }
        End::Detached => Ok(Some(ExitStatus::JobRunning)),
        End::TimedOut | End::NotStarted(_) => Err(CliError::new(
            ExitStatus::JobRunning,
            format!("`{name}` was told to stop {} s ago and still runs", SAVE_WITHIN.as_secs()),
        )
        .hint(format!("`qvl explain -n {} {name}` tells what it does", cluster.namespace))
        .hint(format!("`qvl stop --now {name}` kills its pods"))),
    }
}

/// Deletes the pods without grace.
async fn kill(cluster: &Cluster, name: &str) -> Result<(), CliError> {
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let call = Call::many("deletecollection", "pods", Some(&cluster.namespace));
    let of_job = ListParams::default().labels(&format!("{}={name}", labels::JOB));
    let at_once = DeleteParams::default().grace_period(0);
    cluster.call(call, pods.delete_collection(&at_once, &of_job)).await.map(|_deleted| ())
}

/// Asks a job to save and stop, and does not wait.
pub(crate) async fn suspend(
    cluster: &Cluster,
    name: &str,
    out: &mut impl Write,
) -> Result<ExitStatus, CliError> {
    let (_object, seen) = read(cluster, name).await?;
    if seen.is_over() {
        let what = format!("`{name}` is {}, so there is nothing to suspend", seen.word());
        return Err(CliError::new(ExitStatus::Usage, what));
    }
    set_suspend(cluster, name, true).await?;
    writeln!(
        out,
        "{name} saves a checkpoint and gives its GPUs back; `qvl resume {name}` goes on"
    )?;
    Ok(ExitStatus::Success)
}

/// Lets a suspended job go on, and follows it.
pub(crate) async fn resume(
    cluster: &Cluster,
    name: &str,
    output: Output,
    detach: bool,
) -> Result<ExitStatus, CliError> {
    let (_object, seen) = read(cluster, name).await?;
    if seen.is_over() {
        let what = format!("`{name}` is {}, which is final", seen.word());
        return Err(CliError::new(ExitStatus::Usage, what)
            .hint(format!("`qvl retry {name}` runs it again, from its newest checkpoint")));
    }
    if !seen.suspends() {
        let what = format!("`{name}` is not suspended: it is {}", seen.word());
        return Err(
            CliError::new(ExitStatus::Usage, what).hint(format!("`qvl wait {name}` follows it"))
        );
    }
    set_suspend(cluster, name, false).await?;
    go_on(cluster, name, output, detach).await
}

async fn go_on(
    cluster: &Cluster,
    name: &str,
    output: Output,
    detach: bool,
) -> Result<ExitStatus, CliError> {
    let mut show = Show::new(output, &cluster.namespace, name);
    let end = if detach {
        End::Detached
    } else {
        follow(cluster, name, &mut show, Limits::default()).await?
    };
    show.clear();
    finish(cluster, name, end, &mut show).await
}

/// Runs a finished job again: the same object under the same name, and its newest checkpoint.
pub(crate) async fn retry(
    cluster: &Cluster,
    name: &str,
    output: Output,
    detach: bool,
) -> Result<ExitStatus, CliError> {
    let (object, seen) = read(cluster, name).await?;
    if !seen.is_over() {
        let what = format!("`{name}` is not over: it is {}", seen.word());
        return Err(CliError::new(ExitStatus::Usage, what)
            .hint(format!("`qvl stop {name}` stops it, `qvl resume {name}` goes on")));
    }
    let again = again(&object);
    // Between the two requests the job exists nowhere but here.
    let kept = keep(cluster, name, &again)?;
    delete(cluster, name).await?;
    let submitted = super::submit::submit(cluster, name, &again, false).await;
    if let Err(error) = submitted {
        let file = kept.display();
        return Err(error.hint(format!(
            "the job is kept in `{file}`: `kubectl apply --server-side -f {file}`"
        )));
    }
    fs::remove_file(&kept)?;
    go_on(cluster, name, output, detach).await
}

/// The object without what the server has added.
fn again(object: &DynamicObject) -> Value {
    let metadata = &object.metadata;
    let mut spec = object.data.get("spec").cloned().unwrap_or_default();
    if let Some(suspend) = spec.get_mut("suspend") {
        *suspend = false.into();
    }
    let mut kept = json!({"name": metadata.name, "namespace": metadata.namespace});
    if let Some(labels) = &metadata.labels {
        kept["labels"] = json!(labels);
    }
    json!({"apiVersion": "qvl.dev/v1alpha1", "kind": "FineTuneJob", "metadata": kept, "spec": spec})
}

fn keep(cluster: &Cluster, name: &str, object: &Value) -> Result<PathBuf, CliError> {
    let folder = home::jobs().with_file_name("retry");
    fs::create_dir_all(&folder)?;
    let path = folder.join(format!("{}-{name}.json", cluster.namespace));
    fs::write(&path, serde_json::to_string_pretty(object).expect("plain data"))?;
    Ok(path)
}

/// Deletes a job and waits until it is gone.
pub(crate) async fn delete(cluster: &Cluster, name: &str) -> Result<(), CliError> {
    let jobs = cluster.jobs();
    let get = Call::one("get", JOBS, &cluster.namespace, name);
    let object = cluster.call(get, jobs.get_opt(name)).await?;
    let uid = object.ok_or_else(|| no_job(name, &cluster.namespace))?.metadata.uid;
    // Another job may have taken the name meanwhile.
    let same = Preconditions { uid: uid.clone(), resource_version: None };
    let params = DeleteParams::background().preconditions(same);
    let call = Call::one("delete", JOBS, &cluster.namespace, name);
    cluster.call(call, jobs.delete(name, &params)).await?;
    let deadline = Instant::now() + DELETE_WITHIN;
    while Instant::now() < deadline {
        let left = cluster.call(get, jobs.get_opt(name)).await?;
        if left.is_none_or(|left| left.metadata.uid != uid) {
            return Ok(());
        }
        sleep(Duration::from_millis(250)).await;
    }
    let what = format!("`{name}` is still there {} s after its deletion", DELETE_WITHIN.as_secs());
    let namespace = &cluster.namespace;
    Err(CliError::new(ExitStatus::JobRunning, what).hint(format!(
        "a finalizer holds it, and qvl puts none on jobs: kubectl get ftj {name} -n {namespace} -o \
         jsonpath={{.metadata.finalizers}}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retry_keeps_spec_and_labels_and_nothing_of_the_server() {
        let object: DynamicObject = serde_json::from_value(json!({
            "apiVersion": "qvl.dev/v1alpha1", "kind": "FineTuneJob",
            "metadata": {"name": "a", "namespace": "team", "uid": "u", "resourceVersion": "7",
                "labels": {"x": "y"}, "finalizers": ["qvl.dev/drain"]},
            "spec": {"seed": 1, "suspend": true}, "status": {"attempt": 3}}))
        .unwrap();
        let expected = json!({"apiVersion": "qvl.dev/v1alpha1", "kind": "FineTuneJob",
            "metadata": {"name": "a", "namespace": "team", "labels": {"x": "y"}},
            "spec": {"seed": 1, "suspend": false}});
        assert_eq!(again(&object), expected);
    }
}
