//! TLS between the parts of qvl in a cluster: pods of jobs, the operator and the collector.
//!
//! One bundle of CA certificates is all that a client believes; what the machine trusts does not
//! count. Files are read again when they change, so a new certificate needs no restart, and a file
//! that is broken changes nothing but a metric and the log.

mod certificate;
mod client;
mod door;
mod kept;

use std::{io, path::PathBuf, sync::Arc};

use tokio_rustls::rustls::{self, crypto::CryptoProvider};

pub use client::{Authority, Roots, client, describe};
pub use door::{Connection, Door, Files, Identity, open};

/// Why a certificate, a key or a bundle cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("failed to read `{}`", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("no certificate in {what}: expected PEM text with BEGIN CERTIFICATE")]
    NoCertificate { what: String },
    #[error("no private key in `{}`: expected a private key as PEM text", path.display())]
    NoKey { path: PathBuf },
    #[error("the certificate in `{}` and the key in `{}` cannot be used together",
        certificate.display(), key.display())]
    Pair { certificate: PathBuf, key: PathBuf, source: rustls::Error },
    #[error("a certificate in {what} cannot be used")]
    Certificate { what: String, source: rustls::Error },
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Both ends are ours, or Kubernetes: nothing older is needed.
const VERSIONS: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

#[cfg(test)]
mod tests;
