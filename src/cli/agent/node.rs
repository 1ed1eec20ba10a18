//! `qvl agent node`.

use std::{io::Write, net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::CliError;
use crate::{
    agent::node::{self, NodeError, Options},
    cli::cluster::launch::duration,
    facts::NodeName,
    wire::ExitStatus,
};

#[derive(Debug, Args)]
pub(super) struct NodeArgs {
    /// Name of the node that this runs on.
    #[arg(long = "name", env = "QVL_NODE", value_name = "NODE")]
    node: String,
    /// Where metrics and probes are served: /metrics, /healthz.
    #[arg(long, env = "QVL_METRICS_LISTEN", default_value = "0.0.0.0:9090")]
    metrics_listen: SocketAddr,
    /// How often the node is looked at; the kernel log is read every second.
    #[arg(long, env = "QVL_INTERVAL", value_name = "TIME", default_value = "60s", value_parser = interval)]
    interval: Duration,
}

/// Reports that are older than some minutes count as missing.
const LONGEST_INTERVAL: Duration = Duration::from_secs(300);

fn interval(text: &str) -> Result<Duration, String> {
    let interval = duration(text)?;
    if (Duration::from_secs(1)..=LONGEST_INTERVAL).contains(&interval) {
        return Ok(interval);
    }
    Err("expected 1s to 5m: older reports count as missing".to_owned())
}

pub(super) fn run(args: &NodeArgs) -> ExitCode {
    super::start_log();
    match serve(args) {
        Ok(()) => ExitStatus::Success.into(),
        Err(error) => {
            let _written = write!(anstream::stderr(), "{error}");
            error.status.into()
        }
    }
}

fn serve(args: &NodeArgs) -> Result<(), CliError> {
    let options = Options {
        node: NodeName(args.node.clone()),
        listen: args.metrics_listen,
        interval: args.interval,
        program: std::env::current_exe()?,
        root: PathBuf::from("/"),
    };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let ended = runtime.block_on(agent(options));
    // A look at the node may hang in the kernel; nobody waits for it.
    runtime.shutdown_background();
    ended
}

async fn agent(options: Options) -> Result<(), CliError> {
    let client = kube::Client::try_default().await.map_err(|error| {
        CliError::of(ExitStatus::Unreachable, error)
            .hint("in a pod it needs a service account, elsewhere KUBECONFIG")
    })?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    let mut terminated = signal(SignalKind::terminate())?;
    let shutdown = async move {
        tokio::select! {
            _ = interrupted.recv() => {}
            _ = terminated.recv() => {}
        }
    };
    node::run(client, options, shutdown).await.map_err(|error| match error {
        NodeError::Listen { .. } => CliError::of(ExitStatus::Usage, error)
            .hint("another program listens there already, or the address is not of this machine"),
        NodeError::Serve { .. } => CliError::of(ExitStatus::Internal, error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_shorter_than_the_life_of_a_report() {
        assert_eq!(interval("30s"), Ok(Duration::from_secs(30)));
        for bad in ["0s", "10m", "soon"] {
            assert!(interval(bad).is_err(), "{bad}");
        }
    }
}
