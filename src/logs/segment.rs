//! The format of stored lines, the same in a pod's spool, on the wire and in the collector.
//!
//! A segment is a row of frames and nothing else. A frame is a mark (1 byte), a version (1 byte),
//! the length of the payload (4 bytes), its CRC-32C (4 bytes) and the payload: kind (1 byte), rank,
//! attempt, epoch (4 bytes each), time in milliseconds since the Unix epoch, number (8 bytes each),
//! then the text of a line or the count of a gap. All numbers are little-endian.
//!
//! Numbers count the lines of one rank in one pod, from 0. They grow by one, so that a line that
//! was lost shows, and a line that was sent twice is known.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

/// Longest text of a line in bytes; what is longer is cut by [`cut`].
pub const MAX_TEXT: usize = 64 * 1024;
/// Largest frame in bytes.
pub const MAX_FRAME: usize = HEAD + FIXED + MAX_TEXT;

const MARK: u8 = 0xA7;
const VERSION: u8 = 1;
/// Mark, version, length and checksum.
const HEAD: usize = 10;
/// Payload before the text.
const FIXED: usize = 29;
const KIND_LINE: u8 = 1;
const KIND_GAP: u8 = 2;
const KIND_NEXT: u8 = 3;

/// One entry of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Global rank.
    pub rank: u32,
    /// Attempt of the job: pods of their own.
    pub attempt: u32,
    /// Start of the trainer within the job; grows at every restart, in the same pod too.
    pub epoch: u32,
    /// Milliseconds since the Unix epoch, by the clock of the pod.
    pub time_ms: u64,
    /// Number of the line; of a gap, number of its first line.
    pub number: u64,
    pub body: Body,
}

/// What an entry says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// A line without its end.
    Line(String),
    /// So many lines were lost here.
    Gap(u64),
    /// No line: the next line has this number. A lost segment then shows even if nothing follows.
    Next,
}

impl Record {
    /// Number of the line that follows this entry.
    pub fn next_number(&self) -> u64 {
        match &self.body {
            Body::Line(_) => self.number.saturating_add(1),
            Body::Gap(count) => self.number.saturating_add(*count),
            Body::Next => self.number,
        }
    }

    /// Appends the frame of this entry.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let (kind, count);
        let text: &[u8] = match &self.body {
            Body::Line(text) => {
                kind = KIND_LINE;
                &text.as_bytes()[..cut(text)]
            }
            Body::Gap(lines) => {
                kind = KIND_GAP;
                count = lines.to_le_bytes();
                &count
            }
            Body::Next => {
                kind = KIND_NEXT;
                &[]
            }
        };
        let length = u32::try_from(FIXED + text.len()).expect("a text is at most MAX_TEXT");
        out.extend([MARK, VERSION]);
        out.extend(length.to_le_bytes());
        let checksum_at = out.len();
        out.extend([0; 4]);
        let payload_at = out.len();
        out.push(kind);
        for value in [self.rank, self.attempt, self.epoch] {
            out.extend(value.to_le_bytes());
        }
        out.extend(self.time_ms.to_le_bytes());
        out.extend(self.number.to_le_bytes());
        out.extend(text);
        let checksum = crc32c::crc32c(&out[payload_at..]).to_le_bytes();
        out[checksum_at..payload_at].copy_from_slice(&checksum);
    }
}

/// Bytes of a text that fit into a line, cut between two characters.
pub fn cut(text: &str) -> usize {
    let longest = text.len().min(MAX_TEXT);
    (0..=longest).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0)
}

/// Reads frames one after another until the bytes end or make no sense.
#[derive(Clone, Debug)]
pub struct Frames<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl<'b> Frames<'b> {
    pub fn new(bytes: &'b [u8]) -> Self {
        Frames { bytes, at: 0 }
    }

    /// Bytes of the whole frames so far. After the last one, what follows is torn or damaged.
    pub fn end(&self) -> usize {
        self.at
    }

    /// Goes on at the next frame after a damaged place; `false` if there is none.
    pub fn skip_damage(&mut self) -> bool {
        let found = (self.at + 1..self.bytes.len())
            .filter(|at| self.bytes[*at] == MARK)
            .find(|at| decode(&self.bytes[*at..]).is_some());
        if let Some(at) = found {
            self.at = at;
        }
        found.is_some()
    }
}

impl Iterator for Frames<'_> {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        let (record, length) = decode(self.bytes.get(self.at..)?)?;
        self.at += length;
        Some(record)
    }
}

/// The first frame and its length.
fn decode(bytes: &[u8]) -> Option<(Record, usize)> {
    if bytes.get(..2)? != [MARK, VERSION] {
        return None;
    }
    let length = usize::try_from(u32_at(bytes, 2)?).ok()?;
    if !(FIXED..=FIXED + MAX_TEXT).contains(&length) {
        return None;
    }
    let payload = bytes.get(HEAD..HEAD + length)?;
    if crc32c::crc32c(payload) != u32_at(bytes, 6)? {
        return None;
    }
    let text = &payload[FIXED..];
    let body = match payload[0] {
        KIND_LINE => Body::Line(String::from_utf8_lossy(text).into_owned()),
        KIND_GAP => Body::Gap(u64::from_le_bytes(text.try_into().ok()?)),
        KIND_NEXT if text.is_empty() => Body::Next,
        _unknown => return None,
    };
    let record = Record {
        rank: u32_at(payload, 1)?,
        attempt: u32_at(payload, 5)?,
        epoch: u32_at(payload, 9)?,
        time_ms: u64_at(payload, 13)?,
        number: u64_at(payload, 21)?,
        body,
    };
    Some((record, HEAD + length))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record() -> impl Strategy<Value = Record> {
        let body = prop_oneof![
            ".{0,40}".prop_map(Body::Line),
            any::<u64>().prop_map(Body::Gap),
            Just(Body::Next)
        ];
        let numbers = (any::<u32>(), any::<u32>(), any::<u32>(), any::<u64>(), any::<u64>());
        (numbers, body).prop_map(|((rank, attempt, epoch, time_ms, number), body)| Record {
            rank,
            attempt,
            epoch,
            time_ms,
            number,
            body,
        })
    }

    fn encode(records: &[Record]) -> (Vec<u8>, Vec<usize>) {
        let mut bytes = Vec::new();
        let mut ends = vec![0];
        for record in records {
            record.encode(&mut bytes);
            ends.push(bytes.len());
        }
        (bytes, ends)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_segment_cut_at_any_byte_gives_its_whole_frames(
            records in prop::collection::vec(record(), 0..6)
        ) {
            let (bytes, ends) = encode(&records);
            for length in 0..=bytes.len() {
                let whole = ends.iter().filter(|end| **end <= length).count() - 1;
                let mut frames = Frames::new(&bytes[..length]);
                let read: Vec<Record> = frames.by_ref().collect();
                prop_assert_eq!(&read, &records[..whole]);
                prop_assert_eq!(frames.end(), ends[whole]);
            }
        }

        #[test]
        fn a_changed_byte_costs_its_own_frame_only(
            records in prop::collection::vec(record(), 1..5),
            place in any::<prop::sample::Index>(),
            change in 1_u8..
        ) {
            let (mut bytes, ends) = encode(&records);
            let place = place.index(bytes.len());
            bytes[place] ^= change;
            let hurt = ends.iter().filter(|end| **end <= place).count() - 1;
            let mut frames = Frames::new(&bytes);
            let mut read: Vec<Record> = frames.by_ref().collect();
            prop_assert_eq!(&read, &records[..hurt]);
            while frames.skip_damage() {
                read.extend(frames.by_ref());
            }
            let mut expected = records.clone();
            expected.remove(hurt);
            prop_assert_eq!(read, expected);
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut frames = Frames::new(&bytes);
            let read = frames.by_ref().count();
            prop_assert!(read <= bytes.len() / (HEAD + FIXED));
            prop_assert!(frames.end() <= bytes.len());
        }
    }

    #[test]
    fn a_long_line_is_cut_between_characters() {
        let text = format!("a{}", "é".repeat(MAX_TEXT / 2));
        let line = |text: &str| Record {
            rank: 0,
            attempt: 1,
            epoch: 1,
            time_ms: 0,
            number: 7,
            body: Body::Line(text.to_owned()),
        };
        let mut bytes = Vec::new();
        line(&text).encode(&mut bytes);
        let read: Vec<Record> = Frames::new(&bytes).collect();
        assert_eq!(read, [line(&text[..MAX_TEXT - 1])]);
        assert!(bytes.len() <= MAX_FRAME);
        assert_eq!(read[0].next_number(), 8);
    }
}
