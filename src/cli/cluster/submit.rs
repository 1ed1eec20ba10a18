//! The object of a job, and how it gets into the cluster.

use std::io::Write;

use kube::api::{DynamicObject, Patch, PatchParams};

use super::{
    Call, Cluster,
    launch::{DryRun, MANAGER, ObjectFormat},
    trouble::JOBS,
};
use crate::{
    cli::CliError,
    job::FineTuneJob,
    wire::{DoctorVerdict, ExitStatus, VERDICT_ANNOTATION},
};

/// The object of a job, everything spelt out: a later version with other defaults changes nothing.
/// The doctor's verdict comes along; the operator copies it into the status.
pub(super) fn object(
    cluster: &Cluster,
    job: &FineTuneJob,
    verdict: Option<&DoctorVerdict>,
) -> serde_json::Value {
    let mut object = serde_json::to_value(job).expect("plain data");
    object["metadata"]["namespace"] = cluster.namespace.clone().into();
    if let Some(verdict) = verdict {
        let text = serde_json::to_string(verdict).expect("plain data");
        object["metadata"]["annotations"] = serde_json::json!({ VERDICT_ANNOTATION: text });
    }
    object
}

/// Sends a job to the cluster; `dry` only lets it check.
pub(super) async fn submit(
    cluster: &Cluster,
    name: &str,
    object: &serde_json::Value,
    dry: bool,
) -> Result<DynamicObject, CliError> {
    let call = Call::one("patch", JOBS, &cluster.namespace, name);
    let params = PatchParams { dry_run: dry, ..PatchParams::apply(MANAGER).validation_strict() };
    let patch = Patch::Apply(object);
    cluster.call(call, cluster.jobs().patch(name, &params, &patch)).await
}

pub(super) async fn dry(
    cluster: &Cluster,
    name: &str,
    mut sent: serde_json::Value,
    dry_run: DryRun,
    format: Option<ObjectFormat>,
) -> Result<ExitStatus, CliError> {
    if dry_run == DryRun::Server {
        let mut answer = submit(cluster, name, &sent, true).await?;
        answer.metadata.managed_fields = None;
        sent = serde_json::to_value(answer).expect("plain data");
        writeln!(anstream::stderr(), "the cluster accepts the job")?;
    }
    let mut out = anstream::stdout();
    match format {
        Some(ObjectFormat::Yaml) => {
            let text = serde_saphyr::to_string(&sent)
                .map_err(|error| CliError::of(ExitStatus::Internal, error))?;
            write!(out, "{text}")?;
        }
        Some(ObjectFormat::Json) => {
            writeln!(out, "{}", serde_json::to_string_pretty(&sent).expect("plain data"))?;
        }
        None => writeln!(anstream::stderr(), "nothing was submitted")?,
    }
    Ok(ExitStatus::Success)
}
