//! `qvl operator`.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex},
};

use clap::Args;
use futures::FutureExt;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use super::{
    CliError,
    tls::{TlsArgs, unusable},
};
use crate::{
    logs::auth::Auth,
    operator::{
        self, LeaseOptions, OperatorError, Options,
        broker::{self, Broker, Leader, Relay, random_tokens},
        build::Settings,
        gang::Gangs,
    },
    tls::Authority,
    wire::ExitStatus,
};

#[derive(Debug, Args)]
pub struct OperatorArgs {
    /// Look after the jobs of this namespace only.
    #[arg(short, long, env = "QVL_WATCH_NAMESPACE")]
    namespace: Option<String>,
    /// Image of jobs that name none: it has qvl and qvl-train.
    #[arg(long, env = "QVL_IMAGE")]
    image: String,
    /// Where the broker listens for the pods of jobs.
    #[arg(long, env = "QVL_BROKER_LISTEN", default_value = "0.0.0.0:8080")]
    broker_listen: SocketAddr,
    /// Where pods find the broker, for example `https://qvl-operator.qvl-system.svc:8080`.
    #[arg(long, env = "QVL_BROKER_URL")]
    broker_url: String,
    /// Where pods send their logs; without it the logs of a deleted pod are lost.
    #[arg(long, env = "QVL_COLLECTOR_URL")]
    collector_url: Option<String>,
    /// Where metrics and probes are served: /metrics, /healthz, /readyz.
    #[arg(long, env = "QVL_METRICS_LISTEN", default_value = "0.0.0.0:9090")]
    metrics_listen: SocketAddr,
    /// Several operators run, and one of them leads.
    #[arg(long, env = "QVL_LEADER_ELECT")]
    leader_elect: bool,
    /// Namespace of the lease: that of the operators.
    #[arg(long, env = "QVL_LEASE_NAMESPACE", default_value = "qvl-system")]
    lease_namespace: String,
    /// Name of this operator among them; the host's name if not given.
    #[arg(long, env = "QVL_IDENTITY")]
    identity: Option<String>,
    /// Address of this operator for the others.
    #[arg(long, env = "QVL_POD_IP", default_value = "127.0.0.1")]
    address: IpAddr,
    #[command(flatten)]
    tls: TlsArgs,
    /// CA certificates in PEM that pods of jobs, and other replicas, check certificates with. A file
    /// that changes is read again, and new pods get the new ones.
    #[arg(long, env = "QVL_TLS_CA", value_name = "FILE")]
    tls_ca: Option<PathBuf>,
}

pub(super) fn run(args: &OperatorArgs) -> Result<ExitStatus, CliError> {
    tracing_subscriber::fmt().json().with_writer(std::io::stderr).init();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(serve(args))
}

async fn serve(args: &OperatorArgs) -> Result<ExitStatus, CliError> {
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
    let gangs = Arc::new(Mutex::new(Gangs::new(random_tokens())));
    let (leader, follow) = watch::channel(Leader::Unknown);
    let reviews = Auth::reviews(client.clone());
    let options = args.options()?;
    let broker = Broker::new(reviews, gangs.clone(), follow).with_relay(args.relay(&options));
    let broker = broker::router(Arc::new(broker));
    let ended = operator::run(client, options, gangs, broker, leader, shutdown.boxed()).await;
    match ended {
        Ok(()) => Ok(ExitStatus::Success),
        Err(error @ OperatorError::NoKind { .. }) => {
            Err(CliError::of(ExitStatus::Unreachable, error)
                .hint("qvl crd | kubectl apply --server-side -f -"))
        }
        Err(error @ OperatorError::LeaseLost) => Err(CliError::of(ExitStatus::Unreachable, error)
            .hint("it must be started again, as a Deployment does")),
        Err(error @ OperatorError::Listen { .. }) => Err(CliError::of(ExitStatus::Usage, error)
            .hint("another program listens there already, or the address is not of this machine")),
    }
}

impl OperatorArgs {
    fn options(&self) -> Result<Options, CliError> {
        let identity = match &self.identity {
            Some(identity) => identity.clone(),
            None => fs::read_to_string("/proc/sys/kernel/hostname")?.trim().to_owned(),
        };
        let address = SocketAddr::new(self.address, self.broker_listen.port()).to_string();
        let (certificate, authority) = (self.tls.identity()?, self.authority()?);
        let tls = certificate.is_some();
        let lease = self.leader_elect.then(|| LeaseOptions {
            namespace: self.lease_namespace.clone(),
            address,
            tls,
        });
        Ok(Options {
            namespace: self.namespace.clone(),
            settings: Settings {
                image: self.image.clone(),
                broker_url: self.broker_url.trim_end_matches('/').to_owned(),
                collector_url: self.collector_url.clone(),
                // That of the moment at which a pod is made.
                ca: None,
                // The operator asks the API server.
                pod_groups: false,
            },
            broker_listen: self.broker_listen,
            metrics_listen: self.metrics_listen,
            lease,
            identity,
            certificate,
            authority,
        })
    }

    /// What pods check certificates with, if there are any.
    fn authority(&self) -> Result<Option<Arc<Authority>>, CliError> {
        let urls = [Some(&self.broker_url), self.collector_url.as_ref()];
        let checked = urls.into_iter().flatten().find(|url| url.starts_with("https://"));
        match (&self.tls_ca, checked) {
            (Some(file), _) => Authority::load(file.clone()).map(Some).map_err(unusable),
            (None, Some(url)) => {
                let what = format!("pods could not check who answers at `{url}`");
                Err(CliError::new(ExitStatus::Usage, what)
                    .hint("give the file with the CA certificates: --tls-ca FILE"))
            }
            (None, None) => Ok(None),
        }
    }

    /// The way to the replica that leads: it must be one whose certificate is for the name in the
    /// broker's URL.
    fn relay(&self, options: &Options) -> Relay {
        let name = self.broker_url.strip_prefix("https://").and_then(|rest| {
            let end = rest.find([':', '/']).unwrap_or(rest.len());
            rest.get(..end)
        });
        match (&options.authority, name) {
            (Some(authority), Some(name)) => {
                Relay::verified(Arc::clone(authority), name.to_owned())
            }
            (Some(_), None) | (None, _) => Relay::plain(),
        }
    }
}
