//! What users should hear of as Events. Pure: made of the status as it is written, so nothing is
//! told that did not happen, and an operator that starts tells the same things by the same names.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::{
    conditions::{
        self, CHILDREN_APPLIED, COMPLETE, FAILED, PROGRESSING, QUOTA_RESERVED, RESTARTING,
        SUSPENDED,
    },
    observed::Observed,
};
use crate::api::job::LastFailure;

/// Older news are none: their Events may be forgotten already, and would be told twice.
const RECENT_SECONDS: i64 = 600;

/// One Event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// Part of the Event's name: the same for the same happening, whoever tells of it.
    pub key: String,
    pub warning: bool,
    pub reason: String,
    /// One sentence.
    pub note: String,
}

/// A failure, as far as it tells it apart from others: epoch and rank.
pub type FailureId = (u32, u32);

/// Which failure it is.
pub fn id(failure: &LastFailure) -> FailureId {
    (failure.epoch, failure.rank)
}

/// News that were not told yet.
pub fn news(observed: &Observed) -> Vec<News> {
    let mut all = recent(observed);
    all.retain(|news| !observed.told.contains(&news.key));
    all
}

/// All that is new enough to be told, told already or not.
pub fn recent(observed: &Observed) -> Vec<News> {
    let conditions = observed.status().conditions.iter();
    attempt(observed)
        .into_iter()
        .chain(failure(observed))
        .chain(conditions.filter_map(|condition| of_condition(observed, condition)))
        .collect()
}

fn is_recent(observed: &Observed, second: i64) -> bool {
    observed.now.as_second() - second < RECENT_SECONDS
}

fn attempt(observed: &Observed) -> Option<News> {
    let attempt = observed.status().attempt;
    let created = observed.attempt(attempt)?.created?;
    let pods = observed.pods_wanted();
    let ranks = observed.ranks_per_pod();
    is_recent(observed, created.as_second()).then(|| News {
        key: format!("attempt-{attempt}"),
        warning: false,
        reason: "AttemptStarted".to_owned(),
        note: format!("attempt {attempt} begins; pods: {pods}, ranks in each: {ranks}"),
    })
}

/// A failure has no time: it is new if it came while this operator ran.
fn failure(observed: &Observed) -> Vec<News> {
    let status = observed.status();
    let Some(failure) = &status.last_failure else { return Vec::new() };
    if !observed.looked || observed.first_failure == Some(id(failure)) {
        return Vec::new();
    }
    let LastFailure { rank, epoch, step, .. } = failure;
    let mut news = vec![News {
        key: format!("rank-failed-{epoch}-{rank}"),
        warning: true,
        reason: "RankFailed".to_owned(),
        note: format!("{} (epoch {epoch}, step {step})", failure.sentence()),
    }];
    if *epoch < status.epoch && conditions::is_true(&status.conditions, PROGRESSING) {
        let (counted, max) = (status.restarts.counted, observed.job.spec.failure.max_restarts);
        let again = status.epoch;
        news.push(News {
            key: format!("restarted-{epoch}"),
            warning: false,
            reason: "Restarted".to_owned(),
            note: format!("all ranks train again in epoch {again}; restarts: {counted} of {max}"),
        });
    }
    news
}

fn of_condition(observed: &Observed, condition: &Condition) -> Option<News> {
    let since = condition.last_transition_time.0.as_second();
    let truth = condition.status == "True";
    let (kind, reason) = (condition.type_.as_str(), condition.reason.as_str());
    let (warning, reason) = match (kind, truth, reason) {
        (COMPLETE, true, _) => (false, "Succeeded"),
        (FAILED, true, _) => (true, "Failed"),
        (SUSPENDED, true, _) => (false, "Suspended"),
        (SUSPENDED, false, "Resumed") => (false, "Resumed"),
        (RESTARTING, true, "Preempted" | "Evicted") => (false, reason),
        (RESTARTING, true, _) => (true, reason),
        (QUOTA_RESERVED, false, _) | (QUOTA_RESERVED, true, "Admitted") => (false, reason),
        (PROGRESSING, false, "Stalled") => (true, "Stalled"),
        (CHILDREN_APPLIED, false, "Refused") => (true, "Refused"),
        _ => return None,
    };
    let message = &condition.message;
    let note = match reason {
        "Failed" => format!("{}: {message}", condition.reason),
        "Resumed" => "spec.suspend is false".to_owned(),
        _ => message.clone(),
    };
    is_recent(observed, since).then(|| News {
        key: format!("{kind}-{reason}-{since}").to_lowercase(),
        warning,
        reason: reason.to_owned(),
        note,
    })
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;
    use crate::operator::{
        decide::Decision,
        outcome::{End, Kind},
        status, testing,
    };

    fn reasons(observed: &Observed) -> Vec<(String, String)> {
        let news = news(observed).into_iter();
        news.map(|news| (news.reason, news.note)).collect()
    }

    fn after(observed: &Observed, decision: &Decision) -> Observed {
        let mut after = observed.clone();
        after.job.status = Some(status::status(observed, decision));
        after
    }

    #[test]
    fn an_end_is_told_once_and_not_for_ever() {
        let end = End {
            kind: Kind::NotStarted,
            reason: "StartTimeout",
            message: "not all pods were running after 600 s".to_owned(),
            exclude: None,
            failure: None,
        };
        let begun = after(&testing::observed(), &Decision::Begin { attempt: 1 });
        let mut given_up = after(&begun, &Decision::GiveUp(Box::new(end)));
        let expected =
            ("StartTimeout".to_owned(), "not all pods were running after 600 s".to_owned());
        assert_eq!(reasons(&given_up), [expected]);
        let key = news(&given_up)[0].key.clone();
        given_up.now += SignedDuration::from_secs(300);
        assert_eq!(news(&given_up)[0].key, key, "its name does not depend on when it is told");
        given_up.told.insert(key);
        assert_eq!(reasons(&given_up), []);
        given_up.told.clear();
        given_up.now += SignedDuration::from_secs(301);
        assert_eq!(reasons(&given_up), []);
    }

    #[test]
    fn suspended_resumed_and_done_are_told_in_turn() {
        let begun = after(&testing::observed(), &Decision::Begin { attempt: 1 });
        let suspended = after(&begun, &Decision::Suspended);
        let resumed = after(&suspended, &Decision::Begin { attempt: 2 });
        let done = after(&begun, &Decision::Finish(None));
        let first = |observed: &Observed| reasons(observed).into_iter().next().unwrap().0;
        assert_eq!(
            [first(&suspended), first(&resumed), first(&done)],
            ["Suspended", "Resumed", "Succeeded"]
        );
    }

    #[test]
    fn a_failure_that_was_there_before_the_operator_is_no_news() {
        let mut observed = after(&testing::observed(), &Decision::Begin { attempt: 1 });
        let failure: LastFailure = serde_json::from_value(serde_json::json!({
            "class": "killed", "rank": 1, "node": "n2", "what": "rank 1 was killed by signal 9",
            "epoch": 3, "step": 120,
        }))
        .unwrap();
        let mut status = observed.status().clone();
        status.last_failure = Some(failure);
        observed.job.status = Some(status);
        assert_eq!(reasons(&observed), []);
        (observed.looked, observed.first_failure) = (true, Some((3, 1)));
        assert_eq!(reasons(&observed), []);
        observed.first_failure = None;
        let expected = "rank 1 on n2 was killed by signal 9 (epoch 3, step 120)";
        assert_eq!(reasons(&observed), [("RankFailed".to_owned(), expected.to_owned())]);
    }
}
