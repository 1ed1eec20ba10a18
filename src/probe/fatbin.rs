//! GPU code in a section `.nv_fatbin`: machine code by architecture, and PTX by version.
//!
//! NVIDIA does not document the format; this is what the CUDA runtime of versions 9 to 13 reads:
//! a header (magic, version, its own size, size of what follows), then entries, each with a
//! kind, its header's size, its payload's size, the version of its code and an architecture. The
//! version is that of the PTX language, and stands in the header also when the payload is
//! compressed. A section that does not add up is reported as unread and never as empty.

use std::collections::BTreeMap;

use crate::facts::{PtxModule, Sass};

const MAGIC: [u8; 4] = 0xBA55_ED50_u32.to_le_bytes();
/// Kinds of entries.
const PTX: u64 = 1;
const MACHINE_CODE: u64 = 2;

/// What is in a section.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Contents {
    pub(super) ptx: Vec<PtxModule>,
    pub(super) sass: Vec<Sass>,
}

/// Counts programs by architecture and version; an empty section has none.
pub(super) fn parse(section: &[u8]) -> Result<Contents, String> {
    let mut code: BTreeMap<u32, u32> = BTreeMap::new();
    let mut ptx: BTreeMap<(u32, u32), u32> = BTreeMap::new();
    let mut at = 0;
    while let Some(start) = section.get(at..).and_then(|rest| find(rest, MAGIC)) {
        let start = at + start;
        let (header, size) = (number(section, start + 6, 2)?, number(section, start + 8, 8)?);
        let mut entry = start.checked_add(index(header)?).ok_or("a header is too long")?;
        let end = entry.checked_add(index(size)?).filter(|end| *end <= section.len());
        let end = end.ok_or("a fat binary is longer than its section")?;
        while entry < end {
            let (kind, arch) = (number(section, entry, 2)?, number(section, entry + 28, 4)?);
            let arch = u32::try_from(arch).map_err(|error| error.to_string())?;
            let (minor, major) = (number(section, entry + 24, 2)?, number(section, entry + 26, 2)?);
            let length = number(section, entry + 4, 4)?.checked_add(number(section, entry + 8, 8)?);
            let length = length.ok_or("an entry is too long")?;
            if length == 0 {
                return Err("an entry of a fat binary has no length".to_owned());
            }
            if kind == MACHINE_CODE {
                *code.entry(arch).or_default() += 1;
            } else if kind == PTX {
                let version = u32::try_from(major * 10 + minor).map_err(|e| e.to_string())?;
                *ptx.entry((version, arch)).or_default() += 1;
            }
            entry = entry.checked_add(index(length)?).ok_or("an entry is too long")?;
        }
        // At least the magic is behind us, whatever the sizes say.
        at = end.max(start + MAGIC.len());
    }
    if code.is_empty() && ptx.is_empty() && section.iter().any(|byte| *byte != 0) {
        return Err("the section has content, but no GPU code that this version knows".to_owned());
    }
    let module =
        |((version, arch), count)| PtxModule { version, target: format!("sm_{arch}"), count };
    Ok(Contents {
        ptx: ptx.into_iter().map(module).collect(),
        sass: code.into_iter().map(|(arch, count)| Sass { arch, count }).collect(),
    })
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
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An entry of eight bytes: `kind` 1 is PTX, 2 machine code.
    pub(in crate::probe) fn entry(kind: u16, arch: u32, (major, minor): (u16, u16)) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..2].copy_from_slice(&kind.to_le_bytes());
        bytes[4..8].copy_from_slice(&64_u32.to_le_bytes());
        bytes[8..16].copy_from_slice(&8_u64.to_le_bytes());
        bytes[24..26].copy_from_slice(&minor.to_le_bytes());
        bytes[26..28].copy_from_slice(&major.to_le_bytes());
        bytes[28..32].copy_from_slice(&arch.to_le_bytes());
        bytes.extend([7; 8]);
        bytes
    }

    pub(in crate::probe) fn fatbin(entries: &[Vec<u8>]) -> Vec<u8> {
        let body = entries.concat();
        let mut bytes = MAGIC.to_vec();
        bytes.extend(1_u16.to_le_bytes());
        bytes.extend(16_u16.to_le_bytes());
        bytes.extend((body.len() as u64).to_le_bytes());
        bytes.extend(body);
        bytes
    }

    #[test]
    fn code_is_counted_by_architecture_and_ptx_by_version() {
        let code = |arch| entry(2, arch, (1, 7));
        let mut section = fatbin(&[code(80), entry(1, 90, (8, 4)), code(90)]);
        section.extend([0; 24]);
        section.extend(fatbin(&[code(80), entry(1, 80, (7, 5))]));
        let found = parse(&section).unwrap();
        let sass: Vec<_> = found.sass.iter().map(|s| (s.arch, s.count)).collect();
        assert_eq!(sass, [(80, 2), (90, 1)]);
        let ptx: Vec<_> = found.ptx.iter().map(|p| (p.version, p.target.as_str())).collect();
        assert_eq!(ptx, [(75, "sm_80"), (84, "sm_90")]);
        assert_eq!(parse(&[]).unwrap(), Contents::default());
    }

    #[test]
    fn a_section_that_does_not_add_up_is_not_empty() {
        let section = fatbin(&[entry(2, 80, (1, 7))]);
        assert!(parse(&section[..section.len() - 1]).is_err());
        assert!(parse(b"something else").is_err());
    }

    proptest! {
        /// Sizes that lie end in an error, not in a panic and not in a loop.
        #[test]
        fn hostile_sections_end(
            body in proptest::collection::vec(any::<u8>(), 0..300),
            places in proptest::collection::vec((0..300_usize, any::<u64>()), 0..6),
        ) {
            let mut section = fatbin(&[entry(2, 80, (1, 7))]);
            section.extend(&body);
            section.extend(fatbin(&[body]));
            for (at, value) in places {
                let end = (at + 8).min(section.len());
                if at < end {
                    section[at..end].copy_from_slice(&value.to_le_bytes()[..end - at]);
                }
            }
            let _ended = parse(&section);
        }
    }
}
