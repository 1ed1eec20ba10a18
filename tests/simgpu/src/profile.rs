//! What a real product answers when it is healthy and idle.
//!
//! Sources, by letter in the comments:
//!
//! * G: leptonai/gpud, `components/accelerator/nvidia/query/testdata/`: `nvidia-smi -q` of 8×H100
//!   (535.161.08, 535.183.01) and 8×RTX 4090 (535.154.05); `nvidia-smi.nvlink.status.a100`.
//! * E: `utkuozdemir/nvidia_gpu_exporter`, `internal/captures/`: H100 with drivers 590 and 595.
//! * T: influxdata/telegraf, `plugins/inputs/nvidia_smi/testdata/a100-sxm4-v12.xml` (MIG on).
//! * V: NVIDIA/nvidia-docker#914 and HAMi#347, both V100 with 16 GB; memory of the 32 GB board
//!   from akash-network/provider-configs#90. No full dump of a 32 GB board was found.
//! * U: no dump found: plausible, not to be relied on.

/// One product.
#[derive(Debug)]
pub struct Profile {
    /// Name in scenarios.
    pub id: &'static str,
    /// `nvmlDeviceGetName`.
    pub name: &'static str,
    /// `nvmlDeviceArchitecture_t`.
    pub architecture: u32,
    /// `nvmlBrandType_t`.
    pub brand: u32,
    /// Compute capability.
    pub compute_capability: (i32, i32),
    /// Device id in the upper, vendor id in the lower half.
    pub pci_device_id: u32,
    /// The same for the subsystem.
    pub pci_subsystem_id: u32,
    /// All memory.
    pub memory_mib: u64,
    /// Memory that the driver keeps.
    pub reserved_mib: u64,
    /// PCI window.
    pub bar1_mib: u64,
    /// Fastest PCIe generation and all lanes.
    pub pcie: (u32, u32),
    /// PCIe generation that an idle GPU falls back to.
    pub pcie_idle_gen: u32,
    /// Power limits in watts: least, most (= as shipped).
    pub power_w: (u32, u32),
    /// Draw of an idle GPU, in watts.
    pub power_idle_w: u32,
    /// Highest clocks in MHz: multiprocessors, memory.
    pub clocks_mhz: (u32, u32),
    /// Performance state of an idle GPU.
    pub idle_pstate: u32,
    /// Thresholds in degrees Celsius: shutdown, slowdown.
    pub thresholds_c: (u32, u32),
    /// Temperature of an idle GPU.
    pub temperature_c: u32,
    /// Error correction as shipped.
    pub ecc: bool,
    /// Whether pages are retired (before Ampere).
    pub retires_pages: bool,
    /// Banks whose rows can be remapped; 0 if there is no remapping.
    pub remap_banks: u32,
    /// Whether it can be divided.
    pub mig: bool,
    /// Whether a GSP with firmware of the driver's version runs it.
    pub gsp: bool,
    /// Whether it has a serial number.
    pub serial: bool,
    /// Whether it registers at an `NVSwitch` fabric.
    pub fabric: bool,
    /// Number of `NVLinks`, speed of one in MB/s, version.
    pub nvlink: (u32, u32, u32),
    /// Multiprocessors.
    pub multiprocessors: i32,
    /// Video BIOS.
    pub vbios: &'static str,
    /// PCI buses in a usual host with eight, all in domain 0.
    pub buses: [u32; 8],
}

/// All of them.
pub static PROFILES: &[Profile] = &[
    Profile {
        id: "h100-sxm-80g",
        name: "NVIDIA H100 80GB HBM3", // G
        architecture: 9,
        brand: 14,
        compute_capability: (9, 0),
        pci_device_id: 0x2330_10de,    // G
        pci_subsystem_id: 0x16c1_10de, // U
        memory_mib: 81559,             // G
        reserved_mib: 551,             // G; 479 on 590: E
        bar1_mib: 131_072,             // G
        pcie: (5, 16),                 // G
        pcie_idle_gen: 5,              // G
        power_w: (200, 700),           // G
        power_idle_w: 70,              // U
        clocks_mhz: (1980, 2619),      // G
        idle_pstate: 0,                // G
        thresholds_c: (92, 89),        // U
        temperature_c: 30,             // U
        ecc: true,                     // G
        retires_pages: false,
        remap_banks: 2560, // G
        mig: true,         // G
        gsp: true,         // G
        serial: true,      // G
        fabric: true,      // G: state Completed
        nvlink: (18, 26562, 4),
        multiprocessors: 132,
        vbios: "96.00.5E.00.01",                                 // U
        buses: [0x1b, 0x43, 0x52, 0x61, 0x9d, 0xc3, 0xd1, 0xdf], // U
    },
    Profile {
        id: "a100-sxm4-80g",
        name: "NVIDIA A100-SXM4-80GB", // T
        architecture: 7,
        brand: 14,
        compute_capability: (8, 0),
        pci_device_id: 0x20b2_10de,    // T
        pci_subsystem_id: 0x1463_10de, // U
        memory_mib: 81920,             // T
        reserved_mib: 869,             // T
        bar1_mib: 131_072,             // T
        pcie: (4, 16),                 // T
        pcie_idle_gen: 4,              // T
        power_w: (100, 500),           // T: that board; others have 400
        power_idle_w: 60,              // U
        clocks_mhz: (1410, 1593),      // T
        idle_pstate: 0,                // T
        thresholds_c: (92, 89),        // U
        temperature_c: 32,             // U
        ecc: true,                     // T
        retires_pages: false,          // T
        remap_banks: 640,              // U
        mig: true,                     // T
        gsp: true,                     // T
        serial: true,                  // T
        fabric: false,                 // T
        nvlink: (12, 25000, 3),        // G
        multiprocessors: 108,
        vbios: "92.00.45.00.03",                                 // U
        buses: [0x07, 0x0f, 0x47, 0x4e, 0x87, 0x90, 0xb7, 0xbd], // U
    },
    Profile {
        id: "a100-sxm4-40g",
        name: "NVIDIA A100-SXM4-40GB", // U
        architecture: 7,
        brand: 14,
        compute_capability: (8, 0),
        pci_device_id: 0x20b0_10de,    // a table of PCI ids
        pci_subsystem_id: 0x134f_10de, // U
        memory_mib: 40960,             // U
        reserved_mib: 442,             // U
        bar1_mib: 65536,               // U
        pcie: (4, 16),                 // T
        pcie_idle_gen: 4,              // T
        power_w: (100, 500),           // U
        power_idle_w: 60,              // U
        clocks_mhz: (1410, 1215),      // U
        idle_pstate: 0,                // T
        thresholds_c: (92, 89),        // U
        temperature_c: 32,             // U
        ecc: true,                     // T
        retires_pages: false,          // T
        remap_banks: 640,              // U
        mig: true,                     // T
        gsp: true,                     // T
        serial: true,                  // T
        fabric: false,                 // T
        nvlink: (12, 25000, 3),        // G
        multiprocessors: 108,
        vbios: "92.00.45.00.03",                                 // U
        buses: [0x07, 0x0f, 0x47, 0x4e, 0x87, 0x90, 0xb7, 0xbd], // U
    },
    Profile {
        id: "v100-sxm2-32g",
        name: "Tesla V100-SXM2-32GB", // U
        architecture: 5,
        brand: 2,
        compute_capability: (7, 0),
        pci_device_id: 0x1db5_10de,    // a table of PCI ids
        pci_subsystem_id: 0x1249_10de, // U
        memory_mib: 32768,             // V
        reserved_mib: 258,             // U
        bar1_mib: 32768,               // U
        pcie: (3, 16),                 // V
        pcie_idle_gen: 3,              // V
        power_w: (150, 300),           // V: 16 GB
        power_idle_w: 42,              // U
        clocks_mhz: (1530, 877),       // V
        idle_pstate: 0,                // V
        thresholds_c: (90, 87),        // U
        temperature_c: 35,             // U
        ecc: true,                     // V
        retires_pages: true,           // V
        remap_banks: 0,                // V
        mig: false,                    // V
        gsp: false,                    // V
        serial: true,                  // V
        fabric: false,
        nvlink: (6, 25781, 2), // U
        multiprocessors: 80,
        vbios: "88.00.48.00.02",                                 // U
        buses: [0x06, 0x07, 0x0a, 0x0b, 0x85, 0x86, 0x89, 0x8a], // U
    },
    Profile {
        id: "rtx-4090",
        name: "NVIDIA GeForce RTX 4090", // G
        architecture: 8,
        brand: 5,
        compute_capability: (8, 9),
        pci_device_id: 0x2684_10de,    // G
        pci_subsystem_id: 0x16f3_10de, // U
        memory_mib: 24564,             // G
        reserved_mib: 346,             // G
        bar1_mib: 256,                 // G
        pcie: (4, 16),                 // G
        pcie_idle_gen: 1,              // G: normal for an idle GPU
        power_w: (150, 450),           // G
        power_idle_w: 22,              // U
        clocks_mhz: (3105, 10501),     // G
        idle_pstate: 8,                // G
        thresholds_c: (97, 92),        // U
        temperature_c: 31,             // U
        ecc: false,                    // G
        retires_pages: false,          // G
        remap_banks: 192,              // G
        mig: false,                    // G
        gsp: false,                    // G, driver 535
        serial: false,                 // G
        fabric: false,                 // G
        nvlink: (0, 0, 0),             // G
        multiprocessors: 128,
        vbios: "95.02.3C.00.B3",                                 // U
        buses: [0x01, 0x25, 0x41, 0x61, 0x81, 0xa1, 0xc1, 0xe1], // U
    },
];

/// The product called `id`.
pub fn find(id: &str) -> Option<&'static Profile> {
    PROFILES.iter().find(|profile| profile.id == id)
}
