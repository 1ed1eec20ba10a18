//! The commands of `qvl-cluster`.

use std::{env, io::Write, path::PathBuf, process::ExitCode, time::Instant};

use clap::{Parser, Subcommand};
use qvl_cluster::{
    Cluster, Error, Options, Topology,
    image::Image,
    images,
    places::{DEFAULT_NAME, Places},
    tools,
};

/// A real Kubernetes on this machine, for tests.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
pub(crate) struct Cli {
    /// Name of the cluster; clusters of different names do not meet.
    #[arg(long, env = "QVL_CLUSTER", default_value = DEFAULT_NAME)]
    name: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build the cluster's programs; what is up to date stays.
    Build,
    /// Bring up a new cluster, in place of the old one.
    Up {
        /// Description of the nodes instead of two nodes with two GPUs each.
        #[arg(long, value_name = "FILE")]
        nodes: Option<PathBuf>,
    },
    /// End the cluster, whole or half-made.
    Down,
    /// Start a shell in which kubectl and helm find the cluster.
    Shell,
    /// Make an image of programs with their libraries, and import it on every node.
    Image {
        /// NAME:TAG.
        image: String,
        /// Programs and files; FILE:PATH puts a file elsewhere than into /usr/local/bin.
        #[arg(required = true)]
        files: Vec<String>,
        /// Program and first arguments.
        #[arg(long, required = true, value_delimiter = ' ')]
        entrypoint: Vec<String>,
        /// Write the archive here and import nothing.
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Forward connections to the API server; `up` starts this.
    #[command(hide = true)]
    Forward,
    #[command(flatten)]
    On(OnCluster),
}

/// Commands for a cluster that is up.
#[derive(Debug, Subcommand)]
enum OnCluster {
    /// Show which daemons run, and the nodes.
    Status,
    /// Print the variables of that shell.
    Env,
    /// Import an image archive on every node.
    Load { archive: PathBuf },
    /// Make the images of qvl and qvl-train, and import them on every node.
    Images {
        /// Folder of the programs; the one beside this program if absent.
        #[arg(long, value_name = "DIR")]
        programs: Option<PathBuf>,
    },
    /// Make a claim of namespace `default` with copies of files and folders.
    Claim {
        name: String,
        /// FROM:TO, where TO is relative to the volume.
        files: Vec<String>,
    },
    /// Add simulated nodes (KWOK) with 8 GPUs each.
    Kwok { count: usize },
    /// Install Kueue.
    Kueue {
        /// A further value of its chart.
        #[arg(long = "set", value_name = "KEY=VALUE")]
        values: Vec<String>,
    },
    /// End all daemons and containers of a node.
    KillNode { node: String },
    /// Boot a node that was killed.
    StartNode { node: String },
    /// End the kubelet of a node; containers go on.
    StopKubelet { node: String },
    /// Start it again.
    StartKubelet { node: String },
    /// Take a node off the network.
    Disconnect { node: String },
    /// Put it on the network again.
    Connect { node: String },
    /// Move all pods away from a node.
    Drain { node: String },
    /// Let pods onto it again.
    Uncordon { node: String },
    /// End the API server.
    StopApiserver,
    /// Start it again.
    StartApiserver,
    /// End the name server.
    StopDns,
    /// Start it again.
    StartDns,
    /// Change the simulated driver of a node.
    SetScenario {
        node: String,
        file: PathBuf,
        /// Let the device plugin count the GPUs again.
        #[arg(long)]
        restart_plugin: bool,
    },
    /// Write an XID into the kernel log of a node.
    Xid {
        node: String,
        code: u32,
        /// Number of the GPU.
        #[arg(long, default_value_t = 0)]
        gpu: usize,
        /// What the driver says after the number.
        #[arg(long, default_value = "pid='<unknown>', name=<unknown>")]
        text: String,
    },
    /// Print the connections that passed a node.
    Flows { node: String },
}

pub(crate) fn run(cli: &Cli) -> Result<ExitCode, Error> {
    let places = Places::new(&cli.name)?;
    match &cli.command {
        Command::Build => tools::build(&places, &mut |line| say(line))?,
        Command::Up { nodes } => up(&cli.name, nodes.as_ref())?,
        Command::Down => Cluster::down(&cli.name)?,
        Command::Forward => qvl_cluster::serve_forwarder(&places)?,
        Command::Shell => return shell(&Cluster::open(&cli.name)?),
        Command::Image { image, files, entrypoint, output } => {
            let image = build(image, files, entrypoint)?;
            make(&cli.name, &image, output.as_ref())?;
        }
        Command::On(command) => on(&Cluster::open(&cli.name)?, command)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn on(cluster: &Cluster, command: &OnCluster) -> Result<(), Error> {
    match command {
        OnCluster::Status => status(cluster),
        OnCluster::Env => {
            say(&format!("export KUBECONFIG={}", cluster.kubeconfig().display()));
            say(&format!("export PATH={}:$PATH", cluster.places().bin().display()));
        }
        OnCluster::Load { archive } => cluster.load(archive)?,
        OnCluster::Images { programs } => match programs {
            Some(folder) => images::product(cluster, folder)?,
            None => images::product(cluster, &images::release_folder()?)?,
        },
        OnCluster::Claim { name, files } => {
            let files: Vec<_> = files.iter().map(|file| from_to(file)).collect();
            let folder = cluster.claim(name, &files)?;
            say(&format!("claim {name}: {}", folder.display()));
        }
        OnCluster::Kwok { count } => cluster.kwok(*count)?,
        OnCluster::Kueue { values } => {
            cluster.kueue(&values.iter().map(String::as_str).collect::<Vec<_>>())?;
        }
        OnCluster::KillNode { node } => cluster.kill_node(node)?,
        OnCluster::StartNode { node } => cluster.start_node(node)?,
        OnCluster::StopKubelet { node } => cluster.stop_kubelet(node)?,
        OnCluster::StartKubelet { node } => cluster.start_kubelet(node)?,
        OnCluster::Disconnect { node } => cluster.disconnect(node)?,
        OnCluster::Connect { node } => cluster.connect(node)?,
        OnCluster::Drain { node } => say(cluster.drain(node)?.trim_end()),
        OnCluster::Uncordon { node } => say(cluster.uncordon(node)?.trim_end()),
        OnCluster::StopApiserver => cluster.stop_apiserver()?,
        OnCluster::StartApiserver => cluster.start_apiserver()?,
        OnCluster::StopDns => cluster.stop_dns()?,
        OnCluster::StartDns => cluster.start_dns()?,
        OnCluster::SetScenario { node, file, restart_plugin } => {
            cluster.set_scenario(node, file)?;
            if *restart_plugin {
                cluster.restart_device_plugin(node)?;
            }
        }
        OnCluster::Xid { node, code, gpu, text } => cluster.xid(node, *gpu, *code, text)?,
        OnCluster::Flows { node } => say(cluster.flows(node)?.trim_end()),
    }
    Ok(())
}

fn up(name: &str, nodes: Option<&PathBuf>) -> Result<(), Error> {
    let topology = match nodes {
        Some(path) => Topology::read(path)?,
        None => Topology::default(),
    };
    let begin = Instant::now();
    let cluster = Cluster::up(Options { name: name.to_owned(), topology })?;
    let nodes = cluster.topology().nodes.len();
    say(&format!("{nodes} nodes are ready after {:.1} s", begin.elapsed().as_secs_f64()));
    say(&format!("export KUBECONFIG={}", cluster.kubeconfig().display()));
    Ok(())
}

fn status(cluster: &Cluster) {
    for (name, pid) in cluster.daemons() {
        match pid {
            Some(pid) => say(&format!("{name:24} runs, process {pid}")),
            None => say(&format!("{name:24} ended; log: {}", cluster.places().logs().display())),
        }
    }
    match cluster.kubectl(&["get", "nodes", "-o", "wide"]) {
        Ok(list) => say(&format!("\n{}", list.trim_end())),
        Err(error) => say(&format!("\nnodes are unknown: {error}")),
    }
}

fn shell(cluster: &Cluster) -> Result<ExitCode, Error> {
    let program = env::var("SHELL").unwrap_or_else(|_unset| "/bin/sh".to_owned());
    let status = cluster.command(&program).status();
    let status = status.map_err(|source| Error::Start { program, source })?;
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Ok(ExitCode::from(code))
}

fn build(name: &str, files: &[String], entrypoint: &[String]) -> Result<Image, Error> {
    let (moved, programs): (Vec<&String>, Vec<&String>) =
        files.iter().partition(|file| file.contains(':'));
    let words: Vec<&str> = entrypoint.iter().map(String::as_str).collect();
    let programs: Vec<PathBuf> = programs.into_iter().map(PathBuf::from).collect();
    let mut image = Image::of_programs(name, &words, &programs)?;
    for file in moved {
        let (from, to) = from_to(file);
        image.add(&from, Some(&to))?;
    }
    Ok(image)
}

/// `FROM:TO`, or one path for both.
fn from_to(file: &str) -> (PathBuf, PathBuf) {
    let (from, to) = file.split_once(':').unwrap_or((file, file));
    (from.into(), to.into())
}

fn make(name: &str, image: &Image, output: Option<&PathBuf>) -> Result<(), Error> {
    if let Some(path) = output {
        return image.write(path);
    }
    let cluster = Cluster::open(name)?;
    let file = image.name.replace(['/', ':'], "-");
    let archive = cluster.places().images().join(format!("{file}.tar"));
    image.write(&archive)?;
    cluster.load(&archive)
}

fn say(line: &str) {
    // Whoever reads our output may have seen enough.
    let _unread = writeln!(anstream::stdout(), "{line}");
}
