//! One broken thing for each rule about the network and about variables.

use super::{
    change, change_gpu,
    mutations::{Mutation, all, first},
    set,
};
use crate::{
    doctor::testing::sysctl,
    facts::{
        Fact, Gid, Interface, InterfaceCounters, MasterAddress, RdmaPort, Reach, Reached, Snapshot,
    },
};

/// Changes the card of the first node.
fn card(snapshot: &mut Snapshot, f: impl FnMut(&mut RdmaPort)) {
    // Another change may have taken it away.
    change(&mut first(snapshot).network.rdma_ports, |ports| {
        ports.first_mut().into_iter().for_each(f);
    });
}

/// Changes the interface of the first node that reaches the others.
fn interface(snapshot: &mut Snapshot, f: impl FnOnce(&mut Interface)) {
    change(&mut first(snapshot).network.interfaces, |interfaces| f(&mut interfaces[1]));
}

/// MASTER_ADDR of all nodes, and what it resolves to.
fn master(snapshot: &mut Snapshot, name: &str, addresses: &[&str]) {
    all(snapshot, |node| {
        let addresses = addresses.iter().map(|address| (*address).to_owned()).collect();
        let error = Some("Name or service not known".to_owned());
        let master = MasterAddress { name: name.to_owned(), addresses, error };
        node.network.master_address = Fact::known(Some(master), "getaddrinfo");
        set(node, "MASTER_ADDR", name);
    });
}

/// Sets a variable on all nodes: one that differs is another check.
fn everywhere(snapshot: &mut Snapshot, name: &str, value: &str) {
    all(snapshot, |node| set(node, name, value));
}

pub(super) const NETWORK: &[(&str, Mutation)] = &[
    ("rdma-port-down", |s, _d| {
        // A second port, so that the first still carries traffic.
        change(&mut first(s).network.rdma_ports, |ports| {
            let Some(mut down) = ports.first().cloned() else { return };
            (down.port, down.state) = (2, "DOWN".to_owned());
            ports.push(down);
        });
    }),
    ("rdma-rate-low", |s, _d| card(s, |port| port.rate_gbps = Some(100))),
    ("rdma-errors", |s, _d| {
        card(s, |port| {
            port.errors.insert("link_downed".to_owned(), 4);
        });
    }),
    ("nic-firmware-skew", |s, _d| {
        card(s, |port| port.firmware = Some("28.36.1010 MT_0000000838".to_owned()));
    }),
    ("gid-mismatch", |s, _d| {
        everywhere(s, "NCCL_IB_GID_INDEX", "3");
        let gid = |kind: &str| vec![Gid { index: 3, kind: kind.to_owned() }];
        all(s, |node| {
            change(&mut node.network.rdma_ports, |ports| {
                let Some(port) = ports.first_mut() else { return };
                "Ethernet".clone_into(&mut port.link_layer);
                port.gids = gid("RoCE v2");
            });
        });
        card(s, |port| port.gids = gid("IB/RoCE v1"));
    }),
    ("gpudirect-missing", |s, _d| {
        change(&mut first(s).driver.modules, |modules| {
            modules.remove("nvidia_peermem");
        });
        change(&mut first(s).driver.kernel_module, |module| {
            module.as_mut().expect("loaded").open = false;
        });
    }),
    ("rdma-selector-empty", |s, _d| everywhere(s, "NCCL_IB_HCA", "mlx4_0,mlx4_1:1")),
    ("net-plugin-missing", |s, _d| card(s, |port| port.driver = Some("efa".to_owned()))),
    ("mtu-mismatch", |s, _d| interface(s, |interface| interface.mtu_bytes = Some(1500))),
    ("interface-slow", |s, _d| {
        change(&mut first(s).network.rdma_ports, Vec::clear);
        interface(s, |interface| interface.speed_mbps = Some(1000));
    }),
    ("interface-errors", |s, _d| {
        let counters = InterfaceCounters { packets: 1_000_000, errors: 9000, carrier_changes: 2 };
        interface(s, |interface| interface.counters = Some(counters));
    }),
    ("link-flap", |s, _d| {
        let counters = InterfaceCounters { packets: 1_000_000, errors: 0, carrier_changes: 60 };
        interface(s, |interface| interface.counters = Some(counters));
    }),
    ("gloo-interface", |s, _d| everywhere(s, "GLOO_SOCKET_IFNAME", "eth9")),
    ("subnet-disjoint", |s, _d| {
        interface(s, |interface| interface.addresses = vec!["192.168.7.1/24".to_owned()]);
    }),
    ("address-clash", |s, _d| {
        interface(s, |interface| interface.addresses.push("10.0.0.2/24".to_owned()));
    }),
    ("somaxconn-low", |s, _d| sysctl(first(s), "net.core.somaxconn", "2")),
    ("rp-filter-strict", |s, _d| {
        sysctl(first(s), "net.ipv4.conf.all.rp_filter", "1");
        change(&mut first(s).network.interfaces, |interfaces| {
            let addresses = vec!["10.0.0.101/24".to_owned()];
            let second = Interface { name: "ens2".to_owned(), addresses, ..interfaces[1].clone() };
            interfaces.push(second);
        });
    }),
    ("conntrack-full", |s, _d| sysctl(first(s), "net.netfilter.nf_conntrack_count", "262000")),
    ("master-addr", |s, _d| master(s, "localhost", &["127.0.0.1"])),
    ("master-not-local", |s, _d| {
        master(s, "n9", &["10.0.0.9"]);
        for (name, value) in
            [("RANK", "0"), ("WORLD_SIZE", "3"), ("MASTER_ADDR", "n9"), ("MASTER_PORT", "29500")]
        {
            set(first(s), name, value);
        }
    }),
    ("dns-unresolved", |s, _d| master(s, "digits-0.digits", &[])),
    ("tcp-unreachable", |s, _d| {
        let message = "connection timed out".to_owned();
        let target = "n2:29500".to_owned();
        let closed = Reach { target, result: Reached::Failed { message } };
        change(&mut first(s).network.reach, |reach| reach.push(closed));
    }),
    ("hostname-loopback", |s, _d| {
        change(&mut first(s).network.own_name, |own| *own = vec!["127.0.1.1".to_owned()]);
    }),
    ("port-ephemeral", |s, _d| set(first(s), "MASTER_PORT", "40001")),
    ("nccl-hostid-clash", |s, _d| everywhere(s, "NCCL_HOSTID", "image")),
    ("machine-id-clash", |s, _d| {
        change(&mut first(s).identity.machine_id, |id| "machine-2".clone_into(id));
    }),
    ("nccl-debug-verbose", |s, _d| everywhere(s, "NCCL_DEBUG", "TRACE")),
    ("nccl-p2p-disabled", |s, _d| everywhere(s, "NCCL_P2P_DISABLE", "1")),
    ("nccl-shm-disabled", |s, _d| everywhere(s, "NCCL_SHM_DISABLE", "1")),
    ("nccl-algorithm-forced", |s, _d| everywhere(s, "NCCL_PROTO", "LL128")),
    ("nccl-net-forced", |s, _d| everywhere(s, "NCCL_NET", "Socket")),
    ("nccl-errors-ignored", |s, _d| everywhere(s, "TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")),
    ("omp-threads", |s, _d| everywhere(s, "OMP_NUM_THREADS", "128")),
    ("cuda-device-order", |s, _d| {
        // The second GPU, which the job does not use.
        change_gpu(first(s), 1, |gpu| {
            change(&mut gpu.name, |name| "NVIDIA T1000".clone_into(name));
        });
    }),
    ("cuda-eager-loading", |s, _d| everywhere(s, "CUDA_MODULE_LOADING", "EAGER")),
    ("rank-env-partial", |s, _d| set(first(s), "WORLD_SIZE", "3")),
    ("local-rank-mismatch", |s, _d| set(first(s), "LOCAL_WORLD_SIZE", "8")),
    ("container-runtime", |s, _d| {
        change(&mut first(s).container.kind, |kind| *kind = Some("docker".to_owned()));
        set(first(s), "NVIDIA_DRIVER_CAPABILITIES", "utility");
    }),
];
