//! Amounts in the notation of Kubernetes: `4`, `500m`, `32Gi`.

/// Suffixes with their factor as (base, exponent).
const SUFFIXES: [(&str, u64, i32); 14] = [
    ("Ki", 1024, 1),
    ("Mi", 1024, 2),
    ("Gi", 1024, 3),
    ("Ti", 1024, 4),
    ("Pi", 1024, 5),
    ("n", 10, -9),
    ("u", 10, -6),
    ("m", 10, -3),
    ("k", 10, 3),
    ("M", 10, 6),
    ("G", 10, 9),
    ("T", 10, 12),
    ("P", 10, 15),
    ("E", 10, 18),
];

/// Number and suffix of an amount; `None` if the text is none.
fn parts(text: &str) -> Option<(&str, &str)> {
    let suffix = SUFFIXES.iter().map(|(suffix, _base, _exponent)| *suffix);
    let suffix = suffix.into_iter().find(|suffix| text.ends_with(suffix)).unwrap_or("");
    let number = &text[..text.len() - suffix.len()];
    let digits = number.bytes().filter(u8::is_ascii_digit).count();
    let points = number.bytes().filter(|byte| *byte == b'.').count();
    let well_formed = 0 < digits && points <= 1 && digits + points == number.len();
    well_formed.then_some((number, suffix))
}

/// The value in units, for example bytes or cores; `None` if the text is no amount.
pub fn value(text: &str) -> Option<f64> {
    let (number, suffix) = parts(text)?;
    let factor = SUFFIXES.iter().find(|(known, _base, _exponent)| *known == suffix);
    let factor = factor.map_or(1.0, |(_suffix, base, exponent)| (*base as f64).powi(*exponent));
    Some(number.parse::<f64>().ok()? * factor)
}

/// An amount times a count, exact, in the same suffix; a text that is no amount stays as it is.
pub fn times(text: &str, count: u32) -> String {
    let Some((number, suffix)) = parts(text) else { return text.to_owned() };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let Ok(digits) = format!("{whole}{fraction}").parse::<u128>() else { return text.to_owned() };
    let product = digits.saturating_mul(u128::from(count)).to_string();
    let padded = format!("{product:0>width$}", width = fraction.len() + 1);
    let (whole, fraction) = padded.split_at(padded.len() - fraction.len());
    let fraction = fraction.trim_end_matches('0');
    let point = if fraction.is_empty() { "" } else { "." };
    format!("{whole}{point}{fraction}{suffix}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_values() {
        let table = [
            ("4", Some(4.0)),
            ("500m", Some(0.5)),
            ("1.5", Some(1.5)),
            ("32Gi", Some(34_359_738_368.0)),
            ("1k", Some(1000.0)),
            ("", None),
            ("Gi", None),
            ("1 Gi", None),
            ("1.2.3", None),
            ("-1", None),
            ("8GiB", None),
        ];
        for (text, expected) in table {
            assert_eq!(value(text), expected, "{text}");
        }
    }

    #[test]
    fn products_are_exact() {
        let table = [
            ("4", 2, "8"),
            ("500m", 3, "1500m"),
            ("1.5", 2, "3"),
            ("0.1", 3, "0.3"),
            ("0.05Gi", 2, "0.1Gi"),
            ("32Gi", 8, "256Gi"),
            ("8GiB", 2, "8GiB"),
        ];
        for (text, count, expected) in table {
            assert_eq!(times(text, count), expected, "{text} times {count}");
        }
    }
}
