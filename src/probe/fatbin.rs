//! Architectures of the GPU machine code in a section `.nv_fatbin`.
//!
//! NVIDIA does not document the format; this is what the CUDA runtime of versions 9 to 13 reads:
//! a header (magic, version, its own size, size of what follows), then entries, each with a
//! kind, its header's size, its payload's size and an architecture. A section that does not add
//! up is reported as unread and never as empty.

use std::collections::BTreeMap;

use crate::facts::Sass;

const MAGIC: [u8; 4] = 0xBA55_ED50_u32.to_le_bytes();
/// Kind of an entry with machine code. (1 is PTX, which has a SASS entry beside it as a rule.)
const MACHINE_CODE: u64 = 2;

/// Counts objects by architecture; an empty section has none.
pub(super) fn sass(section: &[u8]) -> Result<Vec<Sass>, String> {
    let mut counts: BTreeMap<u32, u32> = BTreeMap::new();
    let mut at = 0;
    while let Some(start) = section.get(at..).and_then(|rest| find(rest, MAGIC)) {
        let start = at + start;
        let header = number(section, start + 6, 2)?;
        let size = number(section, start + 8, 8)?;
        let mut entry = start + index(header)?;
        let end = entry.checked_add(index(size)?).filter(|end| *end <= section.len());
        let end = end.ok_or("a fat binary is longer than its section")?;
        while entry < end {
            let (kind, arch) = (number(section, entry, 2)?, number(section, entry + 28, 4)?);
            let length = number(section, entry + 4, 4)? + number(section, entry + 8, 8)?;
            if length == 0 {
                return Err("an entry of a fat binary has no length".to_owned());
            }
            if kind == MACHINE_CODE {
                let arch = u32::try_from(arch).map_err(|error| error.to_string())?;
                *counts.entry(arch).or_default() += 1;
            }
            entry = entry.checked_add(index(length)?).ok_or("an entry is too long")?;
        }
        at = end;
    }
    if counts.is_empty() && section.iter().any(|byte| *byte != 0) {
        return Err(
            "the section has content, but no machine code that this version knows".to_owned()
        );
    }
    Ok(counts.into_iter().map(|(arch, count)| Sass { arch, count }).collect())
}

fn find(bytes: &[u8], magic: [u8; 4]) -> Option<usize> {
    bytes.windows(4).position(|window| window == magic)
}

fn index(number: u64) -> Result<usize, String> {
    usize::try_from(number).map_err(|error| error.to_string())
}

/// Little-endian number of `width` bytes.
fn number(bytes: &[u8], at: usize, width: usize) -> Result<u64, String> {
    let end = at.checked_add(width).ok_or("an offset is too large")?;
    let bytes = bytes.get(at..end).ok_or("the section ends inside of a header")?;
    Ok(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kind: u16, arch: u32) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..2].copy_from_slice(&kind.to_le_bytes());
        bytes[4..8].copy_from_slice(&64_u32.to_le_bytes());
        bytes[8..16].copy_from_slice(&8_u64.to_le_bytes());
        bytes[28..32].copy_from_slice(&arch.to_le_bytes());
        bytes.extend([7; 8]);
        bytes
    }

    fn fatbin(entries: &[Vec<u8>]) -> Vec<u8> {
        let body = entries.concat();
        let mut bytes = MAGIC.to_vec();
        bytes.extend(1_u16.to_le_bytes());
        bytes.extend(16_u16.to_le_bytes());
        bytes.extend((body.len() as u64).to_le_bytes());
        bytes.extend(body);
        bytes
    }

    #[test]
    fn machine_code_is_counted_by_architecture() {
        let mut section = fatbin(&[entry(2, 80), entry(1, 90), entry(2, 90)]);
        section.extend([0; 24]);
        section.extend(fatbin(&[entry(2, 80)]));
        let found: Vec<_> = sass(&section).unwrap().iter().map(|s| (s.arch, s.count)).collect();
        assert_eq!(found, [(80, 2), (90, 1)]);
        assert!(sass(&[]).unwrap().is_empty());
    }

    #[test]
    fn a_section_that_does_not_add_up_is_not_empty() {
        let section = fatbin(&[entry(2, 80)]);
        assert!(sass(&section[..section.len() - 1]).is_err());
        assert!(sass(b"something else").is_err());
    }
}
