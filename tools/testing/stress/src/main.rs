// SPDX-License-Identifier: GPL-2.0-or-later
//! Programs, daemons, trackers and the memory management, all at once and at random, on the same regions, for as long as one likes.
//!
//! What each does follows from the seed; how they meet is the machine's. Every page that a program looks at is compared with what it can
//! hold by then (`model`). Whoever finds something wrong says so and ends the run, and so does the supervisor when somebody does not
//! move. The program inserts the module (`VMEM_KO`, or `build/module/vmem.ko`) and must be able to remove it at the end.
#![forbid(unsafe_code)]

mod board;
mod daemon;
mod files;
mod fuzzer;
mod hands;
mod image;
mod machine;
mod memory;
mod model;
mod numbers;
mod pace;
mod program;
mod reader;
mod replica;
mod snapshot;
mod supervisor;
mod tally;
mod tracker;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

/// How much of what.
#[derive(Debug, Clone, Copy, Parser)]
#[command(name = "vmem-stress", version)]
pub(crate) struct Options {
    /// For how long
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    seconds: Duration,
    /// What everybody does; 0 is another one each time
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Programs that map the regions
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=48))]
    processes: u16,
    /// Trackers in processes of their own, each of one region at a time
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(0..=16))]
    trackers: u16,
    /// Programs that open the regions' files, in file systems of their own
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(0..=16))]
    openers: u16,
    /// Regions, each with a daemon of its own
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=16))]
    regions: u16,
    /// Pages of each region
    #[arg(long, default_value_t = 1100, value_parser = clap::value_parser!(u16).range(64..=8192))]
    pages: u16,
    /// How long somebody may stand still, in seconds, on the slowest machine
    #[arg(long, value_name = "SECONDS", default_value = "100", value_parser = seconds)]
    patience: Duration,
}

fn seconds(text: &str) -> Result<Duration, std::num::ParseIntError> {
    text.parse().map(Duration::from_secs)
}

fn main() -> ExitCode {
    match supervisor::run(Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vmem-stress: FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}
