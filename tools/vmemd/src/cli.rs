// SPDX-License-Identifier: GPL-2.0-or-later
//! The command line. vmemd(8) describes it in full.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use vmem::FilesOption;
use vmem_cli::log::Verbosity;
use vmem_cli::{Completions, Owner, address, bandwidth_limit, owner, seconds, user};
use vmem_nbd_source::Uri;
use vmem_precopy::{Limits, Mode};
use vmem_source::Compression;
use vmem_source::serve::LEAST_BANDWIDTH;
use vmem_source::wire::DEFAULT_PORT;
use vmem_store_source::KeyOptions;

/// The longest name of a session.
const LONGEST_SESSION: usize = 128;

/// Fills vmem regions with pages from a source. `vmemd serve` is such a source.
#[derive(Debug, Parser)]
#[command(
    name = "vmemd",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) receive: Option<Receive>,
    #[command(flatten)]
    pub(crate) verbosity: Verbosity,
}

impl Cli {
    /// The session that this vmemd is started for, if it is started for one.
    pub(crate) fn session(&self) -> Option<&str> {
        match &self.command {
            Some(Command::Serve(args)) => args.session.as_deref(),
            Some(Command::Completions(_)) => None,
            None => self.receive.as_ref()?.session.as_deref(),
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve memory of this machine to the vmemd of other machines
    Serve(Box<Serve>),
    /// Print the completion script for a shell
    #[command(hide = true)]
    Completions(Completions),
}

/// The source's side.
#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Address to listen on: PORT, or HOST:PORT with a numeric host
    #[arg(long, value_name = "ADDR", default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, DEFAULT_PORT)), value_parser = address)]
    pub(crate) listen: SocketAddr,
    /// Without --tls, listen on any address instead of only loopback, in clear text and without authentication
    #[arg(long)]
    pub(crate) insecure: bool,
    /// Use TLS: DIR has ca.pem (the authority of peers' certificates), cert.pem and key.pem (of this host)
    #[arg(long, value_name = "DIR", conflicts_with = "insecure")]
    pub(crate) tls: Option<PathBuf>,
    /// Accept only peers whose certificate has this name, besides being issued by ca.pem; may be repeated
    #[arg(long = "allow-name", value_name = "NAME", requires = "tls")]
    pub(crate) allow_names: Vec<String>,
    /// User as which vmemd runs once the memory is open, by name or number; 65534 (nobody) unless given
    #[arg(long, value_name = "USER[:GROUP]", value_parser = user)]
    pub(crate) user: Option<(u32, Option<u32>)>,
    /// Connections at a time; each destination uses one for each of its streams, and one for urgent pages
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) connections: u16,
    /// How long a peer may take to send or receive one frame
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub(crate) timeout: Duration,
    /// Free each page when a destination reports that it has the page; DIR/NAME.released records the freed pages
    #[arg(long, value_name = "DIR")]
    pub(crate) free: Option<PathBuf>,
    /// Free no page before the order `release`: a line on standard input, or a request with --control
    #[arg(long, requires = "free")]
    pub(crate) hold_release: bool,
    /// Log the writes to the memory, and send it in rounds while its programs run, until the request `finish`; how they are to end
    #[arg(long, value_name = "MODE", requires = "control")]
    pub(crate) rounds: Option<Mode>,
    /// The process that has the memory open, other than regions and /proc/PID/fd/N
    #[arg(long, value_name = "PID", requires = "rounds", value_parser = clap::value_parser!(i32).range(1..))]
    pub(crate) process: Option<i32>,
    /// The limits of the rounds: xen (29 rounds, 3 times the memory, 50 pages left) or palacios (32, 3 times, 200)
    #[arg(long, value_name = "NAME", requires = "rounds", default_value = "xen", value_parser = preset)]
    pub(crate) limits: Limits,
    /// How long the programs may stand still while the last pages are sent
    #[arg(long, value_name = "MILLISECONDS", requires = "rounds", value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub(crate) max_downtime: Option<u32>,
    /// Send rounds and background pages with at most this many bytes/s (suffixes K, M, G, T), or bits/s (kbit, Mbit, Gbit, Tbit); a page that a
    /// program waits for is sent at once
    #[arg(long, value_name = "RATE", default_value = "unlimited", value_parser = bandwidth)]
    pub(crate) bandwidth: u64,
    /// Serve metrics for Prometheus at http://ADDR/metrics
    #[arg(long, value_name = "ADDR", value_parser = address)]
    pub(crate) metrics: Option<SocketAddr>,
    /// Take orders over a control socket instead of standard input: at this path, or - if standard input is the socket
    #[arg(long, value_name = "SOCKET")]
    pub(crate) control: Option<PathBuf>,
    /// The session that clients of the control socket are told
    #[arg(long, value_name = "SESSION", requires = "control", value_parser = session)]
    pub(crate) session: Option<String>,
    /// The memory to serve: a file, a memfd (/proc/PID/fd/N), a block device or a region (/run/vmem/NAME)
    #[arg(value_name = "NAME=PATH", required = true)]
    pub(crate) exports: Vec<String>,
}

/// The destination's side.
#[derive(Debug, Args)]
pub(crate) struct Receive {
    /// Source of the pages: HOST, HOST:PORT, file:NAME=PATH (which may be repeated), checkpoint:STORE#GUEST@N, nbd://HOST/EXPORT or
    /// nbd+unix:///EXPORT?socket=PATH; over TLS nbds://HOST/EXPORT or nbds+unix:///EXPORT?socket=PATH
    #[arg(long, value_name = "SOURCE", required = true, value_parser = source)]
    pub(crate) source: Vec<String>,
    // Options of another struct, flattened, would hide from clap that there is a `Receive`.
    /// The key of an encrypted store: a file with 64 hexadecimal digits or 32 bytes that its owner alone can access, or - for standard input
    #[arg(long, value_name = "FILE", conflicts_with = "key_command")]
    pub(crate) key_file: Option<PathBuf>,
    /// The key is what this command for the shell prints; it has 60 seconds
    #[arg(long, value_name = "COMMAND")]
    pub(crate) key_command: Option<String>,
    /// Without --tls, connect to any address instead of only loopback, in clear text and without authentication
    #[arg(long)]
    pub(crate) insecure: bool,
    /// Use TLS: DIR has ca.pem (the authority of the source's certificate), cert.pem and key.pem (of this host)
    #[arg(long, value_name = "DIR", conflicts_with = "insecure")]
    pub(crate) tls: Option<PathBuf>,
    /// Accept only a source whose certificate has this name, besides being issued by ca.pem; may be repeated
    #[arg(long = "allow-name", value_name = "NAME", requires = "tls")]
    pub(crate) allow_names: Vec<String>,
    /// User as which vmemd runs once the control device is open, by name or number; 65534 (nobody) unless given
    #[arg(long, value_name = "USER[:GROUP]", value_parser = user)]
    pub(crate) user: Option<(u32, Option<u32>)>,
    /// Where the regions are files: a directory at which the file system vmem is mounted if it is not yet, or none; /run/vmem unless given
    #[arg(long, value_name = "DIR|none")]
    pub(crate) files: Option<FilesOption>,
    /// Permission bits of the regions' files and nodes; 600 unless given
    #[arg(long, value_name = "OCTAL", value_parser = mode)]
    pub(crate) mode: Option<u32>,
    /// Owner of the regions' files and nodes, by name or number
    #[arg(long, value_name = "[USER][:GROUP]", value_parser = owner)]
    pub(crate) owner: Option<Owner>,
    /// Allocate the memory in transparent huge pages: the first page that arrives allocates the 2 MiB around it
    #[arg(long)]
    pub(crate) huge: bool,
    /// A program that has waited this long for a page gets SIGBUS; unlimited unless given
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) fault_timeout: Option<Duration>,
    /// What happens to a program that touches an absent page while no daemon is attached; wait unless given
    #[arg(long, value_enum)]
    pub(crate) on_death: Option<OnDeath>,
    /// What a program gets that touches a page which the source cannot read; sigbus unless given
    #[arg(long, value_enum)]
    pub(crate) on_unreadable: Option<OnUnreadable>,
    /// Fetch only pages that a program touches
    #[arg(long)]
    pub(crate) no_background: bool,
    /// Fetch up to this many pages ahead of a program that touches pages at equal distances; 32 unless given, or 0 with --no-background
    #[arg(long, value_name = "PAGES", value_parser = clap::value_parser!(u16).range(..=256))]
    pub(crate) prefetch: Option<u16>,
    /// How much of the background stream may be in flight; 4 unless given
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) window: Option<u16>,
    /// Connections of the background stream; as many as there are processors unless given, 4 at most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=16))]
    pub(crate) streams: Option<u8>,
    /// How the source compresses the pages of the stream: none, lz4, zstd or zstd:LEVEL (1 to 9); none unless given
    #[arg(long, value_name = "ALGORITHM")]
    pub(crate) compress: Option<Compression>,
    /// How long the source may take to answer; 10 unless given
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) timeout: Option<Duration>,
    /// How long to try to reconnect to a lost source; 60 unless given
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) retry: Option<Duration>,
    /// Do not map the pages of a complete region into the programs' page tables
    #[arg(long)]
    pub(crate) no_populate: bool,
    /// Detach from complete regions that no program has mapped; their contents are lost unless a program has them open
    #[arg(long)]
    pub(crate) detach_unmapped: bool,
    /// Answer each touch here, even where the kernel can read the source's file by itself
    #[arg(long)]
    pub(crate) no_backing: bool,
    /// Report which pages programs request, in their order, as events
    #[arg(long)]
    pub(crate) report_touches: bool,
    /// When all pages are present, leave the regions as they are for so long: until then, the page tables of programs have the pages that they
    /// touched, and no others but neighbours of these
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) complete_after: Option<Duration>,
    /// Serve metrics for Prometheus at http://ADDR/metrics
    #[arg(long, value_name = "ADDR", value_parser = address)]
    pub(crate) metrics: Option<SocketAddr>,
    /// Report as one JSON object per line on standard output
    #[arg(long)]
    pub(crate) json: bool,
    /// Call the region of the export EXPORT by the name NAME; may be repeated
    #[arg(long = "region", value_name = "EXPORT=NAME", value_parser = renaming)]
    pub(crate) regions: Vec<(String, String)>,
    /// Use only the exports that --region names, and ignore the source's other exports
    #[arg(long, requires = "regions")]
    pub(crate) only: bool,
    /// Attach to regions that exist, and create none
    #[arg(long)]
    pub(crate) resume: bool,
    /// Attach to regions that exist and have no daemon, and create the others
    #[arg(long, conflicts_with = "resume")]
    pub(crate) attach: bool,
    /// Fetch no page before the order `start`: a line on standard input, or a request with --control
    #[arg(long)]
    pub(crate) hold: bool,
    /// Until that order, take the rounds of a source that sends them (serve --rounds)
    #[arg(long, requires = "hold", conflicts_with = "no_background")]
    pub(crate) stage: bool,
    /// An old image of the memory, as a raw file: pages with the contents of any page of it are not sent; may be repeated
    #[arg(long, value_name = "FILE", conflicts_with = "no_background")]
    pub(crate) seed_image: Vec<PathBuf>,
    /// When all pages are here, read them again at the source and compare; the regions stay as they are until then. No program may write to
    /// them, or to the memory at the source, before that
    #[arg(long, conflicts_with_all = ["no_background", "release"])]
    pub(crate) verify: bool,
    /// Tell the source which pages are here, so that `serve --free` frees them; with --hold, only after the order `release`
    #[arg(long, conflicts_with = "no_background")]
    pub(crate) release: bool,
    /// Take orders over a control socket instead of standard input: at this path, or - if standard input is the socket
    #[arg(long, value_name = "SOCKET")]
    pub(crate) control: Option<PathBuf>,
    /// The session that clients of the control socket are told
    #[arg(long, value_name = "SESSION", requires = "control", value_parser = session)]
    pub(crate) session: Option<String>,
}

impl Receive {
    /// Options that say how a region is made, as far as they were given.
    pub(crate) fn of_new_regions(&self) -> Vec<&'static str> {
        given([
            ("--mode", self.mode.is_some()),
            ("--owner", self.owner.is_some()),
            ("--huge", self.huge),
            ("--fault-timeout", self.fault_timeout.is_some()),
            ("--on-death", self.on_death.is_some()),
            ("--on-unreadable", self.on_unreadable.is_some()),
        ])
    }

    /// Where the key of an encrypted store comes from.
    pub(crate) fn key(&self) -> KeyOptions {
        KeyOptions {
            key_file: self.key_file.clone(),
            key_command: self.key_command.clone(),
        }
    }

    /// Whether somebody writes orders to standard input, or it is the control socket.
    pub(crate) fn takes_orders_from_stdin(&self) -> bool {
        self.control.as_ref().map_or(self.hold, |control| control.as_os_str() == "-")
    }

    /// What was given and means nothing with something else that was given, in words.
    pub(crate) fn without_effect(&self) -> Vec<String> {
        let of_network = given([
            ("--tls", self.tls.is_some()),
            ("--insecure", self.insecure),
            ("--timeout", self.timeout.is_some()),
            ("--retry", self.retry.is_some()),
            ("--release", self.release),
            ("--stage", self.stage),
            ("--seed-image", !self.seed_image.is_empty()),
            ("--streams", self.streams.is_some()),
            ("--compress", self.compress.is_some()),
        ]);
        let of_stream = given([
            ("--window", self.window.is_some()),
            ("--streams", self.streams.is_some()),
            ("--compress", self.compress.is_some()),
        ]);
        let of_store = given([
            ("--key-file", self.key_file.is_some()),
            ("--key-command", self.key_command.is_some()),
        ]);
        let is_file = |source: &String| source.starts_with("file:");
        let without = |options: Vec<&str>, with: &str| -> Vec<String> {
            let words = options
                .into_iter()
                .map(|option| format!("{option} has no effect with {with}"));
            words.collect()
        };
        let mut all = Vec::new();
        if self.resume {
            all.extend(without(self.of_new_regions(), "--resume"));
        }
        if !self.source.iter().all(|source| is_checkpoint(source)) {
            all.extend(without(of_store, "a source other than checkpoint:..."));
        }
        if self.source.iter().all(is_file) {
            all.extend(without(of_network, "--source file:..."));
        } else if self.source.iter().all(|source| is_checkpoint(source)) {
            // A store that is away is waited for.
            let others = of_network.into_iter().filter(|option| *option != "--retry").collect();
            all.extend(without(others, "--source checkpoint:..."));
        } else if self.source.iter().all(|source| is_nbd(source)) {
            // A server is on the network, and is no vmemd.
            let has_effect = ["--tls", "--insecure", "--timeout", "--retry"];
            let others = of_network.into_iter().filter(|option| !has_effect.contains(option)).collect();
            all.extend(without(others, "--source nbd:..."));
        }
        if self.no_background {
            all.extend(without(of_stream, "--no-background"));
        }
        all
    }
}

fn given<const N: usize>(options: [(&'static str, bool); N]) -> Vec<&'static str> {
    options
        .into_iter()
        .filter(|(_, given)| *given)
        .map(|(name, _)| name)
        .collect()
}

/// What happens to programs that touch absent pages while no daemon is attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum OnDeath {
    /// The programs wait for the next daemon.
    Wait,
    /// The programs get SIGBUS.
    Sigbus,
}

/// How a page that the source cannot read appears to programs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum OnUnreadable {
    /// As a page beyond the end of a file: SIGBUS. It ends a virtual machine.
    Sigbus,
    /// As broken memory: SIGBUS with another code. A guest on KVM can survive: it loses the process that touched the page.
    Poison,
}

/// Whether a source is a checkpoint of a store.
pub(crate) fn is_checkpoint(source: &str) -> bool {
    source.starts_with("checkpoint:")
}

/// Whether a source is an NBD server.
pub(crate) fn is_nbd(source: &str) -> bool {
    let scheme = source.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
    scheme.is_some_and(|scheme| ["nbd", "nbds", "nbd+unix", "nbds+unix"].contains(&scheme.as_str()))
}

fn source(text: &str) -> Result<String, String> {
    if is_nbd(text) {
        let uri: Result<Uri, _> = text.parse();
        return uri.map(|_| text.to_owned()).map_err(|error| error.to_string());
    }
    vmem_cli::source(text)
}

fn bandwidth(text: &str) -> Result<u64, String> {
    bandwidth_limit(text, LEAST_BANDWIDTH)
}

fn preset(text: &str) -> Result<Limits, String> {
    Limits::preset(text).ok_or_else(|| "not xen or palacios".to_owned())
}

fn mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
    mode.ok_or_else(|| "not an octal number from 0 to 777".to_owned())
}

fn session(text: &str) -> Result<String, String> {
    if text.len() <= LONGEST_SESSION {
        Ok(text.to_owned())
    } else {
        Err(format!("longer than {LONGEST_SESSION} bytes"))
    }
}

fn renaming(text: &str) -> Result<(String, String), String> {
    let (export, name) = text.split_once('=').ok_or("not EXPORT=NAME")?;
    vmem::Name::new(name).map_err(|error| error.to_string())?;
    Ok((export.to_owned(), name.to_owned()))
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
    fn either_a_source_or_serve() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' '));
        assert!(parse("vmemd --source host").is_ok());
        assert!(parse("vmemd --source nbd://host:7/ram").is_ok() && parse("vmemd --source nbd+unix:///?socket=/s").is_ok());
        assert!(parse("vmemd serve a=/b").is_ok_and(|cli| cli.command.is_some() && cli.receive.is_none()));
        for bad in [
            "vmemd",
            "vmemd serve",
            "vmemd --source host serve a=/b",
            "vmemd --source host --mode 888",
            "vmemd --source host --region a",
            "vmemd --source host --region a=/b",
            "vmemd --source host --only",
            "vmemd serve --hold-release a=/b",
            "vmemd serve --allow-name a.test a=/b",
            "vmemd --source host --allow-name a.test",
            "vmemd --source host --session 7",
            "vmemd serve --session 7 a=/b",
            "vmemd serve --rounds hybrid a=/b",
            "vmemd serve --control c --rounds never a=/b",
            "vmemd serve --control c --max-downtime 100 a=/b",
            "vmemd serve --control c --rounds auto --max-downtime 0 a=/b",
            "vmemd serve --control c --rounds auto --limits none a=/b",
            "vmemd serve --control c --process 7 a=/b",
            "vmemd serve --bandwidth 1K a=/b",
            "vmemd serve --bandwidth fast a=/b",
            "vmemd serve --control c --rounds auto --process 0 a=/b",
            "vmemd --source host --stage",
            "vmemd --source host --hold --stage --no-background",
            "vmemd --source host --verify --no-background",
            "vmemd --source host --seed-image /a --no-background",
            "vmemd --source host --verify --release",
            "vmemd --source localhost:abc",
            "vmemd --source file:a",
            "vmemd --source nbds://host/ram?tls-type=psk",
            "vmemd --source nbd+unix:///ram",
            "vmemd --source nbd://host/ram?tls-type=psk",
            "vmemd --source host --resume --attach",
            "vmemd --source host --tls /a --insecure",
            "vmemd --source host --streams 0",
            "vmemd --source host --streams 17",
            "vmemd --source host --compress gzip",
            "vmemd --source host --compress zstd:10",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_means_nothing_is_said() {
        let said = |line: &str| {
            let cli = Cli::try_parse_from(line.split(' ')).expect("a command line");
            cli.receive.expect("a destination").without_effect().join("; ")
        };
        assert_eq!(said("vmemd --source host --mode 600 --retry 1 --window 1"), "");
        assert_eq!(
            said("vmemd --source host --resume --mode 600 --huge"),
            "--mode has no effect with --resume; --huge has no effect with --resume"
        );
        assert_eq!(
            said("vmemd --source file:a=/b --retry 5 --no-background --window 3"),
            "--retry has no effect with --source file:...; --window has no effect with --no-background"
        );
        assert_eq!(
            said("vmemd --source file:a=/b --hold --stage"),
            "--stage has no effect with --source file:..."
        );
        assert_eq!(said("vmemd --source host --hold --stage --streams 16"), "");
        assert_eq!(
            said("vmemd --source host --key-file k"),
            "--key-file has no effect with a source other than checkpoint:..."
        );
        assert_eq!(said("vmemd --source checkpoint:/srv#guest0 --key-command k"), "");
        assert_eq!(
            said("vmemd --source host --no-background --streams 2"),
            "--streams has no effect with --no-background"
        );
        assert_eq!(
            said("vmemd --source file:a=/b --compress zstd:3"),
            "--compress has no effect with --source file:..."
        );
        assert_eq!(
            said("vmemd --source checkpoint:/srv#guest0 --retry 5 --timeout 3"),
            "--timeout has no effect with --source checkpoint:..."
        );
        assert_eq!(
            said("vmemd --source nbd://host/ram --retry 5 --timeout 3 --insecure --streams 2"),
            "--streams has no effect with --source nbd:..."
        );
    }

    #[test]
    fn permissions_are_octal() {
        assert_eq!(mode("640"), Ok(0o640));
        for bad in ["1000", "8", "-1", ""] {
            assert!(mode(bad).is_err(), "{bad}");
        }
    }
}
