//! Reaching the API server from outside of its namespace.
//!
//! A socket stays in the namespace in which it was made: one process listens on 127.0.0.1 of the
//! machine, and a thread per connection connects from inside of `cp`.

use std::{
    fs, io,
    net::{Shutdown, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use nix::sched::CloneFlags;

use crate::{
    daemon,
    error::{At, Error},
    namespace, pki,
    places::Places,
};

const LIMIT: Duration = Duration::from_secs(10);

/// Starts the process and writes the kubeconfig that leads through it.
pub(crate) fn start(places: &Places) -> Result<(), Error> {
    let port_file = port_file(places);
    let mut forwarder = Command::new(places.run().join("qvl-cluster"));
    forwarder.args(["--name", places.name(), "forward"]);
    daemon::start(places, "forwarder", &mut forwarder)?;
    let pause = Duration::from_millis(10);
    places.wait("the forwarder does not listen", LIMIT, pause, || port_file.exists())?;
    let port = fs::read_to_string(&port_file).at("read", &port_file)?;
    let server = format!("https://127.0.0.1:{port}");
    pki::kubeconfig(&places.pki(), "admin", &server, &places.kubeconfig())
}

/// The process itself; it does not return.
pub fn serve(places: &Places) -> Result<(), Error> {
    let listen = |source| Error::System { what: "listen on 127.0.0.1".to_owned(), source };
    let listener = TcpListener::bind("127.0.0.1:0").map_err(listen)?;
    let port = listener.local_addr().map_err(listen)?.port();
    let (file, draft) = (port_file(places), places.run().join(".port"));
    fs::write(&draft, port.to_string()).at("write", &draft)?;
    fs::rename(&draft, &file).at("write", file)?;
    let network = namespace::file(&places.network("cp"));
    for client in listener.incoming() {
        let client = client.map_err(listen)?;
        let network = network.clone();
        thread::spawn(move || {
            // Either side may go away at any time; the other one sees the end of the connection.
            let _closed = pass(&client, &network);
            let _closed = client.shutdown(Shutdown::Both);
        });
    }
    Ok(())
}

fn pass(client: &TcpStream, network: &Path) -> Result<(), Error> {
    let broken = |source| Error::System { what: "forward".to_owned(), source };
    namespace::enter(network, CloneFlags::CLONE_NEWNET)?;
    let server = TcpStream::connect("127.0.0.1:6443").map_err(broken)?;
    for stream in [client, &server] {
        stream.set_nodelay(true).map_err(broken)?;
    }
    thread::scope(|scope| {
        scope.spawn(|| one_way(client, &server));
        one_way(&server, client)
    })
    .map_err(broken)
}

fn one_way(mut from: &TcpStream, mut to: &TcpStream) -> io::Result<()> {
    let result = io::copy(&mut from, &mut to);
    let _closed = to.shutdown(Shutdown::Write);
    result.map(|_bytes| ())
}

fn port_file(places: &Places) -> PathBuf {
    places.run().join("port")
}
