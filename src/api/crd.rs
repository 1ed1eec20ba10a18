//! The custom resource definitions. Their schema is that of the Rust types; the rules of
//! `job::validate` are added here in the language of the API server (CEL), so that `kubectl apply`
//! refuses what `qvl launch` refuses.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    CustomResourceExt,
    core::schema::{OptionalEnum, OptionalIntOrString, StructuralSchemaRewriter},
};
use schemars::{JsonSchema, generate::SchemaSettings, transform::AddNullable};
use serde_json::{Value, json};

use super::{
    GROUP, VERSION,
    job::{FineTuneJob, JobStatus},
    node::NodeReport,
};
use crate::job::JobSpec;

/// All definitions, in the order of their names.
pub fn all() -> Vec<CustomResourceDefinition> {
    vec![job(), node_report()]
}

/// The definition of [`NodeReport`].
pub fn node_report() -> CustomResourceDefinition {
    let mut definition = serde_json::to_value(NodeReport::crd()).expect("it is plain data");
    known_formats(&mut definition);
    serde_json::from_value(definition).expect("a definition is well formed")
}

/// The definition of [`FineTuneJob`].
pub fn job() -> CustomResourceDefinition {
    let mut schema = json!({
        "type": "object",
        "description": "A fine-tuning job. `qvl explain job` describes its fields too.",
        "required": ["spec"],
        "properties": {"spec": schema_of::<JobSpec>(), "status": schema_of::<JobStatus>()},
        "x-kubernetes-validations": [rule(
            "self.metadata.name.size() <= 40 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
            "metadata.name: use lower-case letters, digits and `-`, begin with a letter, at most 40 characters",
        )],
    });
    for (path, keyword, value) in KEYWORDS {
        at(&mut schema, path)[keyword] = value.parse().expect("the table holds JSON");
    }
    for (path, expression, message) in RULES {
        let rules = &mut at(&mut schema, path)["x-kubernetes-validations"];
        if rules.is_null() {
            *rules = json!([]);
        }
        rules.as_array_mut().expect("made above").push(rule(expression, message));
    }
    freeze(at(&mut schema, "spec"));
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{}.{GROUP}", FineTuneJob::PLURAL)},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": FineTuneJob::KIND,
                "plural": FineTuneJob::PLURAL,
                "singular": "finetunejob",
                "shortNames": ["ftj"],
                "categories": ["all", "ml"],
            },
            "scope": "Namespaced",
            "versions": [{
                "name": VERSION,
                "served": true,
                "storage": true,
                "schema": {"openAPIV3Schema": schema},
                "subresources": {"status": {}},
                "additionalPrinterColumns": columns(),
                "selectableFields": [
                    {"jsonPath": ".status.summary.state"},
                    {"jsonPath": ".spec.cluster.queue"},
                ],
            }],
        },
    });
    serde_json::from_value(definition).expect("a definition is well formed")
}

/// What `kubectl get` shows: the last four only with `-o wide`.
fn columns() -> Value {
    let column = |name: &str, kind: &str, path: &str, wide: bool| {
        let priority = i32::from(wide);
        json!({"name": name, "type": kind, "jsonPath": path, "priority": priority})
    };
    json!([
        column("State", "string", ".status.summary.state", false),
        column("Ranks", "string", ".status.summary.ranks", false),
        column("Progress", "string", ".status.summary.progress", false),
        column("ETA", "string", ".status.summary.eta", false),
        column("Loss", "string", ".status.summary.loss", false),
        column("Restarts", "integer", ".status.restarts.total", false),
        column("Age", "date", ".metadata.creationTimestamp", false),
        column("Queue", "string", ".spec.cluster.queue", true),
        column("Attempt", "integer", ".status.attempt", true),
        column("Node0", "string", ".status.placement.nodes[0]", true),
        column("Reason", "string", ".status.summary.reason", true),
    ])
}

fn rule(expression: &str, message: &str) -> Value {
    json!({"rule": expression, "message": message})
}

/// The schema of a type as the API server wants it: structural and without references.
fn schema_of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let mut schema = settings
        .with_transform(AddNullable::default())
        .with_transform(StructuralSchemaRewriter)
        .with_transform(OptionalEnum)
        .with_transform(OptionalIntOrString)
        .into_generator()
        .into_root_schema_for::<T>();
    drop_titles(&mut schema);
    let mut schema = schema.to_value();
    known_formats(&mut schema);
    schema
}

fn drop_titles(schema: &mut schemars::Schema) {
    schema.remove("title");
    schemars::transform::transform_subschemas(
        &mut |inner: &mut schemars::Schema| drop_titles(inner),
        schema,
    );
}

/// Formats without a sign are unknown to OpenAPI, and kubectl shows the server's warnings of them.
/// The next larger format holds the same numbers; beyond 2^63 there are none in JSON of Kubernetes.
fn known_formats(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let known = match fields.get("format").and_then(Value::as_str) {
                Some("uint8" | "uint16") => Some("int32"),
                Some("uint" | "uint32" | "uint64") => Some("int64"),
                Some(_) | None => None,
            };
            if let Some(known) = known {
                fields.insert("format".to_owned(), known.into());
                fields.entry("minimum").or_insert(json!(0));
            }
            fields.values_mut().for_each(known_formats);
        }
        Value::Array(items) => items.iter_mut().for_each(known_formats),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// A spec is what an attempt was made of: only `suspend` may change.
fn freeze(spec: &mut Value) {
    let fields = spec["properties"].as_object_mut().expect("a spec has fields");
    for (name, field) in fields.iter_mut().filter(|(name, _field)| *name != "suspend") {
        let message = format!("spec.{name} cannot change, make a new job: only `suspend` can");
        let rules = &mut field["x-kubernetes-validations"];
        if rules.is_null() {
            *rules = json!([]);
        }
        rules.as_array_mut().expect("a list of rules").push(rule("self == oldSelf", &message));
    }
}

/// The schema at a path such as `spec.stages[].name`.
fn at<'s>(schema: &'s mut Value, path: &str) -> &'s mut Value {
    path.split('.').fold(schema, |schema, part| {
        let (name, item) = part.strip_suffix("[]").map_or((part, false), |name| (name, true));
        let field = &mut schema["properties"][name];
        assert!(field.is_object(), "the job format has no `{path}`");
        if item { &mut field["items"] } else { field }
    })
}

/// Rules that plain keywords of a schema can say: path, keyword, value.
const KEYWORDS: &[(&str, &str, &str)] = &[
    // An object is in state Pending from its first moment.
    ("status", "default", "{}"),
    ("status.conditions", "x-kubernetes-list-type", "\"map\""),
    ("status.conditions", "x-kubernetes-list-map-keys", "[\"type\"]"),
    ("spec.model.path", "pattern", SOME),
    ("spec.output", "pattern", SOME),
    ("spec.data.train", "minItems", "1"),
    // The server estimates what a rule costs in the worst case: without a bound, too much.
    ("spec.data.train", "maxItems", "64"),
    ("spec.data.train", "x-kubernetes-list-type", "\"map\""),
    ("spec.data.train", "x-kubernetes-list-map-keys", "[\"name\"]"),
    ("spec.data.train[].name", "pattern", NAME),
    ("spec.data.train[].name", "allOf", r#"[{"pattern": "[^\\s\\pZ\\x0b\\x85]"}]"#),
    ("spec.data.train[].name", "maxLength", "128"),
    ("spec.data.train[].path", "pattern", SOME),
    ("spec.data.eval", "maxItems", "256"),
    ("spec.data.eval", "x-kubernetes-list-type", "\"map\""),
    ("spec.data.eval", "x-kubernetes-list-map-keys", "[\"name\"]"),
    ("spec.data.eval[].name", "pattern", NAME),
    ("spec.data.eval[].name", "allOf", r#"[{"pattern": "[^\\s\\pZ\\x0b\\x85]"}]"#),
    ("spec.data.eval[].name", "maxLength", "128"),
    ("spec.data.eval[].path", "pattern", SOME),
    ("spec.data.eval[].limit", "minimum", "1"),
    ("spec.data.maxLength", "minimum", "16"),
    ("spec.method.lora.r", "minimum", "1"),
    ("spec.method.lora.dropout", "minimum", "0"),
    ("spec.method.lora.targets", "minItems", "1"),
    ("spec.method.lora.targets", "x-kubernetes-list-type", "\"set\""),
    ("spec.method.full.train", "minItems", "1"),
    ("spec.method.full.train", "x-kubernetes-list-type", "\"set\""),
    ("spec.optimizer.beta1", "minimum", "0"),
    ("spec.optimizer.beta2", "minimum", "0"),
    ("spec.optimizer.weightDecay", "minimum", "0"),
    ("spec.optimizer.maxGradNorm", "minimum", "0"),
    ("spec.schedule.warmupRatio", "minimum", "0"),
    ("spec.schedule.warmupRatio", "maximum", "1"),
    ("spec.schedule.finalRatio", "minimum", "0"),
    ("spec.schedule.finalRatio", "maximum", "1"),
    ("spec.batch.global", "minimum", "1"),
    ("spec.batch.unit", "minimum", "1"),
    ("spec.env.set", "maxProperties", "256"),
    ("spec.env.unset", "maxItems", "256"),
    ("spec.env.unset[]", "pattern", "\"^[A-Za-z_][A-Za-z0-9_]*$\""),
    ("spec.stages", "minItems", "1"),
    ("spec.stages", "maxItems", "32"),
    ("spec.stages", "x-kubernetes-list-type", "\"map\""),
    ("spec.stages", "x-kubernetes-list-map-keys", "[\"name\"]"),
    ("spec.stages[].name", "pattern", NAME),
    ("spec.stages[].name", "allOf", r#"[{"pattern": "[^\\s\\pZ\\x0b\\x85]"}]"#),
    ("spec.stages[].name", "maxLength", "128"),
    ("spec.stages[].steps", "minimum", "1"),
    ("spec.stages[].sets", "minItems", "1"),
    ("spec.stages[].sets", "maxItems", "32"),
    ("spec.stages[].sets[]", "maxLength", "128"),
    ("spec.stages[].schedule.warmupRatio", "minimum", "0"),
    ("spec.stages[].schedule.warmupRatio", "maximum", "1"),
    ("spec.stages[].schedule.finalRatio", "minimum", "0"),
    ("spec.stages[].schedule.finalRatio", "maximum", "1"),
    ("spec.world.gpus", "minimum", "1"),
    ("spec.world.peerTimeoutSeconds", "minimum", "1"),
    ("spec.checkpoint.keep", "minimum", "1"),
    ("spec.evaluation.maxNewTokens", "minimum", "1"),
    ("spec.evaluation.bestBy", "maxLength", "128"),
    ("spec.failure.startupSeconds", "minimum", "1"),
    ("spec.cluster.gpusPerNode", "minimum", "1"),
    ("spec.cluster.startTimeoutSeconds", "minimum", "1"),
    ("spec.cluster.resources.cpu", "maxLength", "64"),
    ("spec.cluster.resources.memory", "maxLength", "64"),
    ("spec.cluster.shm", "maxLength", "64"),
    ("spec.cluster.workDir", "pattern", "\"^/\""),
    ("spec.cluster.excludeNodes", "maxItems", "256"),
    ("spec.cluster.excludeNodes[]", "maxLength", "253"),
    ("spec.cluster.volumes", "maxItems", "32"),
    ("spec.cluster.volumes", "x-kubernetes-list-type", "\"map\""),
    ("spec.cluster.volumes", "x-kubernetes-list-map-keys", "[\"name\"]"),
    ("spec.cluster.volumes[].name", "pattern", "\"^[a-z]([-a-z0-9]*[a-z0-9])?$\""),
    ("spec.cluster.volumes[].name", "maxLength", "40"),
    ("spec.cluster.volumes[].mountPath", "pattern", "\"^/\""),
    ("spec.cluster.volumes[].mountPath", "maxLength", "4096"),
    ("spec.cluster.volumes[].hostPath", "pattern", "\"^/\""),
];

/// A name that can be part of a file name.
const NAME: &str = r#""^[^./\\x00-\\x1f\\x7f-\\x9f][^/\\x00-\\x1f\\x7f-\\x9f]*$""#;
/// A text that is more than space.
const SOME: &str = r#""[^\\s\\pZ\\x0b\\x85]""#;

/// Rules that need an expression: path, rule, message.
const RULES: &[(&str, &str, &str)] = &[
    (
        "spec",
        "self.world.gpus <= self.batch.global / self.batch.unit",
        "world.gpus: some ranks have nothing to do: use fewer, a larger batch.global or a smaller batch.unit",
    ),
    (
        "spec",
        "!has(self.cluster.gpusPerNode) || self.world.gpus % self.cluster.gpusPerNode == 0",
        "cluster.gpusPerNode must divide world.gpus",
    ),
    (
        "spec",
        "!has(self.evaluation.bestBy) || self.data.eval.exists(e, e.name == self.evaluation.bestBy)",
        "evaluation.bestBy: no evaluation set has this name",
    ),
    (
        "spec",
        "self.stages.all(s, !has(s.sets) || s.sets.all(n, self.data.train.exists(t, t.name == n)))",
        "stages[].sets: no training set has this name",
    ),
    ("spec.batch", "self.global % self.unit == 0", "`unit` must divide `global`"),
    (
        "spec.stages[]",
        "has(self.epochs) != has(self.steps)",
        "give exactly one of `epochs` and `steps`",
    ),
    ("spec.stages[].epochs", "0.0 < self", "expected a number above 0"),
    ("spec.stages[].learningRate", "0.0 < self", "expected a number above 0"),
    ("spec.data.train[].weight", "0.0 < self", "expected a number above 0"),
    ("spec.method.lora.alpha", "0.0 < self", "expected a number above 0"),
    ("spec.method.lora.dropout", "self < 1.0", "expected a probability below 1"),
    ("spec.optimizer.learningRate", "0.0 < self", "expected a number above 0"),
    ("spec.optimizer.epsilon", "0.0 < self", "expected a number above 0"),
    ("spec.optimizer.beta1", "self < 1.0", "expected a number below 1"),
    ("spec.optimizer.beta2", "self < 1.0", "expected a number below 1"),
    ("spec.failure.stallMultiplier", "1.0 < self", "expected a number above 1"),
    ("spec.cluster.resources.cpu", AMOUNT_OR_NONE, "write an amount as `4` or `500m`"),
    ("spec.cluster.resources.memory", AMOUNT_OR_NONE, "write an amount as `32Gi`"),
    ("spec.cluster.shm", AMOUNT, "write an amount as `8Gi`"),
    (
        "spec.cluster.volumes[]",
        "has(self.persistentVolumeClaim) != has(self.hostPath)",
        "give exactly one of `persistentVolumeClaim` and `hostPath`",
    ),
    (
        "spec.cluster.volumes[]",
        "!self.mountPath.matches('^(/etc/qvl|/var/run/secrets/qvl.dev|/var/spool/qvl|/dev/shm|/tmp)/*$')",
        "mountPath is used by qvl itself: mount it elsewhere, for example at /data",
    ),
];

const AMOUNT: &str = "self.matches('^([0-9]+[.]?[0-9]*|[.][0-9]+)([KMGTP]i|[numkMGTPE])?$')";
const AMOUNT_OR_NONE: &str =
    "self == '' || self.matches('^([0-9]+[.]?[0-9]*|[.][0-9]+)([KMGTP]i|[numkMGTPE])?$')";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_fits_into_an_annotation_of_kubectl() {
        for definition in all() {
            let size = serde_json::to_string(&definition).unwrap().len();
            let name = definition.metadata.name.unwrap();
            assert!(size < 200 * 1024, "{name} has {size} bytes");
        }
    }

    #[test]
    fn every_field_but_suspend_is_frozen() {
        let schema = serde_json::to_value(job()).unwrap();
        let spec =
            &schema["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        for (name, field) in spec["properties"].as_object().unwrap() {
            let frozen = field["x-kubernetes-validations"].to_string().contains("self == oldSelf");
            assert_eq!(frozen, name != "suspend", "spec.{name}");
        }
    }
}
