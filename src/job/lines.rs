//! Lines of a YAML text by path, so that an error can say where it is.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Deserializer, de};
use serde_saphyr::Spanned;

/// The line of every field: `spec.stages[0].steps` -> 9. Empty if the text is not YAML.
pub(super) fn of(text: &str) -> BTreeMap<String, u64> {
    read(text).unwrap_or_default()
}

fn read(text: &str) -> Result<BTreeMap<String, u64>, serde_saphyr::Error> {
    let root = serde_saphyr::from_str::<Spanned<Node>>(text)?;
    let mut lines = BTreeMap::new();
    collect(&root, String::new(), &mut lines);
    Ok(lines)
}

fn collect(node: &Spanned<Node>, path: String, lines: &mut BTreeMap<String, u64>) {
    match &node.value {
        Node::Map(fields) => {
            for (name, field) in fields {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                collect(field, path, lines);
            }
        }
        Node::List(items) => {
            for (i, item) in items.iter().enumerate() {
                collect(item, format!("{path}[{i}]"), lines);
            }
        }
        Node::Scalar => {}
    }
    let line = node.referenced.line();
    if 0 < line {
        lines.insert(path, line);
    }
}

/// The shape of a document without its values.
enum Node {
    Map(Vec<(String, Spanned<Node>)>),
    List(Vec<Spanned<Node>>),
    Scalar,
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Shape)
    }
}

struct Shape;

impl<'de> de::Visitor<'de> for Shape {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any YAML")
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = map.next_entry()? {
            fields.push(field);
        }
        Ok(Node::Map(fields))
    }

    fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Node::List(items))
    }

    fn visit_bool<E: de::Error>(self, _value: bool) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_i64<E: de::Error>(self, _value: i64) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_u64<E: de::Error>(self, _value: u64) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_f64<E: de::Error>(self, _value: f64) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_str<E: de::Error>(self, _value: &str) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_unit<E: de::Error>(self) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_none<E: de::Error>(self) -> Result<Node, E> {
        Ok(Node::Scalar)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_items_and_flow_maps_have_their_lines() {
        let lines = of("a: 1\nb:\n  - c: x\n    d: {e: 2.5,\n      f: true}\n  - null\n");
        let expected = [("a", 1), ("b[0].c", 3), ("b[0].d.e", 4), ("b[0].d.f", 5), ("b[1]", 6)];
        for (path, line) in expected {
            assert_eq!(lines.get(path), Some(&line), "{path} in {lines:?}");
        }
        assert!(of("a: [").is_empty());
    }

    #[test]
    fn a_whole_job_has_lines() {
        let text = include_str!("../../examples/digits/job.yaml");
        let lines = read(text).unwrap();
        for (path, name) in [
            ("spec.optimizer.learningRate", "learningRate:"),
            ("spec.world.gpus", "world:"),
            ("spec.output", "output:"),
        ] {
            let expected = text.lines().position(|line| line.trim().starts_with(name)).unwrap() + 1;
            assert_eq!(lines.get(path), Some(&(expected as u64)), "{path}");
        }
    }
}
