//! The doctor's verdict that a launch was made with, small enough to travel with the job: from the
//! launcher to the object, the operator's status and the state of a local run.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Annotation of a job in which the launcher leaves a [`DoctorVerdict`] as JSON. The operator
/// copies the first one that it sees into the status, which ordinary users do not write.
pub const ANNOTATION: &str = "qvl.dev/doctor";
/// Largest annotation that is read, in bytes.
const LIMIT: usize = 16 * 1024;
/// Names of nodes and ids of checks that are kept of each list.
const KEPT: usize = 16;
/// Longest text of one field, in bytes: `sha256:` and 64 digits, or the name of a node.
const LONGEST: usize = 253;

/// What the doctor said right before a launch. Digests are `sha256:` and 64 digits; they show what
/// was mixed up, and are no signature.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DoctorVerdict {
    /// Digest of the whole report.
    pub digest: String,
    /// Digest of the table of rules, with the version of the program that judged.
    pub rules: String,
    /// Digest of the facts of all nodes.
    pub facts: String,
    /// Digest of the job as it was read, before anything was planned.
    pub job: String,
    /// When it was judged, in seconds since the Unix epoch.
    pub unix_seconds: i64,
    /// Results by verdict.
    pub counts: VerdictCounts,
    /// Nodes that were judged, the first 16.
    pub nodes: Vec<String>,
    /// Number of nodes that were judged.
    pub nodes_total: u32,
    /// Checks that were unknown and allowed to be (`--allow-unknown`), the first 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_unknown: Vec<String>,
    /// Digest of the report that was given with `--verdict`, which had to allow this launch too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub permission: Option<String>,
}

/// Results by verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VerdictCounts {
    pub pass: u32,
    pub warn: u32,
    pub fail: u32,
    pub unknown: u32,
    pub skipped: u32,
}

impl DoctorVerdict {
    /// The same with lists of at most 16.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        self.nodes.truncate(KEPT);
        self.allowed_unknown.truncate(KEPT);
        self
    }

    /// Reads what a launcher has left; `None` if it is anything else, or larger than this program
    /// would have made it.
    pub fn read(text: &str) -> Option<Self> {
        if LIMIT < text.len() {
            return None;
        }
        let verdict: DoctorVerdict = serde_json::from_str(text).ok()?;
        verdict.fits().then_some(verdict)
    }

    fn fits(&self) -> bool {
        let lists = [&self.nodes, &self.allowed_unknown];
        let digests = [&self.digest, &self.rules, &self.facts, &self.job];
        let mut texts = lists.into_iter().flatten().chain(digests).chain(&self.permission);
        lists.iter().all(|list| list.len() <= KEPT)
            && texts.all(|text| text.len() <= LONGEST && !text.contains('\n'))
    }

    /// `passed 3h ago on n1, n2: 120 pass, 2 warn; sha256:0123456789ab`, for a person.
    pub fn sentence(&self, ago: &str) -> String {
        let VerdictCounts { pass, warn, unknown, .. } = self.counts;
        let counted = [(warn, "warn"), (unknown, "unknown")].into_iter();
        let counted = counted.filter(|(count, _word)| 0 < *count);
        let more: String = counted.map(|(count, word)| format!(", {count} {word}")).collect();
        let allowed = match self.allowed_unknown.join(", ") {
            none if none.is_empty() => none,
            ids => format!(" (allowed: {ids})"),
        };
        let permission = self.permission.as_deref().map(short);
        let permission = permission.map(|seal| format!(", with --verdict {seal}"));
        format!(
            "passed {ago} ago {}: {pass} pass{more}{allowed}; {}{}",
            self.on(),
            short(&self.digest),
            permission.unwrap_or_default()
        )
    }

    fn on(&self) -> String {
        const SHOWN: usize = 4;
        let shown: Vec<&str> = self.nodes.iter().take(SHOWN).map(String::as_str).collect();
        match (self.nodes_total as usize).saturating_sub(shown.len()) {
            _none if shown.is_empty() => "without facts of any node".to_owned(),
            0 => format!("on {}", shown.join(", ")),
            more => format!("on {} and {more} more", shown.join(", ")),
        }
    }
}

/// `sha256:` and the first 12 digits, as people compare them.
fn short(digest: &str) -> &str {
    digest.get(.."sha256:".len() + 12).unwrap_or(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(nodes: usize) -> DoctorVerdict {
        DoctorVerdict {
            digest: format!("sha256:{:064x}", 0xfeed_u32),
            rules: format!("sha256:{:064x}", 1),
            facts: format!("sha256:{:064x}", 2),
            job: format!("sha256:{:064x}", 3),
            unix_seconds: 1_795_000_000,
            counts: VerdictCounts { pass: 120, warn: 2, fail: 0, unknown: 1, skipped: 30 },
            nodes: (0..nodes).map(|n| format!("n{n}")).collect(),
            nodes_total: u32::try_from(nodes).unwrap(),
            allowed_unknown: vec!["link-errors".to_owned()],
            permission: None,
        }
    }

    #[test]
    fn a_person_reads_one_line() {
        let few = verdict(2).sentence("3h");
        assert_eq!(
            few,
            "passed 3h ago on n0, n1: 120 pass, 2 warn, 1 unknown (allowed: link-errors); \
             sha256:000000000000"
        );
        let none = verdict(0).sentence("1s");
        assert!(none.starts_with("passed 1s ago without facts of any node: 120 pass"), "{none}");
        let many =
            DoctorVerdict { permission: Some(format!("sha256:{:064x}", 9)), ..verdict(1000) };
        let many = many.bounded().sentence("5s");
        assert!(many.contains("on n0, n1, n2, n3 and 996 more:"), "{many}");
        assert!(many.ends_with(", with --verdict sha256:000000000000"), "{many}");
    }

    /// The largest that a launcher makes is read; what is larger, or no verdict, is not.
    #[test]
    fn its_size_is_bounded_on_both_sides() {
        let long = "n".repeat(253);
        let largest = DoctorVerdict {
            nodes: vec![long.clone(); 1000],
            allowed_unknown: vec![long; 200],
            ..verdict(0)
        };
        let text = serde_json::to_string(&largest.clone().bounded()).unwrap();
        assert!(text.len() < LIMIT, "{}", text.len());
        assert_eq!(DoctorVerdict::read(&text), Some(largest.clone().bounded()));
        assert_eq!(DoctorVerdict::read(&serde_json::to_string(&largest).unwrap()), None);
        let lines = DoctorVerdict { digest: "a\nb".to_owned(), ..verdict(1) };
        assert_eq!(DoctorVerdict::read(&serde_json::to_string(&lines).unwrap()), None);
        assert_eq!(DoctorVerdict::read("{}"), None);
        assert_eq!(DoctorVerdict::read("no JSON"), None);
    }
}
