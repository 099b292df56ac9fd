// SPDX-License-Identifier: GPL-2.0
//! The command line. vmemctl(8) describes it in full.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use vmem_cli::log::Verbosity;
use vmem_cli::{address, owner, seconds};

use crate::record::DIRECTORY;

/// The port that `vmemctl receive` listens on if it is not told another.
pub(crate) const DEFAULT_PORT: u16 = 8637;

/// Moves running QEMU guests from host to host over vmem regions; lists, watches and copies regions.
#[derive(Debug, Parser)]
#[command(name = "vmemctl", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// Directory for the records of moves in progress, which `recover` and `receive --resume` read
    #[arg(long, global = true, value_name = "DIR", default_value = DIRECTORY)]
    pub(crate) state: PathBuf,
    /// Report as one JSON object per line on standard output
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) verbosity: Verbosity,
    /// Use TLS for all connections: DIR has ca.pem (the authority of peers' certificates), cert.pem and key.pem (of this host)
    #[arg(long, global = true, value_name = "DIR", conflicts_with = "insecure")]
    pub(crate) tls: Option<PathBuf>,
    /// Accept only peers whose certificate has this name, besides being issued by ca.pem; may be repeated
    #[arg(long = "allow-name", global = true, value_name = "NAME", requires = "tls")]
    pub(crate) allow_names: Vec<String>,
    /// Without --tls, use any address instead of only loopback, in clear text and without authentication
    #[arg(long, global = true)]
    pub(crate) insecure: bool,
    /// Start QEMU and vmemd in the systemd unit or session of this command instead of in scopes of their own
    #[arg(long, global = true)]
    pub(crate) no_scope: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Move a guest of this host to another host
    Migrate(Migrate),
    /// Receive a guest from another host
    Receive(Receive),
    /// Continue a move whose `migrate` has died or given up, on the source host
    Recover(Recover),
    /// Remove the record of a guest that was received and whose source is gone for good
    Forget(Forget),
    /// List, watch and copy regions and the shared memory of programs
    Region(Region),
}

#[derive(Debug, Args)]
pub(crate) struct Migrate {
    /// QEMU's QMP socket
    #[arg(long, value_name = "SOCKET")]
    pub(crate) qmp: PathBuf,
    /// Where `vmemctl receive` listens on the destination
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(crate) to: String,
    /// Where this host's vmemd listens: PORT, or HOST:PORT with a numeric host
    #[arg(long, value_name = "ADDR", value_parser = address)]
    pub(crate) serve: Option<SocketAddr>,
    /// Where the destination connects to this host's vmemd, if not at the address from which this host connects; for tunnels
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) pages: Option<String>,
    /// Where vmemd serves metrics for Prometheus: PORT, or HOST:PORT with a numeric host
    #[arg(long, value_name = "ADDR", value_parser = address)]
    pub(crate) metrics: Option<SocketAddr>,
    /// Free the guest's memory on this host while it arrives at the destination
    #[arg(long)]
    pub(crate) free_source: bool,
    /// Do not end this host's QEMU after the move; it stays stopped
    #[arg(long)]
    pub(crate) keep_source: bool,
    /// How long the transfer of the guest's device state may take; after that the guest continues on this host
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub(crate) timeout: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct Receive {
    /// QEMU's QMP socket
    #[arg(long, value_name = "SOCKET")]
    pub(crate) qmp: PathBuf,
    /// Address to listen on: PORT, or HOST:PORT with a numeric host
    #[arg(long, value_name = "ADDR", default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, DEFAULT_PORT)), value_parser = address)]
    pub(crate) listen: SocketAddr,
    /// Where vmemd serves metrics for Prometheus: PORT, or HOST:PORT with a numeric host
    #[arg(long, value_name = "ADDR", value_parser = address)]
    pub(crate) metrics: Option<SocketAddr>,
    /// Create a region, for a QEMU that you start yourself; may be repeated
    #[arg(long = "region", value_name = "NAME=BYTES", value_parser = region)]
    pub(crate) regions: Vec<(String, u64)>,
    /// Owner of the regions' nodes, numeric: the user that QEMU runs as
    #[arg(long, value_name = "UID[:GID]", value_parser = owner)]
    pub(crate) owner: Option<(u32, Option<u32>)>,
    /// Allocate the memory in transparent huge pages: the first page that arrives allocates the 2 MiB around it
    #[arg(long)]
    pub(crate) huge: bool,
    /// Accept a guest that needs more memory than is available
    #[arg(long)]
    pub(crate) overcommit: bool,
    /// What happens to the guest when the source has been lost for --retry
    #[arg(long, value_enum, default_value_t = OnLost::Wait)]
    pub(crate) on_lost: OnLost,
    /// How long to try to reconnect to a lost source before --on-lost applies
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pub(crate) retry: Duration,
    /// Continue the move of a guest whose `receive` has died or given up
    #[arg(long, conflicts_with = "regions")]
    pub(crate) resume: bool,
    /// The command that starts QEMU: {memory:ID} stands for the node of the memory backend ID, {qmp} for the QMP socket
    #[arg(last = true, value_name = "QEMU", conflicts_with_all = ["resume", "regions"])]
    pub(crate) command: Vec<String>,
}

/// What happens to a guest whose source is lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum OnLost {
    /// Pause the guest, and try the source again until it is back.
    Wait,
    /// Run the guest; a missing page is broken memory. The guest loses the process that touches one; if its kernel does, the guest ends. Without
    /// KVM, QEMU gets SIGBUS and ends.
    Sigbus,
}

#[derive(Debug, Args)]
pub(crate) struct Forget {
    /// The guest's name; if several guests have that name, the guest's key (uuid=UUID)
    #[arg(value_name = "GUEST")]
    pub(crate) guest: String,
    /// Remove the record even if the source may still wait for the guest's fate
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Recover {
    /// The guest's name, if several moves are recorded; if several guests have that name, the guest's key (uuid=UUID)
    #[arg(long)]
    pub(crate) guest: Option<String>,
    /// Where `vmemctl receive` listens now, if that has changed
    #[arg(long, value_name = "HOST[:PORT]")]
    pub(crate) to: Option<String>,
    /// Do not end this host's QEMU after the move; it stays stopped
    #[arg(long)]
    pub(crate) keep_source: bool,
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

// clap would show the two ways of naming memory as one.
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

/// Shared memory that a process has open.
#[derive(Debug, Args)]
pub(crate) struct MemoryOf {
    /// The process that has the memory open
    #[arg(long, value_name = "PID", requires = "memory", value_parser = clap::value_parser!(i32).range(1..))]
    pub(crate) pid: i32,
    /// The memory: its path as /proc/PID/fd shows it, a part of the path that is unique among the process's shared memory, or /proc/PID/fd/FD
    #[arg(long, value_name = "PATH", requires = "pid")]
    pub(crate) memory: PathBuf,
}

impl Cli {
    /// The command that goes on with the move of this guest.
    pub(crate) fn recover_command(&self, guest: &str) -> String {
        let mut words = self.common_words();
        words.extend(["recover".to_owned(), "--guest".to_owned(), quoted(guest)]);
        words.join(" ")
    }

    /// The command that goes on with the guest that this one has taken.
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

    /// The program, and those options that another command on the same guest needs as well.
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

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-./:".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

fn region(text: &str) -> Result<(String, u64), String> {
    let (name, bytes) = text.split_once('=').ok_or("not NAME=BYTES")?;
    vmem::Name::new(name).map_err(|error| error.to_string())?;
    Ok((name.to_owned(), size(bytes)?))
}

/// Bytes of memory, not zero.
fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.char_indices().last() {
        Some((at, unit @ ('K' | 'M' | 'G' | 'T'))) => (&text[..at], unit),
        _ => (text, ' '),
    };
    let shift = match unit {
        'K' => 10,
        'M' => 20,
        'G' => 30,
        'T' => 40,
        _ => 0,
    };
    let number: u64 = number
        .parse()
        .map_err(|_| "no number of bytes (K, M, G and T are known)".to_owned())?;
    let bytes = number.checked_mul(1 << shift).filter(|bytes| *bytes > 0);
    bytes.ok_or_else(|| "no size of memory".to_owned())
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
    fn what_goes_on_with_a_move_can_be_typed() {
        let command = |line: &str, guest: &str| {
            let cli = Cli::try_parse_from(line.split(' ')).expect("a command line");
            cli.recover_command(guest)
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
            cli.resume_command(args),
            "vmemctl --tls /t receive --resume --qmp /q --listen 127.0.0.1:8000"
        );
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(region("a=4G"), Ok(("a".to_owned(), 4 << 30)));
        assert_eq!(region("a=4096"), Ok(("a".to_owned(), 4096)));
        for bad in ["a", "a=", "a=G", "a=0", "a=-1", "a=17179869184T", "a/b=1", "a=1g"] {
            assert!(region(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn region_info_is_of_a_name_or_of_memory() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' '));
        assert!(parse("vmemctl region list").is_ok_and(|cli| !cli.json));
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
    fn a_template_or_an_existing_qemu() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' '));
        assert!(parse("vmemctl receive --qmp /q -- qemu -S").is_ok());
        assert!(parse("vmemctl receive --qmp /q --region ram=1G").is_ok());
        assert!(parse("vmemctl receive --qmp /q --resume").is_ok());
        assert!(parse("vmemctl receive --qmp /q --resume -- qemu").is_err());
        assert!(parse("vmemctl migrate --qmp /q").is_err());
        assert!(parse("vmemctl migrate --qmp /q --to host --json").is_ok_and(|cli| cli.json));
    }
}
