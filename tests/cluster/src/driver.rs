//! The simulated driver of a node: two libraries and a scenario in one folder.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use simgpu::scenario::Scenario;

use crate::{
    error::{At, Error},
    module,
    places::Places,
    topology::Node,
};

/// The driver's folder of a node.
pub(crate) fn folder(places: &Places, node: &str) -> PathBuf {
    places.node(node).join("driver")
}

/// Installs the driver that the topology describes, none without GPUs; one that is there stays.
pub(crate) fn install_once(places: &Places, node: &Node) -> Result<Option<Scenario>, Error> {
    if let Some(scenario) = current(&places.node(&node.name))? {
        return Ok(Some(scenario));
    }
    let Some(text) = describe(node)? else { return Ok(None) };
    let folder = folder(places, &node.name);
    Places::make(&folder)?;
    let path = node.scenario.clone().unwrap_or_else(|| folder.join("scenario.json"));
    let scenario = parse(&text, &path)?;
    simgpu::host::install(&libraries()?, &folder, &text).at("install the driver in", folder)?;
    Ok(Some(scenario))
}

/// Replaces the scenario of a node; programs that run see it with their next call.
pub(crate) fn change(places: &Places, node: &str, file: &Path) -> Result<Scenario, Error> {
    let text = owned_by(node, &fs::read_to_string(file).at("read", file)?, file)?;
    let scenario = parse(&text, file)?;
    let target = folder(places, node).join("scenario.json");
    let draft = target.with_extension("new");
    fs::write(&draft, text).at("write", &draft)?;
    fs::rename(&draft, &target).at("write", &target)?;
    module::write(&places.node(node), &scenario)?;
    Ok(scenario)
}

/// The scenario of a node now; none if it has no driver.
pub(crate) fn current(node_folder: &Path) -> Result<Option<Scenario>, Error> {
    let path = node_folder.join("driver/scenario.json");
    if !path.exists() {
        return Ok(None);
    }
    let text = fs::read_to_string(&path).at("read", &path)?;
    parse(&text, &path).map(Some)
}

fn describe(node: &Node) -> Result<Option<String>, Error> {
    if let Some(path) = &node.scenario {
        let text = fs::read_to_string(path).at("read", path)?;
        return owned_by(&node.name, &text, path).map(Some);
    }
    let gpus = json!([{"profile": node.profile, "count": node.gpus}]);
    let scenario = json!({
        "node": node.name, "driver": node.driver, "cuda_driver": node.cuda, "gpus": gpus,
    });
    Ok((0 < node.gpus).then(|| scenario.to_string()))
}

/// A scenario from the catalogue names no node; without one, the GPUs of all nodes are the same.
fn owned_by(node: &str, text: &str, path: &Path) -> Result<String, Error> {
    let mut value: Value = serde_json::from_str(text)
        .map_err(|error| Error::Scenario { path: path.to_owned(), reason: error.to_string() })?;
    if let Some(fields) = value.as_object_mut() {
        fields.entry("node").or_insert_with(|| node.into());
    }
    Ok(value.to_string())
}

fn parse(text: &str, path: &Path) -> Result<Scenario, Error> {
    Scenario::parse(text).map_err(|reason| Error::Scenario { path: path.to_owned(), reason })
}

/// Folder into which cargo built the driver: beside a test, and in `deps` beside a program.
fn libraries() -> Result<PathBuf, Error> {
    let program = env::current_exe().at("find", "this program")?;
    let beside = program.parent().unwrap_or(Path::new("/")).to_owned();
    let found = [beside.clone(), beside.join("deps")]
        .into_iter()
        .find(|folder| folder.join("libsimgpu_nvml.so").exists());
    found.ok_or(Error::NotBuilt {
        path: beside.join("deps/libsimgpu_nvml.so"),
        hint: "cargo build --release -p qvl-cluster",
    })
}
