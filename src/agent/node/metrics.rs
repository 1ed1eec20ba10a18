//! What the agent of a node counts, in the text format of Prometheus. Pure.

use std::{collections::BTreeMap, fmt::Write as _};

use crate::doctor::{Counts, Verdict};

/// Everything that `/metrics` shows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    /// Name of the node.
    pub(crate) node: String,
    /// GPUs that the driver shows; `None` if it does not answer.
    pub(crate) gpus: Option<u64>,
    pub(crate) counts: Option<Counts>,
    /// Checks that do not pass.
    pub(crate) findings: Vec<(&'static str, Verdict)>,
    /// Xids by code.
    pub(crate) xids: BTreeMap<u32, u64>,
    pub(crate) log_readable: bool,
    pub(crate) log_lost: u64,
    /// Seconds since the facts were read, and since the report was written.
    pub(crate) facts_age: Option<f64>,
    pub(crate) report_age: Option<f64>,
    /// Seconds that the last look at the node took.
    pub(crate) probe_seconds: Option<f64>,
    pub(crate) writes: u64,
    pub(crate) failures: u64,
    pub(crate) report_bytes: u64,
}

impl Metrics {
    /// All of it as text. What is not known is left out.
    pub(crate) fn text(&self) -> String {
        let mut page = Page { node: &self.node, text: String::new() };
        page.one("qvl_node_gpus", "GPUs that the driver shows.", "gauge", self.gpus);
        if let Some(counts) = self.counts {
            let Counts { pass, warn, fail, unknown, skipped } = counts;
            let verdicts = [
                ("fail", fail),
                ("pass", pass),
                ("skipped", skipped),
                ("unknown", unknown),
                ("warn", warn),
            ];
            let values = verdicts.map(|(verdict, count)| (format!("verdict=\"{verdict}\""), count));
            page.many("qvl_node_checks", "Checks by verdict.", "gauge", values);
        }
        let findings = self
            .findings
            .iter()
            .map(|(id, verdict)| (format!("check=\"{id}\",verdict=\"{}\"", word(*verdict)), 1));
        page.many("qvl_node_finding", "Checks that do not pass.", "gauge", findings);
        let xids = self.xids.iter().map(|(code, count)| (format!("code=\"{code}\""), *count));
        page.many("qvl_node_xids_total", "Xids in the kernel log.", "counter", xids);
        let readable = u8::from(self.log_readable);
        page.one("qvl_node_kernel_log_readable", "1 if it can be read.", "gauge", Some(readable));
        let help = "Records that were overwritten before they were read.";
        page.one("qvl_node_kernel_log_lost_total", help, "counter", Some(self.log_lost));
        let help = "Seconds since the node was looked at.";
        page.one("qvl_node_facts_age_seconds", help, "gauge", self.facts_age);
        let help = "Seconds since the report was written.";
        page.one("qvl_node_report_age_seconds", help, "gauge", self.report_age);
        let help = "Seconds that the last look at the node took.";
        page.one("qvl_node_probe_seconds", help, "gauge", self.probe_seconds);
        let help = "Reports that were written.";
        page.one("qvl_node_report_writes_total", help, "counter", Some(self.writes));
        let help = "Reports that could not be written.";
        page.one("qvl_node_report_failures_total", help, "counter", Some(self.failures));
        let help = "Bytes of the last report.";
        page.one("qvl_node_report_bytes", help, "gauge", Some(self.report_bytes));
        page.text
    }
}

const fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Skipped => "skipped",
        Verdict::Pass => "pass",
        Verdict::Warn => "warn",
        Verdict::Unknown => "unknown",
        Verdict::Fail => "fail",
    }
}

struct Page<'a> {
    node: &'a str,
    text: String,
}

impl Page<'_> {
    fn one(&mut self, name: &str, help: &str, kind: &str, value: Option<impl ToString>) {
        let values = value.into_iter().map(|value| (String::new(), value.to_string()));
        self.many(name, help, kind, values);
    }

    fn many<V: ToString>(
        &mut self,
        name: &str,
        help: &str,
        kind: &str,
        values: impl IntoIterator<Item = (String, V)>,
    ) {
        let _never = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in values {
            let comma = if labels.is_empty() { "" } else { "," };
            let (node, value) = (self.node, value.to_string());
            let _never = writeln!(self.text, "{name}{{node=\"{node}\"{comma}{labels}}} {value}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_in_the_format_of_prometheus_and_leaves_out_what_is_not_known() {
        let metrics = Metrics {
            node: "n1".to_owned(),
            gpus: Some(2),
            counts: Some(Counts { pass: 20, warn: 0, fail: 1, unknown: 2, skipped: 9 }),
            findings: vec![("xid-seen", Verdict::Fail)],
            xids: BTreeMap::from([(79, 1)]),
            facts_age: Some(1.5),
            ..Metrics::default()
        };
        let text = metrics.text();
        for line in [
            "# TYPE qvl_node_gpus gauge",
            "qvl_node_gpus{node=\"n1\"} 2",
            "qvl_node_checks{node=\"n1\",verdict=\"fail\"} 1",
            "qvl_node_checks{node=\"n1\",verdict=\"pass\"} 20",
            "qvl_node_finding{node=\"n1\",check=\"xid-seen\",verdict=\"fail\"} 1",
            "qvl_node_xids_total{node=\"n1\",code=\"79\"} 1",
            "qvl_node_facts_age_seconds{node=\"n1\"} 1.5",
            "qvl_node_kernel_log_readable{node=\"n1\"} 0",
        ] {
            assert!(text.lines().any(|other| other == line), "no line `{line}` in\n{text}");
        }
        assert!(!text.contains("qvl_node_report_age_seconds{"), "never written\n{text}");
    }
}
