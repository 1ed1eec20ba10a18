//! `qvl events`: what the cluster said about a job, in order. Pure.

use std::io::{self, Write};

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use super::{
    objects::text,
    table::{self, age, row},
};

/// When the event was last seen.
pub(crate) fn time(event: &Value) -> Option<Timestamp> {
    ["/series/lastObservedTime", "/lastTimestamp", "/eventTime", "/metadata/creationTimestamp"]
        .iter()
        .find_map(|pointer| text(event, pointer).parse().ok())
}

/// `Pod/digits-a1-0-x7k2p`.
pub(crate) fn about(event: &Value) -> String {
    format!("{}/{}", text(event, "/involvedObject/kind"), text(event, "/involvedObject/name"))
}

/// How often it was seen.
pub(crate) fn times(event: &Value) -> u64 {
    let number = |pointer: &str| event.pointer(pointer).and_then(Value::as_u64);
    number("/series/count").or_else(|| number("/count")).unwrap_or(1)
}

/// The table, oldest first.
pub(crate) fn print(events: &[Value], now: Timestamp, out: &mut impl Write) -> io::Result<()> {
    let mut events: Vec<&Value> = events.iter().collect();
    events.sort_by_key(|event| (time(event), about(event)));
    let mut rows = vec![row(["AGE", "TYPE", "OBJECT", "REASON", "MESSAGE"])];
    rows.extend(events.iter().map(|event| {
        let times = times(event);
        let often = if times < 2 { String::new() } else { format!(" (x{times})") };
        vec![
            age(time(event), now),
            text(event, "/type").to_owned(),
            about(event),
            text(event, "/reason").to_owned(),
            text(event, "/message").replace('\n', " ").trim_end().to_owned() + &often,
        ]
    }));
    table::print(&rows, out)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_are_told_in_order_of_time() {
        let event = |kind: &str, name: &str, time: &str, count: u64| {
            json!({"type": "Warning", "reason": "FailedScheduling", "message": "0/2 nodes\n",
                "involvedObject": {"kind": kind, "name": name}, "count": count, "lastTimestamp": time})
        };
        let micro = json!({"type": "Normal", "reason": "Started", "message": "attempt 1",
            "involvedObject": {"kind": "FineTuneJob", "name": "a"}, "lastTimestamp": null,
            "eventTime": "2026-05-01T12:00:00.000001Z"});
        let events = [event("Pod", "a-a1-0-x", "2026-05-01T12:00:30Z", 3), micro];
        let mut out = Vec::new();
        print(&events, "2026-05-01T12:01:00Z".parse().unwrap(), &mut out).unwrap();
        insta::assert_snapshot!(String::from_utf8(out).unwrap(), @r"
        AGE  TYPE     OBJECT         REASON            MESSAGE
        60s  Normal   FineTuneJob/a  Started           attempt 1
        30s  Warning  Pod/a-a1-0-x   FailedScheduling  0/2 nodes (x3)
        ");
    }
}
