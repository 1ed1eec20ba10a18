//! `qvl collector`.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use serde::Deserialize;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

use super::{CliError, tls::TlsArgs};
use crate::{
    logs::{
        auth::{self, Auth, Caller},
        collector::{self, Limits},
    },
    wire::ExitStatus,
};

#[derive(Debug, Args)]
pub struct CollectorArgs {
    /// Address to take segments and answer readers at.
    #[arg(long, env = "QVL_LISTEN", default_value = "0.0.0.0:8443")]
    listen: String,
    /// Address to serve metrics at.
    #[arg(long, env = "QVL_METRICS_LISTEN", default_value = "0.0.0.0:9090")]
    metrics_listen: String,
    /// Folder for the logs.
    #[arg(long, env = "QVL_LOGS_DIR", default_value = "/var/lib/qvl/logs")]
    dir: PathBuf,
    /// All logs together, as in `10Gi`; the oldest files go first.
    #[arg(long, env = "QVL_LOGS_MAX_BYTES", default_value = "10Gi", value_parser = bytes)]
    max_bytes: u64,
    /// Logs of one rank in one pod.
    #[arg(long, env = "QVL_LOGS_MAX_BYTES_PER_RANK", default_value = "1Gi", value_parser = bytes)]
    max_bytes_per_rank: u64,
    /// Files that nothing was added to for so long go, as in `720h`.
    #[arg(long, env = "QVL_LOGS_MAX_AGE", default_value = "720h", value_parser = age)]
    max_age: Duration,
    /// A file with the tokens to accept, for a collector outside of a cluster: a JSON list of
    /// objects with `token`, `namespace`, `job` and, for a pod, `pod` and `podUid`.
    #[arg(long, hide = true, value_name = "FILE")]
    tokens: Option<PathBuf>,
    #[command(flatten)]
    tls: TlsArgs,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FixedToken {
    token: String,
    namespace: String,
    job: String,
    pod: Option<String>,
    pod_uid: Option<String>,
}

pub(super) fn run(args: &CollectorArgs) -> Result<ExitStatus, CliError> {
    let level = std::env::var("RUST_LOG").ok().and_then(|level| level.parse().ok());
    tracing_subscriber::fmt()
        .with_max_level(level.unwrap_or(tracing::Level::INFO))
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(serve(args))
}

async fn serve(args: &CollectorArgs) -> Result<ExitStatus, CliError> {
    let auth = match &args.tokens {
        Some(path) => fixed_tokens(path)?,
        None => Auth::reviews(kube::Client::try_default().await.map_err(|error| {
            let what = "failed to find the cluster that reviews tokens";
            CliError::of(ExitStatus::Unreachable, anyhow::Error::new(error).context(what))
                .hint("run it in a pod whose service account may create tokenreviews")
        })?),
    };
    let identity = args.tls.identity()?;
    let listener = listen(&args.listen).await?;
    let metrics = listen(&args.metrics_listen).await?;
    let limits = Limits {
        total_bytes: args.max_bytes,
        stream_bytes: args.max_bytes_per_rank,
        age: args.max_age,
        ..Limits::default()
    };
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = async move {
        tokio::select! {
            _signal = terminate.recv() => {}
            _signal = interrupt.recv() => {}
        }
    };
    tracing::info!(listen = args.listen, dir = %args.dir.display(), "the collector takes logs");
    let dir = &args.dir;
    let served = collector::serve(listener, identity, Some(metrics), dir, limits, auth, stop).await;
    served.map_err(|error| {
        let what = format!("failed to keep logs in `{}`", args.dir.display());
        CliError::of(ExitStatus::Usage, anyhow::Error::new(error).context(what))
            .hint("expected a folder on a volume that this user may write")
    })?;
    Ok(ExitStatus::Success)
}

fn fixed_tokens(path: &Path) -> Result<Auth, CliError> {
    let read = std::fs::read(path).map_err(anyhow::Error::new);
    let tokens = read.and_then(|text| Ok(serde_json::from_slice::<Vec<FixedToken>>(&text)?));
    let tokens = tokens.map_err(|error| {
        let what = format!("failed to read the tokens in `{}`", path.display());
        CliError::of(ExitStatus::Usage, error.context(what))
            .hint("expected a JSON list of objects with token, namespace and job")
    })?;
    let known = tokens.into_iter().map(|fixed| {
        let audience = auth::audience(&fixed.namespace, &fixed.job);
        let pod = fixed.pod.zip(fixed.pod_uid);
        (fixed.token, audience, Caller { namespace: fixed.namespace, pod })
    });
    Ok(Auth::Fixed(known.collect()))
}

async fn listen(address: &str) -> Result<TcpListener, CliError> {
    TcpListener::bind(address).await.map_err(|error| {
        let what = format!("failed to listen at `{address}`");
        CliError::of(ExitStatus::Usage, anyhow::Error::new(error).context(what))
            .hint("expected an address and a free port, as in 0.0.0.0:8443")
    })
}

/// A number of bytes with an optional unit of 1024.
fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit {
        "" => 0,
        "Ki" => 10,
        "Mi" => 20,
        "Gi" => 30,
        "Ti" => 40,
        _other => 64,
    };
    let number = number.parse::<u64>().ok().filter(|number| 0 < *number);
    number
        .and_then(|number| number.checked_mul(1_u64.checked_shl(shift)?))
        .ok_or_else(|| "expected a number of bytes such as 500Mi or 10Gi".to_owned())
}

fn age(text: &str) -> Result<Duration, String> {
    let age = text.parse::<jiff::SignedDuration>().ok();
    age.and_then(|age| Duration::try_from(age).ok())
        .filter(|age| !age.is_zero())
        .ok_or_else(|| "expected a length of time such as 720h".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_ages_are_read() {
        assert_eq!(bytes("10Gi"), Ok(10 << 30));
        assert_eq!(bytes("7"), Ok(7));
        for bad in ["", "Gi", "0", "-1", "10GB", "1e3", "99999999999Ti"] {
            assert!(bytes(bad).unwrap_err().contains("500Mi"), "{bad}");
        }
        assert_eq!(age("720h"), Ok(Duration::from_secs(720 * 3600)));
        assert!(age("-1h").is_err() && age("0s").is_err() && age("x").is_err());
    }
}
