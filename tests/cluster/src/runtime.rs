//! The container runtime of a node: runc, behind what NVIDIA's container toolkit does.
//!
//! A container whose environment names GPUs in `NVIDIA_VISIBLE_DEVICES` is given the driver's
//! libraries and device files; any other container is left alone. The device plugin sets the
//! variable; a pod may set it itself, as an agent that looks at all GPUs does. A hook of the container
//! shows what the kernel module would: runc itself mounts nothing below /proc.

use std::{
    env,
    ffi::OsString,
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};
use simgpu::scenario::Scenario;

use crate::{
    device_folder, driver,
    error::{At, Error},
    module,
};

/// Name under which containerd calls this program.
pub const NAME: &str = "container-runtime";

const RUNC: &str = "/usr/sbin/runc";
/// Where a container sees the driver's folder, whose scenario can change while it runs.
const SCENARIO: &str = "/run/qvl-simgpu";
/// Where the loader looks for libraries.
const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";

/// Whether this program was called as the runtime.
pub fn is_called() -> bool {
    env::args_os().next().is_some_and(|own| Path::new(&own).ends_with(NAME))
}

/// First argument of the hook, which runs before the container's root becomes the root.
const HOOK: &str = "show-module";

/// Prepares the container that is to be created, if any, and becomes runc; or is the hook.
pub fn run() -> Result<(), Error> {
    let mut arguments = env::args_os();
    let own = PathBuf::from(arguments.next().unwrap_or_default());
    let node = own.parent().unwrap_or(Path::new("/"));
    let arguments: Vec<OsString> = arguments.collect();
    if let [first, root] = &arguments[..]
        && first == HOOK
    {
        return module::show(node, Path::new(root));
    }
    if let Some(bundle) = bundle(&arguments) {
        prepare(node, &bundle)?;
    }
    let source = Command::new(RUNC).args(&arguments).exec();
    Err(Error::Start { program: RUNC.to_owned(), source })
}

/// Folder of the container that `create` or `run` names.
fn bundle(arguments: &[OsString]) -> Option<PathBuf> {
    arguments.iter().find(|word| *word == "create" || *word == "run")?;
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let word = word.to_string_lossy();
        if word == "--bundle" || word == "-b" {
            return words.next().map(PathBuf::from);
        }
        if let Some(folder) = word.strip_prefix("--bundle=") {
            return Some(PathBuf::from(folder));
        }
    }
    Some(PathBuf::from("."))
}

fn prepare(node: &Path, bundle: &Path) -> Result<(), Error> {
    let path = bundle.join("config.json");
    let text = fs::read_to_string(&path).at("read", &path)?;
    let mut config: Value = serde_json::from_str(&text).map_err(|error| Error::Command {
        command: format!("read {}", path.display()),
        message: error.to_string(),
    })?;
    let (Some(visible), Some(scenario)) = (visible(&config), driver::current(node)?) else {
        return Ok(());
    };
    give(&mut config, node, &scenario, &visible);
    let root = bundle.join(config["root"]["path"].as_str().unwrap_or("rootfs"));
    let program = node.join(NAME);
    let hook = json!({"path": program, "args": [program, HOOK, root]});
    append(&mut config["hooks"]["createContainer"], vec![hook]);
    fs::write(&path, config.to_string()).at("write", path)
}

/// The list of GPUs that a container asks for.
fn visible(config: &Value) -> Option<String> {
    let variables = config["process"]["env"].as_array()?;
    let find = |variable: &Value| {
        Some(variable.as_str()?.strip_prefix("NVIDIA_VISIBLE_DEVICES=")?.to_owned())
    };
    let list = variables.iter().rev().find_map(find)?;
    (!matches!(&*list, "" | "void" | "none")).then_some(list)
}

fn give(config: &mut Value, node: &Path, scenario: &Scenario, visible: &str) {
    let driver = node.join("driver");
    let mount = |from: &Path, to: &str| {
        json!({"destination": to, "type": "bind", "source": from,
               "options": ["bind", "ro", "nosuid", "nodev"]})
    };
    let mut mounts = vec![mount(&driver, SCENARIO)];
    for library in ["libnvidia-ml.so.1", "libcuda.so.1"] {
        mounts.push(mount(&driver.join(library), &format!("{LIBRARIES}/{library}")));
    }
    let variable = json!(format!("{}={SCENARIO}/scenario.json", simgpu::live::VARIABLE));
    let (major, minor) = device_folder::NULL_DEVICE;
    let devices = device_folder::names(scenario, Some(visible)).into_iter().map(|name| {
        json!({"path": format!("/dev/{name}"), "type": "c", "major": major, "minor": minor,
               "fileMode": 0o666, "uid": 0, "gid": 0})
    });
    append(&mut config["mounts"], mounts);
    append(&mut config["process"]["env"], vec![variable]);
    append(&mut config["linux"]["devices"], devices.collect());
}

fn append(list: &mut Value, items: Vec<Value>) {
    match list.as_array_mut() {
        Some(list) => list.extend(items),
        None => *list = Value::Array(items),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scenario() -> Scenario {
        Scenario::parse(&simgpu::host::named("healthy-4xa100")).unwrap()
    }

    #[test]
    fn a_container_is_given_the_gpus_that_it_names() {
        let scenario = scenario();
        let variable = format!("NVIDIA_VISIBLE_DEVICES={}", scenario.uuid(2));
        let mut config = json!({"process": {"env": [variable]}, "mounts": [], "linux": {}});
        let list = visible(&config).unwrap();
        give(&mut config, Path::new("/node"), &scenario, &list);
        let devices: Vec<&str> = config["linux"]["devices"]
            .as_array()
            .unwrap()
            .iter()
            .map(|device| device["path"].as_str().unwrap())
            .collect();
        let common = ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"];
        assert_eq!(devices, [&["/dev/nvidia2"][..], &common].concat());
        assert_eq!(config["mounts"].as_array().unwrap().len(), 3);
    }

    #[test]
    fn other_containers_are_left_alone() {
        for variable in ["PATH=/bin", "NVIDIA_VISIBLE_DEVICES=void", "NVIDIA_VISIBLE_DEVICES="] {
            assert_eq!(visible(&json!({"process": {"env": [variable]}})), None);
        }
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert_eq!(bundle(&words("--root /x create --bundle /b id")), Some(PathBuf::from("/b")));
        assert_eq!(bundle(&words("--root /x kill id 9")), None);
    }
}
