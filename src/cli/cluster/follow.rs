//! Follows a job until it ends, the user has seen enough, or the time is over.

use std::{pin::pin, time::Duration};

use futures::StreamExt;
use kube::{
    api::DynamicObject,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use tokio::time::{Instant, sleep_until};

use super::{
    Call, Cluster,
    record::{self, Told},
    seen::{Seen, has_started},
    show::Show,
    trouble::{JOBS, innermost, no_job},
};
use crate::{cli::CliError, wire::ExitStatus};

/// How the following ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The job is over, or suspended on request.
    Over(ExitStatus, Box<Seen>),
    /// It was deleted.
    Deleted,
    /// The user pressed Ctrl-C.
    Detached,
    /// It did not start in time.
    NotStarted(Option<Box<Seen>>),
    /// It did not end in time.
    TimedOut,
}

/// When to stop following.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limits {
    pub start: Option<Duration>,
    pub end: Option<Duration>,
}

/// What a watch has shown so far.
struct Watched {
    seen: Option<Seen>,
    started: bool,
    /// An object was there when the list began anew.
    listed: bool,
    connected: bool,
}

/// Follows the job `name`; `expected` if it is known to exist.
pub(crate) async fn follow(
    cluster: &Cluster,
    name: &str,
    show: &mut Show,
    limits: Limits,
) -> Result<End, CliError> {
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut stream = pin!(watcher(cluster.jobs(), config).default_backoff());
    let begin = Instant::now();
    let far = begin + Duration::from_secs(10 * 365 * 86_400);
    let deadline = |limit: Option<Duration>| limit.map_or(far, |limit| begin + limit);
    let mut interrupt = pin!(tokio::signal::ctrl_c());
    let mut watched = Watched { seen: None, started: false, listed: false, connected: true };
    loop {
        let start_by = if watched.started { far } else { deadline(limits.start) };
        let event = tokio::select! {
            event = stream.next() => event,
            _ = &mut interrupt => return Ok(End::Detached),
            () = sleep_until(start_by) => return Ok(End::NotStarted(watched.seen.map(Box::new))),
            () = sleep_until(deadline(limits.end)) => return Ok(End::TimedOut),
        };
        let end = match event {
            Some(Ok(event)) => watched.take(event, cluster, name, show)?,
            Some(Err(error)) => {
                watched.lost(cluster, &error, show)?;
                None
            }
            None => return Err(no_job(name, &cluster.namespace)),
        };
        if let Some(end) = end {
            return Ok(end);
        }
    }
}

impl Watched {
    fn take(
        &mut self,
        event: Event<DynamicObject>,
        cluster: &Cluster,
        name: &str,
        show: &mut Show,
    ) -> Result<Option<End>, CliError> {
        self.connected = true;
        match event {
            Event::Init => {
                self.listed = false;
                Ok(None)
            }
            Event::InitApply(object) | Event::Apply(object) => {
                self.listed = true;
                self.show(object, show)
            }
            Event::InitDone if self.listed => Ok(None),
            Event::InitDone if self.seen.is_none() => Err(no_job(name, &cluster.namespace)),
            Event::InitDone | Event::Delete(_) => Ok(Some(End::Deleted)),
        }
    }

    fn show(&mut self, object: DynamicObject, show: &mut Show) -> Result<Option<End>, CliError> {
        let now = Seen::of(object).map_err(other_version)?;
        let attempt = now.status.attempt;
        for told in record::news(self.seen.as_ref(), &now) {
            show.tell(attempt, told)?;
        }
        self.started |= has_started(now.state());
        let end = now.end().map(|status| End::Over(status, Box::new(now.clone())));
        self.seen = Some(now);
        Ok(end)
    }

    /// A watch goes on by itself; only a refusal ends it.
    fn lost(
        &mut self,
        cluster: &Cluster,
        error: &watcher::Error,
        show: &mut Show,
    ) -> Result<(), CliError> {
        let call = Call::many("watch", JOBS, Some(&cluster.namespace));
        let asked = match error {
            watcher::Error::InitialListFailed(error)
            | watcher::Error::WatchStartFailed(error)
            | watcher::Error::WatchFailed(error) => Some(error),
            watcher::Error::WatchError(_) | watcher::Error::NoResourceVersion => None,
        };
        if let Some(error @ kube::Error::Api(status)) = asked
            && matches!(status.code, 401 | 403 | 404)
        {
            return Err(cluster.error(call, error));
        }
        // A watch that has grown too old begins anew; nobody needs to know.
        if self.connected && asked.is_some() {
            self.connected = false;
            let attempt = self.seen.as_ref().map_or(0, |seen| seen.status.attempt);
            show.tell(attempt, Told::Disconnected { why: innermost(error) })?;
        }
        Ok(())
    }
}

/// The status was written by another version of qvl.
pub(crate) fn other_version(error: serde_json::Error) -> CliError {
    CliError::of(
        ExitStatus::Internal,
        anyhow::Error::new(error).context("the job's status is of another version of qvl"),
    )
    .hint("use the `qvl` of the operator's version; `kubectl get ftj -o yaml` shows the status")
}
