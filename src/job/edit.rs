//! Changes of a job file's text that leave everything else as it is: comments, order, style.
//!
//! A change is made on the text and then proven: the new text must parse to the old document with
//! exactly that change in it. A text for which no such change is found is left to a person.

use serde_json::{Map, Value};

use super::parse;

/// One change of a job file.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Edit {
    /// The field at this path gets this text as its value: `["spec", "cluster", "shm"]`.
    Set {
        /// Names of the fields, from the top.
        path: Vec<String>,
        /// The value.
        value: String,
    },
    /// The list at this path gets this item, if it has not got it yet.
    Add {
        /// Names of the fields, from the top.
        path: Vec<String>,
        /// The item.
        item: String,
    },
}

/// Why a text was not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// It is no job before, or would be none after the change.
    #[error("{0}")]
    NoJob(String),
    /// It is written in a way in which this change cannot be made safely.
    #[error("`{path}` is written in a form that qvl does not change; set it to `{value}` by hand")]
    Form {
        /// The field.
        path: String,
        /// What it should become, or get.
        value: String,
    },
}

impl Edit {
    fn path(&self) -> &[String] {
        match self {
            Edit::Set { path, .. } | Edit::Add { path, .. } => path,
        }
    }

    fn value(&self) -> &str {
        match self {
            Edit::Set { value, .. } => value,
            Edit::Add { item, .. } => item,
        }
    }

    /// The document after this change.
    fn on(&self, mut document: Value) -> Option<Value> {
        let (last, parents) = self.path().split_last()?;
        let mut at = &mut document;
        for name in parents {
            let fields = at.as_object_mut()?;
            at = fields.entry(name.clone()).or_insert_with(|| Value::Object(Map::new()));
            if at.is_null() {
                *at = Value::Object(Map::new());
            }
        }
        let fields = at.as_object_mut()?;
        match self {
            Edit::Set { value, .. } => {
                fields.insert(last.clone(), Value::String(value.clone()));
            }
            Edit::Add { item, .. } => {
                let list = fields.entry(last.clone()).or_insert_with(|| Value::Array(Vec::new()));
                if list.is_null() {
                    *list = Value::Array(Vec::new());
                }
                let list = list.as_array_mut()?;
                if !list.iter().any(|known| known == item) {
                    list.push(Value::String(item.clone()));
                }
            }
        }
        Some(document)
    }
}

/// The text with all these changes; a text that has them already comes back as it is.
pub fn edited(text: &str, edits: &[Edit]) -> Result<String, EditError> {
    let refuse = |error: super::JobError| EditError::NoJob(error.to_string());
    parse(text, "job file").map_err(refuse)?;
    let mut text = text.to_owned();
    for edit in edits {
        text = one(&text, edit)?;
    }
    parse(&text, "job file, changed").map_err(refuse)?;
    Ok(text)
}

fn one(text: &str, edit: &Edit) -> Result<String, EditError> {
    let (path, value) = (edit.path().join("."), edit.value().to_owned());
    let form = || EditError::Form { path: path.clone(), value: value.clone() };
    let document = |text: &str| serde_saphyr::from_str::<Value>(text).ok();
    let before = document(text).ok_or_else(form)?;
    let after = edit.on(before.clone()).ok_or_else(form)?;
    if before == after {
        return Ok(text.to_owned());
    }
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let mut tries = candidates(&lines, edit).into_iter();
    tries.find(|text| document(text).as_ref() == Some(&after)).ok_or_else(form)
}

/// Texts that may be the changed one, the best first. Whoever takes one must look at what it says.
fn candidates(lines: &[&str], edit: &Edit) -> Vec<String> {
    let path = edit.path();
    // The deepest part of the path that is a block of its own in the text.
    let mut block = Block { begin: 0, end: lines.len(), indent: 0 };
    let mut depth = 0;
    while depth < path.len() {
        let Some((line, inner)) = block.field(lines, &path[depth]) else { break };
        depth += 1;
        match inner {
            Some(inner) if depth < path.len() => block = inner,
            inner => return within(lines, edit, depth, line, inner.as_ref()),
        }
    }
    let insert = render(&path[depth..], edit, block.indent);
    vec![spliced(lines, block.last(lines), block.last(lines), &insert)]
}

/// The line of a field of the path was found, and it is the last one or holds its value itself.
fn within(
    lines: &[&str],
    edit: &Edit,
    depth: usize,
    line: usize,
    inner: Option<&Block>,
) -> Vec<String> {
    let path = edit.path();
    let rest = &path[depth..];
    let mut tries = Vec::new();
    if let (Edit::Add { item, .. }, Some(list), []) = (edit, inner, rest) {
        let insert = format!("{}- {}\n", " ".repeat(list.indent), scalar(item));
        tries.push(spliced(lines, list.last(lines), list.last(lines), &insert));
    }
    let (head, _value) = lines[line].split_once(':').unwrap_or((lines[line], ""));
    let (value, comment) = parts(&lines[line][(head.len() + 1).min(lines[line].len())..]);
    let ending = if lines[line].ends_with('\n') { "\n" } else { "" };
    let whole = |value: &str| {
        let text = format!("{head}: {value}{comment}{ending}");
        spliced(lines, line, line + 1, &text)
    };
    match edit {
        Edit::Set { value: new, .. } if rest.is_empty() => tries.push(whole(&scalar(new))),
        // `unset: [A, B]`
        Edit::Add { item, .. } if rest.is_empty() => {
            let inside = value.strip_prefix('[').and_then(|value| value.strip_suffix(']'));
            if let Some(inside) = inside {
                tries.push(whole(&format!("[{}]", joined(inside, &scalar(item)))));
            }
        }
        Edit::Set { .. } | Edit::Add { .. } => {}
    }
    // `cluster: {shm: 1Gi, ...}`: the field stands in braces on the line of its parent.
    if let Some(inside) = value.strip_prefix('{').and_then(|value| value.strip_suffix('}')) {
        if let (Edit::Set { value: new, .. }, [name]) = (edit, rest) {
            for (at, _match) in inside.match_indices(&format!("{name}:")) {
                let (before, found) = inside.split_at(at);
                let tail = found.find([',', '}']).map_or("", |end| &found[end..]);
                tries.push(whole(&format!("{{{before}{name}: {}{tail}}}", scalar(new))));
            }
        }
        tries.push(whole(&format!("{{{}}}", joined(inside, &flow(rest, edit)))));
    }
    tries
}

/// The value of a line and what follows it: spaces and a comment.
fn parts(text: &str) -> (&str, &str) {
    let text = text.trim_end();
    let end = text.find(" #").map_or(text.len(), |at| text[..at].trim_end().len());
    (text[..end].trim(), &text[end..])
}

fn joined(inside: &str, new: &str) -> String {
    if inside.trim().is_empty() { new.to_owned() } else { format!("{}, {new}", inside.trim_end()) }
}

/// Lines of the fields `names`, the last with the value, below each other.
fn render(names: &[String], edit: &Edit, indent: usize) -> String {
    let mut text = String::new();
    for (level, name) in names.iter().enumerate() {
        let space = " ".repeat(indent + 2 * level);
        let last = level + 1 == names.len();
        let line = match edit {
            Edit::Set { value, .. } if last => format!("{space}{name}: {}\n", scalar(value)),
            Edit::Add { item, .. } if last => {
                format!("{space}{name}:\n{space}  - {}\n", scalar(item))
            }
            Edit::Set { .. } | Edit::Add { .. } => format!("{space}{name}:\n"),
        };
        text.push_str(&line);
    }
    text
}

/// The same within braces.
fn flow(names: &[String], edit: &Edit) -> String {
    let value = match edit {
        Edit::Set { value, .. } => scalar(value),
        Edit::Add { item, .. } => format!("[{}]", scalar(item)),
    };
    names.iter().rev().enumerate().fold(value, |inner, (level, name)| {
        if level == 0 { format!("{name}: {inner}") } else { format!("{name}: {{{inner}}}") }
    })
}

/// A text as YAML: in quotes if it could be read as something else.
fn scalar(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/');
    let is_word = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        || text.len() < 16 && text.ends_with("Gi") && text.chars().all(plain);
    let reserved = ["true", "false", "null", "yes", "no", "on", "off"];
    if is_word && text.chars().all(plain) && !reserved.contains(&text.to_lowercase().as_str()) {
        return text.to_owned();
    }
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// Lines with those from `begin` to `end` replaced.
fn spliced(lines: &[&str], begin: usize, end: usize, new: &str) -> String {
    let mut text: String = lines[..begin].concat();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text += new;
    text + &lines[end..].concat()
}

/// Lines of one mapping or list in block style.
#[derive(Clone, Copy, Debug)]
struct Block {
    begin: usize,
    end: usize,
    indent: usize,
}

/// Spaces before the first character; `None` for lines that say nothing.
fn indent(line: &str) -> Option<usize> {
    let text = line.trim_start_matches(' ');
    let says = !text.trim().is_empty() && !text.starts_with('#');
    (says && !text.starts_with("---") && !text.starts_with("...")).then(|| line.len() - text.len())
}

impl Block {
    /// The line of a field, and the block below it if there is one.
    fn field(&self, lines: &[&str], name: &str) -> Option<(usize, Option<Block>)> {
        let is = |line: &str| {
            let text = line.trim_start();
            let text = text.strip_prefix(['"', '\'']).unwrap_or(text);
            let rest = text.strip_prefix(name)?;
            Some(rest.trim_start_matches(['"', '\'']).trim_start().starts_with(':'))
        };
        let here = |index: &usize| indent(lines[*index]) == Some(self.indent);
        let line = (self.begin..self.end).filter(here).find(|i| is(lines[*i]) == Some(true))?;
        let below = |index: &usize| indent(lines[*index]).is_some();
        let Some(next) = (line + 1..self.end).find(below) else { return Some((line, None)) };
        let deeper = indent(lines[next])?;
        let is_list = lines[next].trim_start().starts_with("- ");
        if deeper < self.indent || (deeper == self.indent && !is_list) {
            return Some((line, None));
        }
        let ends = |index: &usize| {
            let found = indent(lines[*index]);
            let item = lines[*index].trim_start().starts_with("- ");
            found.is_some_and(|found| found < deeper || (found == self.indent && !item))
        };
        let end = (next..self.end).find(ends).unwrap_or(self.end);
        Some((line, Some(Block { begin: next, end, indent: deeper })))
    }

    /// Behind the last line that says something: comments below belong to what follows.
    fn last(&self, lines: &[&str]) -> usize {
        let says = |index: &usize| indent(lines[*index]).is_some();
        (self.begin..self.end).rev().find(says).map_or(self.begin, |index| index + 1)
    }
}

#[cfg(test)]
mod tests;
