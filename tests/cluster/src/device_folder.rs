//! What a node's `/dev` shows. It lives in the mount namespace of the node, so nodes differ, and
//! the machine's own folder stays as it is.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt, symlink},
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sys::stat::{Mode, SFlag, makedev, mknod},
};
use simgpu::scenario::Scenario;

use crate::{
    error::{At, Error},
    places::Places,
};

/// Device files of GPUs open and do nothing: behind them is the null device.
pub(crate) const NULL_DEVICE: (u64, u64) = (1, 3);

/// Gives the calling thread's mount namespace a `/dev` of its own: the machine's devices, the GPUs'
/// files, a `/dev/shm` of `shm_mib` and the node's kernel log.
pub(crate) fn make(node: &Path, driver: Option<&Scenario>, shm_mib: u64) -> Result<(), Error> {
    let draft = node.join("dev");
    Places::make(&draft)?;
    tmpfs(&draft, "mode=755,size=4m")?;
    for entry in fs::read_dir("/dev").at("read", "/dev")? {
        let path = entry.at("read", "/dev")?.path();
        let name = path.file_name().unwrap_or_default().to_owned();
        if name != "shm" && name != "kmsg" {
            repeat(&path, &draft.join(name))?;
        }
    }
    let shm = draft.join("shm");
    Places::make(&shm)?;
    tmpfs(&shm, &format!("mode=1777,size={shm_mib}m"))?;
    let kmsg = draft.join("kmsg");
    fs::write(&kmsg, "").at("write", &kmsg)?;
    bind(&kernel_log(node), &kmsg)?;
    for name in driver.map(|driver| names(driver, None)).unwrap_or_default() {
        node_at(&draft.join(name), SFlag::S_IFCHR, makedev(NULL_DEVICE.0, NULL_DEVICE.1), 0o666)?;
    }
    bind(&draft, Path::new("/dev"))
}

/// Stands for `/dev/kmsg`: a file to which lines are added.
pub(crate) fn kernel_log(node: &Path) -> PathBuf {
    node.join("kmsg")
}

/// Names of the device files of a driver: of all GPUs, or of those that `visible` lists.
pub(crate) fn names(driver: &Scenario, visible: Option<&str>) -> Vec<String> {
    let all: Vec<usize> = (0..driver.gpus.len()).collect();
    let gpus = driver.visible(&all, visible);
    let mut names: Vec<String> = gpus.iter().map(|gpu| format!("nvidia{gpu}")).collect();
    names.extend(["nvidiactl", "nvidia-uvm", "nvidia-uvm-tools"].map(str::to_owned));
    names
}

/// Makes `to` the same device, link or folder as `from`; other kinds of files are left out.
fn repeat(from: &Path, to: &Path) -> Result<(), Error> {
    // A device may vanish while we look.
    let Ok(data) = fs::symlink_metadata(from) else { return Ok(()) };
    let kind = data.file_type();
    if kind.is_symlink() {
        let target = fs::read_link(from).at("read", from)?;
        return symlink(target, to).at("link", to);
    }
    if kind.is_dir() {
        Places::make(to)?;
        return bind(from, to);
    }
    if kind.is_char_device() || kind.is_block_device() {
        let kind = if kind.is_char_device() { SFlag::S_IFCHR } else { SFlag::S_IFBLK };
        return node_at(to, kind, data.rdev(), data.mode() & 0o777);
    }
    Ok(())
}

fn node_at(path: &Path, kind: SFlag, device: u64, mode: u32) -> Result<(), Error> {
    mknod(path, kind, Mode::from_bits_truncate(mode), device).at("make the device", path)?;
    // mknod obeys the umask.
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).at("open", path)
}

pub(crate) fn tmpfs(target: &Path, options: &str) -> Result<(), Error> {
    let flags = MsFlags::MS_NOSUID;
    mount(Some("tmpfs"), target, Some("tmpfs"), flags, Some(options)).at("mount", target)
}

/// Shows `from` at `to` as well.
pub(crate) fn bind(from: &Path, to: &Path) -> Result<(), Error> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(from), to, None::<&str>, flags, None::<&str>).at("mount", to)
}
