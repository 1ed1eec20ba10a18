//! Where a host lets others test their way to it: a pod until the first epoch begins, `qvl doctor
//! serve` until its time is over.
//!
//! Who has connected shows the secret, then asks: `P` for the time, `S` to send blocks, `R` to
//! receive some, and, where the door allows it, `T` to test the way to a third. A block is its length (4 bytes, little-endian) and so many bytes; one of length 0
//! is the last. All is limited: connections, bytes, time.

use std::{
    fs::File,
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use sha2::{Digest, Sha256};

use super::errand;
use crate::wire::pairs::Door;

/// First bytes of both sides.
pub(super) const GREETING: &[u8; 8] = b"QVLPAIR1";
/// Hexadecimal digits of a secret.
const SECRET: usize = 32;
/// Longest block.
pub(super) const BLOCK: usize = 64 << 10;
/// Connections at the same time: a pod is tested by a few others.
const CONNECTIONS: usize = 16;
/// A connection lasts at most so long, and may be silent for so long.
const LIFE: Duration = Duration::from_secs(30);
const SILENCE: Duration = Duration::from_secs(10);
/// Most that is received, and sent, at one request.
const MOST: u64 = 256 << 20;
/// How often a new connection is looked for.
const TICK: Duration = Duration::from_millis(10);

/// A door that is open until it is dropped.
#[derive(Debug)]
pub struct OpenDoor {
    /// Port and secret.
    pub door: Door,
    /// Where it listens.
    pub address: SocketAddr,
    over: Arc<AtomicBool>,
}

/// What callers may ask.
#[derive(Clone, Debug)]
struct Rules {
    secret: String,
    /// They may send this host on errands.
    errands: bool,
    over: Arc<AtomicBool>,
}

impl OpenDoor {
    /// A door on any port, with a fresh secret, that answers and does nothing else.
    pub fn open() -> io::Result<OpenDoor> {
        // Where there is no IPv6 the first of them fails.
        let listener = TcpListener::bind("[::]:0").or_else(|_| TcpListener::bind("0.0.0.0:0"))?;
        OpenDoor::keep(listener, secret()?, false)
    }

    /// A door whose callers may also let this host test its way to a third. `secret`: see
    /// [`secret_of`].
    pub fn serve(listen: SocketAddr, secret: String) -> io::Result<OpenDoor> {
        OpenDoor::keep(TcpListener::bind(listen)?, secret, true)
    }

    fn keep(listener: TcpListener, secret: String, errands: bool) -> io::Result<OpenDoor> {
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let door = Door { port: address.port(), secret };
        let over = Arc::new(AtomicBool::new(false));
        let secret = door.secret.clone();
        let rules = Rules { secret, errands, over: Arc::clone(&over) };
        let keep = move || keep(&listener, &rules);
        thread::Builder::new().name("door".to_owned()).spawn(keep)?;
        Ok(OpenDoor { door, address, over })
    }
}

/// The secret of a door that people open with a token of any length. The token itself never
/// crosses the network.
pub fn secret_of(token: &str) -> String {
    let digest = Sha256::new().chain_update(b"qvl doctor serve\n").chain_update(token).finalize();
    digest.iter().take(SECRET / 2).map(|byte| format!("{byte:02x}")).collect()
}

impl Drop for OpenDoor {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

fn secret() -> io::Result<String> {
    let mut bytes = [0_u8; SECRET / 2];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn keep(listener: &TcpListener, rules: &Rules) {
    let live = Arc::new(AtomicUsize::new(0));
    while !rules.over.load(Ordering::Relaxed) {
        let Ok((stream, _caller)) = listener.accept() else {
            thread::sleep(TICK);
            continue;
        };
        if CONNECTIONS <= live.load(Ordering::Relaxed) {
            continue;
        }
        live.fetch_add(1, Ordering::Relaxed);
        let (rules, live) = (rules.clone(), Arc::clone(&live));
        thread::spawn(move || {
            // How a test ends is of interest to the one who made it.
            let _ended = answer(&stream, &rules);
            live.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

fn answer(mut stream: &TcpStream, rules: &Rules) -> io::Result<()> {
    let until = Instant::now() + LIFE;
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    let mut hello = [0; GREETING.len() + SECRET];
    stream.read_exact(&mut hello)?;
    let (greeting, shown) = hello.split_at(GREETING.len());
    if greeting != GREETING || !same_bytes(shown, rules.secret.as_bytes()) {
        return Ok(());
    }
    stream.write_all(GREETING)?;
    let mut ask = [0];
    loop {
        if rules.over.load(Ordering::Relaxed) || until < Instant::now() {
            return Ok(());
        }
        stream.read_exact(&mut ask)?;
        match ask[0] {
            b'P' => stream.write_all(&now_us().to_le_bytes())?,
            b'S' => {
                let received = receive(stream, until)?;
                stream.write_all(&received.to_le_bytes())?;
            }
            b'R' => {
                let (mut bytes, mut millis) = ([0; 8], [0; 4]);
                stream.read_exact(&mut bytes)?;
                stream.read_exact(&mut millis)?;
                let time = Duration::from_millis(u64::from(u32::from_le_bytes(millis)));
                send(stream, u64::from_le_bytes(bytes).min(MOST), time.min(SILENCE))?;
            }
            b'T' if rules.errands => errand::run(stream, &rules.secret)?,
            _other => return Ok(()),
        }
    }
}

/// Reads blocks to the last one; how many bytes they had.
pub(super) fn receive(mut stream: &TcpStream, until: Instant) -> io::Result<u64> {
    let mut block = vec![0; BLOCK];
    let mut received = 0;
    loop {
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length) as usize;
        if length == 0 {
            return Ok(received);
        }
        received += length as u64;
        if BLOCK < length || MOST < received {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if until < Instant::now() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.read_exact(&mut block[..length])?;
    }
}

/// Sends blocks for so long, or until there were so many bytes; how many there were.
pub(super) fn send(mut stream: &TcpStream, bytes: u64, time: Duration) -> io::Result<u64> {
    let begin = Instant::now();
    let mut block = vec![0x5a; 4 + BLOCK];
    let mut sent = 0;
    while sent < bytes && (sent == 0 || begin.elapsed() < time) {
        let length = usize::try_from(bytes - sent).unwrap_or(BLOCK).min(BLOCK);
        block[..4].copy_from_slice(&u32::try_from(length).unwrap_or(0).to_le_bytes());
        stream.write_all(&block[..4 + length])?;
        sent += length as u64;
    }
    stream.write_all(&[0; 4])?;
    Ok(sent)
}

/// Compares without telling by its duration where the first difference is.
fn same_bytes(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |seen, (x, y)| seen | (x ^ y)) == 0
}

/// Microseconds since the Unix epoch.
pub(super) fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
