//! Lets a host test its way to a third: so that one doctor can have every pair tested.
//!
//! The request is the length of the third host's name (2 bytes, little-endian) and the name as
//! `host:port`; the answer is a length (4 bytes) and a [`Way`] as JSON. All three share one secret.

use std::{
    io::{self, Read, Write},
    net::{TcpStream, ToSocketAddrs},
    time::Duration,
};

use super::{connect, greet, to_host};
use crate::wire::pairs::Way;

/// A test of a way that is broken in every part takes less.
const ERRAND: Duration = Duration::from_secs(60);
/// Longest name of a host, with its port.
const NAME: usize = 300;
/// Longest answer.
const ANSWER: usize = 64 << 10;

/// Asks `host` to test its way to `third`. The error says why it could not be asked.
pub(in crate::probe) fn send(host: &str, third: &str, secret: &str) -> Result<Way, String> {
    let ask = || -> io::Result<Way> {
        let mut last = io::Error::other("it has no address");
        for address in host.to_socket_addrs()? {
            match connect(address) {
                Ok(stream) => return converse(&stream, third, secret),
                Err(error) => last = error,
            }
        }
        Err(last)
    };
    ask().map_err(|error| format!("`{host}` cannot be asked: {error}"))
}

fn converse(mut stream: &TcpStream, third: &str, secret: &str) -> io::Result<Way> {
    greet(stream, secret)?;
    stream.set_read_timeout(Some(ERRAND))?;
    let mut ask = vec![b'T'];
    let length = u16::try_from(third.len()).map_err(|_long| io::ErrorKind::InvalidInput)?;
    ask.extend(length.to_le_bytes());
    ask.extend(third.as_bytes());
    stream.write_all(&ask)?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if ANSWER < length {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut json = vec![0; length];
    stream.read_exact(&mut json)?;
    serde_json::from_slice(&json).map_err(io::Error::other)
}

/// The side that is asked.
pub(super) fn run(mut stream: &TcpStream, secret: &str) -> io::Result<()> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let length = usize::from(u16::from_le_bytes(length));
    if NAME < length {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut name = vec![0; length];
    stream.read_exact(&mut name)?;
    let name = String::from_utf8(name).map_err(io::Error::other)?;
    let json = serde_json::to_vec(&to_host(&name, secret))?;
    stream.write_all(&u32::try_from(json.len()).unwrap_or(0).to_le_bytes())?;
    stream.write_all(&json)
}
