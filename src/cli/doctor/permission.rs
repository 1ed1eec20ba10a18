//! `qvl launch --verdict FILE`: only with a verdict that was made for this.

use std::{
    collections::BTreeSet,
    io::Write,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::Args;

use crate::{
    cli::{CliError, cluster, cluster::plan::Placement, input},
    doctor::{self, Stack},
    facts::NodeName,
    job::FineTuneJob,
    report::verdict::{self, Refusal, Wanted},
    wire::ExitStatus,
};

#[derive(Debug, Args)]
pub(crate) struct VerdictArgs {
    /// Start only if this report of `qvl doctor --job FILE --format json` says that the job may
    /// run, is about this job and these nodes, and was not changed.
    #[arg(long, value_name = "FILE")]
    verdict: Option<PathBuf>,
    /// How old that report may be, as in `30m`.
    #[arg(long, value_name = "TIME", default_value = "1h", requires = "verdict", value_parser = cluster::launch::duration)]
    verdict_max_age: Duration,
}

/// A report that a launch must agree with.
pub(crate) struct Permission {
    path: PathBuf,
    text: String,
    job: String,
    max_age: Duration,
}

impl VerdictArgs {
    /// The report, if one was named. `job` is the job as it was read, before anything is planned.
    pub(crate) fn read(&self, job: &FineTuneJob) -> Result<Option<Permission>, CliError> {
        let Some(path) = self.verdict.clone() else { return Ok(None) };
        let text = input::text(&path).map_err(|error| {
            let what = format!("failed to read verdict `{}`", path.display());
            CliError::of(ExitStatus::Usage, anyhow::Error::new(error).context(what))
                .hint("`qvl doctor --job FILE --format json > FILE` writes one")
        })?;
        let job = doctor::job_digest(job, Stack::Own);
        Ok(Some(Permission { path, text, job, max_age: self.verdict_max_age }))
    }
}

impl Permission {
    /// Digest of the report, as the report says; it was checked with the rest.
    pub(crate) fn digest(&self) -> Option<String> {
        verdict::digest_of(&self.text)
    }

    /// The same for a job in a cluster. A verdict on the whole fleet holds for a part of it.
    pub(crate) fn check_placed(
        permission: Option<&Permission>,
        placement: Option<&Placement>,
        out: &mut impl Write,
    ) -> Result<(), CliError> {
        let Some(permission) = permission else { return Ok(()) };
        let Some(placement) = placement else {
            let what = "--verdict needs to know on which nodes the job will run, and no GPUs are free for it";
            return Err(CliError::new(ExitStatus::Infeasible, what).hint(
                "wait until they are, or start without --verdict: the pods test themselves",
            ));
        };
        let nodes = placement.nodes.iter().map(|(name, _ranks)| NodeName(name.clone()));
        permission.check(&nodes.collect(), true, out)
    }

    /// Refuses a launch on these nodes if the report does not allow it.
    pub(crate) fn check(
        &self,
        nodes: &BTreeSet<NodeName>,
        others_allowed: bool,
        out: &mut impl Write,
    ) -> Result<(), CliError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let wanted = Wanted {
            job: &self.job,
            nodes,
            others_allowed,
            unix_seconds: i64::try_from(now).unwrap_or(i64::MAX),
            max_age: self.max_age,
        };
        verdict::accept(&self.text, &wanted).map_err(|refusal| {
            let is_report = !matches!(refusal, Refusal::NoReport { .. });
            let status = if is_report { ExitStatus::Blocked } else { ExitStatus::Usage };
            let what =
                format!("verdict `{}` does not allow this launch: {refusal}", self.path.display());
            CliError::new(status, what).hint(hint(&refusal))
        })?;
        Ok(writeln!(out, "verdict `{}` holds for this launch", self.path.display())?)
    }
}

fn hint(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::NoReport { .. } | Refusal::NoSeal | Refusal::Changed { .. } => {
            "write it again: `qvl doctor --job FILE --format json`"
        }
        Refusal::NotReady { .. } => "`qvl doctor --job FILE` shows what is wrong",
        Refusal::OtherRules { .. } => {
            "let this program judge: `qvl doctor --job FILE --format json`"
        }
        Refusal::OtherJob { .. } => {
            "give the doctor the same job file and the same --gpus as the launch"
        }
        Refusal::OtherNodes { .. } => {
            "judge the nodes that run the job: this machine, or --cluster for a job in a cluster"
        }
        Refusal::NoTime => "write it without --reproducible",
        Refusal::TooOld { .. } => "judge again, or raise --verdict-max-age",
        Refusal::FromTheFuture { .. } => "set the clocks: chronyc tracking",
    }
}
