//! Kernel side of the NVIDIA driver: modules, PCI bus, device files.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    path::Path,
};

use super::{Options, host, libraries::Search, text};
use crate::facts::{DeviceNode, DriverFacts, Fact, KernelModule, PciGpu, PcieLink};

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
    }
}

fn kernel_module(options: &Options) -> Fact<Option<KernelModule>> {
    const FROM: &str = "/proc/driver/nvidia/version";
    if !options.at(FROM).exists() {
        return Fact::known(None, FROM);
    }
    host::parsed(options, FROM, "NVRM version", text::nvidia_version).map(Some)
}

fn pci_gpus(options: &Options) -> Fact<Vec<PciGpu>> {
    const FROM: &str = "/sys/bus/pci/devices";
    if !options.at(FROM).exists() {
        // A virtual machine may have no PCI bus at all.
        return Fact::known(Vec::new(), FROM);
    }
    let devices = match fs::read_dir(options.at(FROM)) {
        Ok(devices) => devices,
        Err(error) => return Fact::unread(error.to_string(), FROM),
    };
    let mut gpus: Vec<PciGpu> =
        devices.flatten().filter_map(|device| gpu(&device.path())).collect();
    gpus.sort_by(|a, b| a.address.cmp(&b.address));
    Fact::known(gpus, FROM)
}

/// An NVIDIA display (0x0300) or 3D (0x0302) controller.
fn gpu(folder: &Path) -> Option<PciGpu> {
    let read = |file: &str| Some(fs::read_to_string(folder.join(file)).ok()?.trim().to_owned());
    let class = read("class")?;
    let is_gpu = class.starts_with("0x0300") || class.starts_with("0x0302");
    if read("vendor")? != "0x10de" || !is_gpu {
        return None;
    }
    let device = read("device").unwrap_or_default();
    let config = fs::read(folder.join("config")).unwrap_or_default();
    let real = folder.canonicalize().ok();
    Some(PciGpu {
        address: folder.file_name()?.to_string_lossy().into_owned(),
        id: format!("10de:{}", device.trim_start_matches("0x")),
        config_all_ones: config.get(..4) == Some(&[0xff; 4]),
        width: width(folder),
        upstream_width: real.as_deref().and_then(Path::parent).and_then(width),
        numa_node: read("numa_node").and_then(|text| text.parse().ok()),
    })
}

fn width(folder: &Path) -> Option<PcieLink> {
    let lanes = |file: &str| {
        let text = fs::read_to_string(folder.join(file)).ok()?;
        text.trim().parse::<u32>().ok().filter(|lanes| (1..=32).contains(lanes))
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
