//! The trainer's ELF file: libraries that it needs, PTX that is in it.

use std::{
    collections::BTreeMap,
    io::Read,
    path::{Path, PathBuf},
};

use nix::unistd::{AccessFlags, access};
use object::{
    Architecture, Endianness, Object, ObjectSection,
    read::{ReadCache, elf::ElfFile64},
};
use sha2::{Digest, Sha256};

use super::{Options, fatbin, files, libraries::Search};
use crate::facts::{Fact, Library, Needed, PtxModule, TrainerFacts, TrainerFile};

const FROM: &str = "ELF file of the trainer";
const FATBIN: &str = "section .nv_fatbin of the trainer";
/// Types of entries in `.dynamic` (elf.h).
const DT_NEEDED: u64 = 1;
const DT_RPATH: u64 = 15;
const DT_RUNPATH: u64 = 29;

/// What the sections of the file say.
struct Contents {
    needed: Vec<String>,
    rpath: Vec<String>,
    ptx: Vec<PtxModule>,
    fat: Result<fatbin::Contents, String>,
    machine: String,
    interpreter: Option<String>,
    glibc: Option<String>,
}

pub(super) fn trainer(options: &Options, search: &Search) -> TrainerFacts {
    let Some(path) = &options.trainer else {
        return unread("no trainer was named, and none is beside this program", search);
    };
    let contents = match read(path) {
        Ok(contents) => contents,
        Err(why) => return unread(&format!("{}: {why}", path.display()), search),
    };
    let origin = path.parent().unwrap_or(Path::new("/")).display().to_string();
    let rpath = contents.rpath.iter().map(|entry| PathBuf::from(entry.replace("$ORIGIN", &origin)));
    let search = search.with(rpath.collect());
    let needed = contents.needed.into_iter().map(|name| {
        let path = search.find(&name).map(|path| path.display().to_string());
        Needed { name, path }
    });
    TrainerFacts {
        path: Fact::known(path.display().to_string(), "command line"),
        sha256: if options.hashes {
            Fact::from_result(sha256(path), FROM)
        } else {
            Fact::unread("files are hashed for --save-facts only", FROM)
        },
        needed: Fact::known(needed.collect(), "DT_NEEDED of the trainer"),
        ptx: Fact::known(contents.ptx, "PTX in the trainer"),
        sass: Fact::from_result(contents.fat.clone().map(|fat| fat.sass), FATBIN),
        fat_ptx: Fact::from_result(contents.fat.map(|fat| fat.ptx), FATBIN),
        file: Fact::known(
            TrainerFile {
                machine: contents.machine,
                executable: access(path, AccessFlags::X_OK).is_ok(),
                interpreter_exists: contents
                    .interpreter
                    .as_ref()
                    .is_none_or(|interpreter| options.at(interpreter).exists()),
                interpreter: contents.interpreter,
                glibc: contents.glibc,
            },
            FROM,
        ),
        net_plugins: net_plugins(&search),
        nccl: nccl(options, &search),
        library_path: Fact::known(search.folders(), "LD_LIBRARY_PATH, RPATH, /etc/ld.so.conf"),
    }
}

fn unread(why: &str, search: &Search) -> TrainerFacts {
    TrainerFacts {
        path: Fact::unread(why, FROM),
        sha256: Fact::unread(why, FROM),
        needed: Fact::unread(why, FROM),
        ptx: Fact::unread(why, FROM),
        sass: Fact::unread(why, FROM),
        fat_ptx: Fact::unread(why, FROM),
        file: Fact::unread(why, FROM),
        net_plugins: net_plugins(search),
        nccl: Fact::unread(why, FROM),
        library_path: Fact::known(search.folders(), "LD_LIBRARY_PATH, /etc/ld.so.conf"),
    }
}

/// Reads only the sections that it needs: with debug information the file is large.
fn read(path: &Path) -> Result<Contents, String> {
    let file = files::open(path).map_err(|error| error.to_string())?;
    let cache = ReadCache::new(file);
    let elf = ElfFile64::<Endianness, _>::parse(&cache).map_err(|error| error.to_string())?;
    let section = |name: &str| -> Result<&[u8], String> {
        match elf.section_by_name(name) {
            Some(section) => section.data().map_err(|error| error.to_string()),
            None => Ok(&[]),
        }
    };
    let (dynamic, strings) = (section(".dynamic")?, section(".dynstr")?);
    let entries = |wanted: &[u64]| -> Vec<String> {
        dynamic
            .chunks_exact(16)
            .filter_map(|entry| dynamic_string(entry, wanted, strings))
            .collect()
    };
    let rpath = entries(&[DT_RPATH, DT_RUNPATH]);
    Ok(Contents {
        needed: entries(&[DT_NEEDED]),
        rpath: rpath.iter().flat_map(|list| list.split(':')).map(str::to_owned).collect(),
        ptx: ptx(section(".rodata")?),
        fat: fat(section(".nv_fatbin")?, section("__nv_relfatbin")?, section(".nvFatBinSegment")?),
        machine: machine(elf.architecture()),
        interpreter: c_string(section(".interp")?),
        glibc: newest_glibc(strings),
    })
}

/// As `uname -m` writes it.
fn machine(architecture: Architecture) -> String {
    if architecture == Architecture::X86_64 {
        "x86_64".to_owned()
    } else if architecture == Architecture::Aarch64 {
        "aarch64".to_owned()
    } else {
        format!("{architecture:?}")
    }
}

/// GPU code of both sections. A list of fat binaries without any is a file that was cut.
fn fat(own: &[u8], relocatable: &[u8], list: &[u8]) -> Result<fatbin::Contents, String> {
    let is_listed = list.iter().any(|byte| *byte != 0);
    if own.is_empty() && relocatable.is_empty() && is_listed {
        return Err("the file lists fat binaries, but has no section for them".to_owned());
    }
    let mut contents = fatbin::parse(own)?;
    let more = fatbin::parse(relocatable)?;
    contents.ptx.extend(more.ptx);
    contents.sass.extend(more.sass);
    Ok(contents)
}

fn c_string(bytes: &[u8]) -> Option<String> {
    let text = bytes.split(|byte| *byte == 0).next()?;
    (!text.is_empty()).then(|| String::from_utf8_lossy(text).into_owned())
}

/// The newest `GLIBC_2.34` among the strings: versions of symbols that are needed or offered.
fn newest_glibc(strings: &[u8]) -> Option<String> {
    strings
        .split(|byte| *byte == 0)
        .filter_map(|text| std::str::from_utf8(text).ok()?.strip_prefix("GLIBC_"))
        .filter_map(|version| {
            let (major, minor) = version.split_once('.')?;
            // Old releases have a third number, which does not matter here.
            let minor = minor.split('.').next()?;
            Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
        })
        .max()
        .map(|(major, minor)| format!("{major}.{minor}"))
}

/// Newest version of symbols that this machine's C library has; `None` without glibc.
pub(super) fn host_glibc(search: &Search) -> Fact<Option<String>> {
    const FROM: &str = "symbol versions of libc.so.6";
    let Some(path) = search.find("libc.so.6") else { return Fact::known(None, FROM) };
    let strings = || -> Result<Option<String>, String> {
        let file = files::open(&path).map_err(|error| error.to_string())?;
        let cache = ReadCache::new(file);
        let elf = ElfFile64::<Endianness, _>::parse(&cache).map_err(|error| error.to_string())?;
        let Some(section) = elf.section_by_name(".dynstr") else { return Ok(None) };
        Ok(newest_glibc(section.data().map_err(|error| error.to_string())?))
    };
    Fact::from_result(strings(), FROM)
}

/// NCCL's network plugins in the loader's folders.
fn net_plugins(search: &Search) -> Fact<Vec<String>> {
    let mut found: Vec<String> = search
        .each_folder()
        .filter_map(|folder| std::fs::read_dir(folder).ok())
        .flat_map(Iterator::flatten)
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("libnccl-net") && name.contains(".so"))
        .collect();
    found.sort();
    found.dedup();
    Fact::known(found, "library path")
}

/// The string of an entry, if it has one of the wanted types.
fn dynamic_string(entry: &[u8], wanted: &[u64], strings: &[u8]) -> Option<String> {
    let number = |bytes: &[u8]| Some(u64::from_le_bytes(bytes.try_into().ok()?));
    let (tag, offset) = (number(&entry[..8])?, number(&entry[8..])?);
    if !wanted.contains(&tag) {
        return None;
    }
    let rest = strings.get(usize::try_from(offset).ok()?..)?;
    let end = rest.iter().position(|byte| *byte == 0)?;
    Some(String::from_utf8_lossy(&rest[..end]).into_owned())
}

/// PTX programs: each begins with `.version 8.7` and `.target sm_80`, at the start of a line.
fn ptx(bytes: &[u8]) -> Vec<PtxModule> {
    const VERSION: &[u8] = b".version ";
    const TARGET: &[u8] = b".target ";
    let mut counts: BTreeMap<(u32, String), u32> = BTreeMap::new();
    let mut from = 0;
    while let Some(dot) = bytes[from..].iter().position(|byte| *byte == b'.') {
        let start = from + dot;
        from = start + 1;
        let Some(rest) = bytes[start..].strip_prefix(VERSION) else { continue };
        let text: Vec<u8> =
            rest.iter().copied().take_while(|b| b.is_ascii_digit() || *b == b'.').collect();
        let Some(version) = version(&String::from_utf8_lossy(&text)) else { continue };
        let near = &rest[..rest.len().min(64)];
        let Some(at) = near.windows(TARGET.len()).position(|window| window == TARGET) else {
            continue;
        };
        let name = rest[at + TARGET.len()..].iter().copied();
        let name: Vec<u8> = name.take_while(|b| b.is_ascii_alphanumeric() || *b == b'_').collect();
        let target = String::from_utf8_lossy(&name).into_owned();
        if target.starts_with("sm_") {
            *counts.entry((version, target)).or_default() += 1;
        }
    }
    let module = |((version, target), count)| PtxModule { version, target, count };
    counts.into_iter().map(module).collect()
}

fn version(text: &str) -> Option<u32> {
    let (major, minor) = text.split_once('.')?;
    let (major, minor): (u32, u32) = (major.parse().ok()?, minor.parse().ok()?);
    (minor < 10).then_some(major.checked_mul(10)? + minor)
}

fn nccl(options: &Options, search: &Search) -> Fact<Vec<Library>> {
    let library = |path: PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let version = name.strip_prefix("libnccl.so.").filter(|v| v.contains('.'));
        Library {
            bytes: path.metadata().map_or(0, |metadata| metadata.len()),
            sha256: options.hashes.then(|| sha256(&path).ok()).flatten(),
            version: version.map(str::to_owned),
            path: path.display().to_string(),
        }
    };
    Fact::known(search.all("libnccl.so.2").into_iter().map(library).collect(), "library path")
}

fn sha256(path: &Path) -> std::io::Result<String> {
    let mut file = files::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            length => hash.update(&buffer[..length]),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ptx_is_found_between_other_bytes() {
        let bytes = b"\0junk.version 1\n//\n.version 8.7\n.target sm_80\n.address_size 64\n\xff.version 8.7\n.target sm_80, debug\n.version 9.0\n.target sm_90a\n";
        let found = ptx(bytes);
        let summary: Vec<_> =
            found.iter().map(|p| (p.version, p.target.as_str(), p.count)).collect();
        assert_eq!(summary, [(87, "sm_80", 2), (90, "sm_90a", 1)]);
    }

    #[test]
    fn this_program_needs_the_c_library() {
        let contents = read(&std::env::current_exe().unwrap()).unwrap();
        assert!(
            contents.needed.iter().any(|name| name.starts_with("libc.so")),
            "{:?}",
            contents.needed
        );
    }

    #[test]
    fn this_program_is_for_this_machine_and_its_library() {
        let contents = read(&std::env::current_exe().unwrap()).unwrap();
        assert_eq!(contents.machine, std::env::consts::ARCH);
        assert!(contents.interpreter.unwrap().contains("ld-linux"));
        let options = Options::default();
        let host = host_glibc(&Search::new(&options, None));
        let number = |text: &str| text.split_once('.').unwrap().1.parse::<u32>().unwrap();
        let host = host.get().unwrap().clone().unwrap();
        assert!(number(&contents.glibc.unwrap()) <= number(&host));
    }

    #[test]
    fn versions_of_the_c_library_compare_as_numbers() {
        let strings = b"\0GLIBC_2.4\0GLIBC_2.34\0GLIBC_2.2.5\0GLIBC_PRIVATE\0";
        assert_eq!(newest_glibc(strings).as_deref(), Some("2.34"));
        assert_eq!(newest_glibc(b"\0other\0"), None);
    }

    #[test]
    fn a_list_of_fat_binaries_without_any_is_not_empty() {
        assert!(fat(b"", b"", &[1]).is_err());
        let section = fatbin::tests::fatbin(&[fatbin::tests::entry(2, 80, (1, 7))]);
        assert_eq!(fat(&section, &section, &[1]).unwrap().sass.len(), 2);
    }

    #[test]
    fn a_file_that_is_no_elf_says_so() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "#!/bin/sh\n").unwrap();
        assert!(read(file.path()).is_err());
    }
}
