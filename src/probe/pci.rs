//! Kernel side of the NVIDIA driver: modules, PCI bus, device files.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    path::{Path, PathBuf},
};

use super::{Options, files, host, libraries::Search, ranges, text};
use crate::facts::{
    Acs, AerCounts, Bridge, DeviceNode, DriverFacts, Fact, KernelModule, PciGpu, PciState, PcieLink,
};

pub(super) fn driver(options: &Options, search: &Search) -> DriverFacts {
    DriverFacts {
        kernel_module: kernel_module(options),
        modules: host::parsed(options, "/proc/modules", "modules", |text| {
            Some(text::modules(text))
        }),
        pci_gpus: pci_gpus(options),
        device_nodes: device_nodes(options),
        libcuda_path: Fact::known(
            search.find("libcuda.so.1").map(|path| path.display().to_string()),
            "library path",
        ),
        pci_states: pci_states(options),
        nvswitches: nvswitches(options),
        imex_channels: imex_channels(options),
    }
}

const BUS: &str = "/sys/bus/pci/devices";

/// Folders of the devices on the PCI bus; a virtual machine may have no PCI bus at all.
fn devices(options: &Options) -> Result<Vec<PathBuf>, String> {
    if !options.at(BUS).exists() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(options.at(BUS)).map_err(|error| error.to_string())?;
    let mut folders: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    folders.sort();
    Ok(folders)
}

fn pci_states(options: &Options) -> Fact<Vec<PciState>> {
    let states =
        devices(options).map(|folders| folders.iter().filter_map(|folder| state(folder)).collect());
    Fact::from_result(states, BUS)
}

fn read(path: &Path) -> Option<String> {
    files::word(path)
}

fn state(folder: &Path) -> Option<PciState> {
    let is_gpu = is_nvidia(folder, &["0x0300", "0x0302"]);
    let address = folder.file_name().filter(|_| is_gpu)?.to_string_lossy().into_owned();
    let link = |path: &Path| {
        let target = fs::read_link(path).ok()?;
        Some(target.file_name()?.to_string_lossy().into_owned())
    };
    let real = folder.canonicalize().ok();
    let upstream = real.as_deref().and_then(Path::parent);
    let speeds = speed(folder).zip(upstream.and_then(speed));
    Some(PciState {
        address,
        driver: link(&folder.join("driver")),
        errors: errors(folder),
        iommu: read(&folder.join("iommu_group/type")),
        max_speed: speeds,
        largest_window: read(&folder.join("resource")).and_then(|text| largest_window(&text)),
        local_cpus: read(&folder.join("local_cpulist"))
            .and_then(|text| ranges::parse(&text))
            .unwrap_or_default(),
        bridges: real.as_deref().map(bridges).unwrap_or_default(),
    })
}

/// An NVIDIA device of one of these classes.
fn is_nvidia(folder: &Path, classes: &[&str]) -> bool {
    read(&folder.join("vendor")).is_some_and(|vendor| vendor == "0x10de")
        && read(&folder.join("class"))
            .is_some_and(|class| classes.iter().any(|known| class.starts_with(known)))
}

/// `16.0 GT/s PCIe` in MT/s.
fn speed(folder: &Path) -> Option<u32> {
    let text = read(&folder.join("max_link_speed"))?;
    let (whole, tenth) = text.split(' ').next()?.split_once('.')?;
    let (whole, tenth): (u32, u32) = (whole.parse().ok()?, tenth.get(..1)?.parse().ok()?);
    (0 < whole && whole < 1000).then_some(whole * 1000 + tenth * 100)
}

/// Each file ends with a line of its total.
fn errors(folder: &Path) -> Option<AerCounts> {
    let total = |kind: &str| -> Option<u64> {
        let text = read(&folder.join(format!("aer_dev_{kind}")))?;
        text.lines().find_map(|line| line.strip_prefix("TOTAL_")?.split(' ').nth(1)?.parse().ok())
    };
    Some(AerCounts {
        corrected: total("correctable")?,
        nonfatal: total("nonfatal")?,
        fatal: total("fatal")?,
    })
}

/// Lines of first address, last address and flags.
fn largest_window(text: &str) -> Option<u64> {
    let hex = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok();
    text.lines()
        .filter_map(|line| {
            let mut columns = line.split(' ');
            let (first, last) = (hex(columns.next()?)?, hex(columns.next()?)?);
            (first < last).then(|| last - first + 1)
        })
        .max()
}

/// Bridges above a device: the folders that contain it.
fn bridges(device: &Path) -> Vec<Bridge> {
    device
        .ancestors()
        .skip(1)
        .take_while(|folder| folder.join("config").exists())
        .map(|folder| Bridge {
            address: folder.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            acs: files::bytes(&folder.join("config")).map_or(Acs::Hidden, |config| acs(&config)),
        })
        .collect()
}

/// The control register of the extended capability 0x000D (PCIe, Access Control Services).
fn acs(config: &[u8]) -> Acs {
    const ACS: u32 = 0x000D;
    let word = |at: usize| -> Option<u32> {
        Some(u32::from_le_bytes(config.get(at..at + 4)?.try_into().ok()?))
    };
    let mut at = 0x100;
    // There is room for at most this many.
    for _capability in 0..960 {
        let Some(head) = word(at) else {
            return if config.len() <= 0x100 { Acs::Hidden } else { Acs::None };
        };
        if head & 0xffff == ACS {
            return word(at + 4).map_or(Acs::None, |register| {
                Acs::Control(u16::try_from(register >> 16).unwrap_or(u16::MAX))
            });
        }
        at = usize::try_from(head >> 20).unwrap_or(0);
        if at < 0x100 {
            break;
        }
    }
    Acs::None
}

fn nvswitches(options: &Options) -> Fact<u32> {
    let count = devices(options).map(|folders| {
        let found = folders.iter().filter(|folder| is_nvidia(folder, &["0x0680"])).count();
        u32::try_from(found).unwrap_or(u32::MAX)
    });
    Fact::from_result(count, BUS)
}

fn imex_channels(options: &Options) -> Fact<u32> {
    const FROM: &str = "/dev/nvidia-caps-imex-channels";
    let count = match fs::read_dir(options.at(FROM)) {
        Ok(entries) => Ok(u32::try_from(entries.count()).unwrap_or(u32::MAX)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    };
    Fact::from_result(count, FROM)
}

fn kernel_module(options: &Options) -> Fact<Option<KernelModule>> {
    const FROM: &str = "/proc/driver/nvidia/version";
    if !options.at(FROM).exists() {
        return Fact::known(None, FROM);
    }
    host::parsed(options, FROM, "NVRM version", text::nvidia_version).map(Some)
}

fn pci_gpus(options: &Options) -> Fact<Vec<PciGpu>> {
    let gpus = devices(options).map(|folders| folders.iter().filter_map(|f| gpu(f)).collect());
    Fact::from_result(gpus, BUS)
}

/// An NVIDIA display (0x0300) or 3D (0x0302) controller.
fn gpu(folder: &Path) -> Option<PciGpu> {
    if !is_nvidia(folder, &["0x0300", "0x0302"]) {
        return None;
    }
    let device = read(&folder.join("device")).unwrap_or_default();
    let config = files::bytes(&folder.join("config")).unwrap_or_default();
    let real = folder.canonicalize().ok();
    Some(PciGpu {
        address: folder.file_name()?.to_string_lossy().into_owned(),
        id: format!("10de:{}", device.trim_start_matches("0x")),
        config_all_ones: config.get(..4) == Some(&[0xff; 4]),
        width: width(folder),
        upstream_width: real.as_deref().and_then(Path::parent).and_then(width),
        numa_node: read(&folder.join("numa_node")).and_then(|text| text.parse().ok()),
    })
}

fn width(folder: &Path) -> Option<PcieLink> {
    let lanes = |file: &str| {
        let text = files::word(&folder.join(file))?;
        text.parse::<u32>().ok().filter(|lanes| (1..=32).contains(lanes))
    };
    Some(PcieLink { current: lanes("current_link_width")?, max: lanes("max_link_width")? })
}

/// Opens every device file: the control group may refuse what the folder shows.
fn device_nodes(options: &Options) -> Fact<BTreeMap<String, DeviceNode>> {
    const FROM: &str = "/dev/nvidia*";
    let entries = match fs::read_dir(options.at("/dev")) {
        Ok(entries) => entries,
        Err(error) => return Fact::unread(error.to_string(), FROM),
    };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let wanted = |name: &String| {
        name.strip_prefix("nvidia").is_some_and(|rest| {
            let is_gpu = !rest.is_empty() && rest.chars().all(|c| c.is_ascii_digit());
            is_gpu || matches!(rest, "ctl" | "-uvm" | "-uvm-tools")
        })
    };
    let open = |name: String| {
        let path = format!("/dev/{name}");
        let node = match OpenOptions::new().read(true).write(true).open(options.at(&path)) {
            Ok(_file) => DeviceNode::Opens,
            Err(error) => DeviceNode::Denied { errno: error.to_string() },
        };
        (path, node)
    };
    Fact::known(names.filter(wanted).map(open).collect(), FROM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_control_is_found_in_the_list_of_capabilities() {
        let mut config = vec![0; 4096];
        // AER at 0x100, then ACS at 0x148 with control 0x001d.
        config[0x100..0x104].copy_from_slice(&0x1481_0001_u32.to_le_bytes());
        config[0x148..0x14c].copy_from_slice(&0x0001_000d_u32.to_le_bytes());
        config[0x14c..0x150].copy_from_slice(&0x001d_005f_u32.to_le_bytes());
        assert_eq!(acs(&config), Acs::Control(0x1d));
        assert_eq!(acs(&config[..64]), Acs::Hidden, "what a user sees");
        config[0x148] = 0x0b;
        assert_eq!(acs(&config), Acs::None);
        // A list that leads to itself ends.
        config[0x100..0x104].copy_from_slice(&0x1001_0001_u32.to_le_bytes());
        assert_eq!(acs(&config), Acs::None);
    }

    #[test]
    fn windows_and_speeds_are_numbers() {
        let text = "0x00000000a0000000 0x00000000a0ffffff 0x0000000000040200\n\
                    0x0000020000000000 0x0000020fffffffff 0x000000000014220c\n\
                    0x0000000000000000 0x0000000000000000 0x0000000000000000\n";
        assert_eq!(largest_window(text), Some(64 << 30));
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("max_link_speed"), "32.0 GT/s PCIe\n").unwrap();
        assert_eq!(speed(folder.path()), Some(32_000));
        fs::write(folder.path().join("max_link_speed"), "Unknown\n").unwrap();
        assert_eq!(speed(folder.path()), None);
    }
}
