// SPDX-License-Identifier: GPL-2.0-or-later
//! vmemd: fills vmem regions from a migration source, and is such a source. See vmemd(8).
#![forbid(unsafe_code)]

mod cli;
mod control;
mod cpu;
mod failure;
mod files;
mod metrics;
mod orders;
mod privileges;
mod receive;
mod report;
mod serve;

use std::process::ExitCode;

use cli::{Cli, Command};
use vmem_cli::{log, output};

/// A wrong command line, or something that is no fault of source or kernel.
pub(crate) const EXIT_LOCAL: u8 = 1;

fn main() -> ExitCode {
    let cli: Cli = match vmem_cli::parse(EXIT_LOCAL) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    log::init(cli.verbosity);
    if let Some(session) = cli.session() {
        log::set_subject(&[("session", session)]);
    }
    files::raise_limit();
    let code = run(cli);
    output::flush();
    ExitCode::from(code)
}

fn run(cli: Cli) -> u8 {
    if let (Some(Command::Serve(_)) | None, Err(error)) = (&cli.command, vmem_cli::check_page_size()) {
        tracing::error!("{error}");
        return EXIT_LOCAL;
    }
    let (error, code) = match (cli.command, cli.receive) {
        (Some(Command::Serve(args)), _) => match serve::run(&args) {
            Ok(()) => return 0,
            Err(error) => (anyhow::Error::from(error), EXIT_LOCAL),
        },
        (Some(Command::Completions(args)), _) => match args.print::<Cli>() {
            Ok(()) => return 0,
            Err(error) => (error.into(), EXIT_LOCAL),
        },
        (None, Some(args)) => match receive::run(&args) {
            Ok(()) => return 0,
            Err(failure) => {
                let code = failure.code();
                (failure.into(), code)
            }
        },
        // clap asks for one of the two.
        (None, None) => return EXIT_LOCAL,
    };
    tracing::error!("{error:#}");
    code
}
