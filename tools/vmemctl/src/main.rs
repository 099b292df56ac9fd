// SPDX-License-Identifier: GPL-2.0
//! vmemctl: moves running QEMU guests from host to host over vmem regions, and looks at regions. See vmemctl(8).
#![forbid(unsafe_code)]

mod back_off;
mod channel;
mod cli;
mod daemon;
mod endpoint;
mod export;
mod failure;
#[cfg(test)]
mod fake;
mod forget;
mod guest;
mod key;
mod log_file;
mod message;
mod migrate;
mod name;
mod network;
mod obstacles;
mod printable;
mod process;
mod queue;
mod receive;
mod record;
mod recover;
mod region;
mod relay;
mod report;
mod scope;
mod served;
mod supervisor;
#[cfg(test)]
mod unread;

use std::process::ExitCode;

use vmem_cli::{chain, log, output};

use cli::{Cli, Command};
use report::Report;

/// A wrong command line.
const EXIT_USAGE: u8 = 1;

fn main() -> ExitCode {
    let cli: Cli = match vmem_cli::parse(EXIT_USAGE) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    log::init(cli.verbosity);
    let code = run(&cli);
    output::flush();
    ExitCode::from(code)
}

fn run(cli: &Cli) -> u8 {
    // The others start no process that outlives this one.
    let needs_scope = !matches!(cli.command, Command::Region(_));
    if let Some(note) = scope::prepare(needs_scope && !cli.no_scope) {
        Report::new(cli.json).note(&note);
    }
    let result = match &cli.command {
        Command::Migrate(args) => migrate::run(cli, args),
        Command::Receive(args) => receive::run(cli, args),
        Command::Recover(args) => recover::run(cli, args),
        Command::Forget(args) => forget::run(cli, args),
        Command::Region(args) => region::run(cli, args),
    };
    let Err(failure) = result else { return 0 };
    let code = failure.code();
    match cli.command {
        // These are over at once: nobody asks later when that was.
        Command::Region(_) | Command::Forget(_) => output::err(&format!("vmemctl: {}", chain(&failure))),
        _ => tracing::error!("{}", chain(&failure)),
    }
    if cli.json {
        report::print(&serde_json::json!({"event": "failed", "exit_code": code, "error": chain(&failure)}));
    }
    code
}
