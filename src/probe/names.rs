//! Names and connections: what MASTER_ADDR and the own name mean, and which ports answer.

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    sync::mpsc,
    thread,
    time::Duration,
};

use super::{Options, host, text};
use crate::facts::{Fact, MasterAddress, Reach, Reached};

/// A resolver that does not answer must not hold the doctor up.
const RESOLVE: Duration = Duration::from_secs(2);
const CONNECT: Duration = Duration::from_secs(1);

/// What MASTER_ADDR means here.
pub(super) fn master(variables: Option<&BTreeMap<String, String>>) -> Fact<Option<MasterAddress>> {
    const FROM: &str = "getaddrinfo MASTER_ADDR";
    let Some(variables) = variables else {
        return Fact::unread("the environment is not known", FROM);
    };
    let Some(name) = variables.get("MASTER_ADDR").filter(|name| !name.is_empty()) else {
        return Fact::known(None, FROM);
    };
    let (addresses, error) = match resolve(name, 0) {
        Ok(addresses) => (addresses, None),
        Err(error) => (Vec::new(), Some(error)),
    };
    let mut addresses: Vec<String> =
        addresses.iter().map(|address| address.ip().to_string()).collect();
    addresses.dedup();
    Fact::known(Some(MasterAddress { name: name.clone(), addresses, error }), FROM)
}

/// A name with more addresses is not tried to its end: each may take the whole time.
const ADDRESSES: usize = 4;

/// Asks the resolver in a thread of its own, because it has no time limit.
fn resolve(name: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    let (sender, receiver) = mpsc::channel();
    let name = name.to_owned();
    let asked = thread::Builder::new().spawn(move || {
        let found = (name.as_str(), port).to_socket_addrs();
        let found = found.map(Iterator::collect).map_err(|error| error.to_string());
        // Nobody listens any more after the time limit.
        let _sent = sender.send(found);
    });
    asked.map_err(|error| error.to_string())?;
    receiver
        .recv_timeout(RESOLVE)
        .unwrap_or_else(|_late| Err(format!("no answer within {} s", RESOLVE.as_secs())))
}

/// Addresses that `/etc/hosts` gives to this machine's name.
pub(super) fn own(options: &Options, hostname: Option<&String>) -> Fact<Vec<String>> {
    const FROM: &str = "/etc/hosts";
    let Some(hostname) = hostname else {
        return Fact::unread("the host name is not known", FROM);
    };
    if !options.at(FROM).exists() {
        return Fact::known(Vec::new(), FROM);
    }
    host::parsed(options, FROM, "lines", |text| Some(text::hosts(text, hostname)))
}

/// Connects to all targets at the same time.
pub(super) fn reach(targets: &[String]) -> Fact<Vec<Reach>> {
    const FROM: &str = "connect";
    let tries: Vec<_> = targets
        .iter()
        .cloned()
        .map(|target| {
            thread::Builder::new().spawn(move || {
                let result = connect(&target);
                Reach { target, result }
            })
        })
        .collect();
    let ended: Option<Vec<Reach>> = tries.into_iter().map(|one| one.ok()?.join().ok()).collect();
    Fact::from_result(ended.ok_or("a thread that connects has ended"), FROM)
}

fn connect(target: &str) -> Reached {
    let failed = |message: String| Reached::Failed { message };
    let Some((name, port)) = target.rsplit_once(':') else {
        return failed("expected HOST:PORT".to_owned());
    };
    let Ok(port) = port.parse::<u16>() else {
        return failed(format!("`{port}` is not a port"));
    };
    let addresses = match resolve(name.trim_matches(['[', ']']), port) {
        Ok(addresses) => addresses,
        Err(error) => return failed(error),
    };
    let mut last = "the name has no address".to_owned();
    for address in addresses.into_iter().take(ADDRESSES) {
        match TcpStream::connect_timeout(&address, CONNECT) {
            Ok(_stream) => return Reached::Connected,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Reached::Refused,
            Err(error) => last = error.to_string(),
        }
    }
    failed(last)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_port_that_listens_one_that_does_not_and_a_name_that_is_none() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let open = listener.local_addr().unwrap().to_string();
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let targets = [open, closed, "no-port".to_owned()];
        let found = reach(&targets);
        let results: Vec<_> = found.get().unwrap().iter().map(|reach| &reach.result).collect();
        assert_eq!(results[0], &Reached::Connected);
        assert_eq!(results[1], &Reached::Refused);
        assert!(matches!(results[2], Reached::Failed { message } if message.contains("HOST:PORT")));
    }

    #[test]
    fn an_address_needs_no_resolver_and_an_unset_one_is_absent() {
        let set = BTreeMap::from([("MASTER_ADDR".to_owned(), "127.0.0.1".to_owned())]);
        let found = master(Some(&set));
        let address = found.get().unwrap().as_ref().unwrap();
        assert_eq!(address.addresses, ["127.0.0.1"]);
        assert_eq!(master(Some(&BTreeMap::new())).get().unwrap(), &None);
        assert!(master(None).get().is_err());
    }
}
