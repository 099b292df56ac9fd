// SPDX-License-Identifier: GPL-2.0
//! vmemctl: moves running QEMU guests from host to host over vmem regions, and looks at regions. See vmemctl(8).
#![forbid(unsafe_code)]

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

use std::error::Error;
use std::process::ExitCode;

use vmem_cli::{chain, log, output};

use cli::{Cli, Command};
use report::Report;

/// A wrong command line, or nothing was begun.
const EXIT_LOCAL: u8 = 1;

fn main() -> ExitCode {
    let cli: Cli = match vmem_cli::parse(EXIT_LOCAL) {
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
    let moved = match &cli.command {
        Command::Region(args) => {
            let looked = region::run(cli, args);
            return looked.map_or_else(|error| tell(cli, &error, EXIT_LOCAL), |()| 0);
        }
        Command::Migrate(args) => migrate::run(cli, args),
        Command::Receive(args) => receive::run(cli, args),
        Command::Recover(args) => recover::run(cli, args),
        Command::Forget(args) => forget::run(cli, args),
    };
    moved.map_or_else(|failure| tell(cli, &failure, failure.code()), |()| 0)
}

/// Says why the command has failed; returns the exit code.
fn tell(cli: &Cli, error: &dyn Error, code: u8) -> u8 {
    let text = chain(error);
    match cli.command {
        // These are over at once: nobody asks later when that was.
        Command::Region(_) | Command::Forget(_) => output::err(&format!("vmemctl: {text}")),
        _ => tracing::error!("{text}"),
    }
    if cli.json {
        report::print(&serde_json::json!({"event": "failed", "exit_code": code, "error": text}));
    }
    code
}
