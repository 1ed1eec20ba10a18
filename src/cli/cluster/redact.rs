//! Takes secrets out of what leaves the cluster. Pure.
//!
//! It rather takes too much: a bundle is read by strangers.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;

/// What stands in place of a secret.
pub(crate) const REDACTED: &str = "REDACTED";

/// Parts of a name whose value is a secret.
const SECRET_NAMES: [&str; 12] = [
    "token",
    "password",
    "passwd",
    "secret",
    "apikey",
    "api_key",
    "api-key",
    "accesskey",
    "access_key",
    "credential",
    "private",
    "authorization",
];
/// Fields with such a name that only name an object, or say a duration.
const HARMLESS_ENDINGS: [&str; 8] =
    ["name", "names", "ref", "secrets", "seconds", "path", "audience", "serviceaccounttoken"];

/// What a secret looks like wherever it stands: a JSON web token, keys of known services, a
/// bearer, a PEM block, a password in a URL, `name=value` with a secret's name.
static SECRET_TEXT: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    let regex = |text: &str| Regex::new(text).expect("a constant");
    vec![
        (regex(r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"), REDACTED),
        (regex(r"\b(?:hf|ghp|gho|ghs|github_pat|glpat|sk|xoxb)[_-][A-Za-z0-9_-]{16,}"), REDACTED),
        (regex(r"\bAKIA[0-9A-Z]{16}\b"), REDACTED),
        (regex(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9+/._~-]{8,}=*"), "${1} REDACTED"),
        (regex(r"(?s)-----BEGIN [A-Z ]+-----.*?-----END [A-Z ]+-----"), REDACTED),
        (regex(r"([a-z][a-z0-9+.-]*://[^/\s:@]*):[^/\s@]+@"), "${1}:REDACTED@"),
        (
            regex(
                r"(?i)([a-z0-9_-]*(?:token|password|passwd|secret|api_?key|access_?key|credential)[a-z0-9_-]*)(\s*[=:]\s*)[^\s,;\x22'}]+",
            ),
            "${1}${2}REDACTED",
        ),
    ]
});

/// The object without secrets.
pub(crate) fn object(value: &mut Value) {
    if value.get("kind").and_then(Value::as_str) == Some("Secret") {
        for field in ["data", "stringData"] {
            let values = value.get_mut(field).and_then(Value::as_object_mut);
            values.into_iter().flatten().for_each(|(_key, value)| *value = REDACTED.into());
        }
    }
    walk(value);
}

fn walk(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            // An entry of an environment: the name is a value too.
            let named = fields.get("name").and_then(Value::as_str).is_some_and(is_secret);
            for (key, value) in fields.iter_mut() {
                let secret = is_secret(key) || (named && key == "value");
                if secret && value.as_str().is_some_and(|text| !text.is_empty()) {
                    *value = REDACTED.into();
                } else {
                    walk(value);
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(walk),
        Value::String(found) => *found = text(found),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn is_secret(name: &str) -> bool {
    let name = name.to_lowercase();
    SECRET_NAMES.iter().any(|part| name.contains(part))
        && !HARMLESS_ENDINGS.iter().any(|ending| name.ends_with(ending))
}

/// A text, for example of a log, without what looks like a secret.
pub(crate) fn text(text: &str) -> String {
    SECRET_TEXT
        .iter()
        .fold(text.to_owned(), |text, (regex, with)| regex.replace_all(&text, *with).into_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn secrets_go_and_names_stay() {
        let mut pod = json!({"kind": "Pod", "spec": {
            "imagePullSecrets": [{"name": "registry-secret"}],
            "volumes": [{"secret": {"secretName": "tls"}},
                {"projected": {"sources": [{"serviceAccountToken":
                    {"path": "token", "audience": "qvl.dev/a/b", "expirationSeconds": 3600}}]}}],
            "containers": [{"env": [
                {"name": "HF_TOKEN", "value": "hunter2"},
                {"name": "WANDB_API_KEY", "valueFrom": {"secretKeyRef": {"name": "w", "key": "k"}}},
                {"name": "RANK", "value": "3"}],
                "args": ["--password=abc", "--rank", "3"]}]},
            "password": "p", "token": ""});
        object(&mut pod);
        let expected = json!({"kind": "Pod", "spec": {
            "imagePullSecrets": [{"name": "registry-secret"}],
            "volumes": [{"secret": {"secretName": "tls"}},
                {"projected": {"sources": [{"serviceAccountToken":
                    {"path": "token", "audience": "qvl.dev/a/b", "expirationSeconds": 3600}}]}}],
            "containers": [{"env": [
                {"name": "HF_TOKEN", "value": "REDACTED"},
                {"name": "WANDB_API_KEY", "valueFrom": {"secretKeyRef": {"name": "w", "key": "k"}}},
                {"name": "RANK", "value": "3"}],
                "args": ["--password=REDACTED", "--rank", "3"]}]},
            "password": "REDACTED", "token": ""});
        assert_eq!(pod, expected);
    }

    #[test]
    fn data_of_a_secret_goes_whatever_its_name() {
        let mut secret = json!({"kind": "Secret", "data": {"a": "eA=="}, "stringData": {"b": "x"}});
        object(&mut secret);
        assert_eq!(secret["data"]["a"], REDACTED);
        assert_eq!(secret["stringData"]["b"], REDACTED);
    }

    #[test]
    fn secrets_in_texts_are_found() {
        let cases = [
            ("Authorization: Bearer abcdefgh12345678", "Authorization: Bearer REDACTED"),
            ("token eyJhbGciOiJI.eyJzdWIiOiIx.c2ln here", "token REDACTED here"),
            (
                "pull https://bob:pw@registry.example/x",
                "pull https://bob:REDACTED@registry.example/x",
            ),
            ("key hf_abcdefghijklmnopqrst", "key REDACTED"),
            ("HF_TOKEN=abc def", "HF_TOKEN=REDACTED def"),
            ("step 3/9: loss 0.5, 12 tokens", "step 3/9: loss 0.5, 12 tokens"),
            (
                "0/2 nodes are available: 2 Insufficient cpu",
                "0/2 nodes are available: 2 Insufficient cpu",
            ),
        ];
        for (dirty, clean) in cases {
            assert_eq!(text(dirty), clean);
        }
    }
}
