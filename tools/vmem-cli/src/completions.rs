// SPDX-License-Identifier: GPL-2.0-or-later
//! Completion scripts of a program's command line, for shells.

use std::io::{self, Write};

use clap::{Args, CommandFactory};
use clap_complete::{Shell, generate};

/// The arguments of a hidden subcommand: packages call it when they are built.
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell that reads the script
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    /// The script for the command line `C`.
    pub fn script<C: CommandFactory>(&self) -> Vec<u8> {
        let mut command = C::command();
        let name = command.get_name().to_owned();
        let mut script = Vec::new();
        generate(self.shell, &mut command, name, &mut script);
        script
    }

    /// Prints the script for the command line `C`.
    ///
    /// # Errors
    ///
    /// Standard output cannot be written to.
    pub fn print<C: CommandFactory>(&self) -> io::Result<()> {
        // Not by the queue of `output`, which drops what a reader does not take in time: half a script is worse than an error.
        let mut out = io::stdout().lock();
        out.write_all(&self.script::<C>())?;
        out.flush()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    /// A program.
    #[derive(Debug, Parser)]
    #[command(name = "program")]
    struct Cli {
        /// How fast
        #[arg(long)]
        bandwidth: Option<u64>,
    }

    #[test]
    fn script_of_each_shell_knows_the_options() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = Completions { shell }.script::<Cli>();
            let script = String::from_utf8(script).expect("text");
            assert!(script.contains("bandwidth"), "{shell}: {script}");
            assert!(script.contains("program"), "{shell}: {script}");
        }
    }
}
