//! `qvl agent`: the supervisor of the ranks of a pod, and the reporter of a node.

mod node;

use std::{io::Write, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Subcommand};

use super::{CliError, plan, preflight};
use crate::{
    agent::rank::{self, Pod},
    job::FineTuneJob,
    launch::supervisor::now_ms,
    logs::spool::{Destination, Identity, Spool},
    tls::Roots,
    wire::{ExitStatus, TrainerExit},
};

/// The collector may take so long for what is left at the end.
const LAST_LINES: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub struct AgentArgs {
    #[command(subcommand)]
    command: AgentCommand,
}

#[derive(Debug, Subcommand)]
enum AgentCommand {
    /// Be the first process of a rank pod: test the machine, start its ranks, watch them.
    Rank(Box<RankArgs>),
    /// Report what this node has and what is wrong with it; the chart runs it on every node.
    Node(node::NodeArgs),
}

/// The operator sets all of these in a pod.
#[derive(Debug, Args)]
struct RankArgs {
    /// Namespace of the job.
    #[arg(long, env = "QVL_NAMESPACE")]
    namespace: String,
    /// Name of the job.
    #[arg(long = "name", env = "QVL_JOB", value_name = "JOB")]
    job: String,
    /// Attempt that this pod belongs to.
    #[arg(long, env = "QVL_ATTEMPT")]
    attempt: u32,
    /// Completion index of this pod.
    #[arg(long, env = "QVL_INDEX")]
    index: u32,
    /// Pods of the job.
    #[arg(long, env = "QVL_PODS", value_parser = clap::value_parser!(u32).range(1..))]
    pods: u32,
    /// Ranks of each pod.
    #[arg(long, env = "QVL_LOCAL_RANKS", value_parser = clap::value_parser!(u32).range(1..))]
    local_ranks: u32,
    /// URL of the operator's broker.
    #[arg(long, env = "QVL_BROKER", value_name = "URL")]
    broker: String,
    /// Name of this node.
    #[arg(long, env = "QVL_NODE")]
    node: String,
    /// UID of this pod.
    #[arg(long, env = "QVL_POD_UID")]
    pod_uid: String,
    /// Address of this pod for the others.
    #[arg(long, env = "QVL_POD_IP")]
    pod_ip: String,
    /// The pod's token for this job.
    #[arg(
        long,
        env = "QVL_TOKEN_FILE",
        value_name = "FILE",
        default_value = "/var/run/secrets/qvl.dev/token"
    )]
    token_file: PathBuf,
    /// Job file.
    #[arg(long, env = "QVL_JOB_FILE", value_name = "FILE", default_value = "/etc/qvl/job.yaml")]
    job_file: PathBuf,
    /// URL of the collector of logs.
    #[arg(long, env = "QVL_COLLECTOR", value_name = "URL")]
    collector: Option<String>,
    /// Folder for the lines that the collector does not have yet.
    #[arg(long, env = "QVL_SPOOL", value_name = "DIR", default_value = "/var/spool/qvl")]
    spool: PathBuf,
    /// CA certificates, as PEM text, that broker and collector are checked with.
    #[arg(long, env = "QVL_CA", value_name = "PEM", hide_env_values = true)]
    ca: Option<String>,
    /// Where the last failure is left for the kubelet.
    #[arg(
        long,
        env = "QVL_TERMINATION_LOG",
        value_name = "FILE",
        default_value = "/dev/termination-log"
    )]
    termination_log: PathBuf,
    /// The trainer to start, instead of the `qvl-train` beside this program.
    #[arg(long, value_name = "FILE", env = "QVL_TRAIN_BIN")]
    trainer: Option<PathBuf>,
    /// Do not test the machine before the start.
    #[arg(long, env = "QVL_SKIP_PREFLIGHT")]
    skip_preflight: bool,
    /// Without trainers, and without a word of the broker for so long, the pod ends.
    #[arg(long, env = "QVL_ALONE_SECONDS", hide = true, default_value_t = 600)]
    alone_seconds: u32,
}

/// Runs the first process of a container. The code of a rank pod is one of a trainer, for whoever
/// decides about a restart.
pub(super) fn container(args: &AgentArgs) -> ExitCode {
    let args = match &args.command {
        AgentCommand::Rank(args) => args,
        AgentCommand::Node(args) => return node::run(args),
    };
    start_log();
    match supervise(args) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let mut err = anstream::stderr();
            let _written = write!(err, "{error}");
            let wrong = error.status == ExitStatus::Usage;
            let exit = if wrong { TrainerExit::Config } else { TrainerExit::Internal };
            exit.into()
        }
    }
}

fn start_log() {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
}

fn supervise(args: &RankArgs) -> Result<u8, CliError> {
    let job = plan::read_job(&args.job_file, None)?;
    let pod = pod(args, &job)?;
    let test = || if args.skip_preflight { Ok(()) } else { preflight::test(&pod, &job) };
    let spool = spool(args, pod.roots.clone());
    let mut keep = |rank, epoch, text: &str| {
        if let Some(spool) = &spool {
            spool.push(rank, epoch, now_ms(), text);
        }
    };
    let ended = rank::run(&pod, test, &mut keep);
    if let Some(spool) = spool {
        let stats = spool.close(LAST_LINES);
        if 0 < stats.lost {
            tracing::warn!("{} of {} lines of logs were lost", stats.lost, stats.pushed);
        }
    }
    ended.map_err(|error| CliError::of(ExitStatus::Internal, error))
}

/// Where the lines of the ranks are kept for the collector. Without it they are in the log of
/// the container alone, and the training goes on.
fn spool(args: &RankArgs, roots: Option<Roots>) -> Option<Spool> {
    let identity = Identity {
        namespace: args.namespace.clone(),
        job: args.job.clone(),
        attempt: args.attempt,
        index: args.index,
        pod_uid: args.pod_uid.clone(),
    };
    let (collector, token_file) = (args.collector.clone()?, args.token_file.clone());
    let destination = Destination { collector, token_file, roots };
    match Spool::start(&args.spool, Some(destination), identity) {
        Ok(spool) => Some(spool),
        Err(error) => {
            let folder = args.spool.display();
            tracing::warn!("logs are not kept: failed to write to `{folder}`: {error}");
            None
        }
    }
}

/// Whom to believe to be the broker and the collector.
fn roots(args: &RankArgs) -> Result<Option<Roots>, CliError> {
    let hint = "the operator sets QVL_CA to the CA certificates of its --tls-ca";
    if let Some(pem) = &args.ca {
        let roots = Roots::parse("QVL_CA", pem);
        return roots.map(Some).map_err(|error| CliError::of(ExitStatus::Usage, error).hint(hint));
    }
    let urls = [Some(&args.broker), args.collector.as_ref()];
    match urls.into_iter().flatten().find(|url| url.starts_with("https://")) {
        Some(url) => {
            let what = format!("`{url}` cannot be checked: no CA certificates are given");
            Err(CliError::new(ExitStatus::Usage, what).hint(hint))
        }
        None => Ok(None),
    }
}

fn pod(args: &RankArgs, job: &FineTuneJob) -> Result<Pod, CliError> {
    let ranks = args.pods * args.local_ranks;
    if ranks != job.spec.world.gpus {
        let what = format!(
            "{} pods of {} ranks are {ranks} ranks, but `{}` has spec.world.gpus: {}",
            args.pods,
            args.local_ranks,
            args.job_file.display(),
            job.spec.world.gpus
        );
        return Err(CliError::new(ExitStatus::Usage, what)
            .hint("QVL_PODS and QVL_LOCAL_RANKS are set by the operator"));
    }
    let trainer = match &args.trainer {
        Some(trainer) => trainer.clone(),
        None => std::env::current_exe()?.with_file_name("qvl-train"),
    };
    if !trainer.exists() {
        return Err(CliError::new(
            ExitStatus::Usage,
            format!("no trainer at `{}`", trainer.display()),
        )
        .hint("the image of the job must hold `qvl-train` beside `qvl`"));
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let shared = u32::try_from(cores).unwrap_or(1) / args.local_ranks;
    Ok(Pod {
        namespace: args.namespace.clone(),
        job: args.job.clone(),
        attempt: args.attempt,
        index: args.index,
        pods: args.pods,
        ranks: args.local_ranks,
        broker: args.broker.clone(),
        token_file: args.token_file.clone(),
        roots: roots(args)?,
        node: args.node.clone(),
        pod_uid: args.pod_uid.clone(),
        address: args.pod_ip.clone(),
        termination_log: args.termination_log.clone(),
        job_file: args.job_file.clone(),
        trainer,
        threads: if job.spec.world.threads == 0 { shared.max(1) } else { job.spec.world.threads },
        peer_timeout_seconds: job.spec.world.peer_timeout_seconds,
        stall_multiplier: job.spec.failure.stall_multiplier,
        startup: Duration::from_secs(u64::from(job.spec.failure.startup_seconds)),
        env: job.spec.env.clone(),
        alone: Duration::from_secs(u64::from(args.alone_seconds)),
        test_network: job.spec.cluster.test_network,
    })
}
