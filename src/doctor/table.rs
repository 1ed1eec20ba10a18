//! Knowledge that is data: versions, GPU names, XIDs. Each table names its source.

/// Bytes in the unit that people read.
pub fn bytes(bytes: u64) -> String {
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

/// Rows of a table: tab-separated, `#` begins a comment, the first other line names the columns.
pub(super) fn rows(table: &'static str) -> impl Iterator<Item = Vec<&'static str>> {
    let lines = table.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines.skip(1).map(|line| line.split('\t').collect())
}

/// The row whose first column is `key`.
fn row(table: &'static str, key: &str) -> Option<Vec<&'static str>> {
    rows(table).find(|row| row.first() == Some(&key))
}

/// Oldest driver for programs of a CUDA major version.
pub(super) fn minimum_driver(cuda_major: u32) -> Option<&'static str> {
    let row = row(include_str!("data/cuda_minimum_driver.tsv"), &cuda_major.to_string())?;
    row.get(1).copied()
}

/// First driver that was shipped with a CUDA release, `12.4`: it has all features of it.
pub(super) fn full_driver(cuda: &str) -> Option<&'static str> {
    row(include_str!("data/cuda_driver.tsv"), cuda)?.get(1).copied()
}

/// The CUDA release that brought a version of PTX (`major * 10 + minor`), and the first driver
/// branch that compiles it. Programs in PTX are not covered by minor-version compatibility.
pub(super) fn ptx(version: u32) -> Option<(&'static str, u32)> {
    let row = row(include_str!("data/ptx_isa.tsv"), &version.to_string())?;
    Some((row.get(1)?, row.get(2)?.parse().ok()?))
}

/// First CUDA toolkit that makes code for an architecture.
pub(super) fn first_cuda(arch: u32) -> Option<&'static str> {
    row(include_str!("data/compute_capability.tsv"), &arch.to_string())?.get(1).copied()
}

/// CUDA builds of a PyTorch release, `2.3` to `cu118`, `cu121`.
pub(super) fn torch_builds(torch: &str) -> Option<Vec<&'static str>> {
    Some(row(include_str!("data/torch.tsv"), torch)?.get(1)?.split(',').collect())
}

/// Lowest and highest compute capability of a CUDA build of PyTorch.
pub(super) fn torch_arch(build: &str) -> Option<(u32, u32)> {
    let row = row(include_str!("data/torch_arch.tsv"), build)?;
    Some((row.get(1)?.parse().ok()?, row.get(2)?.parse().ok()?))
}

/// `NVLinks` of a board whose number is fixed by design.
pub(super) fn nvlinks(name: &str) -> Option<usize> {
    if !has_nvlink(name) {
        return None;
    }
    let row = rows(include_str!("data/nvlinks.tsv")).find(|row| name.contains(row[0]))?;
    row.get(1)?.parse().ok()
}

/// Oldest and newest NCCL that the trainer's bindings are made for.
pub(super) fn bound_nccl() -> (&'static str, &'static str) {
    let row = row(include_str!("data/cudarc.tsv"), "nccl").unwrap_or_default();
    (row.get(1).copied().unwrap_or("0"), row.get(2).copied().unwrap_or("0"))
}

/// A driver that is known to break jobs of several GPUs: what happens, the first driver that is
/// repaired, and where it was reported.
pub(super) fn denied_driver(product: &str, driver: &str) -> Option<[&'static str; 3]> {
    let driver = version(driver);
    rows(include_str!("data/denied_drivers.tsv")).find_map(|row| {
        let [of, from, repaired, trouble, source] = row[..] else { return None };
        let hit = (of == "-" || product.contains(of))
            && version(from) <= driver
            && driver < version(repaired);
        hit.then_some([trouble, repaired, source])
    })
}

/// Two packages that do not work together in these versions: their names, and what happens.
pub(super) fn incompatible(
    installed: &std::collections::BTreeMap<String, String>,
) -> Vec<[&'static str; 3]> {
    let between = |name: &str, from: &str, before: &str| {
        installed.get(name).is_some_and(|found| {
            let found = version(found);
            version(from) <= found && found < version(before)
        })
    };
    rows(include_str!("data/deepspeed.tsv"))
        .filter_map(|row| {
            let [package, from, before, other, other_from, other_before, trouble] = row[..] else {
                return None;
            };
            let hit = between(package, from, before) && between(other, other_from, other_before);
            hit.then_some([package, other, trouble])
        })
        .collect()
}

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

#[cfg(test)]
mod tests {
    use super::*;

    /// Every table names its source and date, and has as many columns in each row as names.
    #[test]
    fn every_table_is_whole() {
        for (name, text) in [
            ("cuda_minimum_driver", include_str!("data/cuda_minimum_driver.tsv")),
            ("cuda_driver", include_str!("data/cuda_driver.tsv")),
            ("ptx_isa", include_str!("data/ptx_isa.tsv")),
            ("compute_capability", include_str!("data/compute_capability.tsv")),
            ("torch", include_str!("data/torch.tsv")),
            ("torch_arch", include_str!("data/torch_arch.tsv")),
            ("denied_drivers", include_str!("data/denied_drivers.tsv")),
            ("nvlinks", include_str!("data/nvlinks.tsv")),
            ("deepspeed", include_str!("data/deepspeed.tsv")),
            ("cudarc", include_str!("data/cudarc.tsv")),
            ("causes", include_str!("data/causes.tsv")),
            ("log_patterns", include_str!("data/log_patterns.tsv")),
            ("exit_codes", include_str!("data/exit_codes.tsv")),
        ] {
            assert!(text.contains("# source: ") && text.contains("# read: 20"), "{name}");
            let names = text.lines().find(|line| !line.starts_with('#')).unwrap();
            let columns = names.split('\t').count();
            assert!(0 < rows(text).count(), "{name}");
            assert!(rows(text).all(|row| row.len() == columns), "{name}");
        }
    }

    #[test]
    fn knowledge_is_found() {
        assert_eq!(minimum_driver(12), Some("525.60.13"));
        assert_eq!(minimum_driver(99), None);
        assert_eq!(ptx(87), Some(("12.8", 570)));
        assert_eq!(full_driver("12.4"), Some("550.54.14"));
        assert_eq!(first_cuda(100), Some("12.8"));
        assert_eq!(torch_builds("2.3").unwrap(), ["cu118", "cu121"]);
        assert_eq!(torch_arch("cu121"), Some((50, 90)));
        assert_eq!(nvlinks("NVIDIA A100-SXM4-80GB"), Some(12));
        assert_eq!(nvlinks("NVIDIA H200 NVL"), None);
        assert_eq!(bound_nccl().0, "2.22");
        assert!(denied_driver("NVIDIA L40S", "560.35.03").is_some());
        assert!(denied_driver("NVIDIA L40S", "525.60.13").is_none());
        assert!(denied_driver("NVIDIA GeForce RTX 4090", "525.60.13").is_some());
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
