//! What the kubelet says of a container. Pure.

use serde_json::Value;

use super::{Chain, text};
use crate::wire::TrainerExit;

/// What to do about an image that cannot be pulled.
pub(super) const IMAGE: &str =
    "is spec.cluster.image right, and does spec.cluster.imagePullSecrets let the node pull it?";

/// What keeps a container from running, or ended it. One that is being deleted will not start, and need not.
pub(super) fn trouble(container: &Value, pod: &Value, chain: &mut Chain) -> Option<String> {
    let waiting = container.pointer("/state/waiting").filter(|_state| !is_going(pod));
    if let Some(waiting) = waiting {
        let (reason, message) = (text(waiting, "/reason"), text(waiting, "/message"));
        match reason {
            "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" => {
                chain.hint(IMAGE);
                let image = text(container, "/image");
                return Some(format!("cannot pull image {image} ({reason}): {message}"));
            }
            // The ordinary time before a start has its own events if it does not end.
            "ContainerCreating" | "PodInitializing" => {
                return Some(format!("is starting ({reason}) {message}").trim_end().to_owned());
            }
            "CreateContainerConfigError" => {
                chain.hint("a secret or config map that the pod names does not exist");
            }
            _ => {}
        }
        return Some(format!("container {} waits ({reason}): {message}", text(container, "/name")));
    }
    let ended = container.pointer("/state/terminated")?;
    let code = ended.pointer("/exitCode").and_then(Value::as_i64).unwrap_or(0);
    if code == 0 {
        return None;
    }
    if text(ended, "/reason") == "OOMKilled" {
        chain.hint("spec.cluster.resources.memory is the limit of each rank: give more, or a smaller batch.unit");
        return Some("was killed: out of memory".to_owned());
    }
    let meaning = i32::try_from(code).ok().and_then(TrainerExit::from_code);
    let meaning = meaning.and_then(|exit| serde_json::to_value(exit).ok());
    let meaning = meaning
        .as_ref()
        .and_then(Value::as_str)
        .map_or_else(|| signal(code), |m| format!(" ({m})"));
    let message = termination(text(ended, "/message"));
    let message = if message.is_empty() { message } else { format!(": {message}") };
    let evicted = text(pod, "/status/reason");
    let evicted = if evicted.is_empty() { String::new() } else { format!(", {evicted}") };
    Some(format!("ended with code {code}{meaning}{evicted}{message}"))
}

/// Whether somebody has deleted a pod that is still there.
pub(super) fn is_going(pod: &Value) -> bool {
    pod.pointer("/metadata/deletionTimestamp").is_some()
}

fn signal(code: i64) -> String {
    if (129..=159).contains(&code) { format!(" (signal {})", code - 128) } else { String::new() }
}

/// The supervisor writes JSON with a sentence in it; anything else writes text.
fn termination(message: &str) -> String {
    let Ok(value) = serde_json::from_str::<Value>(message) else {
        return message.lines().next_back().unwrap_or_default().to_owned();
    };
    let sentence = ["/what", "/message"].iter().map(|field| text(&value, field));
    sentence.into_iter().find(|sentence| !sentence.is_empty()).unwrap_or_default().to_owned()
}
