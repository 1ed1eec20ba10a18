//! What a node shows of a loaded kernel module: `/proc/driver/nvidia`, `/proc/modules` and the PCI
//! bus. The files are kept in the node's folder, and are mounted over the real ones.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use simgpu::scenario::Scenario;

use crate::{
    device_folder::bind,
    error::{At, Error},
    places::Places,
};

/// Folder in the node's folder, and what it stands for. What the machine's kernel does not have
/// cannot be shown: nothing can be made in /proc.
const SHOWN: [(&str, &str); 3] = [
    ("module/driver", "/proc/driver"),
    ("module/modules", "/proc/modules"),
    ("module/pci", "/sys/bus/pci/devices"),
];

/// Writes the files, also over older ones: whoever has mounted them sees the new ones.
pub(crate) fn write(node: &Path, driver: &Scenario) -> Result<(), Error> {
    let folder = node.join("module");
    let version = format!(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Mon Jan  1 00:00:00 UTC 2025\n\
         GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n",
        driver.driver
    );
    Places::make(&folder.join("driver/nvidia"))?;
    put(&folder.join("driver/nvidia/version"), version.as_bytes())?;
    let modules = "nvidia_uvm 2097152 0 - Live 0x0000000000000000\n\
                   nvidia 62914560 1 nvidia_uvm, Live 0x0000000000000000\n";
    let machine = fs::read_to_string("/proc/modules").unwrap_or_default();
    put(&folder.join("modules"), format!("{modules}{machine}").as_bytes())?;
    let bus = folder.join("pci");
    Places::make(&bus)?;
    for old in fs::read_dir(&bus).at("read", &bus)?.flatten() {
        fs::remove_dir_all(old.path()).at("remove", old.path())?;
    }
    (0..driver.gpus.len()).try_for_each(|gpu| device(&bus, driver, gpu))
}

/// Mounts the files in a node, or below `root` in a container.
pub(crate) fn show(node: &Path, root: &Path) -> Result<(), Error> {
    for (from, to) in SHOWN {
        let (from, to) = (node.join(from), below(root, to));
        if from.exists() && to.exists() {
            bind(&from, &to)?;
        }
    }
    Ok(())
}

fn device(bus: &Path, driver: &Scenario, gpu: usize) -> Result<(), Error> {
    let (domain, number, slot) = driver.pci(gpu);
    let folder = bus.join(format!("{domain:04x}:{number:02x}:{slot:02x}.0"));
    Places::make(&folder)?;
    let profile = driver.gpus[gpu].profile();
    let (id, subsystem) = (profile.pci_device_id, profile.pci_subsystem_id);
    let lanes = driver.gpus[gpu].pcie().width;
    for (file, text) in [
        ("class", "0x030200".to_owned()),
        ("vendor", format!("{:#06x}", id & 0xffff)),
        ("device", format!("{:#06x}", id >> 16)),
        ("subsystem_vendor", format!("{:#06x}", subsystem & 0xffff)),
        ("subsystem_device", format!("{:#06x}", subsystem >> 16)),
        ("numa_node", driver.numa(gpu).to_string()),
        ("current_link_width", lanes.to_string()),
        ("max_link_width", profile.pcie.1.to_string()),
    ] {
        put(&folder.join(file), format!("{text}\n").as_bytes())?;
    }
    let bound = folder.join("driver");
    symlink("/sys/bus/pci/drivers/nvidia", &bound).at("link", &bound)?;
    // A GPU that has fallen off the bus answers every read with ones.
    let mut config = if driver.gpus[gpu].lost { [0xff; 64] } else { [0; 64] };
    if !driver.gpus[gpu].lost {
        let [vendor_low, vendor_high, device_low, device_high] = id.to_le_bytes();
        config[..4].copy_from_slice(&[vendor_low, vendor_high, device_low, device_high]);
    }
    put(&folder.join("config"), &config)
}

/// Writes in place: another file of this name would not be the one that is mounted.
fn put(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    fs::write(path, bytes).at("write", path)
}

fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bus_shows_the_gpus_of_the_newest_scenario() {
        let node = tempfile::tempdir().unwrap();
        let of = |name| Scenario::parse(&simgpu::host::named(name)).unwrap();
        let count = || fs::read_dir(node.path().join("module/pci")).unwrap().count();
        write(node.path(), &of("healthy-8xh100")).unwrap();
        assert_eq!(count(), 8);
        let four = of("healthy-4xa100");
        write(node.path(), &four).unwrap();
        assert_eq!(count(), 4);
        let (domain, bus, slot) = four.pci(0);
        let gpu = format!("module/pci/{domain:04x}:{bus:02x}:{slot:02x}.0/");
        let read = |file: &str| fs::read(node.path().join(gpu.clone() + file)).unwrap();
        assert_eq!(read("device"), b"0x20b2\n");
        assert_eq!(read("config")[..4], [0xde, 0x10, 0xb2, 0x20]);
        let version = fs::read_to_string(node.path().join("module/driver/nvidia/version")).unwrap();
        assert!(version.contains("550.163.01"), "{version}");
    }
}
