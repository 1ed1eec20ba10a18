//! `qvl doctor --active`: tests that write, compute and send.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::Args;

use crate::{
    cli::{CliError, home},
    doctor::{self, Demand},
    facts::{ActiveFacts, NodeFacts, Place},
    launch::{registry, state::RunState},
    probe::{
        self,
        active::{self, ActiveOptions},
        way::secret_of,
    },
    wire::ExitStatus,
};

/// What else the doctor may do to this machine, and to others.
#[derive(Debug, Args)]
pub(super) struct ActiveArgs {
    /// Make active tests too: write to the output folder, compute on every processor and GPU, and
    /// with --peers send to other hosts. Takes some seconds. Not while somebody uses the GPUs.
    #[arg(long, conflicts_with_all = ["facts", "sysroot", "cluster"])]
    pub(super) active: bool,
    /// Write to this folder, too. May be given several times.
    #[arg(long, value_name = "DIR", requires = "active")]
    active_path: Vec<PathBuf>,
    /// Test the network between this and these hosts, where `qvl doctor serve` must run: every pair.
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', requires = "active")]
    peers: Vec<String>,
    #[command(flatten)]
    token: TokenArgs,
}

/// What hosts that test each other have in common.
#[derive(Debug, Args)]
pub(super) struct TokenArgs {
    /// File with the token that all hosts share; else the variable `QVL_DOCTOR_TOKEN`.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

/// An argument would show in the list of processes.
const TOKEN: &str = "QVL_DOCTOR_TOKEN";
/// A token that others could guess protects nothing.
const SHORTEST: usize = 8;

impl TokenArgs {
    /// The token; `None` if there is none.
    pub(super) fn read(&self) -> Result<Option<String>, CliError> {
        let token = match &self.token_file {
            None => std::env::var(TOKEN).ok(),
            Some(path) => Some(fs::read_to_string(path).map_err(|error| {
                let what = format!("failed to read the token in `{}`", path.display());
                CliError::of(ExitStatus::Usage, anyhow::Error::new(error).context(what))
            })?),
        };
        let Some(token) = token.map(|token| token.trim().to_owned()) else { return Ok(None) };
        if token.len() < SHORTEST {
            let what = format!("the token has {} characters", token.len());
            let hint = format!("it must have {SHORTEST} or more; head -c 16 /dev/urandom | xxd -p");
            return Err(CliError::new(ExitStatus::Usage, what).hint(hint));
        }
        Ok(Some(token))
    }
}

impl ActiveArgs {
    /// Adds the results to the facts, if they were asked for.
    pub(super) fn add(
        &self,
        facts: &mut NodeFacts,
        folders: &[(Place, PathBuf)],
        demand: &Demand,
        trainer: Option<&Path>,
    ) -> Result<(), CliError> {
        if !self.active {
            return Ok(());
        }
        let peers = self.peers.iter().map(|peer| checked(peer)).collect::<Result<_, _>>()?;
        let token = self.token.read()?;
        if !self.peers.is_empty() && token.is_none() {
            let what = "--peers needs the token that the other hosts were given";
            let hint = format!("--token-file FILE, or {TOKEN}; `qvl doctor serve` prints one");
            return Err(CliError::new(ExitStatus::Usage, what).hint(hint));
        }
        let mut options = options(facts, folders, demand, trainer)?;
        let named = self.active_path.iter().map(|path| (None, path.clone()));
        options.folders.extend(named);
        options.peers = peers;
        options.secret = token.as_deref().map(secret_of).unwrap_or_default();
        facts.active = Some(Box::new(run(facts, &options)));
        Ok(())
    }
}

/// `host:port`.
fn checked(peer: &str) -> Result<String, CliError> {
    let port = peer.rsplit_once(':').and_then(|(host, port)| {
        (!host.is_empty()).then(|| port.parse::<u16>().ok().filter(|port| *port != 0)).flatten()
    });
    if port.is_none() {
        return Err(CliError::new(ExitStatus::Usage, format!("`{peer}` is no HOST:PORT"))
            .hint("as `qvl doctor serve` printed it on that host, for example node-2:7400"));
    }
    Ok(peer.to_owned())
}

/// What to test on this machine for a job.
pub(in crate::cli) fn options(
    facts: &NodeFacts,
    folders: &[(Place, PathBuf)],
    demand: &Demand,
    trainer: Option<&Path>,
) -> Result<ActiveOptions, CliError> {
    let output = folders.iter().filter(|(place, _path)| *place == Place::Output);
    Ok(ActiveOptions {
        program: std::env::current_exe()?,
        trainer: trainer.map(Path::to_owned),
        folders: output.map(|(place, path)| (Some(*place), path.clone())).collect(),
        checkpoint_bytes: demand.checkpoints.map(|checkpoints| checkpoints.bytes),
        rank_bytes: demand.rank_memory_bytes,
        peers: Vec::new(),
        secret: String::new(),
        host: probe::name(facts).0,
    })
}

/// Makes the tests, unless somebody works here.
pub(in crate::cli) fn run(facts: &NodeFacts, options: &ActiveOptions) -> ActiveFacts {
    let busy = doctor::occupied(facts).or_else(own_run);
    match busy {
        Some(busy) => active::refused(
            options,
            &format!("BUSY: {busy}; active tests would disturb it, wait until it has ended"),
        ),
        None => active::run(options),
    }
}

/// A run of this user on this machine.
fn own_run() -> Option<String> {
    let runs = registry::list(&home::jobs()).ok()?;
    let run = runs.into_iter().find(RunState::is_alive)?;
    Some(format!("`{}` runs on this machine (`qvl ps`)", run.name))
}
