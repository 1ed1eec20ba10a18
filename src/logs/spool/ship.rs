//! Sends the segments of a spool to the collector, in order, and remembers what it has.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use reqwest::StatusCode;

use super::{Destination, Identity, Shared, disk::Batch, lock};
use crate::{
    logs::segment::MAX_FRAME,
    tls::{self, Roots},
};

/// Frames of one request. A batch holds at least one frame.
const BATCH_BYTES: usize = 1 << 20;
const _: () = assert!(MAX_FRAME <= BATCH_BYTES);
/// Lines gather for so long.
const LINGER: Duration = Duration::from_millis(250);
/// One request takes at most so long.
const REQUEST: Duration = Duration::from_secs(10);
/// Pause after the first failure, doubled at each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// Pause between two tries while the spool closes.
const CLOSING_PAUSE: Duration = Duration::from_millis(200);

/// Where segments go, and as whom.
#[derive(Debug)]
pub(super) struct Target {
    url: String,
    /// Read again before each request: the kubelet renews it.
    token_file: PathBuf,
    roots: Option<Roots>,
}

enum Answer {
    /// The collector has it on its disk.
    Stored,
    /// The collector will never take it.
    Refused(String),
    /// Try again.
    Later(String),
}

impl Target {
    pub(super) fn new(destination: Destination, identity: &Identity) -> Self {
        let Destination { collector, token_file, roots } = destination;
        let Identity { namespace, job, attempt, index, pod_uid } = identity;
        let collector = collector.trim_end_matches('/');
        let url = format!(
            "{collector}/v1/namespaces/{namespace}/jobs/{job}/segments\
             ?attempt={attempt}&index={index}&podUid={pod_uid}"
        );
        Target { url, token_file, roots }
    }

    async fn post(&self, client: &reqwest::Client, frames: Vec<u8>, within: Duration) -> Answer {
        let token = match fs::read_to_string(&self.token_file) {
            Ok(token) => token,
            Err(error) => {
                return Answer::Later(format!("{}: {error}", self.token_file.display()));
            }
        };
        let request = client.post(&self.url).bearer_auth(token.trim()).timeout(within);
        let response = match request.body(frames).send().await {
            Ok(response) => response,
            Err(error) => return Answer::Later(tls::describe(&error)),
        };
        let status = response.status();
        if status.is_success() {
            return Answer::Stored;
        }
        let text = response.text().await.unwrap_or_default();
        let message = format!("{status}: {}", text.trim());
        match status {
            StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE => Answer::Refused(message),
            _later => Answer::Later(message),
        }
    }
}

/// Runs until the spool closes and everything is sent, or its deadline.
pub(super) fn run(shared: &Shared, target: &Target) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let client = tls::client(target.roots.as_ref()).connect_timeout(Duration::from_secs(3));
    let (runtime, client) = match (runtime, client.build()) {
        (Ok(runtime), Ok(client)) => (runtime, client),
        (Err(error), _) => return trouble(shared, format!("no runtime: {error}")),
        (_, Err(error)) => return trouble(shared, format!("no HTTP client: {error}")),
    };
    let mut pause = FIRST_PAUSE;
    loop {
        let closing = shared.closing();
        let left = closing.map(|until| until.saturating_duration_since(Instant::now()));
        let taken = lock(&shared.store).batch(BATCH_BYTES);
        let batch = match taken {
            Ok(batch) => batch,
            Err(error) => {
                trouble(shared, format!("failed to read a segment: {error}"));
                None
            }
        };
        match (batch, left) {
            (_, Some(Duration::ZERO)) => return,
            // The writer may still have lines in its hands.
            (None, Some(_left)) if shared.is_drained() => return,
            (None, Some(_left)) => std::thread::sleep(Duration::from_millis(5)),
            (None, None) => shared.pause(LINGER),
            (Some(batch), left) => {
                let within = left.map_or(REQUEST, |left| left.min(REQUEST));
                let full = BATCH_BYTES / 2 < batch.frames.len();
                if send(shared, target, (&runtime, &client), batch, within) {
                    pause = FIRST_PAUSE;
                    shared.pause(if full { Duration::ZERO } else { LINGER });
                } else if left.is_some() {
                    std::thread::sleep(CLOSING_PAUSE);
                } else {
                    shared.pause(jitter(pause));
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }
}

/// Whether the batch is settled.
fn send(
    shared: &Shared,
    target: &Target,
    (runtime, client): (&tokio::runtime::Runtime, &reqwest::Client),
    batch: Batch,
    within: Duration,
) -> bool {
    let Batch { frames, lines, end, next } = batch;
    let answer = runtime.block_on(target.post(client, frames, within));
    let (settled, acknowledged, lost, message) = match answer {
        Answer::Stored => (true, lines, 0, None),
        Answer::Refused(message) => (true, 0, lines, Some(message)),
        Answer::Later(message) => (false, 0, 0, Some(message)),
    };
    let mut failed = message;
    if settled && let Err(error) = lock(&shared.store).acknowledge(end, next) {
        failed = Some(format!("failed to remember what is sent: {error}"));
    }
    let mut stats = lock(&shared.stats);
    stats.acknowledged += acknowledged;
    stats.lost += lost;
    let before = std::mem::replace(&mut stats.trouble, failed.clone());
    drop(stats);
    tell(target, before.as_deref(), failed.as_deref());
    settled
}

/// Says once what is wrong, and once that all is well again.
fn tell(target: &Target, before: Option<&str>, now: Option<&str>) {
    match (before, now) {
        (before, Some(trouble)) if before != now => {
            tracing::warn!(
                "the collector at {} does not take lines, which wait in the spool: {trouble}",
                target.url
            );
        }
        (Some(_), None) => tracing::info!("the collector takes lines again"),
        (_, Some(_)) | (None, None) => {}
    }
}

fn trouble(shared: &Shared, message: String) {
    lock(&shared.stats).trouble = Some(message);
}

/// Between half and all of it, so that pods that lost the collector together come back apart.
fn jitter(pause: Duration) -> Duration {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let nanos = now.map_or(0, |now| now.subsec_nanos());
    pause / 2 + pause / 2 * (nanos % 1024) / 1024
}
