//! Network policies as data: which connections they allow, computed as a cluster would, for every
//! row of the table in docs/operations.md.

use std::{collections::BTreeMap, fs, net::Ipv4Addr};

use serde_json::Value;

use crate::render::{DEFAULTS, EVERYTHING, list, objects, of_kind, pods};

/// One end of a connection.
#[derive(Clone, Default)]
struct End {
    /// Namespace, if it is a pod.
    namespace: Option<String>,
    labels: BTreeMap<String, String>,
    /// Ports by name.
    ports: BTreeMap<String, u64>,
    address: Option<Ipv4Addr>,
}

#[test]
fn connections_are_allowed_and_denied_as_documented() {
    let objects = objects(EVERYTHING);
    let policies = of_kind(&objects, "NetworkPolicy");
    let ends = ends(&objects);
    let page = fs::read_to_string("docs/operations.md").unwrap();
    let table =
        page.split("<!-- flows -->").nth(1).unwrap().split("<!-- end of flows -->").next().unwrap();
    let mut counts = BTreeMap::new();
    let mut wrong = Vec::new();
    for row in table.trim().lines().skip(2) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [from, to, port, verdict] = cells[..] else { panic!("{row}") };
        let (number, protocol) = port.split_once('/').unwrap();
        let end = |name: &str| ends.get(name).unwrap_or_else(|| panic!("{name}: {row}"));
        let allowed = allows(&policies, end(from), end(to), number.parse().unwrap(), protocol);
        *counts.entry(verdict).or_insert(0) += 1;
        if allowed != (verdict == "allowed") {
            wrong.push(row);
        }
    }
    assert!(wrong.is_empty(), "the policies disagree with:\n{}", wrong.join("\n"));
    assert!(10 <= counts["allowed"] && 15 <= counts["denied"], "{counts:?}");
}

#[test]
fn without_the_api_servers_address_only_the_collectors_door_is_wider() {
    let objects = objects(&[DEFAULTS, &["--set", "networkPolicy.jobNamespaces={team-a}"]].concat());
    let policies = of_kind(&objects, "NetworkPolicy");
    let ends = ends(&objects);
    let stranger = |to: &str, port| allows(&policies, &ends["stranger"], &ends[to], port, "TCP");
    assert!(stranger("collector", 8443));
    assert!(!stranger("operator", 8080));
    assert!(!stranger("operator", 9090));
    assert!(!stranger("agent", 9090));
    assert!(!stranger("rank", 29500));
    assert!(allows(&policies, &ends["operator"], &ends["API server"], 6443, "TCP"));
    assert!(!allows(&policies, &ends["operator"], &ends["internet"], 80, "TCP"));
}

#[test]
fn without_policies_everything_is_allowed() {
    let objects = objects(&["--set", "networkPolicy.enabled=false"]);
    assert!(of_kind(&objects, "NetworkPolicy").is_empty());
    assert!(allows(&[], &ends(&objects)["stranger"], &ends(&objects)["operator"], 8080, "TCP"));
}

/// The ends that the table names.
fn ends(objects: &[Value]) -> BTreeMap<String, End> {
    let mut ends = BTreeMap::new();
    for (name, meta, spec) in pods(objects) {
        let component = meta["labels"]["app.kubernetes.io/component"].as_str().unwrap();
        let ports = list(&spec["containers"][0]["ports"]);
        let port = |port: &Value| {
            (port["name"].as_str().unwrap().to_owned(), port["containerPort"].as_u64().unwrap())
        };
        let end = End {
            namespace: Some("qvl-system".to_owned()),
            labels: serde_json::from_value(meta["labels"].clone()).unwrap(),
            ports: ports.iter().map(port).collect(),
            address: Some(Ipv4Addr::new(10, 244, 0, 9)),
        };
        assert!(component == "test" || !ends.contains_key(component), "{name}");
        ends.insert(component.to_owned(), end);
    }
    let pod = |namespace: &str, labels: &[(&str, &str)]| End {
        namespace: Some(namespace.to_owned()),
        labels: labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
        ports: BTreeMap::new(),
        address: Some(Ipv4Addr::new(10, 244, 1, 9)),
    };
    let outside = |address: [u8; 4]| End { address: Some(address.into()), ..End::default() };
    for (name, end) in [
        ("rank", pod("team-a", &[("qvl.dev/job", "digits")])),
        ("rank of another namespace", pod("team-b", &[("qvl.dev/job", "other")])),
        ("stranger", pod("team-b", &[("app", "web")])),
        ("neighbour", pod("qvl-system", &[("app", "web")])),
        ("Prometheus", pod("monitoring", &[("app", "prometheus")])),
        ("DNS", pod("kube-system", &[("k8s-app", "kube-dns")])),
        ("API server", outside([10, 0, 0, 1])),
        ("object store", outside([192, 0, 2, 7])),
        ("internet", outside([203, 0, 113, 5])),
    ] {
        ends.insert(name.to_owned(), end);
    }
    ends
}

/// Whether all policies together let a connection through: both ends must.
fn allows(policies: &[&Value], from: &End, to: &End, port: u64, protocol: &str) -> bool {
    passes(policies, "Egress", from, to, to, port, protocol)
        && passes(policies, "Ingress", to, from, to, port, protocol)
}

/// Whether the policies of `own` let it talk to `peer` in one direction. `target` has the port.
fn passes(
    policies: &[&Value],
    direction: &str,
    own: &End,
    peer: &End,
    target: &End,
    port: u64,
    protocol: &str,
) -> bool {
    let (rules, peers) = if direction == "Egress" { ("egress", "to") } else { ("ingress", "from") };
    let mut isolated = false;
    for policy in policies {
        let namespace = policy["metadata"]["namespace"].as_str().unwrap();
        let applies = own.namespace.as_deref() == Some(namespace)
            && selects(&policy["spec"]["podSelector"], &own.labels)
            && list(&policy["spec"]["policyTypes"]).iter().any(|kind| kind == direction);
        if !applies {
            continue;
        }
        isolated = true;
        let allowed = list(&policy["spec"][rules]).iter().any(|rule| {
            let peers = &rule[peers];
            let ports = &rule["ports"];
            (peers.is_null() || list(peers).iter().any(|rule| is_peer(rule, peer, namespace)))
                && (ports.is_null()
                    || list(ports).iter().any(|rule| is_port(rule, target, port, protocol)))
        });
        if allowed {
            return true;
        }
    }
    !isolated
}

fn is_peer(rule: &Value, peer: &End, namespace: &str) -> bool {
    if let Some(cidr) = rule["ipBlock"]["cidr"].as_str() {
        return peer.address.is_some_and(|address| contains(cidr, address));
    }
    let Some(of_peer) = &peer.namespace else { return false };
    let in_namespace = if rule["namespaceSelector"].is_null() {
        of_peer == namespace
    } else {
        let labels = [("kubernetes.io/metadata.name".to_owned(), of_peer.clone())].into();
        selects(&rule["namespaceSelector"], &labels)
    };
    in_namespace && (rule["podSelector"].is_null() || selects(&rule["podSelector"], &peer.labels))
}

fn is_port(rule: &Value, target: &End, port: u64, protocol: &str) -> bool {
    let named = rule["port"].as_str().map(|name| target.ports.get(name).copied());
    let any = rule["port"].is_null().then_some(port);
    let number = named.unwrap_or_else(|| rule["port"].as_u64().or(any));
    number == Some(port) && rule["protocol"].as_str().unwrap_or("TCP") == protocol
}

/// Whether a label selector matches; an empty one matches everything.
fn selects(selector: &Value, labels: &BTreeMap<String, String>) -> bool {
    let equal = selector["matchLabels"].as_object().is_none_or(|wanted| {
        wanted.iter().all(|(key, value)| labels.get(key).map(String::as_str) == value.as_str())
    });
    equal
        && list(&selector["matchExpressions"]).iter().all(|expression| {
            let value = labels.get(expression["key"].as_str().unwrap());
            let listed = || {
                list(&expression["values"])
                    .iter()
                    .any(|one| one.as_str() == value.map(String::as_str))
            };
            match expression["operator"].as_str().unwrap() {
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                "In" => listed(),
                "NotIn" => !listed(),
                other => panic!("{other}"),
            }
        })
}

fn contains(cidr: &str, address: Ipv4Addr) -> bool {
    let (network, bits) = cidr.split_once('/').unwrap();
    let network: Ipv4Addr = network.parse().unwrap();
    let mask = u32::MAX.checked_shl(32 - bits.parse::<u32>().unwrap()).unwrap_or(0);
    u32::from(network) & mask == u32::from(address) & mask
}
