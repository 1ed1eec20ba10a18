//! One line of a log: who wrote it, when, and what it says.

use std::sync::LazyLock;

use jiff::{civil, tz::TimeZone};
use regex::Regex;

/// A time, in milliseconds. Times of different forms cannot be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) form: Form,
    pub(super) ms: i64,
}

/// What is known about a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// With its zone, or since the Unix epoch.
    Absolute,
    /// A date and a time of an unknown zone.
    Local,
    /// Without a year, as glog and syslog write it.
    Yearless,
}

static ESCAPES: LazyLock<Regex> = LazyLock::new(|| regex(r"\x1b\[[0-9;?]*[ -/]*[@-~]"));
static NUMBERED: LazyLock<Regex> = LazyLock::new(|| regex(r"^(\d{13}) \d+ "));
static RANK: LazyLock<Regex> = LazyLock::new(|| {
    regex(
        r#"^\s*\[(?:rank|default)(\d+)\]|^\s*rank[ =]?(\d+)\s*[|:]|^\[\d+,(\d+)\]<std|^\S+ (?:\S+ )?a\d+ r(\d+)  |\[(?:PG [^\]]*)?Rank (\d+)\]|^\[supervisor\] rank (\d+)\b|^culprit: rank (\d+)\b|"(?:rank|culprit)":\s*(\d+)"#,
    )
});
static LOCAL_RANK: LazyLock<Regex> = LazyLock::new(|| regex(r"\blocal_rank: (\d+)"));
static EPOCH: LazyLock<Regex> = LazyLock::new(|| regex(r#"^(\d{13})\b|"time_ms":\s*(\d{12,14})"#));
static DATE: LazyLock<Regex> = LazyLock::new(|| {
    regex(
        r"\b(\d{4})[-/](\d\d)[-/](\d\d)[T _](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,9}))?(Z|[+-]\d\d:?\d\d)?",
    )
});
static GLOG: LazyLock<Regex> =
    LazyLock::new(|| regex(r"\b[IWEF](\d{1,2})(\d\d) (\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?"));
static SYSLOG: LazyLock<Regex> = LazyLock::new(|| {
    regex(
        r"\b(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) +(\d{1,2}) (\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?",
    )
});

fn regex(text: &str) -> Regex {
    Regex::new(text).expect("a constant")
}

/// The text of a line: without colours, control characters, and the wrapping of a log in JSON.
pub(super) fn text(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text = if text.contains('\x1b') { ESCAPES.replace_all(&text, "") } else { text };
    let mut text = text.into_owned();
    text.retain(|c| c == '\t' || !c.is_control());
    if text.starts_with('{') { unwrapped(&text).unwrap_or(text) } else { text }
}

/// What a program wrote, if the line is how Docker or `qvl logs` keeps it.
fn unwrapped(text: &str) -> Option<String> {
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    let inner = ["log", "text"].iter().find_map(|name| value.get(name)?.as_str())?;
    let place = ["time_ms", "rank"].iter().filter_map(|name| {
        let number = value.get(name)?.as_u64()?;
        Some(format!("\"{name}\":{number} "))
    });
    let time = value.get("time").and_then(serde_json::Value::as_str).unwrap_or_default();
    Some(format!("{}{time} {}", place.collect::<String>(), inner.trim_end()).trim().to_owned())
}

/// Who wrote the line: `rank 3`, or `local rank 3` if only the place on the node is known.
pub(super) fn rank(text: &str) -> Option<String> {
    let number = |found: regex::Captures<'_>| -> Option<u32> {
        found.iter().skip(1).flatten().next()?.as_str().parse().ok()
    };
    let global = RANK.captures(text).and_then(number).map(|rank| format!("rank {rank}"));
    let local = || LOCAL_RANK.captures(text).and_then(number);
    global.or_else(|| local().map(|rank| format!("local rank {rank}")))
}

/// The evidence without what only says where it stands.
pub(super) fn body(text: &str) -> &str {
    NUMBERED.find(text).map_or(text, |found| &text[found.end()..])
}

/// Whether a line may hold a time: cheap, because it is asked of every line.
pub(super) fn may_have_time(bytes: &[u8]) -> bool {
    let head = &bytes[..bytes.len().min(80)];
    let clock = |w: &[u8]| {
        w[2] == b':' && w[5] == b':' && [0, 1, 3, 4, 6, 7].iter().all(|i| w[*i].is_ascii_digit())
    };
    head.windows(8).any(clock)
        || head.windows(13).any(|digits| digits.iter().all(u8::is_ascii_digit))
}

/// The time of a line, if it has one.
pub(super) fn stamp(text: &str) -> Option<Stamp> {
    epoch(text).or_else(|| date(text)).or_else(|| glog(text)).or_else(|| syslog(text))
}

fn epoch(text: &str) -> Option<Stamp> {
    let found = EPOCH.captures(text)?;
    let ms = found.iter().skip(1).flatten().next()?.as_str().parse().ok()?;
    Some(Stamp { form: Form::Absolute, ms })
}

fn date(text: &str) -> Option<Stamp> {
    let found = DATE.captures(text)?;
    let part = |at: usize| found.get(at).map_or("", |part| part.as_str());
    let ms = civil_ms([part(1), part(2), part(3), part(4), part(5), part(6)], part(7))?;
    match part(8) {
        "" => Some(Stamp { form: Form::Local, ms }),
        zone => Some(Stamp { form: Form::Absolute, ms: ms - offset_ms(zone)? }),
    }
}

/// `+01:00`, `-0500` or `Z`.
fn offset_ms(zone: &str) -> Option<i64> {
    if zone == "Z" {
        return Some(0);
    }
    let digits: String = zone.chars().filter(char::is_ascii_digit).collect();
    let minutes: i64 =
        digits.get(..2)?.parse::<i64>().ok()? * 60 + digits.get(2..)?.parse::<i64>().ok()?;
    Some(if zone.starts_with('-') { -minutes } else { minutes } * 60_000)
}

/// A leap year, so that every day of a log without years exists.
const SOME_YEAR: &str = "1972";

fn glog(text: &str) -> Option<Stamp> {
    let found = GLOG.captures(text)?;
    let part = |at: usize| found.get(at).map_or("", |part| part.as_str());
    let fields = [SOME_YEAR, part(1), part(2), part(3), part(4), part(5)];
    Some(Stamp { form: Form::Yearless, ms: civil_ms(fields, part(6))? })
}

fn syslog(text: &str) -> Option<Stamp> {
    let found = SYSLOG.captures(text)?;
    let part = |at: usize| found.get(at).map_or("", |part| part.as_str());
    let months = "JanFebMarAprMayJunJulAugSepOctNovDec";
    let month = (months.find(part(1))? / 3 + 1).to_string();
    let fields = [SOME_YEAR, &month, part(2), part(3), part(4), part(5)];
    Some(Stamp { form: Form::Yearless, ms: civil_ms(fields, part(6))? })
}

fn civil_ms(fields: [&str; 6], fraction: &str) -> Option<i64> {
    let year = fields[0].parse().ok()?;
    let [month, day, hour, minute, second] =
        [1, 2, 3, 4, 5].map(|at: usize| fields[at].parse::<i8>().ok());
    let at = civil::DateTime::new(year, month?, day?, hour?, minute?, second?, 0).ok()?;
    let ms: i64 = format!("{fraction:0<3}").get(..3)?.parse().ok()?;
    Some(at.to_zoned(TimeZone::UTC).ok()?.timestamp().as_millisecond() + ms)
}
