//! The thread that speaks to the broker. It repeats the newest words every second, and at once
//! when they have changed; nobody waits for it.

use std::{
    fs,
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde::Deserialize;

use super::{Error, Pod};
use crate::{
    tls,
    wire::sync::{PodPhase, SyncReply, SyncRequest},
};

/// Between two requests while nothing changes.
const EVERY: Duration = Duration::from_secs(1);
/// The same while an answer decides how it goes on.
const URGENT: Duration = Duration::from_millis(250);
/// A request without an answer is given up.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The broker is asked less often when it is away.
const LONGEST: Duration = Duration::from_secs(5);

/// What the broker says to the newest words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Reply(SyncReply),
    /// Another pod or another attempt does the work of this one.
    Superseded,
}

#[derive(Debug)]
struct State {
    request: SyncRequest,
    /// Grows with every change of the phase: an answer to older words is none.
    generation: u64,
    answer: Option<(u64, Answer)>,
    over: bool,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Speaks to the broker until it is dropped.
#[derive(Debug)]
pub(super) struct Dialogue {
    shared: Arc<Shared>,
}

impl Dialogue {
    pub(super) fn start(pod: &Pod, request: SyncRequest) -> Result<Self, Error> {
        let state = State { request, generation: 0, answer: None, over: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let client = tls::client(pod.roots.as_ref()).timeout(TIMEOUT).build();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let line = Line {
            url: format!(
                "{}/v1/namespaces/{}/jobs/{}/sync",
                pod.broker.trim_end_matches('/'),
                pod.namespace,
                pod.job
            ),
            token_file: pod.token_file.clone(),
            client: client.map_err(|source| Error::Http { source })?,
            runtime: runtime.map_err(|source| Error::Thread { source })?,
            trouble: String::new(),
        };
        let speaking = Arc::clone(&shared);
        thread::Builder::new()
            .name("dialogue".to_owned())
            .spawn(move || speak(&speaking, line))
            .map_err(|source| Error::Thread { source })?;
        Ok(Dialogue { shared })
    }

    /// Changes what is said. A new phase is said at once, and old answers are forgotten.
    pub(super) fn change(&self, edit: impl FnOnce(&mut SyncRequest)) {
        let mut state = self.shared.lock();
        let told =
            |request: &SyncRequest| (request.phase.clone(), request.leaving, request.door.clone());
        let before = told(&state.request);
        edit(&mut state.request);
        if before != told(&state.request) {
            state.generation += 1;
            self.shared.changed.notify_all();
        }
    }

    /// What the broker said last to what is said now; each answer is given once.
    pub(super) fn answer(&self) -> Option<Answer> {
        let mut state = self.shared.lock();
        let generation = state.generation;
        state.answer.take().filter(|(to, _answer)| *to == generation).map(|(_to, answer)| answer)
    }
}

impl Drop for Dialogue {
    fn drop(&mut self) {
        self.shared.lock().over = true;
        self.shared.changed.notify_all();
    }
}

struct Line {
    url: String,
    token_file: PathBuf,
    client: reqwest::Client,
    runtime: tokio::runtime::Runtime,
    /// The last trouble that was told.
    trouble: String,
}

/// The broker's explanation of a refusal.
#[derive(Debug, Deserialize)]
struct Explanation {
    error: String,
    hint: String,
}

fn speak(shared: &Shared, mut line: Line) {
    let mut failures = 0;
    let mut sequence = now_ms();
    loop {
        let (mut request, generation) = {
            let state = shared.lock();
            if state.over {
                return;
            }
            (state.request.clone(), state.generation)
        };
        // A clock that was set back must not make the newest words look old.
        sequence = now_ms().max(sequence + 1);
        request.sequence = sequence;
        let begin = Instant::now();
        match line.ask(&request) {
            Ok(answer) => {
                failures = 0;
                line.tell(String::new());
                shared.lock().answer = Some((generation, answer));
            }
            Err(trouble) => {
                failures += 1;
                line.tell(trouble);
            }
        }
        let pause = match request.phase {
            _ if 3 < failures => LONGEST,
            PodPhase::Preflight if request.door.is_some() => URGENT,
            PodPhase::Preflight | PodPhase::Running { .. } => EVERY,
            PodPhase::Joining
            | PodPhase::Ended { .. }
            | PodPhase::Done { .. }
            | PodPhase::Refused { .. } => URGENT,
        };
        rest(shared, generation, begin + pause);
    }
}

/// Waits until then, or until there is something new to say.
fn rest(shared: &Shared, generation: u64, until: Instant) {
    let mut state = shared.lock();
    while state.generation == generation && !state.over {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        let waited = shared.changed.wait_timeout(state, left);
        state = waited.unwrap_or_else(PoisonError::into_inner).0;
    }
}

impl Line {
    fn ask(&self, request: &SyncRequest) -> Result<Answer, String> {
        // The kubelet renews the token in its file.
        let token = fs::read_to_string(&self.token_file).map_err(|error| {
            format!("failed to read the token `{}`: {error}", self.token_file.display())
        })?;
        self.runtime.block_on(async {
            let sent = self.client.post(&self.url).bearer_auth(token.trim()).json(request).send();
            let response = sent.await.map_err(|error| tls::describe(&error))?;
            let status = response.status();
            if status.is_success() {
                let reply = response.json::<SyncReply>().await;
                let reply = reply.map_err(|error| tls::describe(&error))?;
                return Ok(Answer::Reply(reply));
            }
            if status == reqwest::StatusCode::CONFLICT {
                return Ok(Answer::Superseded);
            }
            let text = response.text().await.unwrap_or_default();
            Err(match serde_json::from_str(&text) {
                Ok(Explanation { error, hint }) => format!("{status}: {error} (hint: {hint})"),
                // It is not the broker that answers, or not over TLS.
                Err(_no_explanation) => format!("{status}: {}", text.trim()),
            })
        })
    }

    /// Says once what is wrong, and once that all is well again.
    fn tell(&mut self, trouble: String) {
        if trouble == self.trouble {
            return;
        }
        if trouble.is_empty() {
            tracing::info!("the broker answers again");
        } else {
            tracing::warn!(
                "the broker at {} does not answer, trainers that run train on: {trouble}",
                self.url
            );
        }
        self.trouble = trouble;
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
