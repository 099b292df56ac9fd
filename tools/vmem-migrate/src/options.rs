// SPDX-License-Identifier: GPL-2.0-or-later
//! The options of moves, which a program parses as a part of its command line. vmemctl(8) describes them in full.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use vmem::FilesOption;
use vmem_cli::{Owner, address, bandwidth_limit, owner, seconds, size};
use vmem_source::Compression;
use vmem_source::serve::LEAST_BANDWIDTH;

use crate::record::DIRECTORY;

/// The port that `vmemctl receive` listens on if it is not told another.
pub(crate) const DEFAULT_PORT: u16 = 8637;

/// The options of all commands on moves.
#[derive(Debug, Args)]
pub struct Common {
    /// Directory for the records of moves in progress, which `recover` and `receive --resume` read
    #[arg(long, global = true, value_name = "DIR", default_value = DIRECTORY)]
    pub state: PathBuf,
    /// Report as one JSON object per line on standard output
    #[arg(long, global = true)]
    pub json: bool,
    /// Use TLS for all connections: DIR has ca.pem (the authority of peers' certificates), cert.pem and key.pem (of this host)
    #[arg(long, global = true, value_name = "DIR", conflicts_with = "insecure")]
    pub tls: Option<PathBuf>,
    /// Accept only peers whose certificate has this name, besides being issued by ca.pem; may be repeated
    #[arg(
        long = "allow-name",
        global = true,
        value_name = "NAME",
        requires = "tls",
        conflicts_with = "insecure"
    )]
    pub allow_names: Vec<String>,
    /// Without --tls, use any address instead of only loopback, in clear text and without authentication
    #[arg(long, global = true)]
    pub insecure: bool,
    /// Start QEMU and vmemd in the systemd unit or session of this command instead of in scopes of their own
    #[arg(long, global = true)]
    pub no_scope: bool,
}

/// A guest that moves to another host.
#[derive(Debug, Args)]
pub struct Migrate {
    /// QEMU's QMP socket
    #[arg(long, value_name = "SOCKET")]
    pub qmp: PathBuf,
    /// Where `vmemctl receive` listens on the destination
    #[arg(long, value_name = "HOST[:PORT]")]
    pub to: String,
    /// Where this host's vmemd listens: PORT, or HOST:PORT with a numeric host
    #[arg(long, value_name = "ADDR", value_parser = address)]
    pub serve: Option<SocketAddr>,
    /// Where the destination connects to this host's vmemd, if not at the address from which this host connects; for tunnels
    #[arg(long, value_name = "HOST:PORT")]
    pub pages: Option<String>,
    /// Where vmemd serves metrics for Prometheus: PORT, or HOST:PORT with a numeric host
    #[arg(long, value_name = "ADDR", value_parser = address)]
    pub metrics: Option<SocketAddr>,
    /// When the guest stops here: after rounds in which its memory is sent (hybrid, precopy), or at once (postcopy)
    #[arg(long, value_enum, default_value_t = Mode::Auto)]
    pub mode: Mode,
    /// After how many rounds, or how much sent memory, the rounds end whatever is left
    #[arg(long, value_enum, default_value_t = Preset::Xen)]
    pub limits: Preset,
    /// How long the guest may stand still while the last of its memory is sent
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub max_downtime: u32,
    /// Send rounds and background pages with at most this many bytes/s (suffixes K, M, G, T), or bits/s (kbit, Mbit, Gbit, Tbit); a page that the
    /// guest waits for is sent at once
    #[arg(long, value_name = "RATE", default_value = "unlimited", value_parser = bandwidth)]
    pub bandwidth: u64,
    /// Free the guest's memory on this host while it arrives at the destination
    #[arg(long)]
    pub free_source: bool,
    /// Do not end this host's QEMU after the move; it stays stopped
    #[arg(long)]
    pub keep_source: bool,
    /// Before the guest runs at the destination, compare all of its memory there with this host's; the guest stands still meanwhile, and
    /// continues on this host if a page differs
    #[arg(long, conflicts_with = "free_source")]
    pub verify: bool,
    /// How many connections the destination's vmemd uses for pages that the guest does not wait for; as many as it has processors unless
    /// given, 4 at most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=16))]
    pub streams: Option<u8>,
    /// How this host's vmemd compresses those pages: none, lz4, zstd or zstd:LEVEL (1 to 9); none unless given
    #[arg(long, value_name = "ALGORITHM")]
    pub compress: Option<Compression>,
    /// How long the transfer of the guest's device state may take; after that the guest continues on this host
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub timeout: Duration,
}

/// When a guest stops at the source.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Mode {
    /// After rounds, if the guest's writes can be logged here; otherwise as postcopy. What is left follows while the guest stands still if that
    /// takes no longer than --max-downtime, and while the guest runs at the destination if it does.
    Auto,
    /// At once. All memory follows while the guest runs at the destination.
    Postcopy,
    /// After rounds. What is left follows while the guest stands still, for up to --timeout.
    Precopy,
    /// After rounds. What is left follows while the guest runs at the destination.
    Hybrid,
}

/// Limits after which rounds end, whatever is left.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Preset {
    /// 29 rounds, 3 times the memory, or 50 pages left (Xen)
    Xen,
    /// 32 rounds, 3 times the memory, or 200 pages left (Palacios)
    Palacios,
}

impl Migrate {
    /// The arguments of a vmemd that sends rounds of the memory that process `pid` has open; `None` in mode postcopy.
    pub(crate) fn rounds(&self, pid: i32) -> Option<Vec<String>> {
        let mode = match self.mode {
            Mode::Postcopy => return None,
            Mode::Auto => "auto",
            Mode::Precopy => "precopy",
            Mode::Hybrid => "hybrid",
        };
        let limits = match self.limits {
            Preset::Xen => "xen",
            Preset::Palacios => "palacios",
        };
        let arguments = ["--rounds", mode, "--limits", limits].map(str::to_owned);
        let downtime = ["--max-downtime".to_owned(), self.max_downtime.to_string()];
        Some([&arguments[..], &downtime, &["--process".to_owned(), pid.to_string()]].concat())
    }
}

/// A guest that comes from another host.
#[derive(Debug, Args)]
pub struct Receive {
    /// QEMU's QMP socket
    #[arg(long, value_name = "SOCKET")]
    pub qmp: PathBuf,
    /// Address to listen on: PORT, or HOST:PORT with a numeric host
    #[arg(long, value_name = "ADDR", default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, DEFAULT_PORT)), value_parser = address)]
    pub listen: SocketAddr,
    /// Where vmemd serves metrics for Prometheus: PORT, or HOST:PORT with a numeric host
    #[arg(long, value_name = "ADDR", value_parser = address)]
    pub metrics: Option<SocketAddr>,
    /// Create a region, for a QEMU that you start yourself; may be repeated
    #[arg(long = "region", value_name = "NAME=BYTES", value_parser = region)]
    pub regions: Vec<(String, u64)>,
    /// Where the regions are files: a directory at which the file system vmem is mounted if it is not yet, or none; /run/vmem unless given
    #[arg(long, value_name = "DIR|none")]
    pub files: Option<FilesOption>,
    /// Owner of the regions' files and nodes, by name or number: the user that QEMU runs as
    #[arg(long, value_name = "[USER][:GROUP]", value_parser = owner)]
    pub owner: Option<Owner>,
    /// Allocate the memory in transparent huge pages: the first page that arrives allocates the 2 MiB around it
    #[arg(long)]
    pub huge: bool,
    /// An old image of the guest's memory, as a raw file: pages with the contents of any page of it are not sent; may be repeated
    #[arg(long, value_name = "FILE", conflicts_with = "resume")]
    pub seed_image: Vec<PathBuf>,
    /// Accept a guest that needs more memory than is available
    #[arg(long)]
    pub overcommit: bool,
    /// What happens to the guest when the source has been lost for --retry
    #[arg(long, value_enum, default_value_t = OnLost::Wait)]
    pub on_lost: OnLost,
    /// How long to try to reconnect to a lost source before --on-lost applies
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub retry: Duration,
    /// Continue the move of a guest whose `receive` has died or given up
    #[arg(long, conflicts_with = "regions")]
    pub resume: bool,
    /// The command that starts QEMU: {memory:ID} stands for the file of the memory backend ID, {qmp} for the QMP socket
    #[arg(last = true, value_name = "QEMU", conflicts_with_all = ["resume", "regions"])]
    pub command: Vec<String>,
}

/// A guest of this host that may be moved.
#[derive(Clone, Debug, Args)]
pub struct Check {
    /// QEMU's QMP socket
    #[arg(long, value_name = "SOCKET")]
    pub qmp: PathBuf,
    /// Where vmemctl listens for the guest: HOST or HOST:PORT
    #[arg(long, value_name = "HOST")]
    pub to: Option<String>,
}

/// Guests that come from other hosts.
#[derive(Debug, Args)]
pub struct Listen {
    /// How guests are received: a file with the arguments of `receive`, one a line, where {guest} stands for the guest's name; or a directory
    /// with such a file for each guest, and the file `default` for all others
    #[arg(long, value_name = "FILE|DIR")]
    pub template: PathBuf,
    /// Address to listen on: PORT, or HOST:PORT with a numeric host. Not used if standard input is a listening socket
    #[arg(long, value_name = "ADDR", default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, DEFAULT_PORT)), value_parser = address)]
    pub listen: SocketAddr,
    /// How many guests may be on their way here at a time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub most: u16,
    /// Converse on the connection that `listen` hands over on standard input
    #[arg(long, hide = true)]
    pub conversation: bool,
}

/// What happens to a guest whose source is lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum OnLost {
    /// Pause the guest, and try the source again until it is back.
    Wait,
    /// Run the guest; a missing page is broken memory. The guest loses the process that touches one; if its kernel does, the guest ends. Without
    /// KVM, QEMU gets SIGBUS and ends.
    Sigbus,
}

/// Migrations that are looked at.
#[derive(Debug, Args)]
pub struct Status {
    /// The guest's name; if several guests have that name, the guest's key (uuid=UUID). All migrations unless given
    #[arg(value_name = "GUEST")]
    pub guest: Option<String>,
}

/// A migration that is given up.
#[derive(Debug, Args)]
pub struct Abort {
    /// The guest's name; if several guests have that name, the guest's key (uuid=UUID)
    #[arg(value_name = "GUEST")]
    pub guest: String,
}

/// A migration that is changed while it runs.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("change").required(true).multiple(true).args(["bandwidth", "max_downtime", "mode", "switch_now"]))]
pub struct Set {
    /// The guest's name; if several guests have that name, the guest's key (uuid=UUID)
    #[arg(value_name = "GUEST")]
    pub guest: String,
    /// Send rounds and background pages with at most this many bytes/s or bits/s; "unlimited" ends the limit
    #[arg(long, value_name = "RATE", value_parser = bandwidth)]
    pub bandwidth: Option<u64>,
    /// How long the guest may stand still while the last of its memory is sent
    #[arg(long, value_name = "MILLISECONDS", value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub max_downtime: Option<u32>,
    /// How the rounds are to end
    #[arg(long, value_parser = ["auto", "precopy", "hybrid"])]
    pub mode: Option<String>,
    /// Stop the guest now, whatever is left
    #[arg(long)]
    pub switch_now: bool,
}

/// A guest whose record is to be removed.
#[derive(Debug, Args)]
pub struct Forget {
    /// The guest's name; if several guests have that name, the guest's key (uuid=UUID)
    #[arg(value_name = "GUEST")]
    pub guest: String,
    /// Remove the record even if the source may still wait for the guest's fate
    #[arg(long)]
    pub force: bool,
}

/// A move that is to be continued.
#[derive(Debug, Args)]
pub struct Recover {
    /// The guest's name, if several moves are recorded; if several guests have that name, the guest's key (uuid=UUID)
    #[arg(long)]
    pub guest: Option<String>,
    /// Where `vmemctl receive` listens now, if that has changed
    #[arg(long, value_name = "HOST[:PORT]")]
    pub to: Option<String>,
    /// Do not end this host's QEMU after the move; it stays stopped
    #[arg(long)]
    pub keep_source: bool,
}

impl Common {
    /// The command that continues the move of this guest.
    pub(crate) fn recover_command(&self, guest: &str) -> String {
        let mut words = self.common_words();
        words.extend(["recover".to_owned(), "--guest".to_owned(), quoted(guest)]);
        words.join(" ")
    }

    /// The command that continues with the guest that this one has received.
    pub(crate) fn resume_command(&self, args: &Receive) -> String {
        let mut words = self.common_words();
        words.extend(["receive".to_owned(), "--resume".to_owned()]);
        words.extend(["--qmp".to_owned(), quoted(&args.qmp.to_string_lossy())]);
        words.extend(["--listen".to_owned(), quoted(&args.listen.to_string())]);
        if args.on_lost == OnLost::Sigbus {
            words.extend(["--on-lost".to_owned(), "sigbus".to_owned()]);
        }
        words.join(" ")
    }

    /// The program, and the options that another command for the same guest needs as well.
    fn common_words(&self) -> Vec<String> {
        let mut words = vec!["vmemctl".to_owned()];
        if self.state != Path::new(DIRECTORY) {
            words.extend(["--state".to_owned(), quoted(&self.state.to_string_lossy())]);
        }
        if let Some(directory) = &self.tls {
            words.extend(["--tls".to_owned(), quoted(&directory.to_string_lossy())]);
        }
        if self.insecure {
            words.push("--insecure".to_owned());
        }
        if self.no_scope {
            words.push("--no-scope".to_owned());
        }
        words
    }
}

/// Quotes a word for a shell.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-./:".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

fn bandwidth(text: &str) -> Result<u64, String> {
    bandwidth_limit(text, LEAST_BANDWIDTH)
}

fn region(text: &str) -> Result<(String, u64), String> {
    let (name, bytes) = text.split_once('=').ok_or("not NAME=BYTES")?;
    vmem::Name::new(name).map_err(|error| error.to_string())?;
    Ok((name.to_owned(), size(bytes)?))
}

/// The command line of vmemctl.
#[cfg(test)]
pub(crate) mod cli {
    use clap::{Parser, Subcommand};

    use super::{Abort, Common, Forget, Migrate, Receive, Recover, Set, Status};

    #[derive(Debug, Parser)]
    #[command(name = "vmemctl")]
    pub(crate) struct Cli {
        #[command(subcommand)]
        pub(crate) command: Command,
        #[command(flatten)]
        pub(crate) common: Common,
    }

    #[derive(Debug, Subcommand)]
    pub(crate) enum Command {
        Migrate(Migrate),
        Receive(Receive),
        Recover(Recover),
        Forget(Forget),
        Status(Status),
        Abort(Abort),
        Set(Set),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::cli::{Cli, Command};
    use super::*;

    #[test]
    fn continuation_commands_are_quoted_for_a_shell() {
        let command = |line: &str, guest: &str| {
            let cli = Cli::try_parse_from(line.split(' ')).expect("a command line");
            cli.common.recover_command(guest)
        };
        assert_eq!(
            command("vmemctl migrate --qmp /q --to host", "guest0"),
            "vmemctl recover --guest guest0"
        );
        assert_eq!(
            command("vmemctl --state /s --insecure migrate --qmp /q --to host", "it's"),
            "vmemctl --state /s --insecure recover --guest 'it'\\''s'"
        );
        let line = "vmemctl --tls /t receive --qmp /q --listen 8000 -- qemu";
        let cli = Cli::try_parse_from(line.split(' ')).expect("a command line");
        let Command::Receive(args) = &cli.command else {
            panic!("not receive")
        };
        assert_eq!(
            cli.common.resume_command(args),
            "vmemctl --tls /t receive --resume --qmp /q --listen 127.0.0.1:8000"
        );
    }

    #[test]
    fn change_names_something_that_can_be_changed() {
        let parse = |line: &str| Cli::try_parse_from(format!("vmemctl set {line}").split(' '));
        let cli = parse("guest0 --bandwidth 100M --max-downtime 300 --mode hybrid --switch-now").expect("a command line");
        let Command::Set(args) = &cli.command else { panic!("not set") };
        assert_eq!(
            (args.bandwidth, args.max_downtime, args.switch_now),
            (Some(100 << 20), Some(300), true)
        );
        assert!(parse("guest0 --bandwidth unlimited").is_ok() && parse("guest0 --switch-now").is_ok());
        for bad in [
            "guest0",
            "--switch-now",
            "guest0 --bandwidth 1K",
            "guest0 --bandwidth 0",
            "guest0 --mode postcopy",
            "guest0 --max-downtime 0",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(region("a=4G"), Ok(("a".to_owned(), 4 << 30)));
        assert_eq!(region("a=4096"), Ok(("a".to_owned(), 4096)));
        for bad in ["a", "a=", "a=G", "a=0", "a=-1", "a=17179869184T", "a/b=1", "a=1g"] {
            assert!(region(bad).is_err(), "{bad}");
        }
    }
}
