//! Certificates of the chart: who makes them, who gets which part of them, and whether they work.

use std::{fs, net::SocketAddr};

use base64::{Engine, engine::general_purpose::STANDARD};
use qvl::tls::{self, Files, Identity, Roots};
use serde_json::Value;

use crate::render::{DEFAULTS, EVERYTHING, list, objects, of_kind, pods, text};

const PLAIN: &[&str] = &["--set", "tls.enabled=false"];
const GIVEN: &[&str] = &["--set", "tls.existingSecret=ours"];

fn decoded(secret: &Value, key: &str) -> String {
    let text = secret["data"][key].as_str().unwrap_or_else(|| panic!("{key} is missing"));
    String::from_utf8(STANDARD.decode(text).unwrap()).unwrap()
}

#[test]
fn the_charts_certificate_is_believed_for_every_name_that_pods_use() {
    let objects = objects(DEFAULTS);
    let [secret] = of_kind(&objects, "Secret")[..] else { panic!("one Secret") };
    assert_eq!(secret["type"], "kubernetes.io/tls");
    let folder = tempfile::tempdir().unwrap();
    let files =
        Files { certificate: folder.path().join("tls.crt"), key: folder.path().join("tls.key") };
    fs::write(&files.certificate, decoded(secret, "tls.crt")).unwrap();
    fs::write(&files.key, decoded(secret, "tls.key")).unwrap();
    let roots = Roots::parse("ca.crt", &decoded(secret, "ca.crt")).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let identity = Identity::load(files, false).unwrap();
        let metrics = identity.metrics();
        let ends = metrics.lines().find_map(|line| line.strip_prefix("qvl_tls_not_after_seconds "));
        let left = ends.unwrap().parse::<i64>().unwrap() - jiff::Timestamp::now().as_second();
        assert!((729..=731).contains(&(left / 86_400)), "{left}");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        let routes = axum::Router::new().route("/", axum::routing::get(async || "ok"));
        let door = tls::open(listener, Some(identity)).unwrap();
        tokio::spawn(axum::serve(door, routes).into_future());
        for service in ["qvl-operator", "qvl-collector"] {
            for suffix in ["", ".qvl-system", ".qvl-system.svc", ".qvl-system.svc.cluster.local"] {
                let name = format!("{service}{suffix}");
                let client = tls::client(Some(&roots)).resolve(&name, address).build().unwrap();
                let url = format!("https://{name}:{}/", address.port());
                let answer = client.get(url).send().await;
                assert!(answer.is_ok_and(|answer| answer.status().is_success()), "{name}");
            }
        }
        let client = tls::client(Some(&roots)).resolve("other", address).build().unwrap();
        let refused = client.get(format!("https://other:{}/", address.port())).send().await;
        assert!(tls::describe(&refused.unwrap_err()).contains("not for this name"));
    });
}

/// Name of the Secret and the keys that each pod mounts.
fn mounted(objects: &[Value]) -> Vec<String> {
    let mut mounted = Vec::new();
    for (pod, _meta, spec) in pods(objects) {
        for volume in list(&spec["volumes"]).iter().filter(|volume| !volume["secret"].is_null()) {
            let secret = &volume["secret"];
            // 0440: for the group of the pod.
            assert_eq!(secret["defaultMode"], 288, "{pod}");
            let keys: Vec<&str> =
                list(&secret["items"]).iter().map(|item| item["key"].as_str().unwrap()).collect();
            let name = secret["secretName"].as_str().unwrap();
            mounted.push(format!("{pod}: {name}: {}", keys.join(" ")));
        }
    }
    mounted.sort();
    mounted
}

#[test]
fn pods_get_the_parts_that_they_need_and_never_the_key_of_the_ca() {
    for (values, name) in [(DEFAULTS, "qvl-tls"), (EVERYTHING, "qvl-certificate"), (GIVEN, "ours")]
    {
        let expected = [
            format!("Deployment qvl-operator: {name}: tls.crt tls.key ca.crt"),
            format!("StatefulSet qvl-collector: {name}: tls.crt tls.key"),
        ];
        assert_eq!(mounted(&objects(values)), expected);
    }
    assert_eq!(mounted(&objects(PLAIN)), Vec::<String>::new());
}

#[test]
fn certificates_come_from_one_place() {
    let made = |values: &[&str]| {
        let objects = objects(values);
        ["Secret", "Certificate", "Issuer"].map(|kind| of_kind(&objects, kind).len())
    };
    assert_eq!(made(DEFAULTS), [1, 0, 0]);
    assert_eq!(made(EVERYTHING), [0, 2, 2]);
    assert_eq!(made(GIVEN), [0, 0, 0]);
    assert_eq!(made(PLAIN), [0, 0, 0]);
    let issuer = ["certManager.enabled=true", "certManager.issuerRef.name=corp"];
    let issuer = issuer.map(|set| format!("tls.{set}"));
    let given: Vec<&str> = issuer.iter().flat_map(|set| ["--set", set]).collect();
    assert_eq!(made(&given), [0, 1, 0]);
    let objects = objects(&given);
    let [certificate] = of_kind(&objects, "Certificate")[..] else { panic!("one") };
    assert_eq!(certificate["spec"]["issuerRef"]["name"], "corp");
    assert_eq!(list(&certificate["spec"]["dnsNames"]).len(), 8);
}

#[test]
fn without_tls_everything_is_plain_and_with_it_nothing_is() {
    let plain = text(PLAIN);
    assert!(plain.contains("--broker-url=http://") && plain.contains("--collector-url=http://"));
    for word in ["https", "HTTPS", "--tls", "qvl_tls"] {
        assert!(!plain.contains(word), "{word}");
    }
    for values in [DEFAULTS, EVERYTHING, GIVEN] {
        let text = text(values);
        assert!(text.contains("--broker-url=https://") && text.contains("--tls-ca="));
        assert!(!text.contains("http://") && !text.contains("scheme: HTTP\n"));
        assert!(text.contains("https:qvl-collector:logs"), "readers come over TLS too");
    }
}
