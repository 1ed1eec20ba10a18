//! Certificates and kubeconfigs.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use base64::{Engine, engine::general_purpose::STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};

use crate::{
    error::{At, Error},
    network::GATEWAY,
    places::Places,
    topology::{self, Topology},
};

/// Where the API server listens inside of the control plane's namespace.
pub(crate) const LOCAL: &str = "https://127.0.0.1:6443";

struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// Writes all keys, certificates and kubeconfigs.
pub(crate) fn make(places: &Places, topology: &Topology) -> Result<(), Error> {
    let folder = places.pki();
    Places::make(&folder)?;
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).at("protect", &folder)?;
    let authority = Authority::new()?;
    write(&folder.join("ca.crt"), &authority.issuer.pem())?;
    let key = KeyPair::generate().map_err(|source| failed("service accounts", source))?;
    write(&folder.join("sa.key"), &key.serialize_pem())?;
    write(&folder.join("sa.pub"), &key.public_key_pem())?;
    let names = [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "127.0.0.1",
        "10.96.0.1",
        GATEWAY,
    ];
    authority.issue(&folder, "apiserver", "kube-apiserver", None, &names)?;
    authority.issue(&folder, "front-proxy", "front-proxy", None, &[])?;
    for (file, user, group, server) in [
        ("admin", "admin", Some("system:masters"), LOCAL),
        ("apiserver-kubelet", "apiserver-kubelet", Some("system:masters"), LOCAL),
        ("controller-manager", "system:kube-controller-manager", None, LOCAL),
        ("scheduler", "system:kube-scheduler", None, LOCAL),
        ("proxy", "system:kube-proxy", None, &format!("https://{GATEWAY}:6443")),
    ] {
        authority.issue(&folder, file, user, group, &[])?;
        kubeconfig(&folder, file, server, &folder.join(format!("{file}.kubeconfig")))?;
    }
    for (index, node) in topology.nodes.iter().enumerate() {
        let (name, user) = (&node.name, format!("system:node:{}", node.name));
        let names = [name.as_str(), &topology::address(index)];
        authority.issue(&folder, name, &user, Some("system:nodes"), &names)?;
        let server = format!("https://{GATEWAY}:6443");
        kubeconfig(&folder, name, &server, &folder.join(format!("{name}.kubeconfig")))?;
    }
    Ok(())
}

/// A kubeconfig that holds the certificate `user` of `folder`, and so works from anywhere.
pub(crate) fn kubeconfig(
    folder: &Path,
    user: &str,
    server: &str,
    target: &Path,
) -> Result<(), Error> {
    let embed = |file: String| {
        let path = folder.join(file);
        fs::read(&path).at("read", path).map(|bytes| STANDARD.encode(bytes))
    };
    let authority = embed("ca.crt".to_owned())?;
    let (certificate, key) = (embed(format!("{user}.crt"))?, embed(format!("{user}.key"))?);
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: qvl\n\
         clusters:\n- name: qvl\n  cluster: {{server: '{server}', certificate-authority-data: {authority}}}\n\
         users:\n- name: {user}\n  user: {{client-certificate-data: {certificate}, client-key-data: {key}}}\n\
         contexts:\n- name: qvl\n  context: {{cluster: qvl, user: {user}}}\n"
    );
    write(target, &text)
}

impl Authority {
    fn new() -> Result<Authority, Error> {
        let make = || {
            let mut parameters = CertificateParams::new(Vec::new())?;
            parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            parameters.distinguished_name.push(DnType::CommonName, "qvl test cluster");
            CertifiedIssuer::self_signed(parameters, KeyPair::generate()?)
        };
        let issuer = make().map_err(|source| failed("the authority", source))?;
        Ok(Authority { issuer })
    }

    fn issue(
        &self,
        folder: &Path,
        file: &str,
        user: &str,
        group: Option<&str>,
        names: &[&str],
    ) -> Result<(), Error> {
        let make = || {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let mut parameters = CertificateParams::new(names)?;
            parameters.distinguished_name.push(DnType::CommonName, user);
            if let Some(group) = group {
                parameters.distinguished_name.push(DnType::OrganizationName, group);
            }
            parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            parameters.extended_key_usages =
                vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            let key = KeyPair::generate()?;
            let certificate = parameters.signed_by(&key, &self.issuer)?;
            Ok((certificate.pem(), key.serialize_pem()))
        };
        let (certificate, key) = make().map_err(|source| failed(user, source))?;
        write(&folder.join(format!("{file}.crt")), &certificate)?;
        write(&folder.join(format!("{file}.key")), &key)
    }
}

fn failed(name: &str, source: rcgen::Error) -> Error {
    Error::Certificate { name: name.to_owned(), source }
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    fs::write(path, text).at("write", path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).at("protect", path)
}
