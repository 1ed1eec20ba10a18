//! One CA for all tests of this program, and certificates of it.

use std::{fs, path::Path, sync::OnceLock};

use qvl::tls::{self, Files, Roots};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

/// The name of the broker's Service, which all replicas have a certificate for.
pub(crate) const SERVICE: &str = "qvl-operator.qvl-system.svc";

fn ca() -> &'static CertifiedIssuer<'static, KeyPair> {
    static CA: OnceLock<CertifiedIssuer<'static, KeyPair>> = OnceLock::new();
    CA.get_or_init(|| {
        let mut parameters = CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap()
    })
}

/// What pods are given.
pub(crate) fn bundle() -> String {
    ca().pem()
}

/// Writes a certificate for these names into a folder.
pub(crate) fn issue(folder: &Path, names: &[&str]) -> Files {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(names).unwrap().signed_by(&key, ca()).unwrap();
    fs::create_dir_all(folder).unwrap();
    let files = Files { certificate: folder.join("tls.crt"), key: folder.join("tls.key") };
    fs::write(&files.certificate, certificate.pem()).unwrap();
    fs::write(&files.key, key.serialize_pem()).unwrap();
    fs::write(folder.join("ca.crt"), bundle()).unwrap();
    files
}

/// A client that believes this CA, as a pod does.
pub(crate) fn client() -> reqwest::Client {
    tls::client(Some(&Roots::parse("the test's CA", &bundle()).unwrap())).build().unwrap()
}
