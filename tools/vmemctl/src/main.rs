// SPDX-License-Identifier: GPL-2.0-or-later
//! vmemctl: moves running QEMU guests from host to host over vmem regions, makes and restores checkpoints, and looks at regions. See
//! vmemctl(8).
#![forbid(unsafe_code)]

mod checkpoint;
mod cli;
mod dirty_rate;
mod host;
mod memory_of;
mod region;
#[cfg(test)]
mod schema;
mod tls;

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

use vmem_cli::{chain, log, output};
use vmem_migrate::options::Check;
use vmem_migrate::report::{self, CommonLine, Report};

use cli::{Cli, Command};

/// The exit code of a wrong command line, or if nothing was begun.
const EXIT_LOCAL: u8 = 1;

/// The file with the defaults of options, and the environment variable that names another one.
const DEFAULTS: &str = "/etc/vmem/vmem.toml";
const DEFAULTS_VARIABLE: &str = "VMEM_CONFIG";

fn main() -> ExitCode {
    let cli: Cli = match vmem_cli::parse_with_defaults(DEFAULTS_VARIABLE, Path::new(DEFAULTS), EXIT_LOCAL) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    log::init(cli.verbosity);
    let code = run(&cli);
    output::flush();
    ExitCode::from(code)
}

fn run(cli: &Cli) -> u8 {
    let common = &cli.common;
    // The others are for any machine; `doctor` is the one that says what is wrong with it.
    if !matches!(cli.command, Command::Version | Command::Doctor | Command::Completions(_)) {
        if let Err(error) = vmem_cli::check_page_size() {
            return report_error(cli, &error, EXIT_LOCAL);
        }
    }
    // Of the others no process is left when this one ends.
    let needs_scope = match &cli.command {
        Command::Migrate(_) | Command::Receive(_) | Command::Recover(_) | Command::Forget(_) => true,
        Command::Checkpoint(args) => checkpoint::needs_scope(args),
        _ => false,
    };
    // `listen` decides for each guest, in the guest's process. Only the first decision of a process counts.
    if !matches!(cli.command, Command::Listen(_)) {
        if let Some(note) = vmem_process::scope::prepare(needs_scope && !common.no_scope) {
            Report::new(common.json).note(&note);
        }
    }
    let result = match &cli.command {
        Command::Version => return host::version(common.json),
        Command::Doctor => return host::doctor(common.json, common.tls.as_deref()),
        Command::Completions(args) => return local(cli, args.print::<Cli>()),
        Command::Region(args) => return local(cli, region::run(cli, args)),
        Command::Checkpoint(args) => return local(cli, checkpoint::run(args, common)),
        Command::Tls(args) => return local(cli, tls::run(args, common.json)),
        Command::Check(args) => return check(cli, args),
        Command::Migrate(args) => vmem_migrate::migrate(common, args),
        Command::Receive(args) => vmem_migrate::receive(common, args),
        Command::Listen(args) => vmem_migrate::listen(common, args),
        Command::Recover(args) => vmem_migrate::recover(common, args),
        Command::Forget(args) => vmem_migrate::forget(common, args),
        Command::Status(args) => vmem_migrate::status(common, args),
        Command::Set(args) => vmem_migrate::set(common, args),
        Command::Abort(args) => vmem_migrate::abort(common, args),
        Command::DirtyRate(args) => dirty_rate::run(args, common.json),
    };
    result.map_or_else(|failure| report_error(cli, &failure, failure.code()), |()| 0)
}

/// Prints whether the guest can be moved. Returns the exit code.
fn check(cli: &Cli, args: &Check) -> u8 {
    match vmem_migrate::check(&cli.common, args) {
        Ok(true) => 0,
        Ok(false) => host::EXIT_UNUSABLE,
        Err(failure) => report_error(cli, &failure, failure.code()),
    }
}

/// The exit code of a command that no other host takes part in.
fn local<E: Error>(cli: &Cli, result: Result<(), E>) -> u8 {
    result.map_or_else(|error| report_error(cli, &error, EXIT_LOCAL), |()| 0)
}

/// Reports why the command has failed. Returns the exit code.
fn report_error(cli: &Cli, error: &dyn Error, code: u8) -> u8 {
    let text = chain(error);
    match cli.command {
        Command::Migrate(_) | Command::Receive(_) | Command::Listen(_) | Command::Recover(_) => tracing::error!("{text}"),
        // The other commands are short, so their errors need no time stamp.
        _ => output::err(&format!("vmemctl: {text}")),
    }
    if cli.common.json {
        report::print(&CommonLine::Failed {
            exit_code: code,
            error: &text,
        });
    }
    code
}
