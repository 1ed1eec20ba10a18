//! Certificates on the command line.

use std::{path::PathBuf, sync::Arc};

use clap::Args;

use super::CliError;
use crate::{
    tls::{Files, Identity, TlsError},
    wire::ExitStatus,
};

#[derive(Debug, Args)]
#[expect(clippy::struct_field_names, reason = "they are the names of the flags")]
pub(super) struct TlsArgs {
    /// Certificate to show, with those above it, in PEM. Plain HTTP without it. A file that
    /// changes is read again.
    #[arg(long, env = "QVL_TLS_CERT", value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Private key of the certificate, in PEM.
    #[arg(long, env = "QVL_TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Serve plain HTTP at the same port too: for pods that were made before TLS was turned on.
    #[arg(long, requires = "tls_cert")]
    tls_accept_plain: bool,
}

impl TlsArgs {
    /// Reads the files. It wants the runtime that will serve.
    pub(super) fn identity(&self) -> Result<Option<Arc<Identity>>, CliError> {
        let (Some(certificate), Some(key)) = (&self.tls_cert, &self.tls_key) else {
            return Ok(None);
        };
        let files = Files { certificate: certificate.clone(), key: key.clone() };
        Identity::load(files, self.tls_accept_plain).map(Some).map_err(unusable)
    }
}

/// The error of a file that cannot be used.
pub(super) fn unusable(error: TlsError) -> CliError {
    CliError::of(ExitStatus::Usage, error).hint(
        "expected PEM files as in a Secret of the type kubernetes.io/tls: tls.crt, tls.key and ca.crt",
    )
}
