//! `qvl doctor serve`: lets other hosts test their way to this one, for a while.

use std::{fs::File, io::Read, io::Write, net::SocketAddr, thread, time::Duration};

use clap::Args;

use super::active::TokenArgs;
use crate::{
    cli::{CliError, cluster},
    probe::way::{OpenDoor, secret_of},
    wire::ExitStatus,
};

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// Address and port to listen on; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:7400")]
    listen: SocketAddr,
    /// Listen for so long.
    #[arg(long = "for", value_name = "TIME", default_value = "10m", value_parser = cluster::launch::duration)]
    time: Duration,
    #[command(flatten)]
    token: TokenArgs,
}

/// Listens until the time is over. Who has the token can measure, and let this host measure its
/// way to another host with the same token; nothing else.
pub(super) fn run(args: &ServeArgs, out: &mut impl Write) -> Result<ExitStatus, CliError> {
    let given = args.token.read()?;
    let token = match &given {
        Some(token) => token.clone(),
        None => fresh()?,
    };
    let door = OpenDoor::serve(args.listen, secret_of(&token)).map_err(|error| {
        let what = format!("failed to listen on {}", args.listen);
        CliError::of(ExitStatus::Usage, anyhow::Error::new(error).context(what))
            .hint("another program may have the port: --listen 0.0.0.0:0 takes a free one")
    })?;
    writeln!(out, "listening on {} for {} s", door.address, args.time.as_secs())?;
    if given.is_none() {
        writeln!(out, "token {token}")?;
        writeln!(out, "start the other hosts and the doctor with QVL_DOCTOR_TOKEN={token}")?;
    }
    writeln!(out, "then: qvl doctor --active --peers <this host>:{},...", door.address.port())?;
    out.flush()?;
    thread::sleep(args.time);
    writeln!(out, "the time is over")?;
    Ok(ExitStatus::Success)
}

fn fresh() -> Result<String, CliError> {
    let mut bytes = [0_u8; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
