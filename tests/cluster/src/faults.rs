//! What tests break, and how it is mended.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    path::Path,
    time::Duration,
};

use crate::{
    Cluster, control_plane, daemon, device_folder, driver,
    error::{At, Error},
    network, node, teardown,
};

impl Cluster {
    /// Ends everything on a node at once, containers as well, as if its power failed. The
    /// controllers notice after 16 s.
    pub fn kill_node(&self, name: &str) -> Result<(), Error> {
        self.node(name)?;
        teardown::node(&self.places, name)
    }

    /// Boots a node that was killed, and waits until it is ready. Its disk is as it was.
    pub fn start_node(&self, name: &str) -> Result<(), Error> {
        let (index, node) = self.node(name)?;
        teardown::node(&self.places, name)?;
        let before = self.heartbeat(name);
        node::boot(&self.places, index, node)?;
        node::join(&self.places, &self.topology, index)?;
        // Until the controllers notice the loss, a dead node is called ready.
        self.wait("the kubelet has not reported", Duration::from_secs(60), || {
            self.heartbeat(name).is_some_and(|now| Some(now) != before)
        })?;
        self.wait_for(&[name])
    }

    /// When the kubelet last reported.
    fn heartbeat(&self, name: &str) -> Option<String> {
        let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].lastHeartbeatTime}";
        self.kubectl(&["get", "node", name, "-o", path]).ok()
    }

    /// Ends the kubelet alone: containers go on, and nobody reports about them.
    pub fn stop_kubelet(&self, name: &str) -> Result<(), Error> {
        self.node(name)?;
        daemon::stop(&self.places, &format!("kubelet-{name}"))
    }

    /// Starts a kubelet that was stopped.
    pub fn start_kubelet(&self, name: &str) -> Result<(), Error> {
        let (index, _node) = self.node(name)?;
        node::inside(&self.places, name, || node::kubelet(&self.places, &self.topology, index))
    }

    /// Pulls a node's network cable: its pods go on and reach only each other.
    pub fn disconnect(&self, name: &str) -> Result<(), Error> {
        self.link(name, "down")
    }

    /// Plugs it in again.
    pub fn connect(&self, name: &str) -> Result<(), Error> {
        self.link(name, "up")
    }

    fn link(&self, name: &str, state: &str) -> Result<(), Error> {
        self.node(name)?;
        network::batch(Some(&self.places.network("cp")), &[format!("link set v-{name} {state}")])
    }

    /// Moves all pods away from a node and keeps new ones off it, as before maintenance.
    pub fn drain(&self, name: &str) -> Result<String, Error> {
        self.node(name)?;
        let flags = ["--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=120s"];
        self.kubectl(&[&["drain", name][..], &flags].concat())
    }

    /// Lets pods onto a drained node.
    pub fn uncordon(&self, name: &str) -> Result<String, Error> {
        self.kubectl(&["uncordon", name])
    }

    /// Ends the API server at once; etcd and all nodes go on.
    pub fn stop_apiserver(&self) -> Result<(), Error> {
        daemon::stop(&self.places, "apiserver")
    }

    /// Starts the API server again, and waits until it is ready.
    pub fn start_apiserver(&self) -> Result<(), Error> {
        control_plane::start_api_server(&self.places, &self.topology)?;
        control_plane::wait(&self.places)
    }

    /// Ends the name server: no service is found by name any more.
    pub fn stop_dns(&self) -> Result<(), Error> {
        daemon::stop(&self.places, "coredns")
    }

    /// Starts it again.
    pub fn start_dns(&self) -> Result<(), Error> {
        control_plane::start_dns(&self.places)
    }

    /// Changes the simulated driver of a node: the device plugin and programs in containers see it
    /// with their next call. How many GPUs the node has changes with
    /// [`Cluster::restart_device_plugin`].
    pub fn set_scenario(&self, name: &str, file: &Path) -> Result<(), Error> {
        self.node(name)?;
        driver::change(&self.places, name, file).map(|_scenario| ())
    }

    /// Restarts the device plugin, which counts the GPUs when it starts.
    pub fn restart_device_plugin(&self, name: &str) -> Result<(), Error> {
        self.stop_device_plugin(name)?;
        node::inside(&self.places, name, || node::device_plugin(&self.places, name))
    }

    /// Ends the device plugin: the node's GPUs become unhealthy.
    pub fn stop_device_plugin(&self, name: &str) -> Result<(), Error> {
        self.node(name)?;
        daemon::stop(&self.places, &format!("device-plugin-{name}"))
    }

    /// Adds the driver's message about an XID of GPU number `gpu` to the node's kernel log.
    pub fn xid(&self, name: &str, gpu: usize, code: u32, text: &str) -> Result<(), Error> {
        self.node(name)?;
        let driver = driver::current(&self.places.node(name))?;
        let driver = driver.filter(|driver| gpu < driver.gpus.len());
        let driver = driver.ok_or_else(|| Error::NoGpu { node: name.to_owned(), gpu })?;
        let (domain, bus, device) = driver.pci(gpu);
        let address = format!("{domain:04x}:{bus:02x}:{device:02x}");
        self.kernel_message(name, 3, &format!("NVRM: Xid (PCI:{address}): {code}, {text}"))
    }

    /// Adds a record to the node's kernel log. `level` is that of syslog: 3 error, 4 warning, 6
    /// information.
    pub fn kernel_message(&self, name: &str, level: u8, text: &str) -> Result<(), Error> {
        self.node(name)?;
        let path = device_folder::kernel_log(&self.places.node(name));
        let sequence = fs::read_to_string(&path).at("read", &path)?.lines().count();
        let micros = uptime()?.as_micros();
        let line = format!("{level},{sequence},{micros},-;{text}\n");
        let mut file = OpenOptions::new().append(true).open(&path).at("write", &path)?;
        file.write_all(line.as_bytes()).at("write", path)
    }

    /// Connections that passed a node, one a line, as `conntrack -L` writes them.
    pub fn flows(&self, name: &str) -> Result<String, Error> {
        self.node(name)?;
        node::inside(&self.places, name, || {
            crate::cluster::output(std::process::Command::new("conntrack").arg("-L"))
        })
    }
}

/// Time since the machine booted: the clock of the kernel log.
fn uptime() -> Result<Duration, Error> {
    let path = Path::new("/proc/uptime");
    let text = fs::read_to_string(path).at("read", path)?;
    let seconds = text.split(' ').next().and_then(|seconds| seconds.parse().ok());
    Ok(Duration::from_secs_f64(seconds.unwrap_or_default()))
}
