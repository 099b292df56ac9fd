// SPDX-License-Identifier: GPL-2.0-or-later
//! The command line. vmemctl(8) describes it in full.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use vmem_cli::log::Verbosity;
use vmem_cli::{Completions, bandwidth, seconds, size};
use vmem_migrate::options::{Abort, Check, Common, Forget, Listen, Migrate, Receive, Recover, Set, Status};

use crate::memory_of::MemoryOf;

/// Moves running QEMU guests from host to host over vmem regions; lists, watches and copies regions.
#[derive(Debug, Parser)]
#[command(name = "vmemctl", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(flatten)]
    pub(crate) verbosity: Verbosity,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show what would prevent a guest of this host from being moved
    Check(Check),
    /// Move a guest of this host to another host
    Migrate(Migrate),
    /// Receive a guest from another host
    Receive(Receive),
    /// Receive guests from other hosts until told to end, each as a template says
    Listen(Listen),
    /// Continue a move whose `migrate` has died or given up, on the source host
    Recover(Recover),
    /// Remove the record of a guest that was received and whose source is gone for good
    Forget(Forget),
    /// Show where migrations stand: all of this host, or that of one guest
    Status(Status),
    /// Change how a guest of this host moves while it does
    Set(Set),
    /// Give a move up before the destination owns the guest: the guest continues at this host
    Abort(Abort),
    /// Make, restore and list checkpoints of guests and of programs' memory
    Checkpoint(crate::checkpoint::Checkpoint),
    /// Measure how fast a running guest writes to its memory, and predict a move of it
    DirtyRate(DirtyRate),
    /// List, watch and copy regions and the shared memory of programs
    Region(Region),
    /// Make and renew the certificates that --tls reads
    Tls(crate::tls::Tls),
    /// Show the versions of the module and the programs, and whether they fit
    Version,
    /// Show what this machine lacks for vmem, and what to type to mend it
    Doctor,
    /// Print the completion script for a shell
    #[command(hide = true)]
    Completions(Completions),
}

/// A running guest that is measured.
#[derive(Debug, Args)]
pub(crate) struct DirtyRate {
    /// QEMU's QMP socket
    #[arg(long, value_name = "SOCKET")]
    pub(crate) qmp: PathBuf,
    /// How long to measure
    #[arg(long, value_name = "N", default_value = "10", value_parser = seconds)]
    pub(crate) seconds: Duration,
    /// Length of an interval in milliseconds; a page that is written several times in it counts once
    #[arg(long, value_name = "MS", default_value = "100", value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub(crate) interval: u32,
    /// Bandwidth of the link that the move is predicted for, in bytes/s; suffixes K, M, G, T; or in bits/s: kbit, Mbit, Gbit, Tbit
    #[arg(long, value_name = "BANDWIDTH", default_value = "1Gbit", value_parser = bandwidth)]
    pub(crate) bandwidth: u64,
    /// Write what was measured to a new file, as a trace for vmem's simulator
    #[arg(long, value_name = "FILE")]
    pub(crate) record: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Region {
    #[command(subcommand)]
    pub(crate) command: RegionCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RegionCommand {
    /// List regions and adopted memory, with the processes that have them open
    List,
    /// Show the state of a region, or of a process's shared memory
    Info(RegionInfo),
    /// Show how fast programs write to a region or to a process's shared memory, and where
    Watch(RegionWatch),
    /// Write a region or a process's shared memory, as it is at one instant, to a file; programs continue
    Snapshot(RegionSnapshot),
}

// Without this usage line, clap would show the two ways of naming memory as one.
#[derive(Debug, Args)]
#[command(
    override_usage = "vmemctl region info [OPTIONS] <NAME>\n       vmemctl region info [OPTIONS] --pid <PID> --memory <PATH>"
)]
pub(crate) struct RegionInfo {
    #[command(flatten)]
    pub(crate) memory: Memory,
}

#[derive(Debug, Args)]
#[command(
    override_usage = "vmemctl region watch [OPTIONS] <NAME>\n       vmemctl region watch [OPTIONS] --pid <PID> --memory <PATH>"
)]
pub(crate) struct RegionWatch {
    #[command(flatten)]
    pub(crate) memory: Memory,
    /// Time between samples
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    pub(crate) interval: Duration,
    /// Number of samples, after which the command ends; unlimited unless given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
}

#[derive(Debug, Args)]
#[command(override_usage = "vmemctl region snapshot [OPTIONS] --out <FILE> <NAME>\n       \
                            vmemctl region snapshot [OPTIONS] --out <FILE> --pid <PID> --memory <PATH>")]
pub(crate) struct RegionSnapshot {
    #[command(flatten)]
    pub(crate) memory: Memory,
    /// The file to write; it gets its name when it is complete
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Memory limit for copies of pages that programs overwrite before they are saved; suffixes K, M, G, T; unlimited unless given
    #[arg(long, value_name = "BYTES", value_parser = size)]
    pub(crate) limit: Option<u64>,
    /// Leave absent pages out, as holes of the file, instead of waiting for them
    #[arg(long)]
    pub(crate) skip_absent: bool,
    /// Replace the file if it exists
    #[arg(long)]
    pub(crate) force: bool,
}

/// A region, or shared memory that a process has open.
#[derive(Debug, Args)]
pub(crate) struct Memory {
    /// The region's name
    #[arg(value_name = "NAME", required_unless_present = "pid", conflicts_with_all = ["pid", "memory"])]
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) of_process: Option<MemoryOf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn region_info_takes_a_name_or_memory() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' '));
        assert!(parse("vmemctl region list").is_ok_and(|cli| !cli.common.json));
        assert!(parse("vmemctl region info guest0").is_ok());
        assert!(parse("vmemctl region info --pid 1 --memory ram").is_ok());
        for bad in [
            "info",
            "info --pid 1",
            "info --memory ram",
            "info guest0 --pid 1 --memory ram",
            "info --pid 0 --memory ram",
            "watch",
            "watch --pid 1",
            "watch guest0 --pid 1 --memory ram",
            "watch --pid 1 --memory ram --count 0",
            "watch --pid 1 --memory ram --interval 0",
            "snapshot --pid 1 --memory ram",
            "snapshot --out image",
            "snapshot guest0",
            "snapshot guest0 --pid 1 --memory ram --out image",
            "snapshot --pid 1 --memory ram --out image --limit 0",
        ] {
            assert!(parse(&format!("vmemctl region {bad}")).is_err(), "{bad}");
        }
        let cli = parse("vmemctl region watch --pid 1 --memory ram --interval 0.5 --count 3").expect("a command line");
        let Command::Region(Region {
            command: RegionCommand::Watch(args),
        }) = &cli.command
        else {
            panic!("not watch")
        };
        assert_eq!((args.interval, args.count), (Duration::from_millis(500), Some(3)));
        let cli = parse("vmemctl region snapshot --pid 1 --memory ram --out image --limit 2G").expect("a command line");
        let Command::Region(Region {
            command: RegionCommand::Snapshot(args),
        }) = &cli.command
        else {
            panic!("not snapshot")
        };
        assert_eq!((args.limit, args.skip_absent, args.force), (Some(2 << 30), false, false));
        assert!(parse("vmemctl region watch guest0 --count 3").is_ok());
        assert!(parse("vmemctl region snapshot guest0 --out image --skip-absent").is_ok());
    }

    #[test]
    fn dirty_rate_needs_a_socket_and_has_defaults() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' '));
        let cli = parse("vmemctl dirty-rate --qmp /q --json").expect("a command line");
        let Command::DirtyRate(args) = &cli.command else {
            panic!("not dirty-rate")
        };
        assert_eq!((args.seconds, args.interval), (Duration::from_secs(10), 100));
        assert_eq!((args.bandwidth, &args.record), (125_000_000, &None));
        assert!(parse("vmemctl dirty-rate --qmp /q --seconds 0.5 --interval 10 --bandwidth 10Gbit --record /r").is_ok());
        for bad in [
            "",
            " --qmp /q --interval 0",
            " --qmp /q --seconds 0",
            " --qmp /q --bandwidth 10bit",
        ] {
            assert!(parse(&format!("vmemctl dirty-rate{bad}")).is_err(), "{bad}");
        }
    }

    #[test]
    fn tls_takes_names_and_addresses() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' '));
        assert!(parse("vmemctl tls init /a").is_ok());
        assert!(parse("vmemctl tls add-host /a alpha alpha.example.org 192.0.2.1 2001:db8::1 --days 30 --json").is_ok());
        assert!(parse("vmemctl tls renew /a").is_ok());
        assert!(parse("vmemctl tls renew /a alpha beta --days 30").is_ok());
        for bad in [
            "",
            " init",
            " init /a --days -1",
            " add-host /a",
            " add-host /a alpha *.example.org",
            " list",
        ] {
            assert!(parse(&format!("vmemctl tls{bad}")).is_err(), "{bad}");
        }
    }

    #[test]
    fn receive_takes_a_template_or_an_existing_qemu() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' '));
        assert!(parse("vmemctl receive --qmp /q -- qemu -S").is_ok());
        assert!(parse("vmemctl receive --qmp /q --region ram=1G").is_ok());
        assert!(parse("vmemctl receive --qmp /q --resume").is_ok());
        assert!(parse("vmemctl receive --qmp /q --resume -- qemu").is_err());
        assert!(parse("vmemctl migrate --qmp /q").is_err());
        assert!(parse("vmemctl migrate --qmp /q --to host --json").is_ok_and(|cli| cli.common.json));
    }
}
