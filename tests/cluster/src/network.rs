//! Network namespaces, the bridge between them, and their routes.

use std::{
    fs,
    io::Write,
    process::{Command, Stdio},
};

use crate::{
    error::{At, Error},
    namespace,
    places::Places,
    topology::{self, Node, Topology},
};

/// Address of the control plane on the bridge.
pub(crate) const GATEWAY: &str = "10.240.0.1";

/// Makes all namespaces and joins them. No address of these networks exists outside of them.
pub(crate) fn make(places: &Places, topology: &Topology) -> Result<(), Error> {
    let cp = places.network("cp");
    let mut names = vec![cp.clone()];
    names.extend(topology.nodes.iter().map(|node| places.network(&node.name)));
    batch(None, &names.iter().map(|name| format!("netns add {name}")).collect::<Vec<_>>())?;
    batch(
        Some(&cp),
        &[
            "link set lo up".to_owned(),
            "link add br0 type bridge".to_owned(),
            format!("addr add {GATEWAY}/24 dev br0"),
            "link set br0 up".to_owned(),
        ],
    )?;
    forward(&cp)?;
    for (index, node) in topology.nodes.iter().enumerate() {
        join(places, index, node)?;
        batch(Some(&places.network(&node.name)), &routes(topology, index))?;
    }
    Ok(())
}

fn join(places: &Places, index: usize, node: &Node) -> Result<(), Error> {
    let (cp, network) = (places.network("cp"), places.network(&node.name));
    let (name, address, mtu) = (&node.name, topology::address(index), node.mtu);
    let mut outside = vec![
        format!("link add v-{name} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {network}"),
        format!("link set v-{name} master br0 up"),
        format!("route add {} via {address}", topology::pods(index)),
    ];
    let mut inside = vec![
        "link set lo up".to_owned(),
        format!("addr add {address}/24 dev eth0"),
        "link set eth0 up".to_owned(),
        format!("route add default via {GATEWAY}"),
    ];
    for (number, nic) in node.nics.iter().enumerate() {
        outside
            .push(format!("link add w{number}-{name} type veth peer name {nic} netns {network}"));
        outside.push(format!("link set w{number}-{name} up"));
        inside.push(format!("link set {nic} up"));
    }
    batch(Some(&cp), &outside)?;
    batch(Some(&network), &inside)?;
    forward(&network)
}

/// The bridge has no routing daemon: every node knows where the others' pods are.
fn routes(topology: &Topology, own: usize) -> Vec<String> {
    let others = (0..topology.nodes.len()).filter(|index| *index != own);
    others
        .map(|i| format!("route add {} via {}", topology::pods(i), topology::address(i)))
        .collect()
}

fn forward(network: &str) -> Result<(), Error> {
    namespace::inside(network, || {
        let path = "/proc/sys/net/ipv4/ip_forward";
        fs::write(path, "1").at("write", path)
    })
}

/// Runs `ip` once for all lines.
pub(crate) fn batch(network: Option<&str>, lines: &[String]) -> Result<(), Error> {
    let mut ip = Command::new("ip");
    if let Some(network) = network {
        ip.args(["-n", network]);
    }
    ip.args(["-batch", "-"]);
    let start = |source| Error::Start { program: "ip".to_owned(), source };
    let mut child = ip
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(start)?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all((lines.join("\n") + "\n").as_bytes()).map_err(start)?;
    }
    let output = child.wait_with_output().map_err(start)?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::Command { command: format!("ip: {}", lines.join("; ")), message })
}
