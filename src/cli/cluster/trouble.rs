//! What a refusal of the API server means for a person. Pure.

use kube::core::Status;

use crate::{cli::CliError, wire::ExitStatus};

/// How the operator is installed.
pub(super) const INSTALL: &str =
    "helm install qvl charts/qvl --namespace qvl-system --create-namespace";

/// What was asked of the API server.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call<'c> {
    /// As in `kubectl auth can-i`: get, list, watch, patch, create, delete.
    pub verb: &'c str,
    /// Plural, with the group: `pods`, `finetunejobs.qvl.dev`.
    pub resource: &'c str,
    pub name: Option<&'c str>,
    /// `None` for resources of the whole cluster, and for lists over all namespaces.
    pub namespace: Option<&'c str>,
}

/// Plural of our kinds, with their group.
pub(crate) const JOBS: &str = "finetunejobs.qvl.dev";
pub(crate) const REPORTS: &str = "nodereports.qvl.dev";

impl<'c> Call<'c> {
    /// A request for one object of a namespace.
    pub(crate) fn one(verb: &'c str, resource: &'c str, namespace: &'c str, name: &'c str) -> Self {
        Call { verb, resource, name: Some(name), namespace: Some(namespace) }
    }

    /// A request for many; `namespace` is `None` for all.
    pub(crate) fn many(verb: &'c str, resource: &'c str, namespace: Option<&'c str>) -> Self {
        Call { verb, resource, name: None, namespace }
    }
}

/// The user has no role that allows a request.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Denied(String);

/// Which server, and who named it.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub server: String,
    pub source: String,
}

/// The error for a person.
pub(super) fn explain(error: &kube::Error, call: &Call<'_>, place: &Place) -> CliError {
    if let kube::Error::SerdeError(source) = error {
        return odd_answer(call, &source.to_string());
    }
    let kube::Error::Api(status) = error else {
        return unreachable(place, &innermost(error));
    };
    match status.code {
        401 => CliError::new(
            ExitStatus::Unreachable,
            format!("cluster {} does not accept the credentials of {}", place.server, place.source),
        )
        .hint("they may have expired: log in again, then try `kubectl auth whoami`"),
        403 => denied(status, call),
        404 => missing(status, call),
        409 => CliError::new(ExitStatus::Usage, first_line(&status.message))
            .hint("someone else changes the same fields: look at the object, then try again"),
        400 | 422 => refused(status, call),
        429 | 500..=599 => unreachable(
            place,
            &format!("it answers {}: {}", status.code, first_line(&status.message)),
        ),
        code => odd_answer(call, &format!("code {code}: {}", first_line(&status.message))),
    }
}

pub(super) fn unreachable(place: &Place, why: &str) -> CliError {
    CliError::new(
        ExitStatus::Unreachable,
        format!("cluster {} of {} cannot be reached: {why}", place.server, place.source),
    )
    .hint("`kubectl get --raw /readyz` tries the same; is it the right cluster, is a VPN off?")
}

pub(super) fn bad_config(source: &str, why: &str) -> CliError {
    CliError::new(ExitStatus::Unreachable, format!("{source} cannot be used: {why}"))
        .hint("`kubectl config get-contexts` shows what it holds")
}

fn denied(status: &Status, call: &Call<'_>) -> CliError {
    let Call { verb, resource, namespace, .. } = call;
    let place = match namespace {
        Some(namespace) => format!("in namespace `{namespace}`"),
        None => "in the whole cluster".to_owned(),
    };
    let user = status.message.split_once("User \"").and_then(|(_, rest)| rest.split('"').next());
    let who = user.map_or("you".to_owned(), |user| format!("user `{user}`"));
    // The server's own words count if it is no matter of roles, such as an admission policy.
    if !status.message.contains("cannot ") {
        return CliError::new(ExitStatus::Unreachable, first_line(&status.message))
            .hint("a policy of the cluster refuses it: ask who runs the cluster");
    }
    let scope = match namespace {
        Some(namespace) => format!(" --namespace {namespace}"),
        None => " --all-namespaces".to_owned(),
    };
    let what = format!("permission denied: {who} may not {verb} {resource} {place}");
    CliError::of(ExitStatus::Unreachable, Denied(what))
        .hint(format!("`kubectl auth can-i {verb} {resource}{scope}` asks the cluster the same"))
        .hint("the chart's ClusterRole `qvl-user` allows it: ask for a RoleBinding")
}

fn missing(status: &Status, call: &Call<'_>) -> CliError {
    let details = status.details.as_ref();
    let named = details.is_some_and(|details| !details.name.is_empty());
    if !named && call.resource.ends_with(".qvl.dev") {
        return not_installed();
    }
    let namespace = call.namespace.unwrap_or_default();
    if details.is_some_and(|details| details.kind == "namespaces") {
        return CliError::new(ExitStatus::Usage, format!("there is no namespace `{namespace}`"))
            .hint(format!("`kubectl create namespace {namespace}` makes it"));
    }
    match call.name {
        Some(name) if call.resource == JOBS => no_job(name, namespace),
        Some(name) => CliError::new(
            ExitStatus::JobNotFound,
            format!("there is no {} `{name}` in namespace `{namespace}`", call.resource),
        ),
        None => odd_answer(call, &first_line(&status.message)),
    }
}

/// The cluster does not know our kinds.
pub(super) fn not_installed() -> CliError {
    CliError::new(ExitStatus::Unreachable, "qvl is not installed in this cluster")
        .hint(format!("install it with `{INSTALL}`"))
        .hint("or run the job on this machine: `qvl launch JOB.yaml --local`")
}

pub(crate) fn no_job(name: &str, namespace: &str) -> CliError {
    CliError::new(ExitStatus::JobNotFound, format!("no job `{name}` in namespace `{namespace}`"))
        .hint("`qvl ps --all-namespaces` lists the jobs of the cluster")
}

/// The server says which fields are wrong, one cause each.
fn refused(status: &Status, call: &Call<'_>) -> CliError {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    let causes: Vec<String> = causes
        .map(|cause| match cause.field.as_str() {
            "" => format!("\n  {}", cause.message),
            field => format!("\n  {field}: {}", cause.message),
        })
        .collect();
    let what = match call.name {
        Some(name) => format!("the cluster refuses `{name}`"),
        None => format!("the cluster refuses to {} {}", call.verb, call.resource),
    };
    let why = if causes.is_empty() {
        format!(": {}", first_line(&status.message))
    } else {
        format!(":{}", causes.concat())
    };
    CliError::new(ExitStatus::Usage, what + &why)
        .hint("`qvl explain job FIELD` describes a field of the job file")
}

fn odd_answer(call: &Call<'_>, why: &str) -> CliError {
    let Call { verb, resource, .. } = call;
    CliError::new(
        ExitStatus::Internal,
        format!("the cluster's answer to {verb} {resource} makes no sense: {why}"),
    )
    .hint("are qvl and the operator of the same version? `qvl --version` tells one of them")
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// The cause of all: errors of connections are wrapped many times, and each repeats the next.
pub(super) fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use kube::core::response::{StatusCause, StatusDetails};

    use super::*;

    fn place() -> Place {
        Place {
            server: "https://10.0.0.1:6443/".to_owned(),
            source: "kubeconfig admin.conf".to_owned(),
        }
    }

    fn told(status: Status, call: Call<'_>) -> String {
        let error = explain(&kube::Error::Api(status.boxed()), &call, &place());
        format!("{error}exit {}", error.status.code())
    }

    fn status(code: u16, reason: &str, message: &str) -> Status {
        Status::failure(message, reason).with_code(code)
    }

    fn details(name: &str, kind: &str, causes: Vec<StatusCause>) -> StatusDetails {
        StatusDetails {
            name: name.to_owned(),
            group: String::new(),
            kind: kind.to_owned(),
            uid: String::new(),
            causes,
            retry_after_seconds: 0,
        }
    }

    #[test]
    fn a_denied_request_names_verb_and_resource() {
        let message = "finetunejobs.qvl.dev \"a\" is forbidden: User \"eve\" cannot patch resource \
                       \"finetunejobs\" in API group \"qvl.dev\" in the namespace \"team\"";
        let call = Call::one("patch", JOBS, "team", "a");
        insta::assert_snapshot!(told(status(403, "Forbidden", message), call), @r"
        error: permission denied: user `eve` may not patch finetunejobs.qvl.dev in namespace `team`

        hint: `kubectl auth can-i patch finetunejobs.qvl.dev --namespace team` asks the cluster the same

        hint: the chart's ClusterRole `qvl-user` allows it: ask for a RoleBinding
        exit 5
        ");
    }

    #[test]
    fn a_cluster_without_the_operator_gets_the_helm_command() {
        let call = Call::many("list", JOBS, Some("default"));
        let text = "404 page not found";
        insta::assert_snapshot!(told(status(404, "Failed to parse error data", text), call), @r"
        error: qvl is not installed in this cluster

        hint: install it with `helm install qvl charts/qvl --namespace qvl-system --create-namespace`

        hint: or run the job on this machine: `qvl launch JOB.yaml --local`
        exit 5
        ");
    }

    #[test]
    fn what_is_missing_is_named() {
        let call = Call::one("get", JOBS, "team", "a");
        let job = status(404, "NotFound", "finetunejobs.qvl.dev \"a\" not found")
            .with_details(details("a", "finetunejobs", vec![]));
        insta::assert_snapshot!(told(job, call), @r"
        error: no job `a` in namespace `team`

        hint: `qvl ps --all-namespaces` lists the jobs of the cluster
        exit 102
        ");
        let namespace = status(404, "NotFound", "namespaces \"team\" not found")
            .with_details(details("team", "namespaces", vec![]));
        insta::assert_snapshot!(told(namespace, call), @r"
        error: there is no namespace `team`

        hint: `kubectl create namespace team` makes it
        exit 2
        ");
    }

    #[test]
    fn a_refused_job_lists_its_fields() {
        let cause = StatusCause {
            reason: "FieldValueInvalid".to_owned(),
            message: "Invalid value: exactly one of epochs and steps".to_owned(),
            field: "spec.stages[0]".to_owned(),
        };
        let refused = status(422, "Invalid", "FineTuneJob is invalid").with_details(details(
            "a",
            "FineTuneJob",
            vec![cause],
        ));
        insta::assert_snapshot!(told(refused, Call::one("patch", JOBS, "team", "a")), @r"
        error: the cluster refuses `a`:
          spec.stages[0]: Invalid value: exactly one of epochs and steps

        hint: `qvl explain job FIELD` describes a field of the job file
        exit 2
        ");
    }

    #[test]
    fn no_connection_names_server_and_kubeconfig() {
        let refused = std::io::Error::from_raw_os_error(111);
        let error = kube::Error::Service(Box::new(refused));
        let error = explain(&error, &Call::many("list", "nodes", None), &place());
        insta::assert_snapshot!(error.to_string(), @r"
        error: cluster https://10.0.0.1:6443/ of kubeconfig admin.conf cannot be reached: Connection refused (os error 111)

        hint: `kubectl get --raw /readyz` tries the same; is it the right cluster, is a VPN off?
        ");
        assert_eq!(error.status, ExitStatus::Unreachable);
        let overloaded = status(503, "ServiceUnavailable", "apiserver is shutting down");
        assert!(told(overloaded, Call::many("list", "nodes", None)).contains("it answers 503"));
    }
}
