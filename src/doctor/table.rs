//! Knowledge that is data: versions, GPU names, XIDs. Each table names its source.

/// Bytes in the unit that people read.
pub(super) fn bytes(bytes: u64) -> String {
    let units = [("TiB", 1_u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    for (name, size) in units {
        if size <= bytes {
            return format!("{:.1} {name}", bytes as f64 / size as f64);
        }
    }
    format!("{bytes} B")
}

/// Numbers of a dotted version: `580.65.06` is `[580, 65, 6]`. Text after the first part that
/// is not a number is left out, so `6.8.0-45-generic` is `[6, 8, 0]`.
pub(super) fn version(text: &str) -> Vec<u32> {
    let digits = text.split(|c: char| !c.is_ascii_digit() && c != '.').next().unwrap_or("");
    digits.split('.').map_while(|part| part.parse().ok()).collect()
}

/// Oldest driver for programs of a CUDA major version (minor-version compatibility).
/// Source: release notes of CUDA 13.4 Update 1, table "CUDA Toolkit and Minimum Required Driver
/// Version for CUDA Minor Version Compatibility", read 2026-10.
pub(super) const MINIMUM_DRIVER: &[(u32, &str)] =
    &[(11, "450.80.02"), (12, "525.60.13"), (13, "580.65.06")];

/// PTX language version (`major * 10 + minor`), the CUDA that brought it, and the first driver
/// branch that compiles it. Programs in PTX are not covered by minor-version compatibility.
/// Source: PTX ISA release history and the CUDA release notes, read 2026-10.
pub(super) const PTX_DRIVER: &[(u32, &str, u32)] = &[
    (70, "11.0", 450),
    (71, "11.1", 455),
    (72, "11.2", 460),
    (73, "11.3", 465),
    (74, "11.4", 470),
    (75, "11.5", 495),
    (76, "11.6", 510),
    (77, "11.7", 515),
    (78, "11.8", 520),
    (80, "12.0", 525),
    (81, "12.1", 530),
    (82, "12.2", 535),
    (83, "12.3", 545),
    (84, "12.4", 550),
    (85, "12.5", 555),
    (86, "12.7", 565),
    (87, "12.8", 570),
    (88, "12.9", 575),
    (90, "13.0", 580),
    (91, "13.1", 590),
    (92, "13.2", 595),
    (93, "13.3", 610),
    (94, "13.4", 615),
];

/// Products whose SXM modules do not say so in their NVML name: `NVIDIA H100 80GB HBM3`, `NVIDIA
/// H200`. Their PCIe cards do: `NVIDIA H100 PCIe`, `NVIDIA H200 NVL`.
const UNNAMED_SXM: [&str; 8] =
    ["H100 80GB HBM3", "H100 64GB", "H200", "H800", "H20", "B200", "B300", "GH200"];

/// Whether GPUs of this name have `NVLink` on the board. Bridges on PCIe cards are optional, so
/// such cards are never judged by it.
///
/// From Hopper on, NVML leaves `SXM` out: `NVIDIA H100 80GB HBM3`, `NVIDIA H200`, `NVIDIA B200`
/// are SXM boards, and the cards are called `NVIDIA H100 PCIe` and `NVIDIA H200 NVL`.
pub(super) fn has_nvlink(name: &str) -> bool {
    if name.contains("PCIe") || name.contains(" NVL") {
        return false;
    }
    let product = name.trim_start_matches("NVIDIA ").trim_start_matches("Tesla ");
    let is_module = ["SXM", "HGX", "DGX", "GB200", "GB300"].iter().any(|m| product.contains(m));
    is_module || UNNAMED_SXM.iter().any(|sxm| product.starts_with(sxm))
}

/// Whether GPUs of this name are made for data centers: they have ECC, and may use the forward
/// compatibility package.
pub(super) fn is_data_center(name: &str) -> bool {
    !["GeForce", "TITAN", "Quadro", "RTX"].iter().any(|mark| name.contains(mark))
}

/// What to do about an XID that was seen since boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum XidAction {
    Block,
    /// Block unless the sub-code says that it is not fatal.
    BlockUnlessDecoded,
    /// The message names the action.
    FollowAction,
    Warn,
    WarnIfRemapPending,
    /// Nothing when it follows another XID, else a warning.
    InfoIfSympathetic,
    /// Nothing, but a warning when three processes were hit.
    InfoWarnIfThreeProcesses,
    Info,
    /// The catalog does not use the code.
    WarnUnused,
}

/// One line of `xid.tsv`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct XidLine<'a> {
    pub(super) xid: u32,
    pub(super) description: &'a str,
    pub(super) nvidia_action: &'a str,
    pub(super) action: XidAction,
}

/// XIDs with NVIDIA's action and four other policies, so that a reader sees who says what.
/// Columns and sources are explained in `docs/xid.md`.
const XIDS: &str = include_str!("xid.tsv");

/// The table's line for a code; `None` if the table does not have it.
pub(super) fn xid(code: u32) -> Option<XidLine<'static>> {
    XIDS.lines().skip(1).filter_map(xid_line).find(|line| line.xid == code)
}

fn xid_line(line: &'static str) -> Option<XidLine<'static>> {
    let columns: Vec<&str> = line.split('\t').collect();
    let action = match *columns.get(9)? {
        "BLOCK" => XidAction::Block,
        "BLOCK_UNLESS_DECODED_NONFATAL" => XidAction::BlockUnlessDecoded,
        "FOLLOW_ACTION" => XidAction::FollowAction,
        "WARN" => XidAction::Warn,
        "WARN_IF_REMAP_PENDING" => XidAction::WarnIfRemapPending,
        "INFO_IF_SYMPATHETIC_ELSE_WARN" => XidAction::InfoIfSympathetic,
        "INFO_WARN_IF_3_PIDS" => XidAction::InfoWarnIfThreeProcesses,
        "INFO" => XidAction::Info,
        "WARN_UNUSED_CODE" => XidAction::WarnUnused,
        _ => return None,
    };
    Some(XidLine {
        xid: columns.first()?.parse().ok()?,
        description: columns.get(2)?,
        nvidia_action: columns.get(3)?,
        action,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_xid_table_is_understood() {
        let lines: Vec<_> = XIDS.lines().skip(1).filter_map(xid_line).collect();
        assert_eq!(lines.len(), 172);
        assert!(lines.iter().zip(1..).all(|(line, code)| line.xid == code));
        let blocking = lines.iter().filter(|line| line.action == XidAction::Block).count();
        assert_eq!(blocking, 26);
    }

    #[test]
    fn versions_compare_as_numbers() {
        assert!(version("525.60.13") < version("525.105.17"));
        assert_eq!(version("6.8.0-45-generic"), [6, 8, 0]);
        assert_eq!(version("580.65.06"), [580, 65, 6]);
    }

    #[test]
    fn pcie_cards_are_not_expected_to_have_nvlink() {
        assert!(has_nvlink("NVIDIA A100-SXM4-80GB"));
        assert!(has_nvlink("NVIDIA H100 80GB HBM3"));
        assert!(has_nvlink("NVIDIA H200") && has_nvlink("NVIDIA B200"));
        assert!(!has_nvlink("NVIDIA H100 PCIe") && !has_nvlink("NVIDIA H200 NVL"));
        assert!(!has_nvlink("NVIDIA A100 80GB PCIe"));
        assert!(!has_nvlink("NVIDIA H100 NVL"));
    }
}
