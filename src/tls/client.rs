//! The side that connects: whom it believes, and what it says when it does not.

use std::{error::Error, fmt, path::PathBuf, sync::Arc};

use jiff::Timestamp;
use tokio_rustls::rustls::{
    self, CertificateError, ClientConfig, RootCertStore,
    pki_types::{CertificateDer, UnixTime, pem::PemObject},
};

use super::{TlsError, VERSIONS, kept::Kept, provider};

/// CA certificates, one of which must be above the peer's: nothing else is believed.
#[derive(Clone)]
pub struct Roots {
    pem: String,
    store: Arc<RootCertStore>,
}

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Roots({})", self.store.len())
    }
}

impl Roots {
    /// Reads a bundle of CA certificates in PEM. `what` names it in errors.
    pub fn parse(what: &str, pem: &str) -> Result<Roots, TlsError> {
        let none = || TlsError::NoCertificate { what: what.to_owned() };
        let mut store = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let certificate = certificate.map_err(|_no_pem| none())?;
            let added = store.add(certificate);
            added.map_err(|source| TlsError::Certificate { what: what.to_owned(), source })?;
        }
        if store.is_empty() {
            return Err(none());
        }
        Ok(Roots { pem: pem.to_owned(), store: Arc::new(store) })
    }

    /// The bundle as it was given.
    pub fn pem(&self) -> &str {
        &self.pem
    }
}

/// A client that believes these roots only; without any it speaks plain HTTP only. It uses no
/// proxy: tokens are for the peer alone.
pub fn client(roots: Option<&Roots>) -> reqwest::ClientBuilder {
    let store = roots.map_or_else(|| Arc::new(RootCertStore::empty()), |it| Arc::clone(&it.store));
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)
        .expect("the provider speaks it")
        .with_root_certificates(store)
        .with_no_client_auth();
    reqwest::Client::builder().tls_backend_preconfigured(config).no_proxy()
}

/// The bundle in a file, read again when it changes.
pub struct Authority(Arc<Kept<Roots>>);

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authority({:?})", self.roots())
    }
}

impl Authority {
    /// Reads the file now and whenever it changes.
    pub fn load(file: PathBuf) -> Result<Arc<Self>, TlsError> {
        let what = format!("`{}`", file.display());
        let make = move |read: &[Vec<u8>]| Roots::parse(&what, &String::from_utf8_lossy(&read[0]));
        Ok(Arc::new(Authority(Kept::load(vec![file], Box::new(make))?)))
    }

    /// The newest bundle that could be used.
    pub fn roots(&self) -> Arc<Roots> {
        self.0.value()
    }
}

/// An error with its causes, in one line; with what helps if the peer was not believed.
pub fn describe(error: &(dyn Error + 'static)) -> String {
    match cause(error).and_then(told) {
        Some((what, hint)) => format!("{what} (hint: {hint})"),
        None => chain(error),
    }
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// What rustls says, wherever it is among the causes. An `io::Error` hides what it was made of.
fn cause<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if let Some(found) = inner.and_then(|inner| cause(inner)) {
            return Some(found);
        }
        next = error.source();
    }
    None
}

const NOT_OURS: (&str, &str) = (
    "its certificate was not made by a CA that this pod was given",
    "the CA was replaced while the pod ran, or another program answers there; `qvl stop JOB` and \
     `qvl resume JOB` make pods that know the CA of today",
);

#[expect(clippy::wildcard_enum_match_arm, reason = "rustls adds errors without notice")]
fn told(error: &rustls::Error) -> Option<(String, &'static str)> {
    let plain = |(what, hint): (&str, &'static str)| Some((what.to_owned(), hint));
    let at = |time: &UnixTime| {
        let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        Timestamp::from_second(seconds)
            .map_or_else(|_far| "another time".to_owned(), |at| at.to_string())
    };
    match error {
        rustls::Error::InvalidCertificate(why) => match why {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => plain(NOT_OURS),
            CertificateError::ExpiredContext { not_after, .. } => Some((
                format!("its certificate ended at {}", at(not_after)),
                "`helm upgrade` makes a new one, and nothing has to be restarted; with cert-manager \
                 look at the Certificate `qvl`: docs/operations.md, section Certificates",
            )),
            CertificateError::NotValidYetContext { not_before, .. } => Some((
                format!("its certificate begins at {}", at(not_before)),
                "compare the clocks of the nodes",
            )),
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Some((
                    format!("its certificate is not for this name: {why}"),
                    "docs/operations.md, section Certificates, has the names that it needs",
                ))
            }
            _other => None,
        },
        rustls::Error::InvalidMessage(_) => plain((
            "it does not speak TLS",
            "TLS was turned off in the chart while the pod ran: `qvl stop JOB` and `qvl resume JOB` \
             make new pods",
        )),
        _other => None,
    }
}
