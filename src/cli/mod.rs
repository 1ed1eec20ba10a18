//! The command line of `qvl`: one file per subcommand.

mod agent;
mod cluster;
mod collector;
mod completions;
mod crd;
mod data;
mod doctor;
mod error;
mod home;
mod input;
mod jobs;
mod launch;
mod logs;
mod operator;
mod plan;
mod plan_text;
mod preflight;
mod probe_active;
mod probe_driver;
mod report;
mod schema;
mod supervise;
mod tls;
mod view;

pub use error::CliError;

use std::{io::Write, process::ExitCode};

use clap::{Parser, Subcommand};

use crate::wire::ExitStatus;

/// Verifies, launches and fine-tunes Qwen-VL on NVIDIA machines.
#[derive(Debug, Parser)]
#[command(name = "qvl", version, about, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check whether the machines can run a job.
    Doctor(Box<doctor::DoctorArgs>),
    /// Ask the driver for the doctor.
    #[command(hide = true)]
    ProbeDriver(probe_driver::ProbeDriverArgs),
    /// Make one active test for the doctor.
    #[command(hide = true)]
    ProbeActive(probe_active::ProbeActiveArgs),
    /// Show what a job will do: steps, saves, learning rate, memory per rank.
    Plan(plan::PlanArgs),
    /// Run a job.
    Launch(Box<launch::LaunchArgs>),
    /// List the runs of this user on this machine, and the jobs of the cluster.
    Ps(jobs::PsArgs),
    /// Show one run or job.
    Status(jobs::NameArgs),
    /// Follow a job until it ends; the exit status is the job's.
    Wait(cluster::commands::WaitArgs),
    /// Show the logs of all ranks of a run, merged by time.
    Logs(logs::LogsArgs),
    /// Ask a run to save a checkpoint and stop.
    Stop(jobs::StopArgs),
    /// Ask a job of the cluster to save a checkpoint and give its GPUs back; does not wait.
    Suspend(cluster::commands::OneArgs),
    /// Go on with a stopped or failed run, or a suspended job, from its newest checkpoint.
    Resume(launch::ResumeArgs),
    /// Run a finished job of the cluster again, from its newest checkpoint.
    Retry(cluster::commands::RetryArgs),
    /// Show what the cluster said about a job, in order.
    Events(cluster::commands::OneArgs),
    /// Show the GPUs of the cluster and who uses them.
    Top(cluster::commands::TopArgs),
    /// Write all objects and logs of a job into one file, without secrets.
    Bundle(cluster::commands::BundleArgs),
    /// Write the report of a run: one HTML file with curves, numbers and pictures.
    Report(report::ReportArgs),
    /// Work with data sets.
    Data(data::DataArgs),
    /// Run in a cluster's pods; the operator starts it.
    #[command(hide = true)]
    Agent(agent::AgentArgs),
    /// Print a JSON Schema.
    Schema(schema::SchemaArgs),
    /// Tell why a job of the cluster is in its state; `explain job` describes the job file.
    Explain(schema::ExplainArgs),
    /// Look after the jobs of a cluster.
    Operator(operator::OperatorArgs),
    /// Print the custom resource definitions for a cluster, as YAML.
    Crd,
    /// Keep the logs of a cluster's jobs; the chart runs it.
    Collector(collector::CollectorArgs),
    /// Print a completion script for a shell.
    Completions(completions::CompletionsArgs),
    /// Write manual pages into a folder.
    #[command(hide = true)]
    Man(completions::ManArgs),
}

/// Parses the command line, runs the command and prints its error, if any.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _printed = error.print();
            let status = if error.use_stderr() { ExitStatus::Usage } else { ExitStatus::Success };
            return status.into();
        }
    };
    if let Command::Agent(args) = &cli.command {
        return agent::container(args);
    }
    run(&cli.command).into()
}

fn run(command: &Command) -> ExitStatus {
    match dispatch(command) {
        Ok(status) => status,
        // Whoever reads our output has seen enough, for example `head`.
        Err(error) if error.is_broken_pipe() => ExitStatus::Success,
        Err(error) => {
            let mut err = anstream::stderr();
            let _written = write!(err, "{error}");
            error.status
        }
    }
}

fn dispatch(command: &Command) -> Result<ExitStatus, CliError> {
    let mut out = anstream::stdout();
    match command {
        Command::Doctor(args) => doctor::run(args, &mut out),
        Command::ProbeDriver(args) => probe_driver::run(args, &mut out),
        Command::ProbeActive(args) => probe_active::run(args, &mut out),
        Command::Plan(args) => plan::run(args, &mut out),
        Command::Launch(args) => launch::run(args),
        Command::Wait(args) => cluster::commands::wait(args),
        Command::Suspend(args) => cluster::commands::suspend(args, &mut out),
        Command::Retry(args) => cluster::commands::retry(args),
        Command::Events(args) => cluster::commands::events(args, &mut out),
        Command::Top(args) => cluster::commands::top(args, &mut out),
        Command::Bundle(args) => cluster::commands::bundle(args, &mut out),
        Command::Ps(args) => jobs::ps(args, &mut out),
        Command::Status(args) => jobs::status(args, &mut out),
        Command::Logs(args) => logs::run(args, &mut out),
        Command::Stop(args) => jobs::stop(args, &mut out),
        Command::Resume(args) => launch::resume(args),
        Command::Report(args) => report::run(args, &mut out),
        Command::Data(args) => data::run(args, &mut out),
        // A pod's code is that of a trainer; `main` gives it.
        Command::Agent(_) => Ok(ExitStatus::Internal),
        Command::Schema(args) => schema::schema(args, &mut out),
        Command::Explain(args) => schema::explain(args, &mut out),
        Command::Operator(args) => operator::run(args),
        Command::Crd => crd::run(&mut out),
        Command::Collector(args) => collector::run(args),
        Command::Completions(args) => completions::completions(args, &mut out),
        Command::Man(args) => completions::man(args),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
