//! Certificates of every kind, and connections that use them.

use std::{fs, net::SocketAddr, path::Path, time::Duration};

use axum::{Router, extract::ConnectInfo, routing::get};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::*;

type Ca = CertifiedIssuer<'static, KeyPair>;

/// All have the same name: only their keys tell them apart, as those of two installations.
fn ca() -> Ca {
    let mut parameters = CertificateParams::new(Vec::new()).unwrap();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap()
}

/// Writes a certificate for `name` that is valid until the end of `year`.
fn issue(ca: &Ca, folder: &Path, name: &str, year: i32) -> Files {
    let mut parameters = CertificateParams::new(vec![name.to_owned()]).unwrap();
    parameters.not_before = date_time_ymd(2020, 1, 1);
    parameters.not_after = date_time_ymd(year, 12, 31);
    let key = KeyPair::generate().unwrap();
    let certificate = parameters.signed_by(&key, ca).unwrap();
    let files = Files { certificate: folder.join("tls.crt"), key: folder.join("tls.key") };
    fs::write(&files.certificate, certificate.pem()).unwrap();
    fs::write(&files.key, key.serialize_pem()).unwrap();
    files
}

/// Serves the address of whoever asks.
async fn serve(files: Files, accept_plain: bool) -> (SocketAddr, Arc<Identity>) {
    let identity = Identity::load(files, accept_plain).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let who = |ConnectInfo(from): ConnectInfo<SocketAddr>| async move { from.ip().to_string() };
    let routes = Router::new().route("/", get(who));
    let routes = routes.into_make_service_with_connect_info::<SocketAddr>();
    let door = open(listener, Some(Arc::clone(&identity))).unwrap();
    tokio::spawn(axum::serve(door, routes).into_future());
    (address, identity)
}

/// The answer to a new connection, or why there is none.
async fn ask(address: SocketAddr, roots: &Roots) -> Result<String, String> {
    let client = client(Some(roots)).build().unwrap();
    let answer = client.get(format!("https://{address}/")).send().await;
    Ok(answer.map_err(|error| describe(&error))?.text().await.unwrap())
}

fn roots(authorities: &[&Ca]) -> Roots {
    let pem: String = authorities.iter().map(|ca| ca.pem()).collect();
    Roots::parse("the bundle", &pem).unwrap()
}

/// A number in the metrics.
fn metric(identity: &Identity, name: &str) -> i64 {
    let text = identity.metrics();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("{text}")).trim().parse().unwrap()
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _look in 0..300 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("never: {what}");
}

#[tokio::test]
async fn only_a_certificate_of_the_given_ca_is_believed_and_a_refusal_says_what_helps() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, other) = (ca(), ca());
    let (address, identity) = serve(issue(&ours, folder.path(), "127.0.0.1", 2100), false).await;
    assert_eq!(ask(address, &roots(&[&ours])).await.as_deref(), Ok("127.0.0.1"));
    // A bundle may hold more than one CA.
    assert_eq!(ask(address, &roots(&[&other, &ours])).await.as_deref(), Ok("127.0.0.1"));
    let refused = ask(address, &roots(&[&other])).await.unwrap_err();
    assert!(refused.starts_with("its certificate was not made by a CA"), "{refused}");
    assert!(refused.contains("qvl resume JOB"), "{refused}");
    until("the refusal is counted", async || {
        metric(&identity, "qvl_tls_refused_total{reason=\"handshake\"}") == 1
    })
    .await;

    let elsewhere = tempfile::tempdir().unwrap();
    let (address, _) = serve(issue(&ours, elsewhere.path(), "qvl.test", 2100), false).await;
    let refused = ask(address, &roots(&[&ours])).await.unwrap_err();
    assert!(refused.contains("not for this name") && refused.contains("hint"), "{refused}");
}

#[tokio::test]
async fn an_expired_certificate_is_refused_with_its_end_and_the_fix() {
    let folder = tempfile::tempdir().unwrap();
    let ours = ca();
    let (address, identity) = serve(issue(&ours, folder.path(), "127.0.0.1", 2021), false).await;
    let refused = ask(address, &roots(&[&ours])).await.unwrap_err();
    assert!(refused.starts_with("its certificate ended at 2021-12-31T00:00:00Z"), "{refused}");
    assert!(refused.contains("`helm upgrade` makes a new one"), "{refused}");
    assert_eq!(metric(&identity, "qvl_tls_not_after_seconds "), 1_640_908_800);
}

#[tokio::test]
async fn plain_http_and_tls_tell_each_other_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let ours = ca();
    let files = issue(&ours, folder.path(), "127.0.0.1", 2100);
    let (address, identity) = serve(files.clone(), false).await;
    let plain = client(None).build().unwrap();
    let answer = plain.get(format!("http://{address}/")).send().await.unwrap();
    assert_eq!(answer.status(), 421);
    let text = answer.text().await.unwrap();
    assert!(text.contains("speaks TLS") && text.contains("hint: use https://"), "{text}");
    assert_eq!(metric(&identity, "qvl_tls_refused_total{reason=\"plain\"}"), 1);

    // While pods of before run, the same port may serve them too.
    let (address, _) = serve(files, true).await;
    let answer = plain.get(format!("http://{address}/")).send().await.unwrap();
    assert_eq!(answer.text().await.unwrap(), "127.0.0.1");
    assert_eq!(ask(address, &roots(&[&ours])).await.as_deref(), Ok("127.0.0.1"));

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let routes = Router::new().route("/", get(async || "plain"));
    tokio::spawn(axum::serve(open(listener, None).unwrap(), routes).into_future());
    let refused = ask(address, &roots(&[&ours])).await.unwrap_err();
    assert!(refused.starts_with("it does not speak TLS (hint: "), "{refused}");
}

#[tokio::test]
async fn new_files_are_used_without_a_restart_and_broken_ones_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (ca(), ca());
    let files = issue(&old, folder.path(), "127.0.0.1", 2100);
    let (address, identity) = serve(files.clone(), false).await;
    let both = roots(&[&old, &new]);
    assert_eq!(ask(address, &both).await.as_deref(), Ok("127.0.0.1"));

    // The key of another certificate.
    fs::write(&files.key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
    until("it is noticed", async || metric(&identity, "qvl_tls_files_unusable ") == 1).await;
    assert_eq!(ask(address, &roots(&[&old])).await.as_deref(), Ok("127.0.0.1"));
    fs::remove_file(&files.key).unwrap();
    assert_eq!(ask(address, &roots(&[&old])).await.as_deref(), Ok("127.0.0.1"));

    // Of the same CA, then of another one that the bundle has too.
    issue(&old, folder.path(), "127.0.0.1", 2101);
    until("it is renewed", async || metric(&identity, "qvl_tls_renewals_total ") == 1).await;
    assert_eq!(metric(&identity, "qvl_tls_files_unusable "), 0);
    assert_eq!(ask(address, &roots(&[&old])).await.as_deref(), Ok("127.0.0.1"));
    issue(&new, folder.path(), "127.0.0.1", 2101);
    until("it is the new CA's", async || ask(address, &roots(&[&old])).await.is_err()).await;
    assert_eq!(ask(address, &both).await.as_deref(), Ok("127.0.0.1"));
}

#[tokio::test]
async fn a_bundle_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let (file, old, new) = (folder.path().join("ca.crt"), ca(), ca());
    fs::write(&file, old.pem()).unwrap();
    let authority = Authority::load(file.clone()).unwrap();
    assert_eq!(authority.roots().pem(), old.pem());
    fs::write(&file, "nothing").unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(authority.roots().pem(), old.pem());
    fs::write(&file, old.pem() + &new.pem()).unwrap();
    until("both are there", async || authority.roots().pem().ends_with(&new.pem())).await;
}

#[tokio::test]
async fn files_that_are_no_certificates_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let files = issue(&ca(), folder.path(), "qvl.test", 2100);
    let wrong = |certificate: &Path, key: &Path| {
        let files = Files { certificate: certificate.to_owned(), key: key.to_owned() };
        Identity::load(files, false).unwrap_err().to_string()
    };
    let absent = folder.path().join("absent");
    assert!(wrong(&absent, &files.key).contains("absent`"));
    let none = wrong(&files.key, &files.key);
    assert!(
        none.starts_with("no certificate in `") && none.contains("BEGIN CERTIFICATE"),
        "{none}"
    );
    assert!(wrong(&files.certificate, &files.certificate).starts_with("no private key in `"));
    let other = folder.path().join("other.key");
    fs::write(&other, KeyPair::generate().unwrap().serialize_pem()).unwrap();
    assert!(wrong(&files.certificate, &other).contains("cannot be used together"));
    for bad in ["", "nothing", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        let error = Roots::parse("QVL_CA", bad).unwrap_err().to_string();
        assert!(error.contains("QVL_CA"), "{error}");
    }
}

#[tokio::test]
async fn who_is_slow_with_the_handshake_keeps_nobody_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let ours = ca();
    let (address, _) = serve(issue(&ours, folder.path(), "127.0.0.1", 2100), false).await;
    let mut slow = Vec::new();
    for _connection in 0..100 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&[22, 3]).await.unwrap();
        slow.push(stream);
    }
    let roots = roots(&[&ours]);
    let asked = tokio::time::timeout(Duration::from_secs(5), ask(address, &roots));
    assert_eq!(asked.await.unwrap().as_deref(), Ok("127.0.0.1"));
    // They are let go in the end.
    let mut byte = [0];
    let read = tokio::time::timeout(Duration::from_secs(30), slow[0].read(&mut byte)).await;
    assert!(matches!(read, Ok(Ok(0) | Err(_))), "{read:?}");
}

#[test]
fn the_end_of_a_certificate_is_read_in_both_notations() {
    for (year, expected) in [(2049, "2049-12-31T00:00:00Z"), (2050, "2050-12-31T00:00:00Z")] {
        let mut parameters = CertificateParams::new(vec!["a".to_owned()]).unwrap();
        parameters.not_after = date_time_ymd(year, 12, 31);
        let made = parameters.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let der = made.der();
        assert_eq!(certificate::not_after(der).unwrap().to_string(), expected);
        for cut in 0..der.len() {
            // Whatever is there, it does not panic.
            let _none = certificate::not_after(&der[..cut]);
        }
    }
    assert_eq!(certificate::not_after(b"no certificate"), None);
}
