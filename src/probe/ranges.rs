//! Lists of processors such as `0-3,8`.

/// First and last, both included.
pub(super) type Range = (u32, u32);

/// `0-3,8` as ranges; an empty text has none.
pub(super) fn parse(text: &str) -> Option<Vec<Range>> {
    let text = text.trim();
    if text.is_empty() {
        return Some(Vec::new());
    }
    text.split(',')
        .map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last): Range = (first.parse().ok()?, last.parse().ok()?);
            (first <= last).then_some((first, last))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_ranges() {
        assert_eq!(parse("0-3,8\n"), Some(vec![(0, 3), (8, 8)]));
        assert_eq!(parse(""), Some(Vec::new()));
        assert_eq!(parse("3-0"), None);
        assert_eq!(parse("a"), None);
    }
}
