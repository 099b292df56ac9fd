// SPDX-License-Identifier: GPL-2.0-or-later
//! Moves running guests from one host to another: tests it, shows it, and compares the ways to do it.
//!
//! It runs as root in a virtual machine. Two hosts are two network namespaces of it (`network`), since two virtual machines on two
//! processors would mostly wait for each other. A guest is a Linux under an unmodified QEMU (`machine`), on the machine's KVM; what runs in
//! it is `tools/testing/guest` (`guest`).
#![forbid(unsafe_code)]

mod agent_proxy;
mod book;
mod bucket;
mod chart;
mod checkpoint;
mod cli;
mod client;
mod command;
mod counters;
mod demo;
mod demo_checkpoint;
mod disk;
mod endurance;
mod evidence;
mod goals;
mod guest;
mod harm;
mod identity;
mod machine;
mod measurement;
mod method;
mod network;
mod page;
mod patience;
mod plot;
mod qemu;
mod recording;
mod report;
mod rig;
mod saved;
mod scratch;
mod seconds;
mod shell;
mod slot;
mod story;
mod suite;
mod timeline;
mod traffic;
mod trial;
mod variant;
mod vmemctl;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match cli::Cli::parse().run() {
        Ok(status) => status,
        Err(error) => {
            eprintln!("vmem-migration: {error:#}");
            ExitCode::FAILURE
        }
    }
}
