//! Parts of texts that have to fit somewhere.

/// The first `limit` bytes, whole characters.
pub fn head(text: &str, limit: usize) -> &str {
    let mut end = limit.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// The last `limit` bytes, whole characters.
pub fn tail(text: &str, limit: usize) -> &str {
    let mut start = text.len().saturating_sub(limit);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_not_cut() {
        assert_eq!((head("aä", 2), head("aä", 3), head("aä", 9)), ("a", "aä", "aä"));
        assert_eq!((tail("äb", 2), tail("äb", 3), tail("äb", 9)), ("b", "äb", "äb"));
        assert_eq!((head("", 0), tail("ä", 0)), ("", ""));
    }
}
