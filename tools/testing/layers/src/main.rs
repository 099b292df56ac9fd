// SPDX-License-Identifier: GPL-2.0-or-later
//! Checks the structure of the project: crates use only those of lower layers, modules do not use each other in circles, and the picture of
//! both in Documentation/design is true.
#![forbid(unsafe_code)]

mod circles;
mod crates;
mod modules;
mod picture;
mod uses;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "vmem-layers", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Fail, with a line for each fault
    Check {
        /// Manifests of the workspaces
        #[arg(long = "manifest", required = true, value_name = "FILE")]
        manifests: Vec<PathBuf>,
        /// First files of crates that cargo does not know
        #[arg(long = "root", value_name = "FILE")]
        roots: Vec<PathBuf>,
        /// The document with the picture of the crates
        #[arg(long, value_name = "DOCUMENT")]
        document: PathBuf,
        /// Put the picture there instead of comparing it
        #[arg(long)]
        write: bool,
    },
}

fn main() -> ExitCode {
    let Command::Check {
        manifests,
        roots,
        document,
        write,
    } = Cli::parse().command;
    match check(&manifests, roots, &document, write) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("vmem-layers: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The number of faults, each of which has been printed.
fn check(manifests: &[PathBuf], roots: Vec<PathBuf>, document: &std::path::Path, write: bool) -> anyhow::Result<usize> {
    let crates = crates::read(manifests)?;
    let mut faults = crates::upward(&crates);
    let known = crates.iter().flat_map(|krate| krate.roots.iter().cloned());
    for root in known.chain(roots) {
        faults.extend(circles::find(&modules::read(&root)?));
    }
    match write {
        true => picture::write(document, &crates)?,
        false => faults.extend(picture::compare(document, &crates)?),
    }
    for fault in &faults {
        println!("{fault}");
    }
    Ok(faults.len())
}
