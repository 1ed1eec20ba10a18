//! The side that is connected to: a listener that speaks TLS, or plain HTTP without a certificate.

use std::{
    fmt::{self, Write as _},
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::serve::{Listener, ListenerExt, TapIo};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        server::{ClientHello, ResolvesServerCert},
        sign::CertifiedKey,
    },
};

use super::{TlsError, VERSIONS, certificate::not_after, kept::Kept, provider};

/// A handshake has so long.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Connections that are ready and wait for the server.
const READY: usize = 64;
/// First byte of a TLS connection: a record with a handshake (RFC 8446, 5.1).
const HANDSHAKE_RECORD: u8 = 22;
/// Bytes of a plain request that are read before it is refused, so that the answer arrives.
const PLAIN_READ: usize = 64 * 1024;
/// What a client hears that speaks plain HTTP.
const PLAIN: &str = "this port speaks TLS, and the request came in plain HTTP\n\
    hint: use https://, with the CA of the chart's Secret; a pod that was made before TLS was turned \
    on needs `tls.acceptPlain` until it ends\n";

/// Where a certificate and its key are, in PEM.
#[derive(Clone, Debug)]
pub struct Files {
    /// The certificate of this program, then those above it.
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// The certificate that this program shows.
pub struct Identity {
    kept: Arc<Kept<CertifiedKey>>,
    config: Arc<ServerConfig>,
    accept_plain: bool,
    failed: AtomicU64,
    plain: AtomicU64,
}

/// A connection, whatever it goes through.
pub type Connection = Box<dyn Io>;

/// What a connection can do.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

/// Gives each connection the newest certificate.
struct Newest(Arc<Kept<CertifiedKey>>);

impl fmt::Debug for Newest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Newest")
    }
}

impl ResolvesServerCert for Newest {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.value())
    }
}

impl Identity {
    /// Reads the files now and whenever they change. With `accept_plain`, those who speak plain
    /// HTTP are served too.
    pub fn load(files: Files, accept_plain: bool) -> Result<Arc<Self>, TlsError> {
        let paths = vec![files.certificate.clone(), files.key.clone()];
        let make = move |read: &[Vec<u8>]| pair(&files, &read[0], &read[1]);
        let kept = Kept::load(paths, Box::new(make))?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(VERSIONS)
            .expect("the provider speaks it")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Newest(Arc::clone(&kept))));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let config = Arc::new(config);
        let (failed, plain) = Default::default();
        Ok(Arc::new(Identity { kept, config, accept_plain, failed, plain }))
    }

    /// What there is to know, in Prometheus' text format.
    pub fn metrics(&self) -> String {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let ends = self.kept.value().cert.first().and_then(|der| not_after(der));
        let mut text = String::new();
        let mut metric = |name: &str, kind: &str, help: &str, values: &[(&str, String)]| {
            let _never = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, value) in values {
                let _never = writeln!(text, "{name}{labels} {value}");
            }
        };
        let ends: Vec<_> =
            ends.into_iter().map(|time| ("", time.as_second().to_string())).collect();
        let help = "End of the certificate, in seconds since the Unix epoch.";
        metric("qvl_tls_not_after_seconds", "gauge", help, &ends);
        let unusable = u8::from(self.kept.is_unusable()).to_string();
        let help = "1 while the files cannot be used and the older certificate is shown.";
        metric("qvl_tls_files_unusable", "gauge", help, &[("", unusable)]);
        let changes = self.kept.changes().to_string();
        metric("qvl_tls_renewals_total", "counter", "New certificates.", &[("", changes)]);
        let refused = [
            ("{reason=\"handshake\"}", of(&self.failed).to_string()),
            ("{reason=\"plain\"}", of(&self.plain).to_string()),
        ];
        metric("qvl_tls_refused_total", "counter", "Connections without TLS of ours.", &refused);
        text
    }

    /// The connection when it is ready; nothing if it was refused.
    async fn greet(&self, mut stream: TcpStream, from: SocketAddr) -> Option<Connection> {
        let mut first = [0];
        match stream.peek(&mut first).await {
            // Somebody looked whether the port is open.
            Ok(0) | Err(_) => return None,
            Ok(_) => {}
        }
        if first[0] != HANDSHAKE_RECORD {
            if self.accept_plain {
                return Some(Box::new(stream));
            }
            self.plain.fetch_add(1, Ordering::Relaxed);
            tracing::info!(%from, "refused: a plain request to a port that speaks TLS");
            // Whoever does not read it has gone.
            let _gone = refuse(&mut stream).await;
            return None;
        }
        match TlsAcceptor::from(Arc::clone(&self.config)).accept(stream).await {
            Ok(stream) => Some(Box::new(stream)),
            Err(error) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                tracing::info!(%from, "refused: the TLS handshake failed: {error}");
                None
            }
        }
    }
}

/// 421, because 400 means to a pod that its lines are no good.
async fn refuse(stream: &mut TcpStream) -> io::Result<()> {
    let length = PLAIN.len();
    let answer = format!(
        "HTTP/1.1 421 Misdirected Request\r\ncontent-type: text/plain\r\n\
         content-length: {length}\r\nconnection: close\r\n\r\n{PLAIN}"
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await?;
    // A connection that is closed with unread bytes is reset, and the answer is lost.
    let mut rest = [0; 4096];
    let mut read = 0;
    while read < PLAIN_READ {
        match stream.read(&mut rest).await? {
            0 => break,
            count => read += count,
        }
    }
    Ok(())
}

fn pair(files: &Files, certificate: &[u8], key: &[u8]) -> Result<CertifiedKey, TlsError> {
    let what = || format!("`{}`", files.certificate.display());
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate).collect();
    let chain = chain.ok().filter(|chain| !chain.is_empty());
    let chain = chain.ok_or_else(|| TlsError::NoCertificate { what: what() })?;
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|_no_key| TlsError::NoKey { path: files.key.clone() })?;
    CertifiedKey::from_der(chain, key, &provider()).map_err(|source| TlsError::Pair {
        certificate: files.certificate.clone(),
        key: files.key.clone(),
        source,
    })
}

/// A listener for `axum::serve`. Peers that are slow with their handshake keep nobody waiting.
pub enum Door {
    Plain(TcpListener),
    Tls { local: SocketAddr, ready: mpsc::Receiver<(Connection, SocketAddr)> },
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if matches!(self, Door::Plain(_)) { "Door::Plain" } else { "Door::Tls" })
    }
}

/// A door through which handlers know the peer's address.
pub(crate) type Tapped = TapIo<Door, fn(&mut Connection)>;

/// Opens the door at a listener.
pub fn open(listener: TcpListener, identity: Option<Arc<Identity>>) -> io::Result<Tapped> {
    let door = match identity {
        None => Door::Plain(listener),
        Some(identity) => {
            let (sender, ready) = mpsc::channel(READY);
            let local = listener.local_addr()?;
            tokio::spawn(admit(listener, identity, sender));
            Door::Tls { local, ready }
        }
    };
    let nothing: fn(&mut Connection) = |_connection| {};
    Ok(door.tap_io(nothing))
}

/// Lets connections in until the door is gone.
async fn admit(
    mut listener: TcpListener,
    identity: Arc<Identity>,
    ready: mpsc::Sender<(Connection, SocketAddr)>,
) {
    loop {
        let (stream, from) = tokio::select! {
            accepted = Listener::accept(&mut listener) => accepted,
            () = ready.closed() => return,
        };
        let (identity, ready) = (Arc::clone(&identity), ready.clone());
        tokio::spawn(async move {
            let greeted = timeout(HANDSHAKE, identity.greet(stream, from)).await;
            if let Ok(Some(connection)) = greeted {
                let _closing = ready.send((connection, from)).await;
            }
        });
    }
}

impl Listener for Door {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        match self {
            Door::Plain(listener) => {
                let (stream, from) = Listener::accept(listener).await;
                (Box::new(stream), from)
            }
            Door::Tls { ready, .. } => match ready.recv().await {
                Some(accepted) => accepted,
                // The runtime ends.
                None => std::future::pending().await,
            },
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Door::Plain(listener) => listener.local_addr(),
            Door::Tls { local, .. } => Ok(*local),
        }
    }
}
