//! What each service account and each user may do, and that the documents say the same.

use std::{collections::BTreeSet, env, fmt::Write as _, fs};

use serde_json::Value;

use crate::render::{DEFAULTS, EVERYTHING, list, name, objects, of_kind, pods};

const PAGE: &str = "docs/operations.md";

/// A right: who, where, on what, how.
struct Right {
    who: String,
    place: &'static str,
    resources: Vec<String>,
    verbs: Vec<String>,
}

#[test]
fn the_table_of_rights_is_in_the_documents() {
    let mut table = "| who | where | may | on |\n|---|---|---|---|\n".to_owned();
    for Right { who, place, resources, verbs } in rights(&objects(DEFAULTS)) {
        writeln!(table, "| {who} | {place} | {} | {} |", verbs.join(", "), resources.join(", "))
            .unwrap();
    }
    let page = fs::read_to_string(PAGE).unwrap();
    let (before, rest) = page.split_once("<!-- rights -->\n").unwrap();
    let (_old, after) = rest.split_once("<!-- end of rights -->").unwrap();
    let current = format!("{before}<!-- rights -->\n{table}<!-- end of rights -->{after}");
    if env::var_os("UPDATE_DOCS").is_some() {
        fs::write(PAGE, &current).unwrap();
    }
    let found = fs::read_to_string(PAGE).unwrap();
    assert!(
        found == current,
        "{PAGE} is old; run: UPDATE_DOCS=1 cargo test --release --test chart"
    );
}

#[test]
fn nobody_reads_secrets_uses_wildcards_or_changes_nodes() {
    for values in [DEFAULTS, EVERYTHING] {
        for Right { who, resources, verbs, .. } in rights(&objects(values)) {
            for resource in &resources {
                assert!(!resource.contains('*'), "{who}: {resource}");
                assert!(!resource.starts_with("secrets"), "{who}: {resource}");
                for forbidden in
                    ["pods/exec", "pods/attach", "nodes/proxy", "rolebindings", "roles"]
                {
                    assert_ne!(resource, forbidden, "{who}");
                }
                if resource == "nodes" {
                    let reads = |verb: &String| ["get", "list", "watch"].contains(&verb.as_str());
                    assert!(verbs.iter().all(reads), "{who}: {verbs:?}");
                }
            }
            let forbidden = ["*", "escalate", "bind", "impersonate"];
            assert!(
                verbs.iter().all(|verb| !forbidden.contains(&verb.as_str())),
                "{who}: {verbs:?}"
            );
        }
    }
}

#[test]
fn only_pods_that_call_the_api_get_a_token() {
    let objects = objects(EVERYTHING);
    let bound: BTreeSet<String> = bindings(&objects).map(|(who, _role)| who).collect();
    for account in of_kind(&objects, "ServiceAccount") {
        assert_eq!(account["automountServiceAccountToken"], false, "{}", name(account));
    }
    for (pod, _meta, spec) in pods(&objects) {
        let account = spec["serviceAccountName"].as_str().unwrap();
        assert_eq!(spec["automountServiceAccountToken"], true, "{pod}");
        assert!(bound.contains(&format!("`{account}`")), "{pod}: {account} has no rights");
    }
}

#[test]
fn view_edit_and_admin_know_jobs_unless_told_otherwise() {
    let aggregated = |args: &[&str]| {
        let text = serde_json::to_string(&of_kind(&objects(args), "ClusterRole")).unwrap();
        text.matches("aggregate-to-").count()
    };
    assert_eq!(aggregated(DEFAULTS), 5);
    assert_eq!(aggregated(&["--set", "rbac.aggregate=false"]), 0);
}

/// All rights, sorted by who has them.
fn rights(objects: &[Value]) -> Vec<Right> {
    let mut rights = Vec::new();
    let bound: Vec<(String, &Value)> = bindings(objects).collect();
    for kind in ["ClusterRole", "Role"] {
        for role in of_kind(objects, kind) {
            let holders = bound.iter().filter(|(_who, reference)| {
                reference["kind"] == kind && reference["name"] == role["metadata"]["name"]
            });
            let holders: BTreeSet<&str> = holders.map(|(who, _reference)| who.as_str()).collect();
            let who = if holders.is_empty() {
                format!("users: {}", name(role).replace("Role ", "Role `") + "`")
            } else {
                holders.into_iter().collect::<Vec<_>>().join(", ")
            };
            let place = if kind == "Role" { "its namespace" } else { "cluster" };
            rights.extend(list(&role["rules"]).iter().map(|rule| Right {
                who: who.clone(),
                place,
                resources: resources(rule),
                verbs: words(&rule["verbs"]),
            }));
        }
    }
    rights.sort_by(|a, b| a.who.cmp(&b.who));
    rights
}

/// Resources of a rule with their groups and names.
fn resources(rule: &Value) -> Vec<String> {
    let names = words(&rule["resourceNames"]);
    let names = if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) };
    let mut resources = Vec::new();
    for resource in words(&rule["resources"]) {
        for group in words(&rule["apiGroups"]) {
            let group = if group.is_empty() { group } else { format!(".{group}") };
            resources.push(match resource.split_once('/') {
                Some((main, sub)) => format!("{main}{group}/{sub}{names}"),
                None => format!("{resource}{group}{names}"),
            });
        }
    }
    resources
}

/// Service accounts and users of bindings, each with the role's reference.
fn bindings(objects: &[Value]) -> impl Iterator<Item = (String, &Value)> {
    let bindings = objects
        .iter()
        .filter(|object| object["kind"] == "ClusterRoleBinding" || object["kind"] == "RoleBinding");
    bindings.flat_map(|binding| {
        list(&binding["subjects"]).iter().map(|subject| {
            (format!("`{}`", subject["name"].as_str().unwrap()), &binding["roleRef"])
        })
    })
}

fn words(value: &Value) -> Vec<String> {
    list(value).iter().map(|word| word.as_str().unwrap().to_owned()).collect()
}
