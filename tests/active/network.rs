//! Hosts that are network namespaces, every two joined by a cable of their own, so that a cable can
//! be slow, or lose large packets, without the others.

use std::{
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use crate::Report;

const TOKEN: &str = "a token of this test";
/// What every cable carries, unless a test says otherwise: far below what this machine can do, so
/// that its load does not matter.
const USUAL: &str = "rate 200mbit burst 256kb latency 100ms";
const SLOW: &str = "rate 20mbit burst 64kb latency 400ms";
/// Packets of full size do not fit into the bucket, and are dropped without a word.
const NARROW: &str = "rate 200mbit burst 3000 latency 100ms";

/// Some hosts.
struct Net {
    name: String,
    count: usize,
    doors: Vec<Child>,
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}: {said}\n  hint: as root, with iproute2");
    output
}

impl Net {
    /// `count` hosts, the first of which will ask. Addresses lie in a range that no router has.
    fn new(count: usize) -> Net {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("qvla{}-{number}", std::process::id());
        let mut net = Net { name, count, doors: Vec::new() };
        for host in 0..count {
            run(Command::new("ip").args(["netns", "add", &net.space(host)]));
            let own = format!("{}/32", address(host));
            net.ip(host, &["link", "set", "lo", "up"]);
            net.ip(host, &["addr", "add", &own, "dev", "lo"]);
        }
        for a in 0..count {
            for b in a + 1..count {
                net.cable(a, b);
            }
        }
        net.doors = (1..count).map(|host| net.door(host)).collect();
        // Each prints a line once it listens.
        thread::sleep(Duration::from_millis(500));
        net
    }

    fn space(&self, host: usize) -> String {
        format!("{}-{host}", self.name)
    }

    fn ip(&self, host: usize, args: &[&str]) {
        run(Command::new("ip").args(["-n", &self.space(host)]).args(args));
    }

    /// A pair of interfaces `to<peer>`, with routes and jumbo frames.
    fn cable(&self, a: usize, b: usize) {
        let (to_b, to_a) = (format!("to{b}"), format!("to{a}"));
        let link = ["link", "add", &to_b, "mtu", "9000", "type", "veth", "peer", "name", &to_a];
        let other = self.space(b);
        self.ip(a, &[&link[..], &["mtu", "9000", "netns", &other]].concat());
        for (here, there, interface) in [(a, b, &to_b), (b, a, &to_a)] {
            self.ip(here, &["link", "set", interface, "up"]);
            let (own, peer) = (address(here), address(there));
            self.ip(here, &["route", "add", &peer, "dev", interface, "src", &own]);
            self.shape(here, there, USUAL);
        }
    }

    /// What a host may send to another.
    fn shape(&self, from: usize, to: usize, how: &str) {
        let interface = format!("to{to}");
        let head = ["-n", &self.space(from), "qdisc", "replace", "dev", &interface, "root", "tbf"];
        run(Command::new("tc").args(head).args(how.split(' ')));
    }

    fn both(&self, a: usize, b: usize, how: &str) {
        self.shape(a, b, how);
        self.shape(b, a, how);
    }

    fn inside(&self, host: usize) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.space(host), env!("CARGO_BIN_EXE_qvl")]);
        command.env("QVL_DOCTOR_TOKEN", TOKEN);
        command
    }

    fn door(&self, host: usize) -> Child {
        let listen = peer(host);
        let mut command = self.inside(host);
        command.args(["doctor", "serve", "--for", "5m", "--listen", &listen]);
        command.stdout(Stdio::null()).spawn().unwrap()
    }

    fn report(&self) -> Report {
        let peers: Vec<String> = (1..self.count).map(peer).collect();
        Report::of(&mut self.inside(0), &["--peers", &peers.join(",")])
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for door in &mut self.doors {
            let _killed = door.kill();
            let _reaped = door.wait();
        }
        for host in 0..self.count {
            // Its interfaces go with it.
            let _gone = Command::new("ip").args(["netns", "del", &self.space(host)]).output();
        }
    }
}

fn address(host: usize) -> String {
    format!("10.255.77.{}", host + 1)
}

fn peer(host: usize) -> String {
    format!("{}:7400", address(host))
}

const CLEAN: [(&str, &str); 4] = [
    ("peer-unreachable", "pass"),
    ("mtu-black-hole", "pass"),
    ("network-slow", "pass"),
    ("clock-offset", "pass"),
];

#[test]
fn four_healthy_hosts_are_tested_in_three_rounds_and_nobody_is_named() {
    let report = Net::new(4).report();
    report.expect(&CLEAN);
    let evidence = &report.check("peer-unreachable")["evidence"][0]["value"];
    assert_eq!(evidence, "0 of 6 pairs in 3 rounds");
}

#[test]
fn a_slow_host_is_named_as_a_host() {
    let net = Net::new(4);
    [0, 1, 3].into_iter().for_each(|other| net.both(2, other, SLOW));
    let report = net.report();
    report.expect(&[("network-slow", "warn"), ("peer-unreachable", "pass")]);
    let what = report.what("network-slow");
    assert!(what.starts_with("10.255.77.3:7400 (its ways to others): "), "{what}");
}

#[test]
fn a_slow_cable_is_named_as_a_way() {
    let net = Net::new(4);
    net.both(1, 3, SLOW);
    let report = net.report();
    report.expect(&[("network-slow", "warn"), ("peer-unreachable", "pass")]);
    let what = report.what("network-slow");
    let expected = "the way between 10.255.77.2:7400 and 10.255.77.4:7400: ";
    assert!(what.starts_with(expected), "{what}");
}

#[test]
fn a_cable_that_loses_large_packets_is_a_black_hole() {
    let net = Net::new(3);
    net.both(1, 2, NARROW);
    let report = net.report();
    report.expect(&[("mtu-black-hole", "fail"), ("peer-unreachable", "pass")]);
    let what = report.what("mtu-black-hole");
    let expected = "the way between 10.255.77.2:7400 and 10.255.77.3:7400: ";
    assert!(what.starts_with(expected), "{what}");
    assert_eq!(report.code, Some(1));
}

#[test]
fn a_host_that_nobody_reaches_is_named() {
    let net = Net::new(4);
    for other in 0..3 {
        net.ip(3, &["link", "set", &format!("to{other}"), "down"]);
    }
    let report = net.report();
    report.expect(&[("peer-unreachable", "fail"), ("mtu-black-hole", "pass")]);
    let what = report.what("peer-unreachable");
    assert!(what.starts_with("10.255.77.4:7400 (its ways to others): "), "{what}");
}
