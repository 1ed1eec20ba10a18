//! How the ranks find each other: all call rank 0, which tells each where the others listen,
//! then every pair connects.
//!
//! A caller must show the token before anything else of it is believed. Strangers, and ranks of
//! another job or attempt, are refused without any effect on the group: each connection is
//! greeted on its own thread, within a time and a size limit, and at most 64 at a time.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::TcpConfig;
use super::frame::{self, CHUNK, GREETING_LIMIT, Header, Kind, ReadError};
use crate::train::collective::CollectiveError;

/// Connections that are greeted at the same time; more are closed at once.
const MAX_GREETINGS: usize = 64;
/// A caller must introduce itself within this time.
const GREETING_TIME: Duration = Duration::from_secs(5);
/// When all have joined rank 0, they connect to each other within this time.
const MESH_TIME: Duration = Duration::from_secs(30);
/// Refusals that an error repeats.
const MAX_REFUSALS: usize = 8;

/// A connected peer, and where it listens.
pub(super) type Peer = (TcpStream, SocketAddr);

/// Who calls.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Hello {
    token: String,
    rank: usize,
    world: usize,
    attempt: u32,
    job: String,
    /// Tells two processes apart that claim the same rank.
    instance: u64,
    /// Port on which the caller listens for its peers.
    port: u16,
}

/// What became of a connection to this rank's listener.
enum Greeting {
    Joined { hello: Hello, stream: TcpStream },
    Refused(String),
}

/// Listens where rank 0 is expected.
pub(super) fn bind_master(address: &str) -> Result<TcpListener, CollectiveError> {
    let listen =
        |source: io::Error| CollectiveError::Listen { address: address.to_owned(), source };
    let mut addresses = address.to_socket_addrs().map_err(listen)?;
    let first = addresses.next().ok_or_else(|| listen(ErrorKind::AddrNotAvailable.into()))?;
    let bound = match TcpListener::bind(first) {
        // Behind a service or NAT the name leads to this machine, but is not an address of it.
        Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {
            TcpListener::bind(("0.0.0.0", first.port()))
        }
        other => other,
    };
    bound.map_err(|source| {
        if source.kind() == ErrorKind::AddrInUse {
            return CollectiveError::PortTaken { address: address.to_owned() };
        }
        listen(source)
    })
}

/// Rank 0: waits for all others and tells each where the rest is.
pub(super) fn host(
    config: &TcpConfig,
    listener: &TcpListener,
) -> Result<Vec<Option<Peer>>, CollectiveError> {
    let deadline = Instant::now() + config.join_timeout;
    let expected: Vec<usize> = (1..config.world).collect();
    let peers = accept(config, listener, &expected, deadline)?;
    let addresses: Vec<Option<SocketAddr>> =
        peers.iter().map(|peer| peer.as_ref().map(|(_, address)| *address)).collect();
    let payload = serde_json::to_vec(&addresses).unwrap_or_default();
    for (stream, _) in peers.iter().flatten() {
        // A peer that is gone by now is noticed and named by the first barrier.
        reply(config, stream, Kind::Peers, &payload);
    }
    Ok(peers)
}

/// Any other rank: calls rank 0, then connects to the ranks below and waits for those above.
pub(super) fn join(config: &TcpConfig) -> Result<Vec<Option<Peer>>, CollectiveError> {
    let deadline = Instant::now() + config.join_timeout;
    let (master, listener, addresses) = call_master(config, deadline)?;
    let deadline = deadline.min(Instant::now() + MESH_TIME);
    let port = listener.local_addr().map(|address| address.port()).unwrap_or_default();
    let mut peers: Vec<Option<Peer>> = (0..config.world).map(|_| None).collect();
    for (rank, address) in addresses.iter().enumerate().take(config.rank) {
        if let Some(address) = address {
            let stream = call_peer(config, rank, *address, port, deadline)?;
            peers[rank] = Some((stream, *address));
        }
    }
    let above: Vec<usize> = (config.rank + 1..config.world).collect();
    for (slot, peer) in peers.iter_mut().zip(accept(config, &listener, &above, deadline)?) {
        *slot = slot.take().or(peer);
    }
    peers[0] = Some(master);
    Ok(peers)
}

/// Calls rank 0 until it answers with the addresses of all ranks.
fn call_master(
    config: &TcpConfig,
    deadline: Instant,
) -> Result<(Peer, TcpListener, Vec<Option<SocketAddr>>), CollectiveError> {
    let mut pause = Duration::from_millis(20);
    let mut listener: Option<TcpListener> = None;
    loop {
        config.go_on()?;
        let source = match connect(&config.master, deadline) {
            Err(error) => error,
            Ok((stream, address)) => {
                let listener = match listener.take() {
                    Some(listener) => listener,
                    None => bind_peer(&stream)?,
                };
                match ask_master(config, &stream, &listener, address, deadline)? {
                    Some(addresses) => return Ok(((stream, address), listener, addresses)),
                    None => ErrorKind::ConnectionReset.into(),
                }
            }
        };
        if Instant::now() + pause >= deadline {
            return Err(CollectiveError::NoMaster {
                rank: config.rank,
                address: config.master.clone(),
                seconds: config.join_timeout.as_secs_f64(),
                source,
            });
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(500));
    }
}

/// Introduces this rank to rank 0; `None` if the connection ended without an answer.
fn ask_master(
    config: &TcpConfig,
    stream: &TcpStream,
    listener: &TcpListener,
    address: SocketAddr,
    deadline: Instant,
) -> Result<Option<Vec<Option<SocketAddr>>>, CollectiveError> {
    let port = listener.local_addr().map(|own| own.port()).unwrap_or_default();
    say_hello(config, stream, port);
    match frame::read(stream, CHUNK, |_| config.is_stopped() || Instant::now() > deadline) {
        Ok((Header { kind: Kind::Refuse, .. }, reason)) => Err(refused(config, address, &reason)),
        Ok((Header { kind: Kind::Peers, .. }, payload)) => {
            let addresses: Option<Vec<Option<SocketAddr>>> = serde_json::from_slice(&payload).ok();
            Ok(addresses.filter(|list| list.len() == config.world))
        }
        Ok(_) | Err(ReadError::Closed(_) | ReadError::Garbled(_) | ReadError::Stopped) => Ok(None),
    }
}

/// Connects to another rank than 0, which is known to listen.
fn call_peer(
    config: &TcpConfig,
    rank: usize,
    address: SocketAddr,
    port: u16,
    deadline: Instant,
) -> Result<TcpStream, CollectiveError> {
    let over = || config.is_stopped() || Instant::now() > deadline;
    while !over() {
        if let Ok((stream, _)) = connect(address, deadline) {
            say_hello(config, &stream, port);
            match frame::read(&stream, GREETING_LIMIT, |_| over()) {
                Ok((Header { kind: Kind::Welcome, .. }, _)) => return Ok(stream),
                Ok((Header { kind: Kind::Refuse, .. }, reason)) => {
                    return Err(refused(config, address, &reason));
                }
                // It may have been too busy with strangers.
                Ok(_) | Err(ReadError::Closed(_) | ReadError::Garbled(_) | ReadError::Stopped) => {}
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    config.go_on()?;
    Err(never_came(config, &[rank], Vec::new()))
}

fn connect(address: impl ToSocketAddrs, deadline: Instant) -> io::Result<(TcpStream, SocketAddr)> {
    let mut last = io::Error::from(ErrorKind::AddrNotAvailable);
    for address in address.to_socket_addrs()? {
        let left = deadline.saturating_duration_since(Instant::now());
        let time = left.clamp(Duration::from_millis(1), Duration::from_secs(3));
        let connected = TcpStream::connect_timeout(&address, time)
            .and_then(|stream| frame::prepare(&stream).map(|()| stream));
        match connected {
            Ok(stream) => return Ok((stream, address)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Listens for peers on the address by which this rank reaches rank 0.
fn bind_peer(stream: &TcpStream) -> Result<TcpListener, CollectiveError> {
    let own = stream.local_addr().map_or(IpAddr::from([0, 0, 0, 0]), |address| address.ip());
    TcpListener::bind((own, 0))
        .map_err(|source| CollectiveError::Listen { address: own.to_string(), source })
}

fn say_hello(config: &TcpConfig, stream: &TcpStream, port: u16) {
    let hello = Hello {
        token: config.token.clone(),
        rank: config.rank,
        world: config.world,
        attempt: config.attempt,
        job: config.job.clone(),
        instance: config.instance(),
        port,
    };
    reply(config, stream, Kind::Hello, &serde_json::to_vec(&hello).unwrap_or_default());
}

/// Sends a greeting; that it did not arrive shows at the next read.
fn reply(config: &TcpConfig, stream: &TcpStream, kind: Kind, payload: &[u8]) {
    let header = Header { kind, last: true, operation: 0, attempt: config.attempt, seq: 0 };
    let deadline = Instant::now() + GREETING_TIME;
    frame::write(stream, &frame::encode(header, payload), || Instant::now() > deadline);
}

/// Accepts connections until all `expected` ranks have joined.
fn accept(
    config: &TcpConfig,
    listener: &TcpListener,
    expected: &[usize],
    deadline: Instant,
) -> Result<Vec<Option<Peer>>, CollectiveError> {
    let mut peers: Vec<Option<Peer>> = (0..config.world).map(|_| None).collect();
    let mut instances = vec![0; config.world];
    let mut refusals = Vec::new();
    let missing = |peers: &[Option<Peer>]| -> Vec<usize> {
        expected.iter().copied().filter(|&rank| peers[rank].is_none()).collect()
    };
    if expected.is_empty() {
        return Ok(peers);
    }
    let address = listener.local_addr().map(|own| own.to_string()).unwrap_or_default();
    listener.set_nonblocking(true).map_err(|source| CollectiveError::Listen { address, source })?;
    let (sender, greetings) = channel();
    let live = Arc::new(AtomicUsize::new(0));
    while !missing(&peers).is_empty() {
        config.go_on()?;
        if Instant::now() > deadline {
            return Err(never_came(config, &missing(&peers), refusals));
        }
        let accepted = greet_next(config, listener, expected, &sender, &live);
        match greetings.try_recv().ok() {
            Some(Greeting::Joined { hello, stream }) => {
                let address = stream.peer_addr().map(|peer| SocketAddr::new(peer.ip(), hello.port));
                let alive = peers[hello.rank].as_ref().is_some_and(|(old, _)| is_open(old));
                if alive && instances[hello.rank] != hello.instance {
                    let reason = format!("rank {} has joined already", hello.rank);
                    reply(config, &stream, Kind::Refuse, reason.as_bytes());
                    note(&mut refusals, reason);
                } else if let Ok(address) = address {
                    if config.rank != 0 {
                        reply(config, &stream, Kind::Welcome, &[]);
                    }
                    instances[hello.rank] = hello.instance;
                    peers[hello.rank] = Some((stream, address));
                }
            }
            Some(Greeting::Refused(reason)) => note(&mut refusals, reason),
            None if accepted => {}
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    }
    Ok(peers)
}

fn note(refusals: &mut Vec<String>, reason: String) {
    if refusals.len() < MAX_REFUSALS {
        refusals.push(reason);
    }
}

/// Accepts a waiting connection, if there is one, and greets it on a thread of its own.
fn greet_next(
    config: &TcpConfig,
    listener: &TcpListener,
    expected: &[usize],
    sender: &Sender<Greeting>,
    live: &Arc<AtomicUsize>,
) -> bool {
    let Ok((stream, _)) = listener.accept() else { return false };
    if live.load(Ordering::Relaxed) >= MAX_GREETINGS || frame::prepare(&stream).is_err() {
        return true;
    }
    live.fetch_add(1, Ordering::Relaxed);
    let (config, expected) = (config.clone(), expected.to_vec());
    let (sender, live) = (sender.clone(), Arc::clone(live));
    std::thread::spawn(move || {
        // The receiver is gone when the group is complete; then nobody needs this caller.
        let _unused = sender.send(greet(&config, stream, &expected));
        live.fetch_sub(1, Ordering::Relaxed);
    });
    true
}

/// Finds out who calls, and refuses those who do not belong to the group.
fn greet(config: &TcpConfig, stream: TcpStream, expected: &[usize]) -> Greeting {
    let caller = stream.peer_addr().map_or_else(|_| "a caller".to_owned(), |peer| peer.to_string());
    let deadline = Instant::now() + GREETING_TIME;
    let what = match frame::read(&stream, GREETING_LIMIT, |_| Instant::now() > deadline) {
        Ok((Header { kind: Kind::Hello, .. }, payload)) => {
            let hello = serde_json::from_slice(&payload).ok();
            match hello.map(|hello| check(config, hello, expected)) {
                Some(Ok(hello)) => return Greeting::Joined { hello, stream },
                Some(Err(reason)) => {
                    reply(config, &stream, Kind::Refuse, reason.as_bytes());
                    reason
                }
                None => "its greeting is not understood".to_owned(),
            }
        }
        Ok((header, _)) => format!("it began with {:?}", header.kind),
        Err(ReadError::Garbled(what)) => format!("it sent {what}"),
        Err(ReadError::Closed(_)) => "it hung up".to_owned(),
        Err(ReadError::Stopped) => "it said nothing in time".to_owned(),
    };
    Greeting::Refused(format!("{caller}: {what}"))
}

/// Whether the caller is a member; the token comes first, so that a stranger learns nothing.
fn check(config: &TcpConfig, hello: Hello, expected: &[usize]) -> Result<Hello, String> {
    let differs = |what: &str, theirs: &dyn ToString, ours: &dyn ToString| {
        Err(format!("{what} is {}, expected {}", theirs.to_string(), ours.to_string()))
    };
    if !same_bytes(hello.token.as_bytes(), config.token.as_bytes()) {
        return Err("wrong token".to_owned());
    }
    if hello.world != config.world {
        return differs("the world size", &hello.world, &config.world);
    }
    if hello.attempt != config.attempt {
        return differs("the attempt", &hello.attempt, &config.attempt);
    }
    if hello.job != config.job {
        return differs("the job hash", &hello.job, &config.job);
    }
    if !expected.contains(&hello.rank) {
        return Err(format!("rank {} is not expected here", hello.rank));
    }
    Ok(hello)
}

/// Compares without telling by its duration where the first difference is.
fn same_bytes(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |seen, (x, y)| seen | (x ^ y)) == 0
}

/// Whether the other side has not hung up.
fn is_open(stream: &TcpStream) -> bool {
    match stream.peek(&mut [0]) {
        Ok(count) => count > 0,
        Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
    }
}

fn refused(config: &TcpConfig, address: SocketAddr, reason: &[u8]) -> CollectiveError {
    CollectiveError::Refused {
        rank: config.rank,
        address: address.to_string(),
        reason: String::from_utf8_lossy(reason).into_owned(),
    }
}

fn never_came(config: &TcpConfig, missing: &[usize], refused: Vec<String>) -> CollectiveError {
    CollectiveError::NeverCame {
        missing: missing.to_vec(),
        address: config.master.clone(),
        seconds: config.join_timeout.as_secs_f64(),
        refused,
    }
}
