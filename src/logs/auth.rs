//! Who sends a request: a pod with its projected token, or a user with one made for reading.
//!
//! A token is good for one job: its audience is `qvl.dev/{namespace}/{job}`. Anybody may ask the
//! apiserver for a token of any audience, so the audience alone proves nothing: the service
//! account must live in the job's namespace, and a pod must be the one that it says it is.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::{Api, Client, api::PostParams};

use super::strangers::Strangers;

/// A token that was good stays good for so long without a further question.
const REMEMBERED: Duration = Duration::from_secs(30);
/// Answers that are remembered at most.
const REMEMBERED_TOKENS: usize = 4096;
/// Longest token that is looked at.
const LONGEST_TOKEN: usize = 16 * 1024;

/// Audience of the tokens of a job.
pub fn audience(namespace: &str, job: &str) -> String {
    format!("qvl.dev/{namespace}/{job}")
}

/// Whose token it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Namespace of the service account.
    pub namespace: String,
    /// Name and UID of the pod that the token is bound to, if it is.
    pub pod: Option<(String, String)>,
}

impl Caller {
    /// Whether this is the pod of that place in an attempt of the job: the Job controller names
    /// its pods `{job}-a{attempt}-{index}-{random}`.
    pub fn is_pod(&self, job: &str, attempt: u32, index: u32, pod_uid: &str) -> bool {
        self.pod.as_ref().is_some_and(|(name, uid)| {
            let prefix = format!("{job}-a{attempt}-{index}-");
            let rest = name.strip_prefix(&prefix);
            uid == pod_uid && rest.is_some_and(|rest| !rest.is_empty() && !rest.contains('-'))
        })
    }
}

/// Why a request was not believed.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("no token: expected `authorization: Bearer TOKEN`, the token for `{audience}`")]
    Missing { audience: String },
    #[error("the token is not valid for `{audience}`: {why}")]
    Invalid { audience: String, why: String },
    #[error("the token belongs to namespace `{other}`, not to `{namespace}`")]
    OtherNamespace { namespace: String, other: String },
    #[error("the apiserver did not review the token")]
    Unavailable { source: kube::Error },
    #[error("too many requests from {from} were not believed")]
    TooMany { from: IpAddr },
}

impl Refusal {
    /// What helps.
    pub fn hint(&self) -> &'static str {
        match self {
            Refusal::Missing { .. } | Refusal::Invalid { .. } | Refusal::OtherNamespace { .. } => {
                "the pod's token for this job is mounted at /var/run/secrets/qvl.dev/token; users \
                 make one with `kubectl create token default --audience qvl.dev/NAMESPACE/JOB`"
            }
            Refusal::Unavailable { .. } => "ask again in a few seconds",
            Refusal::TooMany { .. } => "ask again in some seconds, with the right token",
        }
    }
}

/// Where tokens are looked up.
#[derive(Debug)]
pub enum Auth {
    /// The apiserver reviews them.
    Reviews(Reviews),
    /// Token, audience and caller of each: for a server outside of a cluster, and for tests.
    Fixed(Vec<(String, String, Caller)>),
}

/// The apiserver's reviews, each remembered for a while.
pub struct Reviews {
    client: Client,
    hasher: RandomState,
    remembered: Mutex<HashMap<u64, (String, Instant, Caller)>>,
}

impl std::fmt::Debug for Reviews {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reviews")
    }
}

impl Auth {
    /// Reviews through the apiserver; needs the right to create `tokenreviews`.
    pub fn reviews(client: Client) -> Self {
        let (hasher, remembered) = (RandomState::new(), Mutex::default());
        Auth::Reviews(Reviews { client, hasher, remembered })
    }

    /// The same as [`Auth::check`] for a request from an address, if it is known: one that is not
    /// believed too often is not listened to for a while.
    pub async fn check_from(
        &self,
        strangers: &Strangers,
        from: Option<IpAddr>,
        token: Option<&str>,
        (namespace, job): (&str, &str),
    ) -> Result<Caller, Refusal> {
        if let Some(from) = from
            && !strangers.admit(from, Instant::now())
        {
            return Err(Refusal::TooMany { from });
        }
        let checked = self.check(token, namespace, job).await;
        // That the apiserver is away is not the caller's fault.
        if let (Some(from), Ok(_) | Err(Refusal::Unavailable { .. })) = (from, &checked) {
            strangers.give_back(from, Instant::now());
        }
        checked
    }

    /// The caller, if the token is good for this job and belongs to the job's namespace.
    pub async fn check(
        &self,
        token: Option<&str>,
        namespace: &str,
        job: &str,
    ) -> Result<Caller, Refusal> {
        let audience = audience(namespace, job);
        let Some(token) = token.filter(|token| !token.is_empty()) else {
            return Err(Refusal::Missing { audience });
        };
        if LONGEST_TOKEN < token.len() {
            let why = format!("it has {} bytes, more than {LONGEST_TOKEN}", token.len());
            return Err(Refusal::Invalid { audience, why });
        }
        let caller = match self {
            Auth::Reviews(reviews) => reviews.check(token, &audience).await?,
            Auth::Fixed(known) => {
                let found = known.iter().find(|(text, of, _)| text == token && *of == audience);
                let Some((_token, _audience, caller)) = found else {
                    let why = "it is not among the fixed ones".to_owned();
                    return Err(Refusal::Invalid { audience, why });
                };
                caller.clone()
            }
        };
        if caller.namespace != namespace {
            let namespace = namespace.to_owned();
            return Err(Refusal::OtherNamespace { namespace, other: caller.namespace });
        }
        Ok(caller)
    }
}

impl Reviews {
    async fn check(&self, token: &str, audience: &str) -> Result<Caller, Refusal> {
        let key = self.hasher.hash_one((audience, token));
        if let Some(caller) = self.recall(key, token) {
            return Ok(caller);
        }
        let spec =
            TokenReviewSpec { audiences: Some(vec![audience.to_owned()]), token: token.to_owned() };
        let review = TokenReview { spec, ..TokenReview::default() };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let reviewed = api.create(&PostParams::default(), &review).await;
        let reviewed = reviewed.map_err(|source| Refusal::Unavailable { source })?;
        let status = reviewed.status.unwrap_or_default();
        let caller = caller(&status, audience)
            .map_err(|why| Refusal::Invalid { audience: audience.to_owned(), why })?;
        self.remember(key, token, &caller);
        Ok(caller)
    }

    fn recall(&self, key: u64, token: &str) -> Option<Caller> {
        let remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        let (text, until, caller) = remembered.get(&key)?;
        (text == token && Instant::now() < *until).then(|| caller.clone())
    }

    fn remember(&self, key: u64, token: &str, caller: &Caller) {
        let now = Instant::now();
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if REMEMBERED_TOKENS <= remembered.len() {
            remembered.retain(|_key, (_token, until, _caller)| now < *until);
        }
        if remembered.len() < REMEMBERED_TOKENS {
            remembered.insert(key, (token.to_owned(), now + REMEMBERED, caller.clone()));
        }
    }
}

/// What the apiserver says about a token.
fn caller(status: &TokenReviewStatus, audience: &str) -> Result<Caller, String> {
    if status.authenticated != Some(true) {
        return Err(status.error.clone().unwrap_or_else(|| "the apiserver refused it".to_owned()));
    }
    // A server that knows no audiences would accept a token that was made for something else.
    let audiences = status.audiences.iter().flatten();
    if !audiences.into_iter().any(|accepted| accepted == audience) {
        return Err("it was made for another audience".to_owned());
    }
    let user = status.user.clone().unwrap_or_default();
    let name = user.username.unwrap_or_default();
    let namespace = name
        .strip_prefix("system:serviceaccount:")
        .and_then(|rest| rest.split_once(':'))
        .map(|(namespace, _account)| namespace.to_owned())
        .ok_or_else(|| format!("`{name}` is no service account"))?;
    let extra = user.extra.unwrap_or_default();
    let first = |key: &str| extra.get(key).and_then(|values| values.first()).cloned();
    let pod = first("authentication.kubernetes.io/pod-name")
        .zip(first("authentication.kubernetes.io/pod-uid"));
    Ok(Caller { namespace, pod })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(audience: &str, user: &str) -> TokenReviewStatus {
        serde_json::from_value(serde_json::json!({
            "authenticated": true,
            "audiences": [audience],
            "user": {"username": user, "extra": {
                "authentication.kubernetes.io/pod-name": ["digits-a2-3-x7f2q"],
                "authentication.kubernetes.io/pod-uid": ["u-1"]}},
        }))
        .unwrap()
    }

    #[test]
    fn a_pod_is_known_by_its_review() {
        let user = "system:serviceaccount:team:digits";
        let audience = audience("team", "digits");
        let found = caller(&status(&audience, user), &audience).unwrap();
        assert_eq!(found.namespace, "team");
        assert!(found.is_pod("digits", 2, 3, "u-1"));
        assert!(!found.is_pod("digits", 2, 3, "u-2"), "another UID");
        assert!(!found.is_pod("digits", 1, 3, "u-1"), "another attempt");
        assert!(!found.is_pod("digits", 2, 0, "u-1"), "another index");
        assert!(!found.is_pod("digit", 2, 3, "u-1"), "another job");
    }

    #[test]
    fn a_job_whose_name_begins_like_another_pod_is_not_that_pod() {
        // Pod 3 of attempt 2 of the job `a-a1-0` is called `a-a1-0-a2-3-xxxxx`.
        let pod = Some(("a-a1-0-a2-3-x7f2q".to_owned(), "u".to_owned()));
        let found = Caller { namespace: "team".to_owned(), pod };
        assert!(found.is_pod("a-a1-0", 2, 3, "u"));
        assert!(!found.is_pod("a", 1, 0, "u"));
    }

    #[test]
    fn other_reviews_are_refused() {
        let user = "system:serviceaccount:team:digits";
        let wanted = audience("team", "digits");
        let why = caller(&status("https://kubernetes", user), &wanted).unwrap_err();
        assert!(why.contains("another audience"), "{why}");
        let why = caller(&status(&wanted, "kubernetes-admin"), &wanted).unwrap_err();
        assert!(why.contains("no service account"), "{why}");
        let refused = TokenReviewStatus {
            authenticated: Some(false),
            error: Some("token expired".to_owned()),
            ..TokenReviewStatus::default()
        };
        assert_eq!(caller(&refused, &wanted).unwrap_err(), "token expired");
    }

    #[tokio::test]
    async fn a_token_of_another_namespace_is_refused_whatever_its_audience() {
        let caller = Caller { namespace: "other".to_owned(), pod: None };
        let auth = Auth::Fixed(vec![("t".to_owned(), audience("team", "digits"), caller)]);
        let error = auth.check(Some("t"), "team", "digits").await.unwrap_err();
        assert!(matches!(error, Refusal::OtherNamespace { .. }), "{error}");
        let error = auth.check(Some("t"), "team", "digits2").await.unwrap_err();
        assert!(matches!(error, Refusal::Invalid { .. }), "{error}");
        let error = auth.check(None, "team", "digits").await.unwrap_err();
        assert!(matches!(error, Refusal::Missing { .. }), "{error}");
    }
}
