//! Documents against their JSON Schemas, as much as those of qvl use.

use serde_json::Value;

/// What a document does not keep of its schema.
pub(crate) fn errors(schema: &Value, value: &Value, name: &str) -> Vec<String> {
    let mut errors = Vec::new();
    validate(schema, schema, value, name, &mut errors);
    errors
}

/// Collects what a value does not keep of a schema, which is part of `root`.
fn validate(root: &Value, schema: &Value, value: &Value, at: &str, errors: &mut Vec<String>) {
    if let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        let target = root.pointer(reference.strip_prefix('#').unwrap()).unwrap();
        return validate(root, target, value, at, errors);
    }
    for key in ["anyOf", "oneOf"] {
        let Some(alternatives) = schema.get(key).and_then(Value::as_array) else { continue };
        let fits = |schema: &Value| {
            let mut errors = Vec::new();
            validate(root, schema, value, at, &mut errors);
            errors.is_empty()
        };
        if !alternatives.iter().any(fits) {
            errors.push(format!("{at}: {value} fits no alternative"));
        }
    }
    if let Some(constant) = schema.get("const")
        && constant != value
    {
        errors.push(format!("{at}: {value} is not {constant}"));
    }
    if let Some(values) = schema.get("enum").and_then(Value::as_array)
        && !values.contains(value)
    {
        errors.push(format!("{at}: {value} is not one of {values:?}"));
    }
    let types: Vec<&str> = match schema.get("type") {
        Some(Value::String(name)) => vec![name],
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let is = |name: &&str| match *name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "null" => value.is_null(),
        other => panic!("unknown type {other}"),
    };
    if !types.is_empty() && !types.iter().any(is) {
        errors.push(format!("{at}: {value} is not a {types:?}"));
    }
    validate_parts(root, schema, value, at, errors);
}

/// Fields and items.
fn validate_parts(root: &Value, schema: &Value, value: &Value, at: &str, errors: &mut Vec<String>) {
    for name in schema.get("required").and_then(Value::as_array).into_iter().flatten() {
        if value.get(name.as_str().unwrap()).is_none() {
            errors.push(format!("{at}: `{}` is missing", name.as_str().unwrap()));
        }
    }
    if let (Some(properties), Some(fields)) =
        (schema.get("properties").and_then(Value::as_object), value.as_object())
    {
        for (name, field) in fields {
            match properties.get(name) {
                Some(schema) => validate(root, schema, field, &format!("{at}.{name}"), errors),
                None => errors.push(format!("{at}: the schema has no `{name}`")),
            }
        }
    }
    if let (Some(items), Some(list)) = (schema.get("items"), value.as_array()) {
        for (index, item) in list.iter().enumerate() {
            validate(root, items, item, &format!("{at}[{index}]"), errors);
        }
    }
}
