// SPDX-License-Identifier: GPL-2.0
//! vmemd: fills vmem regions from a migration source, and is such a source. See vmemd(8).
#![forbid(unsafe_code)]

mod cli;
mod engine;
mod failure;
mod finish;
mod metrics;
mod receive;
mod report;
mod serve;
mod stop;

use std::process::ExitCode;

use cli::{Cli, Command};

/// A wrong command line, or something that is no fault of source or kernel.
const EXIT_LOCAL: u8 = 1;

fn main() -> ExitCode {
    let cli: Cli = match vmem_cli::parse(EXIT_LOCAL) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let (error, code) = match (cli.command, cli.receive) {
        (Some(Command::Serve(args)), _) => match serve::run(&args) {
            Ok(()) => return ExitCode::SUCCESS,
            Err(error) => (anyhow::Error::from(error), EXIT_LOCAL),
        },
        (None, Some(args)) => match receive::run(&args) {
            Ok(()) => return ExitCode::SUCCESS,
            Err(failure) => {
                let code = failure.code();
                (failure.into(), code)
            }
        },
        // clap asks for one of the two.
        (None, None) => return ExitCode::from(EXIT_LOCAL),
    };
    eprintln!("vmemd: {error:#}");
    ExitCode::from(code)
}
