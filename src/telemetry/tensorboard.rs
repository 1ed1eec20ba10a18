//! TensorBoard event files, written natively.
//!
//! A file is a sequence of TFRecords (length, masked CRC of it, data, masked CRC of it), and each
//! record is a protobuf `Event`. Only six fields of it are needed, so they are encoded by hand:
//! wall_time = 1, step = 2, file_version = 3, summary = 5 {value = 1 {tag = 1, simple_value = 2}},
//! session_log = 7 {status = 1}.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::Path,
};

/// A file that TensorBoard reads while it grows.
#[derive(Debug)]
pub struct EventFile {
    file: File,
}

impl EventFile {
    /// Creates `events.out.tfevents.*` in `folder`; `unix_seconds` is part of its name.
    pub fn create(folder: &Path, unix_seconds: u64, suffix: &str) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let name = format!("events.out.tfevents.{unix_seconds:010}.qvl.{suffix}");
        let file = OpenOptions::new().create(true).append(true).open(folder.join(name))?;
        let mut events = EventFile { file };
        let mut event = double(1, unix_seconds as f64);
        event.extend(bytes(3, b"brain.Event:2"));
        events.write(&event)?;
        Ok(events)
    }

    /// Appends numbers of one step.
    pub fn scalars(&mut self, unix_ms: u64, step: u64, values: &[(String, f64)]) -> io::Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in values {
            let mut entry = bytes(1, tag.as_bytes());
            #[expect(clippy::cast_possible_truncation, reason = "simple_value is a float")]
            entry.extend(float(2, *value as f32));
            summary.extend(bytes(1, &entry));
        }
        let mut event = double(1, unix_ms as f64 / 1000.0);
        event.push(2 << 3);
        event.extend(varint(step));
        event.extend(bytes(5, &summary));
        self.write(&event)
    }

    /// Says that steps from `step` on are done anew, so that TensorBoard drops those of an earlier
    /// attempt that it has already.
    pub fn starts_at(&mut self, unix_ms: u64, step: u64) -> io::Result<()> {
        const SESSION_START: [u8; 2] = [1 << 3, 1];
        let mut event = double(1, unix_ms as f64 / 1000.0);
        event.push(2 << 3);
        event.extend(varint(step));
        event.extend(bytes(7, &SESSION_START));
        self.write(&event)
    }

    /// One record in one write, so that a reader never sees half of it for long.
    fn write(&mut self, event: &[u8]) -> io::Result<()> {
        let length = (event.len() as u64).to_le_bytes();
        let mut record = length.to_vec();
        record.extend(masked_crc(&length));
        record.extend(event);
        record.extend(masked_crc(event));
        self.file.write_all(&record)
    }
}

/// CRC-32C, rotated and offset, as the TFRecord format wants it.
fn masked_crc(data: &[u8]) -> [u8; 4] {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let low = u8::try_from(value & 0x7f).expect("seven bits");
        value >>= 7;
        if value == 0 {
            out.push(low);
            return out;
        }
        out.push(low | 0x80);
    }
}

fn bytes(field: u8, data: &[u8]) -> Vec<u8> {
    let mut out = vec![field << 3 | 2];
    out.extend(varint(data.len() as u64));
    out.extend(data);
    out
}

fn double(field: u8, value: f64) -> Vec<u8> {
    let mut out = vec![field << 3 | 1];
    out.extend(value.to_le_bytes());
    out
}

fn float(field: u8, value: f32) -> Vec<u8> {
    let mut out = vec![field << 3 | 5];
    out.extend(value.to_le_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_and_crcs_of_known_values() {
        assert_eq!(varint(300), [0xac, 0x02]);
        assert_eq!(varint(0), [0]);
        // CRC-32C of "123456789" is 0xe3069283 (the check value of the polynomial).
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        let masked = 0xe306_9283_u32.rotate_right(15).wrapping_add(0xa282_ead8);
        assert_eq!(masked_crc(b"123456789"), masked.to_le_bytes());
    }
}
