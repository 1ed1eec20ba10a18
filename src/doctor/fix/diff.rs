//! Changes of files as people read them.

/// A unified diff with three lines around each change, as `diff -u` writes it. A file that is not
/// there is `/dev/null`.
pub fn unified(path: &str, old: Option<&str>, new: Option<&str>) -> String {
    let name = |text: Option<&str>| if text.is_some() { path } else { "/dev/null" };
    let (before, after) = (old.unwrap_or(""), new.unwrap_or(""));
    let diff = similar::TextDiff::from_lines(before, after);
    let mut lines = diff.unified_diff();
    lines.context_radius(3).header(name(old), name(new)).to_string()
}
