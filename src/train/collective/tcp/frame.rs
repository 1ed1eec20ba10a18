//! The unit of transfer: a header of fixed size and a payload of limited size.
//!
//! ```text
//! 0 magic "QVL1" | 4 kind | 5 last | 6 operation | 7 zero | 8 attempt | 12 seq | 20 length | 24 crc32c
//! ```
//! Numbers are little-endian. The checksum covers the header before it and the payload.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Longest payload of one frame; longer messages are split.
pub(super) const CHUNK: usize = 1 << 20;
/// Longest payload before the peer has shown the token.
pub(super) const GREETING_LIMIT: usize = 4096;
/// How long a read or a write blocks before it looks up.
pub(super) const TICK: Duration = Duration::from_millis(50);

const MAGIC: [u8; 4] = *b"QVL1";
const HEADER: usize = 28;

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// First frame of a connection: who calls.
    Hello,
    /// Answer to a hello between two ranks other than 0.
    Welcome,
    /// Answer to a hello: why the caller may not join.
    Refuse,
    /// Rank 0's answer to a hello when all have joined: where the ranks listen.
    Peers,
    /// Part of a message of an operation.
    Data,
    /// Sign of life.
    Heartbeat,
    /// To rank 0: the sender lost a peer.
    Lost,
    /// From rank 0: the peer that was lost first.
    Verdict,
    /// The sender leaves the group.
    Bye,
}

impl Kind {
    const ALL: [Kind; 9] = [
        Kind::Hello,
        Kind::Welcome,
        Kind::Refuse,
        Kind::Peers,
        Kind::Data,
        Kind::Heartbeat,
        Kind::Lost,
        Kind::Verdict,
        Kind::Bye,
    ];
}

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    /// Whether this is the last frame of its message.
    pub(super) last: bool,
    /// Which collective operation a `Data` frame belongs to.
    pub(super) operation: u8,
    pub(super) attempt: u32,
    /// Number of the operation since the group was formed.
    pub(super) seq: u64,
}

/// Why no frame could be read.
#[derive(Debug)]
pub(super) enum ReadError {
    /// The connection ended or broke.
    Closed(String),
    /// Not a frame, or a damaged one.
    Garbled(String),
    /// The caller's `idle` asked to stop.
    Stopped,
}

/// The bytes of a frame, ready to be written.
pub(super) fn encode(header: Header, payload: &[u8]) -> Vec<u8> {
    [&encode_head(header, payload)[..], payload].concat()
}

/// The bytes of a frame before its payload.
pub(super) fn encode_head(header: Header, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER);
    bytes.extend(MAGIC);
    // The number of a kind is its place in the table, which has nine entries.
    let kind = Kind::ALL.iter().zip(1u8..).find(|(kind, _)| **kind == header.kind);
    bytes.push(kind.map_or(0, |(_, number)| number));
    bytes.extend([u8::from(header.last), header.operation, 0]);
    bytes.extend(header.attempt.to_le_bytes());
    bytes.extend(header.seq.to_le_bytes());
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    bytes.extend(length.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes), payload);
    bytes.extend(crc.to_le_bytes());
    bytes
}

/// Reads one frame with a payload of at most `limit` bytes. `idle` is asked about every 50 ms
/// without data whether to stop; it learns whether any data came since it was last asked.
pub(super) fn read(
    stream: &TcpStream,
    limit: usize,
    mut idle: impl FnMut(bool) -> bool,
) -> Result<(Header, Vec<u8>), ReadError> {
    let mut head = [0; HEADER];
    read_full(stream, &mut head, &mut idle)?;
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    if head[..4] != MAGIC {
        return Err(ReadError::Garbled(format!("{:02x?} where a frame begins", &head[..4])));
    }
    let kind = usize::from(head[4]).checked_sub(1).and_then(|index| Kind::ALL.get(index));
    let Some(&kind) = kind else {
        return Err(ReadError::Garbled(format!("a frame of unknown kind {}", head[4])));
    };
    let length = word(20) as usize;
    if length > limit {
        return Err(ReadError::Garbled(format!("a frame of {length} bytes, at most {limit} fit")));
    }
    let mut payload = vec![0; length];
    read_full(stream, &mut payload, &mut idle)?;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&head[..24]), &payload);
    if crc != word(24) {
        return Err(ReadError::Garbled("a frame with a wrong checksum".to_owned()));
    }
    let seq = u64::from(word(12)) | u64::from(word(16)) << 32;
    let header = Header { kind, last: head[5] != 0, operation: head[6], attempt: word(8), seq };
    Ok((header, payload))
}

fn read_full(
    mut stream: &TcpStream,
    buffer: &mut [u8],
    idle: &mut impl FnMut(bool) -> bool,
) -> Result<(), ReadError> {
    let mut done = 0;
    while done < buffer.len() {
        match stream.read(&mut buffer[done..]) {
            Ok(0) => return Err(ReadError::Closed("the connection was closed".to_owned())),
            Ok(count) => {
                done += count;
                // A peer that sends byte by byte must not get around a deadline.
                if idle(true) {
                    return Err(ReadError::Stopped);
                }
            }
            Err(error) if is_tick(&error) => {
                if idle(false) {
                    return Err(ReadError::Stopped);
                }
            }
            Err(error) => return Err(ReadError::Closed(error.to_string())),
        }
    }
    Ok(())
}

/// Writes all `bytes`; `stop` is asked about every 50 ms without progress. `false` if the frame
/// could not be completed, after which the stream is useless.
pub(super) fn write(mut stream: &TcpStream, bytes: &[u8], mut stop: impl FnMut() -> bool) -> bool {
    let mut done = 0;
    while done < bytes.len() {
        match stream.write(&bytes[done..]) {
            Ok(0) => return false,
            Ok(count) => done += count,
            Err(error) if is_tick(&error) => {
                if stop() {
                    return false;
                }
            }
            Err(_) => return false,
        }
    }
    true
}

/// Sets what every stream of a group needs.
pub(super) fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TICK))?;
    stream.set_write_timeout(Some(TICK))
}

fn is_tick(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    const HEAD: Header =
        Header { kind: Kind::Data, last: true, operation: 3, attempt: 7, seq: (9 << 32) + 5 };

    #[track_caller]
    fn check_garbled(bytes: &[u8], expected: &str) {
        let (near, far) = pair();
        (&near).write_all(bytes).unwrap();
        match read(&far, 100, |_| false) {
            Err(ReadError::Garbled(what)) => assert_eq!(what, expected),
            other => panic!("{other:?}, expected {expected}"),
        }
    }

    #[test]
    fn a_frame_reads_back() {
        let (near, far) = pair();
        assert!(write(&near, &encode(HEAD, b"payload"), || true));
        assert!(write(&near, &encode(Header { last: false, ..HEAD }, b""), || true));
        assert_eq!(read(&far, 100, |_| false).unwrap(), (HEAD, b"payload".to_vec()));
        let (header, payload) = read(&far, 100, |_| false).unwrap();
        assert!(!header.last && payload.is_empty());
        drop(near);
        assert!(matches!(read(&far, 100, |_| false), Err(ReadError::Closed(_))));
    }

    #[test]
    fn damaged_frames_are_refused_before_memory_is_taken() {
        let good = encode(HEAD, b"payload");
        check_garbled(
            b"GET / HTTP/1.1\r\nHost: somewhere\r\n",
            "[47, 45, 54, 20] where a frame begins",
        );
        let mut bad = good.clone();
        bad[4] = 99;
        check_garbled(&bad, "a frame of unknown kind 99");
        let mut huge = good.clone();
        huge[20..24].copy_from_slice(&u32::MAX.to_le_bytes());
        check_garbled(&huge, "a frame of 4294967295 bytes, at most 100 fit");
        for at in [5, 9, 13, 27, 30] {
            let mut flipped = good.clone();
            flipped[at] ^= 1;
            check_garbled(&flipped, "a frame with a wrong checksum");
        }
    }
}
