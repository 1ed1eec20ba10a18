//! Debian packages that the cluster needs, checked before anything is started.

use std::path::Path;

use crate::Error;

/// A file, and the package that brings it.
const FILES: [(&str, &str); 8] = [
    ("/usr/sbin/runc", "runc"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("/usr/sbin/iptables", "iptables"),
    ("/usr/sbin/nft", "nftables"),
    ("/usr/sbin/conntrack", "conntrack"),
    ("/bin/busybox", "busybox-static"),
    ("/usr/bin/mount", "mount"),
    ("/etc/ssl/certs/ca-certificates.crt", "ca-certificates"),
];

/// Refuses without root or with a package missing.
pub(crate) fn check() -> Result<(), Error> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Error::NotRoot);
    }
    let missing = |(file, _package): &&(&str, &str)| !Path::new(file).exists();
    let mut packages: Vec<_> =
        FILES.iter().filter(missing).map(|(_file, package)| *package).collect();
    // Debian has moved it between folders.
    if !["/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip"].iter().any(|ip| Path::new(ip).exists()) {
        packages.push("iproute2");
    }
    if packages.is_empty() { Ok(()) } else { Err(Error::Packages { packages }) }
}
