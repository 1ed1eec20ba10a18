//! Requests that nobody should believe, with tokens that the API server made.

use std::{
    convert::Infallible,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use futures::{StreamExt, stream};
use qvl::{
    logs::segment::{Body, Record},
    operator::broker::Leader,
    wire::sync::{PodPhase, SYNC_LIMIT, SyncReply, SyncRequest},
};
use serde_json::{Value, json};

use super::{
    bench::{Collector, Job, Server, at_once, block_on, get, post},
    certificates::{SERVICE, client},
};

/// The first pod of a job says that it tests its machine.
fn words(job: &Job, sequence: u64) -> SyncRequest {
    SyncRequest {
        v: 1,
        attempt: 1,
        index: 0,
        pod_uid: job.pods[0].uid.clone(),
        node: "node-0".to_owned(),
        address: "10.0.0.1".to_owned(),
        port: 4000,
        sequence,
        phase: PodPhase::Preflight,
        last_epoch: 0,
        ready: false,
        leaving: false,
        slow_seconds: None,
        step: None,
        checkpoint_step: None,
        door: None,
        pairs: Vec::new(),
        notes: Vec::new(),
    }
}

fn bytes(words: &SyncRequest) -> Vec<u8> {
    serde_json::to_vec(words).unwrap()
}

fn url(server: &Server, job: &Job) -> String {
    format!("{}/v1/namespaces/{}/jobs/{}/sync", server.url, job.namespace, job.name)
}

/// A refusal has a status, an error that says what is wrong, and a hint.
#[track_caller]
fn assert_refused((status, text): (u16, String), expected: u16, part: &str) {
    let said: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{status}: {text}"));
    let (error, hint) = (said["error"].as_str().unwrap(), said["hint"].as_str().unwrap());
    assert_eq!(status, expected, "{error}");
    assert!(error.contains(part), "`{error}` has no `{part}`");
    assert!(10 < hint.len(), "{error}: {hint}");
}

/// The same token, which ended an hour ago: signed anew with the key of the API server.
fn expired(job: &Job, token: &str) -> String {
    use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
    let [head, claims, _signature]: [&str; 3] =
        token.split('.').collect::<Vec<_>>().try_into().unwrap();
    let mut claims: Value =
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
    for (claim, earlier) in [("iat", 10_800), ("nbf", 10_800), ("exp", 7200)] {
        claims[claim] = json!(claims[claim].as_u64().unwrap() - earlier);
    }
    let signed = format!("{head}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
    let pem = std::fs::read_to_string(job.cluster.places().run().join("pki/sa.key")).unwrap();
    let key: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let key = base64::engine::general_purpose::STANDARD.decode(key).unwrap();
    let random = ring::rand::SystemRandom::new();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &key, &random).unwrap();
    let signature = pair.sign(&random, signed.as_bytes()).unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
}

/// Tokens that are good for something, but not for pod 0 of the job: with the status and a part
/// of the error.
fn wrong_tokens(job: &Job, other: &Job) -> Vec<(&'static str, Option<String>, u16, &'static str)> {
    let good = job.token(0);
    let gone = job.pod(&format!("{}-a1-0-gone9", job.name));
    let of_gone = job.token_of(&gone, &job.audience());
    job.cluster.run(&format!("delete pod {} -n {} --now", gone.name, job.namespace));
    let unbound =
        format!("create token {} -n {} --audience {}", job.name, job.namespace, job.audience());
    let unbound = job.cluster.run(&unbound).trim().to_owned();
    let forged = format!("{}{}", &good[..good.len() - 4], "AAAA");
    let long = "a".repeat(20_000);
    vec![
        ("none", None, 401, "no token"),
        ("noise", Some("noise".to_owned()), 401, "not valid"),
        ("very long", Some(long), 401, "it has 20000 bytes"),
        ("forged", Some(forged), 401, "not valid"),
        ("expired", Some(expired(job, &good)), 401, "expired"),
        ("of a pod that is gone", Some(of_gone), 401, "not valid"),
        (
            "for the API server",
            Some(job.token_of(&job.pods[0], "https://kubernetes.default.svc")),
            401,
            "not valid",
        ),
        ("of another job, made for that job", Some(other.token(0)), 401, "not valid"),
        (
            "of another namespace, made for this job",
            Some(other.token_of(&other.pods[0], &job.audience())),
            403,
            "belongs to namespace",
        ),
        ("of the next pod", Some(job.token(1)), 403, "does not belong to pod 0"),
        ("of no pod", Some(unbound), 403, "does not belong to pod 0"),
    ]
}

#[test]
fn the_broker_believes_a_pod_only_about_itself() {
    let (job, other) = (Job::new("digits", 2), Job::new("digits", 1));
    let server = Server::start(&job);
    let (url, good) = (url(&server, &job), job.token(0));
    let said = bytes(&words(&job, 5));
    for (which, token, status, part) in wrong_tokens(&job, &other) {
        let answer = post(&url, token.as_deref(), said.clone());
        assert_eq!(answer.0, status, "{which}: {}", answer.1);
        assert_refused(answer, status, part);
    }
    assert_eq!(server.view().nodes, ["", ""], "nobody was believed");

    let reply = post(&url, Some(&good), said.clone());
    assert_eq!((reply.0, serde_json::from_str(&reply.1).ok()), (200, Some(SyncReply::Continue)));
    assert_eq!(server.view().nodes, ["node-0", ""]);

    let ask = |words: SyncRequest| post(&url, Some(&good), bytes(&words));
    assert_refused(ask(words(&job, 5)), 412, "request 5 of pod 0 came late or twice");
    assert_refused(ask(words(&job, 4)), 412, "request 5 was answered");
    let index = |index| SyncRequest { index, ..words(&job, 6) };
    assert_refused(ask(index(1)), 403, "does not belong to pod 1");
    assert_refused(ask(SyncRequest { attempt: 2, ..words(&job, 6) }), 403, "attempt 2");
    let uid = SyncRequest { pod_uid: job.pods[1].uid.clone(), ..words(&job, 6) };
    assert_refused(ask(uid), 403, "does not belong to pod 0");
    assert_refused(ask(SyncRequest { v: 2, ..words(&job, 6) }), 400, "version 2");
    let address = SyncRequest { address: "not an address".to_owned(), ..words(&job, 6) };
    assert_refused(ask(address), 400, "`address`");
    assert_refused(post(&url, Some(&good), b"{\"v\":1".to_vec()), 400, "not understood");
    assert_refused(post(&url, Some(&good), vec![b'x'; 99]), 400, "not understood");
    let large = vec![b' '; SYNC_LIMIT + 1];
    assert_refused(post(&url, Some(&good), large), 413, "more than 65536 bytes");
    assert_eq!(server.view().nodes, ["node-0", ""], "none of it changed anything");

    // A job of the same name elsewhere, which nobody runs.
    let elsewhere = format!("{}/v1/namespaces/{}/jobs/digits/sync", server.url, other.namespace);
    let unknown = SyncRequest { pod_uid: other.pods[0].uid.clone(), ..words(&job, 1) };
    let token = other.token(0);
    assert_refused(post(&elsewhere, Some(&token), bytes(&unknown)), 404, "no job `digits`");
    assert_eq!(get(&url, Some(&good)).0, 405);
}

#[test]
fn the_broker_has_patience_for_one_request_and_not_for_many() {
    let job = Job::new("busy", 1);
    let server = Server::start(&job);
    let (url, good) = (url(&server, &job), job.token(0));
    // A body that stops in the middle.
    let begin = Instant::now();
    let first_words = stream::once(async { Ok::<_, Infallible>("{\"v\":") });
    let body = reqwest::Body::wrap_stream(first_words.chain(stream::pending()));
    let answer = block_on(async {
        let asked = client().post(&url).bearer_auth(&good).body(body);
        let answer = asked.timeout(Duration::from_secs(60)).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    });
    assert_refused(answer, 408, "did not arrive in time");
    assert!(Duration::from_secs(4) < begin.elapsed(), "{:?}", begin.elapsed());
    // More requests than a pod has reason for.
    let many = at_once(300, |client, _i| {
        client.post(&url).bearer_auth(&good).body(bytes(&words(&job, 0)))
    });
    assert_refused(first(&many, 429), 429, "job `busy` asks too often");
    assert!(many.iter().any(|(status, _text)| *status == 200), "those before are answered");
    // Guesses: after some of them the API server is not asked any more.
    let guesses = at_once(300, |client, i| client.post(&url).bearer_auth(format!("guess-{i}")));
    assert_refused(first(&guesses, 401), 401, "not valid");
    assert_refused(first(&guesses, 429), 429, "were not believed");
}

fn first(answers: &[(u16, String)], status: u16) -> (u16, String) {
    answers.iter().find(|answer| answer.0 == status).unwrap().clone()
}

#[test]
fn replicas_pass_on_to_the_leader_what_they_believe() {
    let job = Job::new("many", 1);
    // A lease has addresses of replicas, which no certificate is for.
    let (leads, follows) = (Server::named(&job, &[SERVICE]), Server::start(&job));
    follows.leader.send(Leader::Other(leads.url.clone())).unwrap();
    let (url, good) = (url(&follows, &job), job.token(0));
    let (status, text) = post(&url, Some(&good), bytes(&words(&job, 1)));
    assert_eq!((status, serde_json::from_str(&text).ok()), (200, Some(SyncReply::Continue)));
    let nodes = [leads.view().nodes, follows.view().nodes];
    assert_eq!(nodes, [["node-0"], [""]], "the leader heard it, and nobody else");
    // Its refusals come back as they are; a wrong token gets no further than here.
    assert_refused(post(&url, Some(&good), bytes(&words(&job, 1))), 412, "came late or twice");
    assert_refused(post(&url, Some("noise"), bytes(&words(&job, 2))), 401, "not valid");
    let large = vec![b' '; SYNC_LIMIT + 1];
    assert_refused(post(&url, Some(&good), large), 413, "more than");
    // Two replicas that take each other for the leader do not play ping-pong.
    leads.leader.send(Leader::Other(follows.url.clone())).unwrap();
    assert_refused(post(&url, Some(&good), bytes(&words(&job, 2))), 503, "no replica");
    // Somebody else at the leader's address gets no token.
    let stranger = Server::named(&job, &["127.0.0.1", "elsewhere.test"]);
    follows.leader.send(Leader::Other(stranger.url.clone())).unwrap();
    let refused = post(&url, Some(&good), bytes(&words(&job, 2)));
    assert_refused(refused, 502, "its certificate is not for this name");
    assert_eq!(stranger.view().nodes, [""]);
    let gone = leads.url.clone();
    leads.stop();
    follows.leader.send(Leader::Other(gone)).unwrap();
    assert_refused(post(&url, Some(&good), bytes(&words(&job, 2))), 502, "does not answer");
    follows.leader.send(Leader::Unknown).unwrap();
    assert_refused(post(&url, Some(&good), bytes(&words(&job, 2))), 503, "no replica");
}

/// A segment with one line.
fn segment(rank: u32, number: u64) -> Vec<u8> {
    let (attempt, epoch, time_ms, body) = (1, 1, 5, Body::Line(format!("line {number}")));
    let mut bytes = Vec::new();
    Record { rank, attempt, epoch, time_ms, number, body }.encode(&mut bytes);
    bytes
}

/// The collector answers in plain text.
#[track_caller]
fn refused((got, text): (u16, String), status: u16, part: &str) {
    assert_eq!(got, status, "{text}");
    assert!(text.contains(part) && text.contains("\nhint: "), "no `{part}` in `{text}`");
}

#[test]
fn the_collector_believes_a_pod_only_about_its_own_ranks() {
    let (job, other) = (Job::new("digits", 2), Job::new("digits", 1));
    let collector = Collector::start(&job);
    let root = format!("{}/v1/namespaces/{}/jobs/digits", collector.url, job.namespace);
    let uid = &job.pods[0].uid;
    let segments = format!("{root}/segments?attempt=1&index=0&podUid={uid}");
    for (which, token, status, part) in wrong_tokens(&job, &other) {
        let answer = post(&segments, token.as_deref(), segment(0, 0));
        assert_eq!(answer.0, status, "{which}: {}", answer.1);
        let part = if part.starts_with("does not") { "is not that of pod 0" } else { part };
        refused(answer, status, part);
    }
    let good = job.token(0);
    let next = format!("{root}/segments?attempt=1&index=1&podUid={uid}");
    refused(post(&next, Some(&good), segment(2, 0)), 403, "not that of pod 1");
    refused(post(&segments, Some(&good), segment(16, 0)), 403, "rank 16");
    refused(post(&segments, Some(&good), b"noise".to_vec()), 400, "damaged");
    refused(post(&segments, Some(&good), vec![0; (4 << 20) + 1]), 413, "at most");
    // What comes twice is stored once.
    for new in [1, 0] {
        let (status, text) = post(&segments, Some(&good), segment(0, 0));
        assert_eq!(status, 200, "{text}");
        assert!(text.contains(&format!("\"lines\":{new}")), "{text}");
    }
}

#[test]
fn the_collector_shows_lines_to_accounts_of_the_namespace_only() {
    let (job, other) = (Job::new("digits", 1), Job::new("digits", 1));
    let collector = Collector::start(&job);
    let root = format!("{}/v1/namespaces/{}/jobs/digits", collector.url, job.namespace);
    let segments = format!("{root}/segments?attempt=1&index=0&podUid={}", job.pods[0].uid);
    assert_eq!(post(&segments, Some(&job.token(0)), segment(0, 0)).0, 200);
    let lines = format!("{root}/lines");
    let of = |namespace: &str, audience: &str| {
        let words = format!("create token default -n {namespace} --audience {audience}");
        job.cluster.run(&words).trim().to_owned()
    };
    let reader = of(&job.namespace, &job.audience());
    let (status, text) = get(&lines, Some(&reader));
    assert_eq!((status, text.lines().count()), (200, 1), "{text}");
    refused(get(&lines, None), 401, "no token");
    refused(get(&lines, Some(&of(&job.namespace, &other.audience()))), 401, "not valid");
    refused(get(&lines, Some(&of(&other.namespace, &job.audience()))), 403, "belongs to namespace");
    refused(get(&lines, Some(&expired(&job, &reader))), 401, "expired");
    // Guesses: after some of them the API server is not asked any more.
    let guesses = at_once(300, |client, i| client.get(&lines).bearer_auth(format!("guess-{i}")));
    refused(first(&guesses, 429), 429, "were not believed");
}
