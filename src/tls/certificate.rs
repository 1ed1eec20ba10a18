//! The end of a certificate's life. rustls checks it in the peer's certificate and tells nobody
//! about the own one.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use jiff::{Timestamp, civil::DateTime, tz::TimeZone};

/// Tags of DER (X.690), as RFC 5280 uses them in a certificate.
const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// The last moment at which a certificate in DER is valid; `None` if it is none.
pub(super) fn not_after(der: &[u8]) -> Option<Timestamp> {
    let (certificate, _rest) = value(der, SEQUENCE)?;
    let (mut fields, _rest) = value(certificate, SEQUENCE)?;
    if fields.first() == Some(&VERSION) {
        fields = element(fields)?.2;
    }
    // Serial number, algorithm of the signature, issuer.
    for _field in 0..3 {
        fields = element(fields)?.2;
    }
    let (validity, _rest) = value(fields, SEQUENCE)?;
    let (_tag, _not_before, rest) = element(validity)?;
    let (tag, text, _rest) = element(rest)?;
    time(tag, std::str::from_utf8(text).ok()?)
}

/// Value of the element with that tag at the beginning, and what follows it.
fn value(der: &[u8], wanted: u8) -> Option<(&[u8], &[u8])> {
    let (tag, value, rest) = element(der)?;
    (tag == wanted).then_some((value, rest))
}

/// Tag, value and what follows.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let count = usize::from(first & 0x7f);
        let bytes = rest.get(..count).filter(|bytes| bytes.len() <= 4)?;
        let length = bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        (length, rest.get(count..)?)
    };
    Some((tag, rest.get(..length)?, rest.get(length..)?))
}

/// `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ`; years of two digits are 1950 to 2049.
fn time(tag: u8, text: &str) -> Option<Timestamp> {
    let text = text.strip_suffix('Z')?;
    let text = match tag {
        UTC_TIME if text.len() == 12 => {
            format!("{}{text}", if text < "50" { "20" } else { "19" })
        }
        GENERALIZED_TIME if text.len() == 14 => text.to_owned(),
        _other => return None,
    };
    let time = DateTime::strptime("%Y%m%d%H%M%S", text).ok()?;
    time.to_zoned(TimeZone::UTC).ok().map(|time| time.timestamp())
}
