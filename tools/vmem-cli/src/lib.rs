// SPDX-License-Identifier: GPL-2.0-or-later
//! Command-line code that vmemd and vmemctl share: arguments, error messages, signals, logging, and output that never blocks.
//!
//! ```no_run
//! use std::process::ExitCode;
//! use std::time::Duration;
//!
//! use clap::Parser;
//! use vmem_cli::log::{self, Verbosity};
//! use vmem_cli::{Signals, output};
//!
//! /// Waits until it is told to end.
//! #[derive(Parser)]
//! struct Cli {
//!     #[command(flatten)]
//!     verbosity: Verbosity,
//! }
//!
//! fn main() -> ExitCode {
//!     let cli: Cli = match vmem_cli::parse(1) {
//!         Ok(cli) => cli,
//!         Err(code) => return code,
//!     };
//!     log::init(cli.verbosity);
//!     if let Ok(signals) = Signals::catch() {
//!         while signals.unless(|| std::thread::sleep(Duration::from_secs(1))).is_ok() {}
//!     }
//!     output::out("done");
//!     output::flush();
//!     ExitCode::SUCCESS
//! }
//! ```
#![forbid(unsafe_code)]

mod arguments;
mod bar;
mod completions;
mod defaults;
mod error;
pub mod log;
pub mod output;
mod owner;
mod page_size;
mod progress;
mod signals;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Command, FromArgMatches, Parser};

pub use arguments::{address, bandwidth, bandwidth_limit, seconds, size, source, with_port};
pub use bar::ProgressBar;
pub use completions::Completions;
pub use defaults::parse_with_defaults;
pub use error::Error;
pub use owner::{Owner, owner, user};
pub use page_size::check_page_size;
pub use progress::{Progress, Rate, bytes};
pub use signals::{Signals, Stopped};

/// What fails if the control device cannot be opened.
pub const NO_MODULE: &str = "vmem cannot be used (is the module loaded? try: modprobe vmem)";

/// Parses the command line of this program.
///
/// # Errors
///
/// The exit code, after the message has been printed: success for `--help` and `--version`, `usage` for an invalid command line.
pub fn parse<C: Parser>(usage: u8) -> Result<C, ExitCode> {
    parse_from(C::command(), std::env::args_os()).map_err(|error| print(&error, usage))
}

fn parse_from<C: FromArgMatches>(mut command: Command, arguments: impl IntoIterator<Item = OsString>) -> Result<C, clap::Error> {
    let matches = command.try_get_matches_from_mut(arguments)?;
    C::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

/// Prints what clap has to say. Returns the exit code.
fn print(error: &clap::Error, usage: u8) -> ExitCode {
    // If it cannot be printed, there is still the exit code.
    let _ = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
        _ => ExitCode::from(usage),
    }
}

/// The message of an error and of its sources, joined by ": ".
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::error::Error as StdError;
    use std::fmt;

    use super::*;

    #[derive(Debug)]
    struct Failed(&'static str, Option<Box<Failed>>);

    impl fmt::Display for Failed {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl StdError for Failed {
        fn source(&self) -> Option<&(dyn StdError + 'static)> {
            self.1.as_deref().map(|cause| cause as _)
        }
    }

    #[test]
    fn error_chain_lists_each_source() {
        let cause = Failed("no route", None);
        assert_eq!(chain(&cause), "no route");
        let middle = Failed("cannot connect", Some(Box::new(cause)));
        assert_eq!(
            chain(&Failed("no source", Some(Box::new(middle)))),
            "no source: cannot connect: no route"
        );
    }
}
