//! One look at one job.

use std::{sync::Arc, time::Duration};

use kube::runtime::controller;
use tracing::{info, warn};

use super::{
    Context,
    apply::{ApplyError, apply},
    news,
    observe::{self, ObserveError, key},
    observed::{Fault, Observed},
    plan::{self, Action, Step, plan},
};
use crate::api::job::FineTuneJob;

/// Longest pause after failures in a row.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Why a reconcile ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReconcileError {
    #[error("failed to observe")]
    Observe(#[source] ObserveError),
    #[error("failed to apply a step")]
    Apply(#[source] ApplyError),
}

/// Observes, plans, applies.
pub(super) async fn reconcile(
    job: Arc<FineTuneJob>,
    context: Arc<Context>,
) -> Result<controller::Action, ReconcileError> {
    if !context.index.is_complete() {
        return Ok(controller::Action::requeue(Duration::from_millis(200)));
    }
    context.metrics.reconciles.add();
    // From memory; the only reading of the clock.
    let mut observed = observe::cached(&context, &job);
    // Pure.
    let mut steps = plan(&observed);
    if plan::needs_fresh_view(&observed, &steps) {
        // From the API server.
        let fresh = observe::fresh(&context, &job).await.map_err(ReconcileError::Observe)?;
        let Some(fresh) = fresh else { return Ok(controller::Action::await_change()) };
        observed = fresh;
        steps = plan(&observed);
    }
    // One call of the API server each.
    for step in &steps {
        if let Err(error) = carry_out(&context, &observed, step).await {
            return refused(&context, &observed, error).await;
        }
    }
    let had_fault = observed.fault.is_some();
    let recent = news::recent(&observed);
    context.remember(&key(&job), |memory| {
        memory.failures = 0;
        memory.fault = None;
        memory.told.retain(|key| recent.iter().any(|news| news.key == *key));
        if !memory.looked {
            memory.looked = true;
            memory.first_failure = observed.status().last_failure.as_ref().map(news::id);
        }
    });
    if had_fault {
        return Ok(controller::Action::requeue(Duration::from_secs(1)));
    }
    let pause = plan::look_again_after(&observed).map(Duration::from_secs);
    Ok(pause.map_or_else(controller::Action::await_change, controller::Action::requeue))
}

async fn carry_out(context: &Context, observed: &Observed, step: &Step) -> Result<(), ApplyError> {
    let job = &observed.job;
    let (namespace, name) = (job.namespace(), job.name());
    if let Action::WriteStatus(status) = &step.action {
        let (state, attempt) = (status.summary.state, status.attempt);
        if state != observed.status().summary.state {
            info!(namespace, job = name, ?state, attempt, why = step.why, "state");
        }
    } else {
        info!(namespace, job = name, action = ?step.action, why = step.why, "step");
    }
    apply(context, job, &step.action).await
}

/// Every refused call is told in the status, not only here.
async fn refused(
    context: &Context,
    observed: &Observed,
    error: ApplyError,
) -> Result<controller::Action, ReconcileError> {
    if error.is_conflict() {
        context.metrics.conflicts.add();
        return Ok(controller::Action::requeue(Duration::from_millis(500)));
    }
    let (namespace, job) = (observed.job.namespace(), observed.job.name());
    warn!(namespace, job, error = %error, cause = %error.source(), "step failed");
    context.metrics.failures.add(error.operation());
    let message = if let kube::Error::Api(status) = error.source() {
        format!("{error}: {}", status.message)
    } else {
        format!("{error}: {}", error.source())
    };
    let fault = Fault { message, refused: error.is_refusal() };
    context.remember(&key(&observed.job), |memory| memory.fault = Some(fault.clone()));
    if !matches!(error, ApplyError::Status { .. }) {
        // Whether this write succeeds or not, the next look tries again.
        let told = Observed { fault: Some(fault), ..observed.clone() };
        let writes = |step: &Step| matches!(step.action, Action::WriteStatus(_));
        if let Some(step) = plan(&told).into_iter().find(writes) {
            let written = apply(context, &observed.job, &step.action).await;
            if let Err(error) = written.as_ref().map_err(ToString::to_string) {
                warn!(namespace, job, error, "the status does not tell of it yet");
            }
        }
    }
    Err(ReconcileError::Apply(error))
}

/// The pause doubles with every failure in a row of the same job.
#[expect(clippy::needless_pass_by_value, reason = "the signature of the runtime")]
pub(super) fn after_error(
    job: Arc<FineTuneJob>,
    error: &ReconcileError,
    context: Arc<Context>,
) -> controller::Action {
    if let ReconcileError::Observe(error) = error {
        warn!(job = job.name(), error = error as &dyn std::error::Error, "observe failed");
        context.metrics.failures.add("observe");
    }
    let mut failures = 0;
    context.remember(&key(&job), |memory| {
        failures = memory.failures;
        memory.failures = failures.saturating_add(1);
    });
    let pause = Duration::from_secs(1 << failures.min(9)).min(LONGEST_PAUSE);
    controller::Action::requeue(pause)
}
