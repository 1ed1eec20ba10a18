//! `qvl-cluster`: the test cluster by hand.

mod commands;

use std::{error::Error as _, fmt::Write as _, io::Write as _, process::ExitCode};

use clap::Parser;
use qvl_cluster::{Error, runtime};

fn main() -> ExitCode {
    let result = if runtime::is_called() {
        runtime::run().map(|()| ExitCode::SUCCESS)
    } else {
        commands::run(&commands::Cli::parse())
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            let _unread = write!(anstream::stderr(), "{}", describe(&error));
            ExitCode::FAILURE
        }
    }
}

fn describe(error: &Error) -> String {
    let mut text = format!("error: {error}");
    let mut cause = error.source();
    while let Some(source) = cause {
        let _infallible = write!(text, ": {source}");
        cause = source.source();
    }
    text.push('\n');
    if let Some(hint) = error.hint() {
        let _infallible = writeln!(text, "\nhint: {hint}");
    }
    text
}
