//! Tests the ways to other hosts: to other pods before the first epoch, and to hosts where `qvl
//! doctor serve` listens. It only measures; who hears of all pairs judges.

mod door;
mod errand;

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs},
    sync::mpsc::channel,
    thread,
    time::{Duration, Instant},
};

pub use door::{OpenDoor, secret_of};
pub(super) use errand::send as send_on_errand;

use self::door::{BLOCK, GREETING, now_us, receive, send};
use crate::wire::pairs::{PairReport, Peer, Way};

/// The other side listens already, so that it must answer within this time.
const CONNECT: Duration = Duration::from_secs(3);
/// A message must be answered within this time.
const ANSWER: Duration = Duration::from_secs(5);
/// A way that does not work is tried so often.
const TRIES: u32 = 2;
/// Round trips; the shortest one counts.
const PINGS: u32 = 16;
/// A large message: more than one packet, and more than one window.
const LARGE: u64 = BLOCK as u64;
/// Each direction is measured for so long, or with so many bytes.
const SPEED_TIME: Duration = Duration::from_millis(200);
const SPEED_BYTES: u64 = 64 << 20;
/// A name must be found within this time: that of a new pod may be unknown for some seconds, and
/// DNS remembers for as long that it did not know it.
const NAME: Duration = Duration::from_secs(8);
/// Pause between two questions.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// Tests the way to each of them, one after another: all pods begin with their next neighbours, so
/// that each tests one way and is tested on one at a time.
pub fn test(peers: &[Peer]) -> Vec<PairReport> {
    peers.iter().map(|peer| PairReport { peer: peer.index, way: to_pod(peer) }).collect()
}

fn to_pod(peer: &Peer) -> Way {
    match peer.address.parse::<IpAddr>() {
        Ok(address) => to(SocketAddr::new(address, peer.door.port), &peer.door.secret),
        Err(_wrong) => Way::Closed { what: format!("`{}` is no IP address", peer.address) },
    }
}

/// Tests the way to a host that is named as `host:port`, by each of its addresses until one works.
pub(super) fn to_host(host: &str, secret: &str) -> Way {
    let addresses: Vec<SocketAddr> = match host.to_socket_addrs() {
        Ok(addresses) => addresses.collect(),
        Err(error) => return Way::Closed { what: format!("`{host}` is not found: {error}") },
    };
    let mut found = Way::Closed { what: format!("`{host}` has no address") };
    for address in addresses {
        found = to(address, secret);
        if !matches!(found, Way::Closed { .. }) {
            break;
        }
    }
    found
}

/// Tests the way to an open door.
fn to(address: SocketAddr, secret: &str) -> Way {
    let mut found = attempt(address, secret);
    for _again in 1..TRIES {
        if matches!(found, Way::Open { .. }) {
            break;
        }
        found = attempt(address, secret);
    }
    found
}

fn attempt(address: SocketAddr, secret: &str) -> Way {
    let said = |error: &io::Error| {
        if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) {
            return format!("{address}: no answer within {} s", ANSWER.as_secs());
        }
        format!("{address}: {error}")
    };
    let stream = match connect(address) {
        Ok(stream) => stream,
        Err(error) => return Way::Closed { what: format!("{address}: {error}") },
    };
    let (round_trip_us, clock_ahead_us) = match greet(&stream, secret).and_then(|()| ping(&stream))
    {
        Ok(found) => found,
        Err(error) => return Way::Mute { what: said(&error) },
    };
    if let Err(error) = large(&stream) {
        return Way::Narrow { what: said(&error) };
    }
    match speed(&stream) {
        Ok((sent_mbit, received_mbit)) => Way::Open {
            round_trip_us,
            sent_mbit,
            received_mbit,
            clock_ahead_ms: clock_ahead_us / 1000.0,
            clock_error_ms: round_trip_us as f64 / 2000.0,
        },
        Err(error) => Way::Mute { what: said(&error) },
    }
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, CONNECT)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.set_write_timeout(Some(ANSWER))?;
    Ok(stream)
}

fn greet(mut stream: &TcpStream, secret: &str) -> io::Result<()> {
    let mut hello = GREETING.to_vec();
    hello.extend(secret.as_bytes());
    stream.write_all(&hello)?;
    let mut answer = [0; GREETING.len()];
    stream.read_exact(&mut answer)?;
    if answer != *GREETING {
        return Err(io::Error::other("another program answered"));
    }
    Ok(())
}

/// The shortest round trip, and how far the other clock is ahead, in microseconds.
fn ping(mut stream: &TcpStream) -> io::Result<(u64, f64)> {
    let mut best: Option<(u64, f64)> = None;
    for _ping in 0..PINGS {
        let (sent, begin) = (now_us(), Instant::now());
        stream.write_all(b"P")?;
        let mut theirs = [0; 8];
        stream.read_exact(&mut theirs)?;
        let round_trip = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX);
        let ahead = u64::from_le_bytes(theirs) as f64 - (sent as f64 + round_trip as f64 / 2.0);
        if best.is_none_or(|(shortest, _ahead)| round_trip < shortest) {
            best = Some((round_trip, ahead));
        }
    }
    best.ok_or_else(|| ErrorKind::InvalidData.into())
}

/// A large message there and back. Where a packet size is lost on the way, it never arrives.
fn large(stream: &TcpStream) -> io::Result<()> {
    push(stream, LARGE, ANSWER)?;
    pull(stream, LARGE, ANSWER)?;
    Ok(())
}

/// Megabits per second to the other pod, and from it.
fn speed(stream: &TcpStream) -> io::Result<(f64, f64)> {
    let rate = |bytes: u64, begin: Instant| bytes as f64 * 8e-6 / begin.elapsed().as_secs_f64();
    let begin = Instant::now();
    let sent = rate(push(stream, SPEED_BYTES, SPEED_TIME)?, begin);
    let begin = Instant::now();
    Ok((sent, rate(pull(stream, SPEED_BYTES, SPEED_TIME)?, begin)))
}

/// Sends for so long, or so much, and waits until all has arrived.
fn push(mut stream: &TcpStream, bytes: u64, time: Duration) -> io::Result<u64> {
    stream.write_all(b"S")?;
    let sent = send(stream, bytes, time)?;
    let mut arrived = [0; 8];
    stream.read_exact(&mut arrived)?;
    if u64::from_le_bytes(arrived) != sent {
        return Err(ErrorKind::InvalidData.into());
    }
    Ok(sent)
}

/// Asks the other side to send for so long, or so much.
fn pull(mut stream: &TcpStream, bytes: u64, time: Duration) -> io::Result<u64> {
    let mut ask = vec![b'R'];
    ask.extend(bytes.to_le_bytes());
    ask.extend(u32::try_from(time.as_millis()).unwrap_or(u32::MAX).to_le_bytes());
    stream.write_all(&ask)?;
    receive(stream, Instant::now() + time + ANSWER)
}

/// Whether a name leads to an address; what is wrong if it does not.
pub fn look_up(name: &str, expected: &str) -> Option<String> {
    let until = Instant::now() + NAME;
    loop {
        let wrong = ask(name, expected, until)?;
        if until <= Instant::now() + ASK_AGAIN {
            return Some(wrong);
        }
        thread::sleep(ASK_AGAIN);
    }
}

fn ask(name: &str, expected: &str, until: Instant) -> Option<String> {
    let (sender, receiver) = channel();
    let asked = name.to_owned();
    // The resolver cannot be told how long to wait.
    thread::spawn(move || {
        let found = (asked.as_str(), 0).to_socket_addrs();
        // Nobody listens once it took too long.
        let _told = sender.send(found.map(|all| all.map(|one| one.ip().to_string()).collect()));
    });
    let left = until.saturating_duration_since(Instant::now());
    let found: Vec<String> = match receiver.recv_timeout(left) {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return Some(format!("DNS does not know `{name}`: {error}")),
        Err(_late) => {
            return Some(format!("DNS did not answer for `{name}` within {} s", NAME.as_secs()));
        }
    };
    if found.iter().any(|address| address == expected) {
        return None;
    }
    Some(format!("DNS says that `{name}` is {}, it is {expected}", found.join(", ")))
}

/// A line for the log of the pod.
pub fn describe(report: &PairReport, node: &str) -> String {
    let pod = report.peer;
    let what = match &report.way {
        Way::Open { round_trip_us, sent_mbit, received_mbit, clock_ahead_ms, clock_error_ms } => {
            format!(
                "round trip {:.2} ms, {sent_mbit:.0} Mbit/s there, {received_mbit:.0} back, clock \
                 {clock_ahead_ms:+.1} ms (\u{b1} {clock_error_ms:.1})",
                *round_trip_us as f64 / 1000.0
            )
        }
        Way::Closed { what } => format!("cannot be connected to: {what}"),
        Way::Mute { what } => format!("does not answer: {what}"),
        Way::Narrow { what } => format!("small messages arrive, large ones do not: {what}"),
    };
    format!("network: pod {pod} on {node}: {what}")
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::wire::pairs::Door;

    fn peer(door: Door) -> Peer {
        Peer { index: 1, node: "n".to_owned(), address: "127.0.0.1".to_owned(), door }
    }

    /// One attempt: a second one would cost seconds.
    fn at(peer: &Peer) -> Way {
        attempt(SocketAddr::new(peer.address.parse().unwrap(), peer.door.port), &peer.door.secret)
    }

    #[test]
    fn a_way_that_works_is_measured_within_two_seconds() {
        let open = OpenDoor::open().unwrap();
        let begin = Instant::now();
        let found = test(&[peer(open.door.clone())]);
        let seconds = begin.elapsed().as_secs_f64();
        let [PairReport { peer: 1, way }] = found.as_slice() else { panic!("{found:?}") };
        let Way::Open { sent_mbit, received_mbit, clock_ahead_ms, clock_error_ms, .. } = way else {
            panic!("{way:?}")
        };
        assert!(1.0 < *sent_mbit && 1.0 < *received_mbit, "{way:?}");
        // It is the same clock.
        assert!(clock_ahead_ms.abs() <= clock_error_ms + 1.0, "{way:?}");
        assert!(seconds < 2.0, "{seconds} s");
    }

    #[test]
    fn who_does_not_know_the_secret_is_not_let_in_and_others_still_are() {
        let open = OpenDoor::open().unwrap();
        let wrong = Door { secret: "0".repeat(32), ..open.door.clone() };
        assert!(matches!(at(&peer(wrong)), Way::Mute { .. }));
        let address = ("127.0.0.1", open.door.port);
        let silent: Vec<TcpStream> = (0..8).map(|_| TcpStream::connect(address).unwrap()).collect();
        TcpStream::connect(address).unwrap().write_all(&[b'x'; 4096]).unwrap();
        assert!(matches!(to_pod(&peer(open.door.clone())), Way::Open { .. }));
        drop(silent);
        let door = open.door.clone();
        drop(open);
        let begin = Instant::now();
        while TcpStream::connect(("127.0.0.1", door.port)).is_ok() {
            assert!(begin.elapsed() < Duration::from_secs(10), "the door stays open");
            thread::sleep(Duration::from_millis(20));
        }
        assert!(matches!(at(&peer(door)), Way::Closed { .. }));
    }

    /// Passes on what comes in small pieces, and swallows the rest of what is large, as a path does
    /// that loses packets of full size.
    fn narrow_path(to: u16) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            for near in listener.incoming() {
                let near = near.unwrap();
                let far = TcpStream::connect(("127.0.0.1", to)).unwrap();
                let back = (far.try_clone().unwrap(), near.try_clone().unwrap());
                thread::spawn(move || io::copy(&mut &back.0, &mut &back.1));
                thread::spawn(move || {
                    let mut bytes = vec![0; BLOCK];
                    while let Ok(count @ 1..) = (&near).read(&mut bytes) {
                        if count < 1400 {
                            (&far).write_all(&bytes[..count]).unwrap();
                        }
                    }
                });
            }
        });
        port
    }

    #[test]
    fn a_path_that_loses_large_packets_is_told_from_one_that_is_closed() {
        let open = OpenDoor::open().unwrap();
        let port = narrow_path(open.door.port);
        let found = at(&peer(Door { port, ..open.door.clone() }));
        assert!(matches!(found, Way::Narrow { .. }), "{found:?}");
    }

    #[test]
    fn names_are_compared_with_addresses() {
        assert_eq!(look_up("localhost", "127.0.0.1"), None);
        let other = look_up("localhost", "10.0.0.1").unwrap();
        assert!(other.contains("it is 10.0.0.1"), "{other}");
        assert!(look_up("no-such-name.invalid", "10.0.0.1").unwrap().contains("no-such-name"));
    }
}
