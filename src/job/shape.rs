//! Whether a document has the shape of a job: fields, types and choices, all problems at once.
//! The JSON Schema of the types is the only description of the shape.

use serde_json::{Map, Value};

use super::{FineTuneJob, parse::Problem};

/// Everything in which a document differs from the schema of a job.
pub(super) fn problems(document: &Value) -> Vec<Problem> {
    let root = schemars::schema_for!(FineTuneJob).to_value();
    let mut shape = Shape { root: &root, problems: Vec::new() };
    shape.check(&root, document, "");
    shape.problems
}

struct Shape<'a> {
    root: &'a Value,
    problems: Vec<Problem>,
}

impl<'a> Shape<'a> {
    fn refuse(&mut self, path: &str, what: String, hint: String) {
        let path = if path.is_empty() { "the document" } else { path };
        self.problems.push(Problem { path: path.to_owned(), line: None, what, hint });
    }

    fn check(&mut self, schema: &'a Value, value: &Value, path: &str) {
        let forms = self.forms(schema);
        if is_optional(schema) && value.is_null() {
            return;
        }
        match value {
            Value::Object(fields) if forms.iter().any(|form| has_type(form, "object")) => {
                self.object(&forms, fields, path);
            }
            Value::Array(items) if forms.iter().any(|form| has_type(form, "array")) => {
                let items_schema = forms.iter().find_map(|form| form.get("items"));
                for (i, item) in items.iter().enumerate() {
                    if let Some(schema) = items_schema {
                        self.check(schema, item, &format!("{path}[{i}]"));
                    }
                }
            }
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Array(_)
            | Value::Object(_) => self.scalar(&forms, value, path),
        }
    }

    /// A struct has one form with all its fields; an enum with data has one form for each
    /// variant, and exactly one of them must be there.
    fn object(&mut self, forms: &[&'a Value], fields: &Map<String, Value>, path: &str) {
        let objects: Vec<&Value> =
            forms.iter().copied().filter(|form| has_type(form, "object")).collect();
        let known: Vec<(&str, &'a Value)> = forms
            .iter()
            .filter_map(|form| form.get("properties")?.as_object())
            .flatten()
            .map(|(name, schema)| (name.as_str(), schema))
            .collect();
        let names: Vec<&str> = known.iter().map(|(name, _schema)| *name).collect();
        // A map, such as labels: any name, values of one kind.
        let others = forms.iter().find_map(|form| form.get("additionalProperties"));
        let others = others.filter(|schema| schema.is_object());
        for (name, field) in fields {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            let known = known.iter().find(|(known, _schema)| known == name);
            if let Some(schema) = known.map(|(_name, schema)| *schema).or(others) {
                self.check(schema, field, &path);
            } else {
                let hint = nearest(name, &names, "known fields");
                self.refuse(&path, "unknown field".to_owned(), hint);
            }
        }
        if let [form] = objects.as_slice() {
            let required = form.get("required").and_then(Value::as_array).into_iter().flatten();
            for name in required.filter_map(Value::as_str) {
                if !fields.contains_key(name) {
                    let whole =
                        if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
                    let hint = format!("`qvl explain job {whole}` describes it");
                    self.refuse(&whole, "required field is missing".to_owned(), hint);
                }
            }
        } else if fields.len() != 1 {
            let found: Vec<&str> = fields.keys().map(String::as_str).collect();
            let found = if found.is_empty() { "none".to_owned() } else { found.join(", ") };
            let what = format!("expected exactly one of {}, got {found}", names.join(", "));
            self.refuse(path, what, format!("`qvl explain job {path}` describes them"));
        }
    }

    fn scalar(&mut self, forms: &[&'a Value], value: &Value, path: &str) {
        let choices: Vec<&str> = forms.iter().flat_map(|form| choices(form)).collect();
        let explain = format!("`qvl explain job {path}` describes the field");
        if !choices.is_empty() {
            let Some(text) = value.as_str() else {
                let what = format!("expected {}, got {}", any_of(&choices), describe(value));
                return self.refuse(path, what, explain);
            };
            if !choices.contains(&text) {
                let what = format!("expected {}, got `{text}`", any_of(&choices));
                let hint = nearest(text, &choices, "choices");
                self.refuse(path, what, hint);
            }
            return;
        }
        if !forms.iter().any(|form| fits(form, value)) {
            let mut expected: Vec<_> = forms.iter().map(|form| expected(form)).collect();
            expected.dedup();
            let what = format!("expected {}, got {}", expected.join(" or "), describe(value));
            self.refuse(path, what, explain);
        }
    }

    /// The forms that a value may have, without references and without the null of an option.
    fn forms(&self, schema: &'a Value) -> Vec<&'a Value> {
        let reference = schema.get("$ref").and_then(Value::as_str);
        if let Some(target) = reference.and_then(|r| self.root.pointer(r.strip_prefix('#')?)) {
            return self.forms(target);
        }
        let lists = ["anyOf", "oneOf", "allOf"].into_iter();
        let alternatives: Vec<&Value> =
            lists.filter_map(|key| schema.get(key)?.as_array()).flatten().collect();
        if alternatives.is_empty() {
            let is_null = schema.get("type").and_then(Value::as_str) == Some("null");
            return if is_null { Vec::new() } else { vec![schema] };
        }
        alternatives.into_iter().flat_map(|schema| self.forms(schema)).collect()
    }
}

/// Whether a schema allows null, as that of an `Option` does.
fn is_optional(schema: &Value) -> bool {
    let null = |schema: &Value| {
        let types = schema.get("type");
        types == Some(&Value::from("null"))
            || types.and_then(Value::as_array).is_some_and(|t| t.contains(&"null".into()))
    };
    let any = schema.get("anyOf").and_then(Value::as_array);
    null(schema) || any.is_some_and(|any| any.iter().any(null))
}

fn has_type(form: &Value, name: &str) -> bool {
    types(form).contains(&name)
}

fn types(form: &Value) -> Vec<&str> {
    match form.get("type") {
        Some(Value::String(name)) => vec![name],
        Some(Value::Array(names)) => {
            names.iter().filter_map(Value::as_str).filter(|name| *name != "null").collect()
        }
        Some(_) | None => Vec::new(),
    }
}

fn choices(form: &Value) -> Vec<&str> {
    let constant = form.get("const").and_then(Value::as_str);
    let list = form.get("enum").and_then(Value::as_array).into_iter().flatten();
    constant.into_iter().chain(list.filter_map(Value::as_str)).collect()
}

fn fits(form: &Value, value: &Value) -> bool {
    let least = form.get("minimum").and_then(Value::as_f64).unwrap_or(f64::MIN);
    types(form).iter().any(|name| match *name {
        "integer" => {
            (value.is_u64() || value.is_i64()) && value.as_f64().is_some_and(|v| least <= v)
        }
        "number" => value.is_number(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        _ => false,
    })
}

fn expected(form: &Value) -> &'static str {
    match types(form).first().copied().unwrap_or_default() {
        "integer" if form.get("minimum").is_some() => "a whole number of 0 or more",
        "integer" => "a whole number",
        "number" => "a number",
        "string" => "text",
        "boolean" => "true or false",
        "array" => "a list",
        "object" => "fields",
        _ => "something else",
    }
}

fn describe(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(_) | Value::Number(_) => format!("{value}"),
        Value::String(text) => format!("the text {text:?}"),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "fields".to_owned(),
    }
}

fn any_of(choices: &[&str]) -> String {
    match choices {
        [one] => format!("`{one}`"),
        _ => format!("one of {}", choices.join(", ")),
    }
}

/// The name that was probably meant, or all of them.
fn nearest(name: &str, known: &[&str], title: &str) -> String {
    let distance =
        |key: &&&str| strsim::damerau_levenshtein(&key.to_lowercase(), &name.to_lowercase());
    match known.iter().min_by_key(distance) {
        Some(key) if distance(&key) <= 1 + name.len() / 3 => format!("did you mean `{key}`?"),
        Some(_) | None => format!("{title}: {}", known.join(", ")),
    }
}
