// SPDX-License-Identifier: GPL-2.0-or-later
//! vmem-bench: measures vmem against userfaultfd and plain memory. See Documentation/performance.rst.
#![forbid(unsafe_code)]

mod case;
mod cli;
mod contents;
mod cpu;
mod failure;
mod filled;
mod goal;
mod keeper;
mod order;
mod peer;
mod report;
mod setting;
mod tracker;
mod transfer;
mod wp_daemon;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match cli::Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vmem-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
