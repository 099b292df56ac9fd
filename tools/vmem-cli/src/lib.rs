// SPDX-License-Identifier: GPL-2.0
//! What the command lines of vmemd and vmemctl have in common: how arguments are read, how errors are told, and how a
//! program prints without waiting for whoever reads it.
#![forbid(unsafe_code)]

mod arguments;
mod bar;
pub mod log;
pub mod output;
mod signals;

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

pub use arguments::{address, owner, seconds, source, with_port};
pub use bar::Bar;
pub use signals::{Signals, Stopped};

/// Reads this program's command line.
///
/// # Errors
///
/// It is wrong, or it asks for help or the version only. What there is to say has been said, and the exit code is returned: `usage` if it
/// is wrong.
pub fn parse<C: Parser>(usage: u8) -> Result<C, ExitCode> {
    C::try_parse().map_err(|error| {
        // If there is nobody to print it to, the exit code says it.
        let _ = error.print();
        match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
            _ => ExitCode::from(usage),
        }
    })
}

/// An error and what it comes from.
pub fn chain(error: &dyn Error) -> String {
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
    use std::fmt;

    use super::*;

    #[derive(Debug)]
    struct Failed(&'static str, Option<Box<Failed>>);

    impl fmt::Display for Failed {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Failed {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|cause| cause as _)
        }
    }

    #[test]
    fn causes_follow_their_effects() {
        let cause = Failed("no route", None);
        assert_eq!(chain(&cause), "no route");
        let middle = Failed("cannot connect", Some(Box::new(cause)));
        assert_eq!(
            chain(&Failed("no source", Some(Box::new(middle)))),
            "no source: cannot connect: no route"
        );
    }
}
