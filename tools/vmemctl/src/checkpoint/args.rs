// SPDX-License-Identifier: GPL-2.0-or-later
//! The command line of `vmemctl checkpoint`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use vmem_checkpoint::BaseName;
use vmem_cli::{address, seconds, size};
use vmem_store::GuestName;
use vmem_store_source::{KeyOptions, Selector};

use super::agent::{AgentSocket, Continue, FreezeOptions, Thaw};
use super::hooks::HookOptions;
use super::in_store::InStore;
use super::keep::Keep;
use super::key::Key;
use super::region_options::{FilesArgument, RegionOptions};
use crate::memory_of::MemoryOf;

/// Make, restore and list checkpoints of guests and of programs' memory.
#[derive(Debug, Args)]
pub(crate) struct Checkpoint {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make an empty store
    Init(Init),
    /// Make checkpoints of a running guest, or of a program's memory
    Create(Box<Create>),
    /// Restore a guest, or memory, at once; its pages come from the store when they are touched
    Restore(Restore),
    /// Make regions of a checkpoint on which any number of clones can run, and hold them until a signal
    Base(Base),
    /// Start a guest on the regions of a base; it has what it writes for itself
    Clone(Clone),
    /// Started by create
    #[command(hide = true)]
    Thaw(Thaw),
    /// Started by create
    #[command(hide = true)]
    Continue(Continue),
    /// Write a checkpoint into files that other programs read
    Export(super::export::Export),
    /// List the checkpoints of a store
    List(List),
    /// Show a checkpoint
    Show(Show),
    /// Remove checkpoints
    Rm(Rm),
    /// Protect checkpoints from being removed, or do not any more
    Protect(Protect),
    /// Remove the checkpoints of a guest that no rule keeps
    Prune(Prune),
    /// Keep the last of several checkpoints in a row, and store its pages close together
    Squash(super::squash::Squash),
    /// Verify all that a restore of checkpoints would read
    Verify(Verify),
    /// Say which pages differ between two checkpoints
    Diff(Diff),
    /// Mount the checkpoints of a store as read-only files (FUSE), until a signal
    Mount(Mount),
    /// Serve the memory of a checkpoint read-only over NBD, until a signal
    Nbd(Nbd),
    /// Delete what no checkpoint refers to any more
    Gc(Gc),
    /// Merge overlays of a running guest's disks that no checkpoint refers to any more
    MergeOverlays(super::overlays::MergeOverlays),
    /// Make keys, and say which ones open an encrypted store
    Key(Key),
}

/// A size, or 0.
fn size_or_none(text: &str) -> Result<u64, String> {
    if text == "0" { Ok(0) } else { size(text) }
}

#[derive(Debug, Args)]
pub(crate) struct Init {
    #[command(flatten)]
    pub(crate) store: InStore,
    /// Encrypt what checkpoints contain; the key opens the store, and is not stored
    #[arg(long)]
    pub(crate) encrypt: bool,
}

// Without this usage line, clap would show the two subjects as one.
#[derive(Debug, Args)]
#[command(
    override_usage = "vmemctl checkpoint create [OPTIONS] --store <STORE> --qmp <SOCKET>\n       \
                            vmemctl checkpoint create [OPTIONS] --store <STORE> --pid <PID> --memory <PATH>"
)]
pub(crate) struct Create {
    #[command(flatten)]
    pub(crate) store: InStore,
    /// QEMU's QMP socket
    #[arg(long, value_name = "SOCKET", required_unless_present = "pid", conflicts_with_all = ["pid", "memory"])]
    pub(crate) qmp: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) program: Option<MemoryOf>,
    /// The guest's name in the store; its own name unless given
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<GuestName>,
    /// Make a checkpoint again and again, with so much time from one beginning to the next
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) every: Option<Duration>,
    /// End after so many checkpoints
    #[arg(long, value_name = "N", requires = "every", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    /// Make none while fewer pages than this have been written since the one before
    #[arg(long, value_name = "PAGES", requires = "every", default_value_t = 0)]
    pub(crate) min_pages: u64,
    /// Memory limit for copies of pages that are overwritten before they are stored; suffixes K, M, G, T; unlimited unless given
    #[arg(long, value_name = "BYTES", value_parser = size)]
    pub(crate) copies: Option<u64>,
    /// How long QEMU may take to save its devices
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub(crate) timeout: Duration,
    /// How long the store may be away while a checkpoint is made; the guest goes on meanwhile
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub(crate) store_timeout: Duration,
    /// When the pages of the new checkpoint lie in many packs, store so many bytes of them at most again, close together, so that a restore reads few
    /// packs; 0: never. Suffixes K, M, G, T
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = size_or_none)]
    pub(crate) rewrite: u64,
    /// A word that the checkpoints get; may be repeated
    #[arg(long = "tag", value_name = "TAG")]
    pub(crate) words: Vec<String>,
    #[command(flatten)]
    pub(crate) freeze: FreezeOptions,
    /// Keep the guest's disks at the same instant: QEMU goes on with overlays that it makes in this directory
    #[arg(long, value_name = "DIRECTORY", conflicts_with = "pid")]
    pub(crate) disks: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) hooks: HookOptions,
    /// After each checkpoint, those are removed that no rule keeps, if there is one
    #[command(flatten)]
    pub(crate) keep: Keep,
}

#[derive(Debug, Args)]
pub(crate) struct Restore {
    #[command(flatten)]
    pub(crate) store: InStore,
    /// The socket of the QEMU that the command starts; {qmp} in the command
    #[arg(long, value_name = "SOCKET", requires = "command")]
    pub(crate) qmp: Option<PathBuf>,
    /// Restore only this memory, as a region; may be repeated
    #[arg(long, value_name = "ID", conflicts_with = "command")]
    pub(crate) memory: Vec<String>,
    /// Leave the guest paused
    #[arg(long, requires = "command")]
    pub(crate) paused: bool,
    #[command(flatten)]
    pub(crate) agent: AgentSocket,
    /// Make an overlay over each disk of the checkpoint in this directory; {disk:NAME} in the command
    #[arg(long, value_name = "DIRECTORY", requires = "command")]
    pub(crate) disks: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) regions: RegionOptions,
    /// Do not record in which order pages are touched
    #[arg(long, conflicts_with = "record_time")]
    pub(crate) no_record: bool,
    /// Go on recording for so long after all memory is present; the restore ends later by as much
    #[arg(long, value_name = "SECONDS", default_value = "3", value_parser = seconds)]
    pub(crate) record_time: Duration,
    /// The checkpoint
    #[arg(value_name = "GUEST[@N|@latest]")]
    pub(crate) checkpoint: Selector,
    /// The command that starts QEMU with -incoming defer; {memory:ID} stands for the file of memory backend ID
    #[arg(last = true, value_name = "COMMAND", requires = "qmp")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Base {
    #[command(flatten)]
    pub(crate) store: InStore,
    /// The name by which clones find it; that of the guest unless given
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<BaseName>,
    #[command(flatten)]
    pub(crate) regions: RegionOptions,
    /// The checkpoint
    #[arg(value_name = "GUEST[@N|@latest]")]
    pub(crate) checkpoint: Selector,
}

#[derive(Debug, Args)]
pub(crate) struct Clone {
    /// The base, which a 'checkpoint base' holds
    #[arg(long, value_name = "NAME")]
    pub(crate) base: BaseName,
    #[command(flatten)]
    pub(crate) key: KeyOptions,
    /// The socket of the QEMU that the command starts; {qmp} in the command
    #[arg(long, value_name = "SOCKET")]
    pub(crate) qmp: PathBuf,
    /// Leave the guest paused
    #[arg(long)]
    pub(crate) paused: bool,
    #[command(flatten)]
    pub(crate) agent: AgentSocket,
    /// Make an overlay over each disk of the checkpoint in this directory; {disk:NAME} in the command
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) disks: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) files: FilesArgument,
    /// The command that starts QEMU with -incoming defer; {memory:ID} stands for the file of memory backend ID
    #[arg(last = true, value_name = "COMMAND", required = true)]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    pub(crate) store: InStore,
    /// Only those of this guest
    #[arg(value_name = "GUEST")]
    pub(crate) guest: Option<GuestName>,
}

#[derive(Debug, Args)]
pub(crate) struct Show {
    #[command(flatten)]
    pub(crate) store: InStore,
    /// The checkpoint
    #[arg(value_name = "GUEST[@N|@latest]")]
    pub(crate) checkpoint: Selector,
}

#[derive(Debug, Args)]
pub(crate) struct Rm {
    #[command(flatten)]
    pub(crate) store: InStore,
    /// The checkpoints
    #[arg(value_name = "GUEST@N", required = true, value_parser = numbered)]
    pub(crate) checkpoints: Vec<Selector>,
}

#[derive(Debug, Args)]
pub(crate) struct Protect {
    #[command(flatten)]
    pub(crate) store: InStore,
    /// They can be removed again
    #[arg(long)]
    pub(crate) off: bool,
    /// The checkpoints
    #[arg(value_name = "GUEST@N", required = true, value_parser = numbered)]
    pub(crate) checkpoints: Vec<Selector>,
}

#[derive(Debug, Args)]
pub(crate) struct Prune {
    #[command(flatten)]
    pub(crate) store: InStore,
    #[command(flatten)]
    pub(crate) keep: Keep,
    /// Remove nothing, and say what would be removed
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// The guest
    #[arg(value_name = "GUEST")]
    pub(crate) guest: GuestName,
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    #[command(flatten)]
    pub(crate) store: InStore,
    /// Read so many percent of the pages
    #[arg(long, value_name = "PERCENT", default_value_t = 100, value_parser = clap::value_parser!(u32).range(..=100))]
    pub(crate) read_data: u32,
    /// The checkpoints
    #[arg(value_name = "GUEST[@N|@latest]", required = true)]
    pub(crate) checkpoints: Vec<Selector>,
}

#[derive(Debug, Args)]
pub(crate) struct Diff {
    #[command(flatten)]
    pub(crate) store: InStore,
    /// The earlier checkpoint
    #[arg(value_name = "BEFORE")]
    pub(crate) before: Selector,
    /// The later one
    #[arg(value_name = "AFTER")]
    pub(crate) after: Selector,
}

#[derive(Debug, Args)]
pub(crate) struct Gc {
    #[command(flatten)]
    pub(crate) store: InStore,
    /// How long an object stays that nothing refers to; 86400 unless given
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) grace: Option<Duration>,
    /// Delete nothing, and say what would be deleted
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Mount {
    #[command(flatten)]
    pub(crate) store: InStore,
    /// How long a read may take while the store does not answer; then it fails with EIO
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub(crate) timeout: Duration,
    /// The directory
    #[arg(value_name = "DIR")]
    pub(crate) directory: PathBuf,
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("where").required(true).args(["socket", "listen"])))]
pub(crate) struct Nbd {
    #[command(flatten)]
    pub(crate) store: InStore,
    /// Listen at this Unix socket, which only its owner can connect to
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// Listen on the network, without --tls in clear text and for everybody who can connect: PORT (of loopback), or HOST:PORT with a numeric host
    #[arg(long, value_name = "ADDR", value_parser = address)]
    pub(crate) listen: Option<SocketAddr>,
    /// Connections at a time
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) connections: u16,
    /// The checkpoint
    #[arg(value_name = "GUEST[@N|@latest]")]
    pub(crate) checkpoint: Selector,
}

/// A checkpoint with its number: what is latest may change before the command is executed.
fn numbered(text: &str) -> Result<Selector, String> {
    let selector: Selector = text.parse()?;
    match selector.sequence {
        Some(_) => Ok(selector),
        None => Err("give the number of the checkpoint: GUEST@N".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    /// A command line that has nothing else.
    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        _checkpoint: Checkpoint,
    }

    #[test]
    fn subject_is_a_guest_or_memory_of_a_program() {
        let parse = |line: &str| Line::try_parse_from(format!("checkpoint {line}").split(' '));
        for good in [
            "init --store /s",
            "init --store /s --encrypt --key-file /k",
            "show --store /s --key-command pass guest0@1",
            "key generate /k",
            "key list --store /s --key-file /k",
            "key add --store /s --key-file /k --new-key-file /n",
            "key rotate --store /s --key-file /k --new-key-command n --new-generation",
            "key remove --store /s --key-file /k 0123",
            "create --store /s --qmp /q",
            "create --store /s --pid 7 --memory /dev/shm/ram --name data",
            "create --store /s --qmp /q --every 30 --count 3 --min-pages 100 --copies 1G --timeout 5 --store-timeout 600 --rewrite 1G --tag a --tag b",
            "create --store /s --qmp /q --agent /a --freeze always --agent-timeout 2",
            "create --store /s --qmp /q --disks /o --before true --resumed true --after true --hook-timeout 5",
            "restore --store /s --qmp /q --disks /o guest0 -- qemu",
            "restore --store /s --qmp /q --agent /a guest0 -- qemu",
            "restore --store /s guest0",
            "restore --store /s guest0@3 --qmp /q -- qemu -incoming defer",
            "restore --store /s --qmp /q --paused guest0@latest -- qemu",
            "base --store /s guest0@3",
            "base --store /s --key-file /k --name web --owner 107:107 --no-background guest0",
            "clone --base web --qmp /q -- qemu -incoming defer",
            "clone --base web --key-file /k --qmp /q --paused --agent /a --disks /o -- qemu",
            "export --store /s --format raw --output /o guest0",
            "export --store /s --format qemu --output /o --force guest0@3",
            "list --store /s",
            "list --store /s guest0",
            "show --store /s guest0@1",
            "rm --store /s guest0@1 guest0@2",
            "protect --store /s --off guest0@1",
            "create --store /s --qmp /q --every 30 --tag a --keep-last 10 --keep-hourly 24 --keep-tag a",
            "prune --store /s --keep-within 3600 --dry-run guest0",
            "verify --store /s --read-data 10 guest0@1 guest0",
            "diff --store /s guest0@1 guest0@2",
            "gc --store /s --grace 60 --dry-run",
            "squash --store /s --rewrite 1G --by-access --dry-run guest0@1..latest",
            "merge-overlays --store /s --qmp /q --dry-run",
            "mount --store /s /mnt",
            "mount --store /s --key-file /k --timeout 5 /mnt",
            "nbd --store /s --socket /run/nbd guest0@3",
            "nbd --store /s --listen 10809 --connections 4 guest0",
        ] {
            if let Err(error) = parse(good) {
                panic!("{good}: {error}");
            }
        }
        for bad in [
            "create --qmp /q",
            "create --store /s",
            "create --store /s --qmp /q --pid 7 --memory ram",
            "create --store /s --pid 7",
            "create --store /s --qmp /q --name a/b",
            "create --store /s --qmp /q --count 3",
            "create --store /s --qmp /q --every 0",
            "create --store /s --qmp /q --copies 0",
            "create --store gs://bucket --qmp /q",
            "show --store /s --key-command pass --key-file /k guest0@1",
            "key list",
            "key add --store /s --key-file /k",
            "key rotate --store /s --key-file /k --new-key-command n --new-key-file n",
            "create --store /s --qmp /q --freeze always",
            "create --store /s --pid 7 --memory ram --disks /o",
            "create --store /s --qmp /q --agent /a --freeze often",
            "restore --store /s",
            "restore --store /s guest0 -- qemu",
            "restore --store /s guest0 --qmp /q",
            "restore --store /s guest0@0",
            "base --store /s",
            "base --store /s --name a/b guest0",
            "clone --qmp /q -- qemu",
            "clone --base web -- qemu",
            "clone --base web --qmp /q",
            "export --store /s --output /o guest0",
            "export --store /s --format elf --output /o guest0",
            "rm --store /s guest0",
            "verify --store /s --read-data 101 guest0@1",
            "diff --store /s guest0@1",
            "rm --store /s guest0@latest",
            "merge-overlays --store /s",
            "mount --store /s",
            "mount --store /s --timeout 0 /mnt",
            "nbd --store /s guest0@3",
            "nbd --store /s --socket /q --listen 10809 guest0@3",
            "nbd --store /s --socket /q --connections 0 guest0@3",
            "nbd --store /s --listen 0.0.0.0:10809 --socket /q",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
